//! From decisions to what is said.

use std::collections::BTreeMap;
use std::time::SystemTime;

use derp::pass::Membership;
use jiff::Timestamp;
use sync::{
    Audience, ClusterIdentity, ClusterSecret, JoinOffer, JoinTiming, Token, TokenError, Welcome,
};

use crate::action::JoinOrder;
use crate::world::{JoinAttempt, JoinCode, JoinFailure, JoinOutcome};

/// As they are sent.
pub(super) fn memberships(
    memberships: &BTreeMap<ClusterIdentity, Membership>,
) -> BTreeMap<ClusterIdentity, String> {
    let text = |(identity, membership): (&ClusterIdentity, &Membership)| {
        (*identity, membership.to_string())
    };
    memberships.iter().map(text).collect()
}

/// Tries to join once.
pub(super) async fn join(
    order: &JoinOrder,
    secret: &ClusterSecret,
) -> Result<Welcome, JoinFailure> {
    let token = order.token.parse::<Token>().map_err(|error: TokenError| {
        let message = error.to_string();
        JoinFailure {
            code: JoinCode::BadToken,
            message,
        }
    })?;
    if token.is_expired(SystemTime::now()) {
        return Err(JoinFailure {
            code: JoinCode::Expired,
            message: "the token has expired; ask for a new one".to_owned(),
        });
    }
    let offer = JoinOffer {
        audience: Audience::Cluster,
        cluster_name: order.attempt.cluster_name.clone(),
        cidrs: order.attempt.cidrs.clone(),
    };
    let welcome = sync::join(&token, secret, offer, JoinTiming::default()).await;
    welcome.map_err(|error| JoinFailure::from(&error))
}

/// What came of an attempt, after the one before.
pub(super) fn outcome(
    attempt: JoinAttempt,
    result: Result<Welcome, JoinFailure>,
    before: Option<&JoinOutcome>,
    at: Timestamp,
) -> JoinOutcome {
    let before = before.filter(|before| before.attempt == attempt);
    let failures = before.map_or(0, |before| before.failures);
    JoinOutcome {
        attempt,
        at,
        failures: match result {
            Ok(_) => 0,
            Err(_) => failures.saturating_add(1),
        },
        result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(token: &str) -> JoinAttempt {
        JoinAttempt {
            token: token.to_owned(),
            secret: "uid".to_owned(),
            cluster_name: "tokyo".parse().expect("a name"),
            cidrs: vec![],
        }
    }

    fn failed() -> Result<Welcome, JoinFailure> {
        Err(JoinFailure {
            code: JoinCode::Busy,
            message: String::new(),
        })
    }

    #[test]
    fn failures_in_a_row_are_counted_by_attempt() {
        let at = Timestamp::UNIX_EPOCH;
        let first = outcome(attempt("a"), failed(), None, at);
        assert_eq!(first.failures, 1);
        let second = outcome(attempt("a"), failed(), Some(&first), at);
        assert_eq!(second.failures, 2);
        let other = outcome(attempt("b"), failed(), Some(&second), at);
        assert_eq!(other.failures, 1);
        let welcome = Welcome {
            cluster_name: "berlin".parse().expect("a name"),
            cidrs: vec![],
            accepted: vec![],
            membership: None,
        };
        let done = outcome(attempt("a"), Ok(welcome), Some(&second), at);
        assert_eq!(done.failures, 0);
    }

    #[tokio::test]
    async fn what_is_no_token_is_not_tried() {
        let secret = ClusterSecret::generate().expect("randomness");
        let order = JoinOrder {
            token: "nonsense".to_owned(),
            attempt: attempt("a"),
        };
        let failure = join(&order, &secret).await.expect_err("no token");
        assert_eq!(failure.code, JoinCode::BadToken);
    }
}
