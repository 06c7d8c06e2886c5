//! Cluster to cluster: what operators, and hosts that have joined, tell each other about their nodes.
//!
//! * [`ClusterIdentity`], [`ClusterSecret`]: who a cluster is. Its address on relays is derived from it, never the reverse.
//! * [`NodeRecord`], [`Records`], [`Message`], [`MessageBuffer`]: what is said, as pure functions on bytes.
//! * [`Session`]: one conversation without I/O: greeting, full state, deltas, acknowledgements. [`Arbiter`]: which of
//!   several connections of one peer lives.
//!
//! What a peer says is a proposal. This crate bounds it and parses it into types; whether a name, key or prefix may be
//! used is for whoever reads the it to decide.

mod identity;
mod message;
mod session;

pub use identity::{ClusterIdentity, ClusterSecret, IdentityError};
pub use message::{
    CloseReason, ClusterName, DecodeError, Delta, Hello, MAX_MESSAGE, MAX_NODES, MAX_PREFIXES,
    Message, MessageBuffer, NameError, NodeName, NodeRecord, RecordError, Records, Refusal,
    StatePart, TooMuch, VERSION,
};
pub use session::{Arbiter, Dialler, Event, Limits, Session, SessionError, Verdict};
