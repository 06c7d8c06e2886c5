//! Cluster to cluster: what operators, and hosts that have joined, tell each other about their nodes.
//!
//! * [`ClusterIdentity`], [`ClusterSecret`]: who a cluster is. Its address on relays is derived from it, never the reverse.
//! * [`NodeRecord`], [`Records`], [`Message`], [`MessageBuffer`]: what is said, as pure functions on bytes.
//! * [`Session`]: one conversation without I/O: greeting, full state, deltas, acknowledgements. [`Arbiter`]: which of
//!   several connections of one peer lives.
//! * [`Sync`]: all peers of a cluster over QUIC, whose datagrams ride on relays.
//! * [`Token`], [`join()`]: how a cluster or host comes to be another's peer.
//!
//! What a peer says is a proposal. This crate bounds it and parses it into types; whether a name, key or prefix may be
//! used is for whoever reads the [`PeerView`] to decide.

mod channel;
mod join;
mod message;
mod quic;
mod session;
mod token;

pub use channel::{
    Config, DownReason, Inputs, PeerState, PeerView, Relay, RelayState, Sync, Timing,
};
pub use derp::{ClusterIdentity, ClusterSecret, IdentityError};
pub use join::{
    JoinAnswer, JoinError, JoinOffer, JoinRequest, JoinTiming, Refused, RefusedCode, Welcome, join,
};
pub use message::{
    CloseReason, ClusterName, DecodeError, Delta, Hello, MAX_MESSAGE, MAX_NODE_PREFIXES, MAX_NODES,
    MAX_PREFIXES, MAX_STATEMENT, Message, MessageBuffer, NameError, NodeName, NodeRecord,
    RecordError, Records, Refusal, StatePart, TooMuch, VERSION,
};
pub use quic::SetupError;
pub use session::{Arbiter, Dialler, Event, Limits, Session, SessionError, Verdict};
pub use token::{Audience, MAX_TOKEN, MAX_TOKEN_RELAYS, Token, TokenError, TokenRelay};
