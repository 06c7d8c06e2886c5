//! Frames: a type byte, a big-endian length of four bytes, and a payload.
//!
//! * [`split_frame`] and [`FrameBuffer`] find frames in a stream of bytes.
//! * [`Message`] gives a frame its meaning, and writes it.
//!
//! Frames of unknown type are skipped, whatever their length; known ones are refused beyond their limits before
//! anything is buffered for them.

mod buffer;
mod decode;

pub use buffer::{FrameBuffer, Frames};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::key::{KEY_LEN, NodeKey};

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 5;
/// The largest packet a relay forwards, in bytes, without keys.
pub const MAX_PACKET: usize = 65_536;
/// The largest ClientInfo payload, in bytes.
pub const MAX_CLIENT_INFO: usize = 256 << 10;
/// The largest frame a client accepts, in bytes of payload.
pub const MAX_FRAME: usize = 1 << 20;
/// The protocol version.
pub const VERSION: u32 = 2;

/// What every ServerKey frame begins with: `DERP` and a key in UTF-8.
const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
const MAX_SERVER_KEY: usize = 1 << 10;
const MIN_PING: usize = 8;
const MAX_PING: usize = 1000;
const PEER_PRESENT_LEN: usize = KEY_LEN + 16 + 2 + 1;

/// The type byte of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(
    missing_docs,
    reason = "the variants are those of `Message`, which says what they mean"
)]
pub enum FrameType {
    ServerKey = 0x01,
    ClientInfo = 0x02,
    ServerInfo = 0x03,
    SendPacket = 0x04,
    RecvPacket = 0x05,
    KeepAlive = 0x06,
    NotePreferred = 0x07,
    PeerGone = 0x08,
    PeerPresent = 0x09,
    ForwardPacket = 0x0a,
    WatchConns = 0x10,
    ClosePeer = 0x11,
    Ping = 0x12,
    Pong = 0x13,
    Health = 0x14,
    Restarting = 0x15,
}

/// A frame whose payload has not been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// The type.
    pub kind: FrameType,
    /// Everything after the header.
    pub payload: &'a [u8],
}

/// What the front of a byte stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole frame; `consumed` bytes with its header.
    Frame {
        /// The frame.
        frame: RawFrame<'a>,
        /// Bytes it takes in the stream.
        consumed: usize,
    },
    /// A frame of unknown type: the next `length` bytes, header included, mean nothing.
    Skip {
        /// Bytes to skip, more perhaps than are there.
        length: u64,
    },
    /// Not a whole frame yet; so many bytes are needed from the start of the frame.
    Incomplete {
        /// Bytes of the whole frame, or of its header as long as that is missing.
        needed: usize,
    },
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer or shorter than its type allows.
    #[error("a {kind:?} frame of {length} bytes")]
    Length {
        /// The type.
        kind: FrameType,
        /// The payload's length.
        length: usize,
    },
    /// The payload is not what its type promises.
    #[error("a malformed {kind:?} frame")]
    Payload {
        /// The type.
        kind: FrameType,
    },
}

/// A frame with its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Server to client, first of all: the server's key.
    ServerKey {
        /// The key.
        key: NodeKey,
    },
    /// Client to server: who it is; opened by [`ClientInfo::open`](crate::ClientInfo::open).
    ClientInfo {
        /// The client's key, nonce and box.
        sealed: &'a [u8],
    },
    /// Server to client: the handshake is done; opened by [`ServerInfo::open`](crate::ServerInfo::open).
    ServerInfo {
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Client to server: a packet to forward.
    SendPacket {
        /// To whom.
        destination: NodeKey,
        /// The packet, at most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Server to client: a packet that was forwarded.
    RecvPacket {
        /// From whom.
        source: NodeKey,
        /// The packet, at most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Server to client: nothing but a sign of life.
    KeepAlive,
    /// Client to server: whether this relay is the client's home.
    NotePreferred(bool),
    /// Server to client: a key cannot be reached here (any more).
    PeerGone {
        /// The key.
        key: NodeKey,
        /// Why.
        reason: PeerGoneReason,
    },
    /// Server to client: a key is connected here.
    PeerPresent {
        /// The key.
        key: NodeKey,
        /// Where it connects from, if the server says.
        address: Option<SocketAddr>,
        /// Bits: 1 regular, 2 mesh, 4 prober, 8 not on its ideal node; 0 from servers that do not say.
        flags: u8,
    },
    /// Between relays: a packet of a client of one for a client of the other.
    ForwardPacket {
        /// From whom.
        source: NodeKey,
        /// To whom.
        destination: NodeKey,
        /// The packet, at most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Between relays: asks for [`PeerPresent`](Self::PeerPresent) of every client.
    WatchConns,
    /// Between relays: closes all connections of a key.
    ClosePeer {
        /// The key.
        key: NodeKey,
    },
    /// Asks for a [`Pong`](Self::Pong) with the same bytes.
    Ping([u8; 8]),
    /// The answer to a [`Ping`](Self::Ping).
    Pong([u8; 8]),
    /// Server to client: what is wrong with this connection; empty when all is well again.
    Health(&'a str),
    /// Server to client: the server restarts.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// For how long to try.
        try_for: Duration,
    },
}

/// Why a peer cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerGoneReason {
    /// It was connected and is no more.
    Disconnected,
    /// It is not connected here.
    NotHere,
    /// The connection to the relay that has it broke.
    MeshBroke,
    /// A reason this version does not know.
    Other(u8),
}

/// Reads the header at the front of `bytes`, and the frame if it is complete.
///
/// # Errors
///
/// [`FrameError::Length`] as soon as the header claims a length that its type does not allow.
pub fn split_frame(bytes: &[u8]) -> Result<Split<'_>, FrameError> {
    let Some((&[kind, a, b, c, d], rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Split::Incomplete { needed: HEADER_LEN });
    };
    let claimed = u32::from_be_bytes([a, b, c, d]);
    let Some(kind) = FrameType::from_byte(kind) else {
        return Ok(Split::Skip {
            length: u64::from(claimed) + 5,
        });
    };
    let length = usize::try_from(claimed).unwrap_or(usize::MAX);
    kind.check_length(length)?;
    let consumed = HEADER_LEN + length;
    Ok(match rest.get(..length) {
        Some(payload) => Split::Frame {
            frame: RawFrame { kind, payload },
            consumed,
        },
        None => Split::Incomplete { needed: consumed },
    })
}

/// Writes the header and key of a packet frame; the packet's `length` bytes have to follow.
pub fn put_packet_header(out: &mut Vec<u8>, kind: FrameType, key: &NodeKey, length: usize) {
    put_header(out, kind, KEY_LEN + length);
    out.extend_from_slice(key.as_bytes());
}

impl FrameType {
    /// The type that a byte stands for, if it is known.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::ServerKey,
            0x02 => Self::ClientInfo,
            0x03 => Self::ServerInfo,
            0x04 => Self::SendPacket,
            0x05 => Self::RecvPacket,
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred,
            0x08 => Self::PeerGone,
            0x09 => Self::PeerPresent,
            0x0a => Self::ForwardPacket,
            0x10 => Self::WatchConns,
            0x11 => Self::ClosePeer,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Health,
            0x15 => Self::Restarting,
            _ => return None,
        })
    }

    fn check_length(self, length: usize) -> Result<(), FrameError> {
        let bounds = match self {
            Self::ServerKey => MAGIC.len() + KEY_LEN..=MAX_SERVER_KEY,
            Self::ClientInfo => KEY_LEN + 24..=MAX_CLIENT_INFO,
            Self::ServerInfo => 24..=MAX_FRAME,
            Self::SendPacket | Self::RecvPacket => KEY_LEN..=KEY_LEN + MAX_PACKET,
            Self::ForwardPacket => 2 * KEY_LEN..=2 * KEY_LEN + MAX_PACKET,
            Self::NotePreferred => 1..=1,
            Self::PeerGone | Self::PeerPresent => KEY_LEN..=1 << 10,
            Self::ClosePeer => KEY_LEN..=KEY_LEN,
            Self::Ping | Self::Pong => MIN_PING..=MAX_PING,
            Self::Restarting => 8..=1 << 10,
            Self::KeepAlive | Self::WatchConns => 0..=1 << 10,
            Self::Health => 0..=64 << 10,
        };
        if bounds.contains(&length) {
            return Ok(());
        }
        Err(FrameError::Length { kind: self, length })
    }
}

impl<'a> Message<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the payload is not what its type promises. Bytes after the known fields are ignored.
    pub fn decode(frame: RawFrame<'a>) -> Result<Self, FrameError> {
        frame.kind.check_length(frame.payload.len())?;
        let malformed = FrameError::Payload { kind: frame.kind };
        decode::payload(frame).ok_or(malformed)
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put_header(out, self.kind(), 0);
        self.encode_payload(out);
        let length = clamp_length(out.len() - start - HEADER_LEN).to_be_bytes();
        if let Some(place) = out.get_mut(start + 1..start + HEADER_LEN) {
            place.copy_from_slice(&length);
        }
    }

    /// The frame in a buffer of its own.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// The type of the frame.
    #[must_use]
    pub fn kind(&self) -> FrameType {
        match self {
            Self::ServerKey { .. } => FrameType::ServerKey,
            Self::ClientInfo { .. } => FrameType::ClientInfo,
            Self::ServerInfo { .. } => FrameType::ServerInfo,
            Self::SendPacket { .. } => FrameType::SendPacket,
            Self::RecvPacket { .. } => FrameType::RecvPacket,
            Self::KeepAlive => FrameType::KeepAlive,
            Self::NotePreferred(_) => FrameType::NotePreferred,
            Self::PeerGone { .. } => FrameType::PeerGone,
            Self::PeerPresent { .. } => FrameType::PeerPresent,
            Self::ForwardPacket { .. } => FrameType::ForwardPacket,
            Self::WatchConns => FrameType::WatchConns,
            Self::ClosePeer { .. } => FrameType::ClosePeer,
            Self::Ping(_) => FrameType::Ping,
            Self::Pong(_) => FrameType::Pong,
            Self::Health(_) => FrameType::Health,
            Self::Restarting { .. } => FrameType::Restarting,
        }
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey { key } => put(out, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo { sealed } | Self::ServerInfo { sealed } => put(out, &[sealed]),
            Self::SendPacket {
                destination: key,
                packet,
            }
            | Self::RecvPacket {
                source: key,
                packet,
            } => {
                put(out, &[key.as_bytes(), packet]);
            }
            Self::KeepAlive | Self::WatchConns => {}
            Self::NotePreferred(home) => out.push(u8::from(*home)),
            Self::PeerGone { key, reason } => put(out, &[key.as_bytes(), &[reason.to_byte()]]),
            Self::PeerPresent {
                key,
                address,
                flags,
            } => {
                put(out, &[key.as_bytes(), &address_bytes(*address), &[*flags]]);
            }
            Self::ForwardPacket {
                source,
                destination,
                packet,
            } => {
                put(out, &[source.as_bytes(), destination.as_bytes(), packet]);
            }
            Self::ClosePeer { key } => put(out, &[key.as_bytes()]),
            Self::Ping(bytes) | Self::Pong(bytes) => put(out, &[bytes]),
            Self::Health(text) => put(out, &[text.as_bytes()]),
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                put(out, &[&millis(*reconnect_in), &millis(*try_for)]);
            }
        }
    }
}

impl PeerGoneReason {
    /// The reason that a byte stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0x00 => Self::Disconnected,
            0x01 => Self::NotHere,
            0xf0 => Self::MeshBroke,
            other => Self::Other(other),
        }
    }

    /// The byte that stands for the reason.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Disconnected => 0x00,
            Self::NotHere => 0x01,
            Self::MeshBroke => 0xf0,
            Self::Other(byte) => byte,
        }
    }
}

fn put_header(out: &mut Vec<u8>, kind: FrameType, length: usize) {
    let [a, b, c, d] = clamp_length(length).to_be_bytes();
    out.extend_from_slice(&[kind as u8, a, b, c, d]);
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn clamp_length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

/// An address as 16 + 2 bytes, IPv4 mapped into IPv6; zeros for none.
fn address_bytes(address: Option<SocketAddr>) -> [u8; 18] {
    let mut bytes = [0; 18];
    let Some(address) = address else { return bytes };
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let (left, right) = bytes.split_at_mut(16);
    left.copy_from_slice(&ip.octets());
    right.copy_from_slice(&address.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;
