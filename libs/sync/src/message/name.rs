//! Names that a remote cluster may bear: short, and of harmless characters. For display, and to tell records apart.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MAX_LABEL: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

/// Why something is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not a DNS label (RFC 1123).
    #[error("expected 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends")]
    Label,
    /// Not dot-separated DNS labels.
    #[error("expected at most 253 characters: DNS labels with dots between them")]
    Subdomain,
}

/// What a cluster calls itself: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Arc<str>);

/// What a cluster calls a node: a DNS subdomain, as Kubernetes has it. Means nothing outside that cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl ClusterName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NodeName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_label(text) {
            return Ok(Self(text.into()));
        }
        Err(NameError::Label)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label) {
            return Ok(Self(text.into()));
        }
        Err(NameError::Subdomain)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    (1..=MAX_LABEL).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| is_alphanumeric(byte) || *byte == b'-')
        && ends.into_iter().flatten().all(is_alphanumeric)
}

fn is_alphanumeric(byte: &u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken() {
        for text in ["a", "berlin", "7", "node-1", &"x".repeat(63)] {
            assert_eq!(text.parse::<ClusterName>().unwrap().as_str(), text);
        }
        for text in ["ip-10-0-0-1.eu.internal", "a.b.c", "n"] {
            assert_eq!(text.parse::<NodeName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for text in [
            "",
            "-a",
            "a-",
            "A",
            "a b",
            "a\n",
            "ä",
            "a.b",
            "../x",
            &"x".repeat(64),
        ] {
            assert_eq!(text.parse::<ClusterName>(), Err(NameError::Label), "{text}");
        }
        for text in ["", ".", "a.", ".a", "a..b", "a/b", "a\0", &"ab.".repeat(90)] {
            assert_eq!(
                text.parse::<NodeName>(),
                Err(NameError::Subdomain),
                "{text}"
            );
        }
    }
}
