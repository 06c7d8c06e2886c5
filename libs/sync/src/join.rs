//! Joining by a token: the one conversation between clusters that do not know each other yet.
//!
//! 1. The inviter makes a temporary identity and puts its secret into a [`Token`](crate::Token), with a pass for the
//!    lobby of its relays. It opens the invite: it tells [`Sync`](crate::Sync) the temporary identity.
//! 2. The joiner, in [`join`], comes to the relays as the temporary identity and connects to the inviter, whose identity
//!    the token names. It says who it is, and proves it by a signature that holds for this invite only.
//! 3. The inviter's operator gets a [`JoinRequest`] and decides. The answer is a [`Welcome`] or [`Refused`].
//!
//! An answer may be lost on its way, so a joiner may ask again, and whoever decides must know by the identity that it has
//! done so before. An invite that is closed is heard no more: to say that it is used up or expired, leave it open and
//! refuse.

mod guest;
mod joiner;
mod message;

pub use joiner::join;
pub use message::{Refused, RefusedCode, Welcome};

pub(crate) use guest::Guest;

use std::time::Duration;

use derp::{ClusterIdentity, Refusal, RelayUrl};
use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::message::ClusterName;
use crate::quic::SetupError;
use crate::token::Audience;

/// What a joiner brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinOffer {
    /// What it is.
    pub audience: Audience,
    /// What it calls itself.
    pub cluster_name: ClusterName,
    /// The ranges of its pods; at most [`MAX_PREFIXES`](crate::MAX_PREFIXES).
    pub cidrs: Vec<IpNet>,
}

/// How long joining takes.
#[derive(Debug, Clone, Copy)]
pub struct JoinTiming {
    /// All of it.
    pub total: Duration,
    /// One attempt to connect to the inviter.
    pub handshake: Duration,
    /// The inviter's decision.
    pub answer: Duration,
}

/// A cluster or host that holds an invite asks to be let in. It has proved to be who it says.
#[derive(Debug)]
pub struct JoinRequest {
    /// The temporary identity of the invite.
    pub invite: ClusterIdentity,
    /// Who asks.
    pub identity: ClusterIdentity,
    /// What it says that it is; `None` if its version does not say.
    pub audience: Option<Audience>,
    /// What it calls itself. A proposal.
    pub cluster_name: ClusterName,
    /// The ranges it brings. A proposal.
    pub cidrs: Vec<IpNet>,
    /// Where the decision goes, within 12 seconds. Nobody takes it if the joiner is gone by then; it will ask again.
    pub answer: oneshot::Sender<JoinAnswer>,
}

/// The decision about a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinAnswer {
    /// It is in.
    Welcome(Welcome),
    /// It is not.
    Refused(Refused),
}

/// Why a cluster could not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// None of the token's relays lets us in. The first of them:
    #[error("the relay {url} cannot be used: {problem}")]
    RelayUnreachable {
        /// Which.
        url: RelayUrl,
        /// Why not, as the relay or the network says it.
        problem: String,
        /// The relay is there, and does not take the token's pass.
        refusal: Option<Refusal>,
    },
    /// A relay lets us in, and the inviter does not answer there.
    #[error(
        "the inviting cluster does not answer: is its operator running, and is the invite still there?"
    )]
    InviterUnreachable,
    /// Who answers is not the inviter.
    #[error("who answers does not have the key of the inviting cluster: use a new token")]
    WrongKey,
    /// The inviter refuses.
    #[error("the inviting cluster refuses: {0}")]
    Refused(Refused),
    /// The inviter says what makes no sense.
    #[error("the inviting cluster gave an answer that makes no sense: its version may be another")]
    Misbehaved,
    /// The token is our own.
    #[error("this token was made by this very cluster: use it in the other one")]
    Ourselves,
    /// More ranges than can be told.
    #[error("more than 64 pod CIDRs")]
    TooMuch,
    /// No TLS or QUIC with the token's key.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl Default for JoinTiming {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(20),
            handshake: Duration::from_secs(4),
            answer: Duration::from_secs(15),
        }
    }
}

impl JoinError {
    /// Whether the same token may work later without anybody doing anything about it here.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::RelayUnreachable { refusal, .. } => !refusal.as_ref().is_some_and(is_final),
            Self::InviterUnreachable => true,
            Self::Refused(refused) => refused.code == RefusedCode::Busy,
            Self::WrongKey
            | Self::Misbehaved
            | Self::Ourselves
            | Self::TooMuch
            | Self::Setup(_) => false,
        }
    }
}

/// Whether a relay has judged the pass. Another joiner with the same token makes it send us away too, for a while.
fn is_final(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::NotAdmitted | Refusal::PassExpired | Refusal::BadPass | Refusal::Denied => true,
        Refusal::Other(_) => false,
    }
}
