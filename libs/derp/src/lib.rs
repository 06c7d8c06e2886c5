//! DERP, the protocol of relays that forward sealed packets between node keys.
//!
//! * [`NodeKey`], [`NodeSecret`], [`ClusterIdentity`], [`RelayUrl`]: the names by which nodes, clusters and relays are known.
//! * [`Message`], [`FrameBuffer`]: frames, as pure functions on bytes.
//! * [`ClientInfo`], [`ServerInfo`]: the boxes of the handshake.
//! * [`pass`]: signed statements that a key may use a relay. [`Refusal`]: why it may not.
//! * `client` (feature `client`): one connection to a relay that is kept up.
//! * `websocket` (feature `websocket`): frames through proxies that pass no other upgrade.
//!
//! A connection goes like this:
//!
//! 1. HTTP upgrade to `DERP` (or a WebSocket whose messages are one stream of bytes).
//! 2. Server: ServerKey. Client: ClientInfo. Server: ServerInfo, which is always the next frame.
//! 3. Client: SendPacket; server: RecvPacket; either: Ping and Pong; server: KeepAlive every minute.

#[cfg(feature = "client")]
pub mod client;
mod frame;
mod handshake;
mod identity;
mod key;
mod metacert;
pub mod pass;
mod refusal;
mod url;
#[cfg(feature = "websocket")]
pub mod websocket;

pub use frame::{
    FrameBuffer, FrameError, FrameType, Frames, HEADER_LEN, MAX_CLIENT_INFO, MAX_FRAME, MAX_PACKET,
    Message, PeerGoneReason, RawFrame, Split, VERSION, put_packet_header, split_frame,
};
pub use handshake::{BoxNonce, ClientInfo, OpenError, ServerInfo};
pub use identity::{ClusterIdentity, ClusterSecret, IdentityError};
pub use key::{KEY_LEN, KeyError, NoRandomness, NodeKey, NodeSecret};
pub use metacert::{METACERT_PREFIX, metacert_key};
pub use refusal::Refusal;
pub use url::{RelayUrl, UrlError};
