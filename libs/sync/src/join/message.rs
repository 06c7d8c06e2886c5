//! What joiner and inviter say: one message each, framed like those between peers.
//!
//! ```json
//! {"join": {"version": 1, "identity": "cluster:...", "kind": "Cluster", "clusterName": "tokyo",
//!           "podCIDRs": ["10.2.0.0/16"], "signature": "<base64>"}}
//! {"welcome": {"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "acceptedCIDRs": ["10.2.0.0/16"],
//!              "membership": "..."}}
//! {"refused": {"code": "NameTaken", "message": "..."}}
//! ```

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use derp::{ClusterIdentity, ClusterSecret};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::{JoinAnswer, JoinOffer};
use crate::message::{Capped, ClusterName, DecodeError, MAX_PREFIXES, frame, is_statement};
use crate::token::Audience;

/// The longest message, without its length.
pub(super) const MAX_BYTES: usize = 16 << 10;
const VERSION: u32 = 1;
/// What is signed begins with this, so that the signature says nothing else.
const DOMAIN: &[u8] = b"culvert join v1";
/// Characters of a message that are shown.
const MAX_TEXT: usize = 256;

/// The inviter's consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// What the inviter calls itself.
    pub cluster_name: ClusterName,
    /// The ranges of its pods; at most [`MAX_PREFIXES`].
    #[serde(rename = "podCIDRs", deserialize_with = "cidrs", default)]
    pub cidrs: Vec<IpNet>,
    /// The ranges of the joiner that it accepts; at most [`MAX_PREFIXES`].
    #[serde(rename = "acceptedCIDRs", deserialize_with = "cidrs", default)]
    pub accepted: Vec<IpNet>,
    /// The statement that the joiner may use its relays.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "statement",
        default
    )]
    pub membership: Option<String>,
}

/// The inviter's refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which kind.
    pub code: RefusedCode,
    /// For people. One line of at most 256 characters.
    #[serde(deserialize_with = "line", default)]
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusedCode {
    /// The invite's time is over.
    Expired,
    /// The invite has been used, by somebody else.
    Used,
    /// Another peer, or the inviter, has the joiner's name.
    NameTaken,
    /// A range of the joiner is in use on the inviter's side.
    Overlap,
    /// The invite does not allow what the joiner brings.
    NotAllowed,
    /// The invite is for a host and a cluster asks, or the reverse.
    WrongAudience,
    /// The joiner has not proved who it is.
    BadProof,
    /// The inviter cannot decide now.
    Busy,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// The joiner's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ask {
    version: u32,
    pub(super) identity: ClusterIdentity,
    /// Versions before this field do not say it, of a cluster or of a host.
    #[serde(default)]
    pub(super) kind: Option<Audience>,
    pub(super) cluster_name: ClusterName,
    #[serde(rename = "podCIDRs", deserialize_with = "cidrs", default)]
    pub(super) cidrs: Vec<IpNet>,
    signature: Signature,
}

/// 64 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Signature([u8; 64]);

#[derive(Serialize, Deserialize)]
struct AskEnvelope {
    join: Ask,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum AnswerOut {
    Welcome(Welcome),
    Refused(Refused),
}

#[derive(Deserialize)]
struct AnswerIn {
    welcome: Option<Welcome>,
    refused: Option<Refused>,
}

impl Ask {
    pub(super) fn new(
        us: &ClusterSecret,
        offer: JoinOffer,
        inviter: ClusterIdentity,
        invite: ClusterIdentity,
    ) -> Self {
        Self {
            version: VERSION,
            identity: us.identity(),
            kind: Some(offer.audience),
            cluster_name: offer.cluster_name,
            cidrs: offer.cidrs,
            signature: Signature(us.sign(&statement_of(inviter, invite))),
        }
    }

    /// Whether the joiner has proved that it has the key it names, for this invite of this inviter. Neither of these two
    /// keys is a joiner's.
    pub(super) fn is_proved(&self, inviter: ClusterIdentity, invite: ClusterIdentity) -> bool {
        let key = self.identity.relay_key();
        key != inviter.relay_key()
            && key != invite.relay_key()
            && self
                .identity
                .verify(&statement_of(inviter, invite), &self.signature.0)
    }

    /// The message with its length before it; `None` if it is too long.
    pub(super) fn encode(self) -> Option<Vec<u8>> {
        if self.cidrs.len() > MAX_PREFIXES {
            return None;
        }
        frame(&AskEnvelope { join: self }, MAX_BYTES)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let envelope: AskEnvelope = serde_json::from_slice(bytes)?;
        Ok(envelope.join)
    }
}

impl JoinAnswer {
    /// The message with its length before it; `None` if it is too long.
    pub(super) fn encode(self) -> Option<Vec<u8>> {
        let envelope = match self {
            Self::Welcome(Welcome {
                cidrs, accepted, ..
            }) if cidrs.len().max(accepted.len()) > MAX_PREFIXES => return None,
            Self::Welcome(welcome) => AnswerOut::Welcome(welcome),
            Self::Refused(refused) => AnswerOut::Refused(Refused {
                message: shown(&refused.message),
                ..refused
            }),
        };
        frame(&envelope, MAX_BYTES)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let answer: AnswerIn = serde_json::from_slice(bytes)?;
        match (answer.welcome, answer.refused) {
            (Some(welcome), _) => Ok(Self::Welcome(welcome)),
            (None, Some(refused)) => Ok(Self::Refused(refused)),
            (None, None) => Err(DecodeError::Kind),
        }
    }
}

impl Refused {
    /// A refusal with a text for people.
    #[must_use]
    pub fn new(code: RefusedCode, message: &str) -> Self {
        Self {
            code,
            message: shown(message),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.code {
            RefusedCode::Expired => "the invite has expired",
            RefusedCode::Used => "the invite has been used",
            RefusedCode::NameTaken => "the cluster name is taken",
            RefusedCode::Overlap => "a range is in use there",
            RefusedCode::NotAllowed => "the invite does not allow this",
            RefusedCode::WrongAudience => "the invite is for another kind of joiner",
            RefusedCode::BadProof => "the proof of our identity does not hold",
            RefusedCode::Busy => "it cannot decide now",
            RefusedCode::Other => "for a reason that this version does not know",
        };
        match self.message.as_str() {
            "" => f.write_str(kind),
            message => write!(f, "{kind}: {message}"),
        }
    }
}

impl TryFrom<String> for Signature {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = STANDARD.decode(text).unwrap_or_default();
        let bytes = bytes.try_into().map(Self);
        bytes.map_err(|_| "expected 64 bytes in base64")
    }
}

impl From<Signature> for String {
    fn from(signature: Signature) -> Self {
        STANDARD.encode(signature.0)
    }
}

/// What a joiner is that does not say it.
/// What the joiner signs.
fn statement_of(inviter: ClusterIdentity, invite: ClusterIdentity) -> Vec<u8> {
    [DOMAIN, inviter.as_bytes(), invite.as_bytes()].concat()
}

fn cidrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Capped::<IpNet, MAX_PREFIXES>::deserialize(deserializer).map(|list| list.0)
}

fn statement<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| is_statement(text)))
}

fn line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| shown(&text))
}

/// One line, short, and nothing in it that a terminal obeys.
fn shown(text: &str) -> String {
    let chars = text.chars().take(MAX_TEXT);
    chars
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

#[cfg(test)]
mod tests;
