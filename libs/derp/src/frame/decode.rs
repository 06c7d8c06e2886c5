//! The meaning of payloads.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{FrameType, MAGIC, Message, PEER_PRESENT_LEN, PeerGoneReason, RawFrame};
use crate::key::{KEY_LEN, NodeKey};

/// Reads a payload whose length is within the bounds of its type.
pub(super) fn payload(frame: RawFrame<'_>) -> Option<Message<'_>> {
    let RawFrame { kind, payload } = frame;
    Some(match kind {
        FrameType::ServerKey => {
            let rest = payload.strip_prefix(&MAGIC)?;
            Message::ServerKey {
                key: take_key(rest)?.0,
            }
        }
        FrameType::ClientInfo => Message::ClientInfo { sealed: payload },
        FrameType::ServerInfo => Message::ServerInfo { sealed: payload },
        FrameType::SendPacket => {
            let (destination, packet) = take_key(payload)?;
            Message::SendPacket {
                destination,
                packet,
            }
        }
        FrameType::RecvPacket => {
            let (source, packet) = take_key(payload)?;
            Message::RecvPacket { source, packet }
        }
        FrameType::ForwardPacket => {
            let (source, rest) = take_key(payload)?;
            let (destination, packet) = take_key(rest)?;
            Message::ForwardPacket {
                source,
                destination,
                packet,
            }
        }
        FrameType::KeepAlive => Message::KeepAlive,
        FrameType::NotePreferred => Message::NotePreferred(*payload.first()? != 0),
        FrameType::PeerGone => {
            let (key, rest) = take_key(payload)?;
            let reason = PeerGoneReason::from_byte(rest.first().copied().unwrap_or(0));
            Message::PeerGone { key, reason }
        }
        FrameType::PeerPresent => peer_present(payload)?,
        FrameType::WatchConns => Message::WatchConns,
        FrameType::ClosePeer => Message::ClosePeer {
            key: take_key(payload)?.0,
        },
        FrameType::Ping => Message::Ping(*payload.first_chunk()?),
        FrameType::Pong => Message::Pong(*payload.first_chunk()?),
        FrameType::Health => Message::Health(std::str::from_utf8(payload).ok()?),
        FrameType::Restarting => {
            let (&reconnect, rest) = payload.split_first_chunk::<4>()?;
            Message::Restarting {
                reconnect_in: from_millis(reconnect),
                try_for: from_millis(*rest.first_chunk()?),
            }
        }
    })
}

/// 32 bytes are the key alone; 50 add the address, 51 the flags. Anything between counts as the shorter form.
fn peer_present(payload: &[u8]) -> Option<Message<'_>> {
    let (key, rest) = take_key(payload)?;
    let address = rest.first_chunk::<18>().and_then(address_from);
    let flags = rest
        .get(PEER_PRESENT_LEN - KEY_LEN - 1)
        .copied()
        .unwrap_or(0);
    Some(Message::PeerPresent {
        key,
        address,
        flags,
    })
}

fn take_key(bytes: &[u8]) -> Option<(NodeKey, &[u8])> {
    let (key, rest) = bytes.split_first_chunk::<KEY_LEN>()?;
    Some((NodeKey::from_bytes(*key).ok()?, rest))
}

fn from_millis(bytes: [u8; 4]) -> Duration {
    Duration::from_millis(u32::from_be_bytes(bytes).into())
}

fn address_from(bytes: &[u8; 18]) -> Option<SocketAddr> {
    let (ip, rest) = bytes.split_first_chunk::<16>()?;
    let ip = Ipv6Addr::from(*ip);
    let port = u16::from_be_bytes(*rest.first_chunk()?);
    (!ip.is_unspecified()).then(|| SocketAddr::new(ip.to_canonical(), port))
}
