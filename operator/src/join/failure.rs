//! Ways to fail, in the words of conditions.

use sync::{JoinError, RefusedCode};

use crate::world::{JoinCode, JoinFailure};

/// Longest wait before the next attempt, in seconds.
const MAX_WAIT: i64 = 60;
/// The first wait.
const FIRST_WAIT: i64 = 5;

impl JoinCode {
    /// As a reason of a condition.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Expired => "Expired",
            Self::Used => "Used",
            Self::NameTaken => "NameTaken",
            Self::Overlap => "Overlap",
            Self::NotAllowed => "NotAllowed",
            Self::WrongAudience => "WrongAudience",
            Self::BadProof => "BadProof",
            Self::Busy => "Busy",
            Self::RelayUnreachable => "RelayUnreachable",
            Self::InviterUnreachable => "InviterUnreachable",
            Self::BadToken => "BadToken",
        }
    }

    /// Seconds to wait before the same words are worth another try after that many failures; `None`: they never are.
    #[must_use]
    pub fn wait(self, failures: u32) -> Option<i64> {
        match self {
            Self::RelayUnreachable | Self::InviterUnreachable | Self::Busy => {
                let doubled = FIRST_WAIT << failures.saturating_sub(1).min(8);
                Some(doubled.min(MAX_WAIT))
            }
            // The other side may change its mind.
            Self::NameTaken | Self::Overlap | Self::NotAllowed => Some(MAX_WAIT),
            Self::Expired | Self::Used | Self::WrongAudience | Self::BadProof | Self::BadToken => {
                None
            }
        }
    }
}

impl From<&JoinError> for JoinFailure {
    fn from(error: &JoinError) -> Self {
        let code = match error {
            JoinError::RelayUnreachable { .. } => JoinCode::RelayUnreachable,
            JoinError::InviterUnreachable => JoinCode::InviterUnreachable,
            JoinError::Refused(refused) => of_refusal(refused.code),
            JoinError::WrongKey
            | JoinError::Misbehaved
            | JoinError::Ourselves
            | JoinError::TooMuch
            | JoinError::Setup(_) => JoinCode::BadToken,
        };
        Self {
            code,
            message: format!("{error}{}", advice(error)),
        }
    }
}

/// What to do, where the error does not say it.
fn advice(error: &JoinError) -> &'static str {
    match error {
        JoinError::RelayUnreachable { refusal: None, .. } => {
            "; see that outbound TCP to it is allowed and that it runs; it is tried again"
        }
        JoinError::RelayUnreachable { .. } => "; if this lasts, ask for a new token",
        JoinError::Refused(refused)
            if matches!(refused.code, RefusedCode::Expired | RefusedCode::Used) =>
        {
            "; ask for a new token"
        }
        JoinError::Refused(_)
        | JoinError::InviterUnreachable
        | JoinError::WrongKey
        | JoinError::Misbehaved
        | JoinError::Ourselves
        | JoinError::TooMuch
        | JoinError::Setup(_) => "",
    }
}

/// What a refusal means to a joiner, and what an inviter's Event calls it.
pub(super) fn of_refusal(code: RefusedCode) -> JoinCode {
    match code {
        RefusedCode::Expired => JoinCode::Expired,
        RefusedCode::Used => JoinCode::Used,
        RefusedCode::NameTaken => JoinCode::NameTaken,
        RefusedCode::Overlap => JoinCode::Overlap,
        RefusedCode::NotAllowed => JoinCode::NotAllowed,
        RefusedCode::WrongAudience => JoinCode::WrongAudience,
        RefusedCode::BadProof => JoinCode::BadProof,
        RefusedCode::Busy => JoinCode::Busy,
        RefusedCode::Other => JoinCode::NotAllowed,
    }
}
