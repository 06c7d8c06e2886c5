//! What two clusters say to each other.
//!
//! A stream carries messages, each a 4-byte length (big endian) and that many bytes of JSON: one object with one field,
//! whose name is the kind of message. Unknown kinds and unknown fields are skipped, so that either side may be newer.
//!
//! ```json
//! {"hello": {"version": 1, "clusterName": "berlin", "generation": 4}}
//! {"state": {"sequence": 1, "first": true, "last": true, "nodes": [{"name": "berlin-1", "publicKey": "...",
//!            "homeRelay": "https://relay.example.org", "prefixes": ["10.1.0.0/24"], "generation": 7}]}}
//! {"delta": {"sequence": 2, "nodes": [], "removedNodes": ["berlin-1"]}}
//! {"ack": {"sequence": 2}}
//! {"membership": {"text": "..."}}
//! ```
//!
//! Other lists than `nodes` (services, say) can join `state` and `delta` without a new version.

mod buffer;
mod name;
mod record;
mod statement;
mod wire;

pub use buffer::MessageBuffer;
pub use name::{ClusterName, NameError, NodeName};
pub use record::{
    MAX_NODE_PREFIXES, MAX_NODES, MAX_PREFIXES, NodeRecord, RecordError, Records, Refusal, TooMuch,
};
pub use statement::MAX_STATEMENT;
pub use wire::DecodeError;

pub(crate) use statement::is_statement;
pub(crate) use wire::{Capped, PART_BYTES, encoded_length};

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The version of the conversation that this crate speaks.
pub const VERSION: u32 = 1;
/// The longest message, without its length.
pub const MAX_MESSAGE: usize = 256 << 10;
/// Records, or names, in one message.
pub(crate) const MAX_LIST: usize = 1024;
/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// Something said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first message of either side.
    Hello(Hello),
    /// A part of everything the sender has.
    State(StatePart),
    /// What has changed since.
    Delta(Delta),
    /// Everything up to this sequence number has arrived and been taken over.
    Ack {
        /// The sequence number.
        sequence: u64,
    },
    /// What the sender, as the owner of relays, gives the receiver: the statement that it may use them. Replaces the one
    /// before; without a text there is none any more.
    Membership {
        /// The statement, as relays take it. At most [`MAX_STATEMENT`] bytes.
        text: Option<String>,
    },
    /// A kind that this version does not know. Ignored.
    Unknown,
}

/// The greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The newest version that the sender speaks, from 1.
    pub version: u32,
    /// What the sender calls its cluster. For people to read.
    pub cluster_name: ClusterName,
    /// Which of the sender's processes this is: the newer one, which has the larger number, takes over.
    pub generation: u64,
}

/// A part of the full state: the first starts anew, the last completes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatePart {
    /// Counts the sender's parts and deltas on this connection, from 1.
    pub sequence: u64,
    /// What was said before is void.
    pub first: bool,
    /// Nothing more belongs to it.
    pub last: bool,
    /// Nodes.
    pub nodes: Vec<(NodeName, Arc<NodeRecord>)>,
    /// Nodes that were sent and are none. Never sent by this side.
    pub refused: Vec<Refusal>,
}

/// What has changed: first the removals count, then the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// As in [`StatePart`].
    pub sequence: u64,
    /// Nodes that are new or other than before.
    pub nodes: Vec<(NodeName, Arc<NodeRecord>)>,
    /// Nodes that are no more.
    pub removed_nodes: Vec<NodeName>,
    /// As in [`StatePart`].
    pub refused: Vec<Refusal>,
}

/// Why a conversation is ended. Told to the other side as QUIC's application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The side that closes goes away.
    Shutdown,
    /// A newer generation of the closed side has a connection.
    Superseded,
    /// Another connection of the same two clusters lives.
    Duplicate,
    /// The closed side is not, or no longer, one of the closing side's peers.
    NotAdmitted,
    /// What was said makes no sense.
    Protocol,
    /// Too much was said in too short a time.
    TooFast,
    /// Nothing was said, or acknowledged, for too long.
    Timeout,
    /// A code that this version does not know.
    Other(u64),
}

impl CloseReason {
    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u64 {
        match self {
            Self::Shutdown => 0,
            Self::Superseded => 1,
            Self::Duplicate => 2,
            Self::NotAdmitted => 3,
            Self::Protocol => 4,
            Self::TooFast => 5,
            Self::Timeout => 6,
            Self::Other(code) => code,
        }
    }

    /// What a code means.
    #[must_use]
    pub fn from_code(code: u64) -> Self {
        match code {
            0 => Self::Shutdown,
            1 => Self::Superseded,
            2 => Self::Duplicate,
            3 => Self::NotAdmitted,
            4 => Self::Protocol,
            5 => Self::TooFast,
            6 => Self::Timeout,
            _ => Self::Other(code),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Shutdown => "the other side goes away",
            Self::Superseded => "a newer generation is connected",
            Self::Duplicate => "another connection is in use",
            Self::NotAdmitted => "not a peer of the other side",
            Self::Protocol => "a message that makes no sense",
            Self::TooFast => "too many messages",
            Self::Timeout => "no answer for too long",
            Self::Other(code) => return write!(f, "code {code}"),
        };
        f.write_str(text)
    }
}

impl Message {
    /// The message with its length before it.
    ///
    /// Lists that this crate splits always fit; `None` if a caller's own message is longer than [`MAX_MESSAGE`], or is
    /// [`Message::Unknown`].
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        frame(&wire::envelope(self)?, MAX_MESSAGE)
    }

    /// Reads the bytes of one message, without the length.
    ///
    /// # Errors
    /// When they are no message. Single bad records are no error: they are listed in `refused`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
    }
}

/// JSON with its length before it; `None` if it is longer than that.
pub(crate) fn frame(message: &impl Serialize, longest: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message).ok()?;
    let length = bytes.len() - LENGTH_BYTES;
    if length > longest {
        return None;
    }
    let head = u32::try_from(length).ok()?.to_be_bytes();
    bytes.get_mut(..LENGTH_BYTES)?.copy_from_slice(&head);
    Some(bytes)
}

#[cfg(test)]
mod tests;
