//! Why a relay does not let a client in, as a text that people and programs can read.

use std::fmt;

/// What all refusals begin with.
const HEAD: &str = "not admitted";
/// Characters that are kept of a reason that we do not know.
const MAX_OTHER: usize = 200;

/// Why a relay refuses a client, or ends its connection. Sent as the text of a Health frame: `not admitted`, and in
/// brackets the name of the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The key is not on the relay's list, and no cluster on it vouches for the key.
    NotAdmitted,
    /// The pass, or the membership behind it, has expired.
    PassExpired,
    /// The pass cannot be read, is for another key, or is not signed as it should be.
    BadPass,
    /// The key or its cluster is on an owner's deny list.
    Denied,
    /// What another relay gives as its reason.
    Other(String),
}

impl Refusal {
    /// Reads what a relay says before it closes a connection.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let known = [
            Self::PassExpired,
            Self::BadPass,
            Self::Denied,
            Self::NotAdmitted,
        ];
        let Some(rest) = text.strip_prefix(HEAD) else {
            return Self::Other(text.chars().take(MAX_OTHER).collect());
        };
        let named = known
            .into_iter()
            .find(|reason| rest.starts_with(&format!(" ({})", reason.name())));
        named.unwrap_or(Self::NotAdmitted)
    }

    /// Reads the text of any Health frame: `None` if it is about something else.
    #[must_use]
    pub fn from_health(text: &str) -> Option<Self> {
        text.starts_with(HEAD).then(|| Self::from_text(text))
    }

    fn name(&self) -> &str {
        match self {
            Self::NotAdmitted => "NotAdmitted",
            Self::PassExpired => "PassExpired",
            Self::BadPass => "BadPass",
            Self::Denied => "Denied",
            Self::Other(text) => text,
        }
    }

    fn explanation(&self) -> &'static str {
        match self {
            Self::NotAdmitted => {
                "neither this key nor a cluster that vouches for it is in the relay's admit list"
            }
            Self::PassExpired => "the pass has expired; the operator that issued it renews it",
            Self::BadPass => "the pass cannot be read, is for another key, or is not signed",
            Self::Denied => "the relay's owner has revoked this key or its cluster",
            Self::Other(_) => "",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(text) => f.write_str(text),
            Self::NotAdmitted | Self::PassExpired | Self::BadPass | Self::Denied => {
                write!(f, "{HEAD} ({}): {}", self.name(), self.explanation())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_as_it_is_written() {
        for reason in [
            Refusal::NotAdmitted,
            Refusal::PassExpired,
            Refusal::BadPass,
            Refusal::Denied,
            Refusal::Other("full".to_owned()),
        ] {
            assert_eq!(Refusal::from_text(&reason.to_string()), reason);
        }
    }

    #[test]
    fn other_words_mean_the_same_and_other_health_is_no_refusal() {
        let other_words = "not admitted: ask somebody";
        assert_eq!(Refusal::from_text(other_words), Refusal::NotAdmitted);
        assert_eq!(
            Refusal::from_health("not admitted (Denied)"),
            Some(Refusal::Denied)
        );
        assert_eq!(
            Refusal::from_health("another connection uses the same key"),
            None
        );
        let long = "é".repeat(1000);
        assert_eq!(
            Refusal::from_text(&long),
            Refusal::Other("é".repeat(MAX_OTHER))
        );
    }
}
