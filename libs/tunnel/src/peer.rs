//! One remote node as the data path sees it: sessions, the path data takes, and what waits for either.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use derp::NodeKey;
use traversal::Path;
use traversal::control::Control;

use crate::batch::Batch;
use crate::relay_link::RelayLink;
use crate::sockets::Sockets;
use crate::wireguard::{Noise, OVERHEAD};

/// Packets that wait for a session; the oldest gives way.
const STAGED_PACKETS: usize = 128;
/// Bytes that wait while a promotion is under way.
const HELD_BYTES: usize = 1 << 20;
/// What has waited longer is of no use to anybody.
const STAGED_AGE: Duration = Duration::from_secs(5);

/// A remote node. Cheap until its tunnel wakes.
pub(crate) struct Peer {
    pub(crate) key: NodeKey,
    /// Names this peer in the receiver index of its sessions; below 2^24.
    pub(crate) index: u32,
    pub(crate) counters: Counters,
    /// Set while packets wait for a session, so that the driver hears of it once.
    pub(crate) wanted: AtomicBool,
    state: Mutex<PeerState>,
}

/// Traffic of pods, by path where that matters. Times are milliseconds since the tunnel's start, 0 for never.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tx_bytes: AtomicU64,
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) tx_direct_bytes: AtomicU64,
    pub(crate) rx_direct_bytes: AtomicU64,
    pub(crate) last_tx: AtomicU64,
    pub(crate) last_rx: AtomicU64,
    /// Packets that waited too long, gave way to newer ones, or that the kernel did not take.
    pub(crate) dropped: AtomicU64,
}

/// What is guarded by the peer's lock: order within a flow is the order in which the lock was taken.
pub(crate) struct PeerState {
    pub(crate) noise: Option<Noise>,
    pub(crate) path: Path,
    /// The relay to reach the peer by: where it was heard last.
    pub(crate) relay: Option<Arc<RelayLink>>,
    /// Data waits for a promotion to finish.
    pub(crate) holding: bool,
    /// When we last sent an initiation of our own.
    pub(crate) initiated: Option<Instant>,
    /// When keys were last agreed.
    pub(crate) handshake: Option<SystemTime>,
    /// When a probe was answered last.
    pub(crate) probed_at: Option<SystemTime>,
    /// Where the last authenticated packet came from.
    pub(crate) heard: Option<Path>,
    /// No longer admitted. The data threads may hold an older snapshot for a moment; nothing revives the keys.
    revoked: bool,
    staged: VecDeque<Staged>,
    staged_bytes: usize,
}

struct Staged {
    packet: Vec<u8>,
    ecn: u8,
    since: Instant,
}

/// An inner packet, padded to WireGuard's block in a buffer of its owner.
#[derive(Clone, Copy)]
pub(crate) struct Padded<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) ecn: u8,
}

/// Where a message leaves.
#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    Direct(SocketAddr),
    Relay(&'a RelayLink),
}

/// What became of data handed to a peer.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Packets wait for a session.
    pub(crate) needs_session: bool,
    /// The kernel refused to send there.
    pub(crate) unreachable: Option<SocketAddr>,
}

impl Peer {
    pub(crate) fn new(key: NodeKey, index: u32) -> Self {
        Self {
            key,
            index,
            counters: Counters::default(),
            wanted: AtomicBool::new(false),
            state: Mutex::new(PeerState::new()),
        }
    }

    /// Takes the lock. A thread that panicked under it leaves sessions that at worst fail to authenticate.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends packets on the current path, in order, or stages them until there is one.
    pub(crate) fn send<'p>(
        &self,
        packets: impl Iterator<Item = Padded<'p>>,
        sockets: &Sockets,
        batch: &mut Batch,
        now: Instant,
    ) -> Outcome {
        let mut state = self.lock();
        let has_session = state.noise.as_ref().is_some_and(Noise::has_session);
        if state.revoked {
            return Outcome::default();
        }
        if state.holding || !has_session {
            packets.for_each(|packet| state.stage(packet, now, &self.counters));
            return Outcome {
                needs_session: !has_session,
                unreachable: None,
            };
        }
        Outcome {
            needs_session: false,
            unreachable: state.send_now(&self.key, packets, sockets, batch, &self.counters),
        }
    }
}

impl PeerState {
    fn new() -> Self {
        Self {
            noise: None,
            path: Path::Relay,
            relay: None,
            holding: false,
            initiated: None,
            handshake: None,
            probed_at: None,
            heard: None,
            revoked: false,
            staged: VecDeque::new(),
            staged_bytes: 0,
        }
    }

    /// Tells the node that it is no longer admitted, on the path in use; it may have no session.
    pub(crate) fn dismiss(&mut self, key: &NodeKey, sockets: &Sockets) {
        let relay = self.relay.clone();
        let route = match self.path {
            Path::Direct(address) => Some(Route::Direct(address)),
            Path::Relay => relay.as_deref().map(Route::Relay),
        };
        if let Some(route) = route {
            // Who does not hear of it finds out by himself: nothing is answered any more.
            let _ = self.send_control(key, &Control::Bye.encode(), route, None, sockets);
        }
    }

    /// Takes keys and waiting packets away for good.
    pub(crate) fn revoke(&mut self) {
        self.sleep();
        (self.revoked, self.relay) = (true, None);
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// Forgets sessions, and packets that nobody can be asked to take.
    pub(crate) fn sleep(&mut self) {
        (self.noise, self.holding) = (None, false);
        (self.staged, self.staged_bytes) = (VecDeque::new(), 0);
    }

    /// Lets go what waited, on the current path. Without a session it goes on waiting for one.
    pub(crate) fn release(
        &mut self,
        key: &NodeKey,
        sockets: &Sockets,
        batch: &mut Batch,
        counters: &Counters,
    ) -> Option<SocketAddr> {
        self.holding = false;
        if !self.noise.as_ref().is_some_and(Noise::has_session) {
            return None;
        }
        let waiting = std::mem::take(&mut self.staged);
        self.staged_bytes = 0;
        let is_fresh = |staged: &&Staged| staged.since.elapsed() < STAGED_AGE;
        let fresh = waiting.iter().filter(is_fresh);
        let stale = u64::try_from(waiting.len() - fresh.clone().count()).unwrap_or(u64::MAX);
        counters.dropped.fetch_add(stale, Ordering::Relaxed);
        let fresh = fresh.map(|staged| Padded {
            bytes: &staged.packet,
            ecn: staged.ecn,
        });
        self.send_now(key, fresh, sockets, batch, counters)
    }

    /// Seals one control packet and sends it on `route`; `false` without a session.
    pub(crate) fn send_control(
        &mut self,
        key: &NodeKey,
        packet: &[u8],
        route: Route<'_>,
        ttl: Option<u8>,
        sockets: &Sockets,
    ) -> Result<bool, SocketAddr> {
        let Some(noise) = self.noise.as_mut() else {
            return Ok(false);
        };
        let mut sealed = vec![0; padded_length(packet.len(), usize::MAX) + OVERHEAD];
        let mut plain = packet.to_vec();
        plain.resize(sealed.len() - OVERHEAD, 0);
        if !noise.seal(&plain, &mut sealed) {
            return Ok(false);
        }
        send_message(key, &sealed, route, ttl, sockets).map(|()| true)
    }

    /// The route of the current path; `None` when that is the relay and no relay is up.
    pub(crate) fn route(&self) -> Option<Route<'_>> {
        match self.path {
            Path::Direct(address) => Some(Route::Direct(address)),
            Path::Relay => self.relay.as_deref().map(Route::Relay),
        }
    }

    fn stage(&mut self, packet: Padded<'_>, now: Instant, counters: &Counters) {
        let full = |state: &Self| match state.holding {
            true => state.staged_bytes + packet.bytes.len() > HELD_BYTES,
            false => state.staged.len() >= STAGED_PACKETS,
        };
        while full(self) {
            let Some(oldest) = self.staged.pop_front() else {
                break;
            };
            self.staged_bytes -= oldest.packet.len();
            counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.staged_bytes += packet.bytes.len();
        self.staged.push_back(Staged {
            packet: packet.bytes.to_vec(),
            ecn: packet.ecn,
            since: now,
        });
    }

    fn send_now<'p>(
        &mut self,
        key: &NodeKey,
        packets: impl Iterator<Item = Padded<'p>>,
        sockets: &Sockets,
        batch: &mut Batch,
        counters: &Counters,
    ) -> Option<SocketAddr> {
        let max_segments = match self.path {
            Path::Direct(address) => sockets.max_segments(address),
            Path::Relay => crate::batch::MAX_SEGMENTS,
        };
        let mut unreachable = None;
        batch.clear();
        for packet in packets {
            let sealed = packet.bytes.len() + OVERHEAD;
            if !batch.fits(sealed, packet.ecn, max_segments) {
                unreachable = self.flush(key, sockets, batch, counters).or(unreachable);
            }
            let Some(noise) = self.noise.as_mut() else {
                break;
            };
            if !batch.push(sealed, packet.ecn, |out| noise.seal(packet.bytes, out)) {
                counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.flush(key, sockets, batch, counters).or(unreachable)
    }

    fn flush(
        &self,
        key: &NodeKey,
        sockets: &Sockets,
        batch: &mut Batch,
        counters: &Counters,
    ) -> Option<SocketAddr> {
        if batch.is_empty() {
            return None;
        }
        let bytes = u64::try_from(batch.bytes().len()).unwrap_or(u64::MAX);
        let sent = match self.route() {
            Some(Route::Direct(address)) => sockets
                .send(address, batch)
                .map_err(|error| (error, Some(address))),
            Some(Route::Relay(link)) => {
                link.outbox.push(key, batch.bytes(), batch.segment_size());
                Ok(())
            }
            None => Err((std::io::ErrorKind::NotConnected.into(), None)),
        };
        let segments = u64::try_from(batch.segments()).unwrap_or(u64::MAX);
        batch.clear();
        match sent {
            Ok(()) => {
                counters.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
                if matches!(self.path, Path::Direct(_)) {
                    counters.tx_direct_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                None
            }
            Err((error, address)) => {
                counters.dropped.fetch_add(segments, Ordering::Relaxed);
                tracing::debug!(%error, peer = ?key, "batch not sent");
                address.filter(|_| is_unreachable(&error))
            }
        }
    }
}

/// Sends one sealed message or handshake; `Err` carries an address the kernel has no way to.
pub(crate) fn send_message(
    key: &NodeKey,
    message: &[u8],
    route: Route<'_>,
    ttl: Option<u8>,
    sockets: &Sockets,
) -> Result<(), SocketAddr> {
    match route {
        Route::Relay(link) => link.outbox.push(key, message, message.len()),
        Route::Direct(address) => {
            if let Err(error) = sockets.send_one(address, message, ttl) {
                tracing::debug!(%error, peer = ?key, "message not sent");
                if is_unreachable(&error) {
                    return Err(address);
                }
            }
        }
    }
    Ok(())
}

/// Length after padding to WireGuard's 16-byte block, never beyond `mtu` unless the packet itself is.
pub(crate) fn padded_length(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu.max(length))
}

fn is_unreachable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, PermissionDenied};
    matches!(
        error.kind(),
        HostUnreachable | NetworkUnreachable | PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged_after(holding: bool, packets: usize, len: usize) -> (usize, u64) {
        let (mut state, counters) = (PeerState::new(), Counters::default());
        state.holding = holding;
        let bytes = vec![0; len];
        for _ in 0..packets {
            state.stage(
                Padded {
                    bytes: &bytes,
                    ecn: 0,
                },
                Instant::now(),
                &counters,
            );
        }
        (state.staged.len(), counters.dropped.load(Ordering::Relaxed))
    }

    #[test]
    fn what_waits_for_a_session_is_bounded_in_packets() {
        assert_eq!(staged_after(false, 200, 100), (STAGED_PACKETS, 72));
    }

    #[test]
    fn what_waits_for_a_promotion_is_bounded_in_bytes() {
        assert_eq!(
            staged_after(true, 1_000, 1_280),
            (HELD_BYTES / 1_280, 1_000 - 819)
        );
    }

    fn peer() -> (Peer, Sockets) {
        let key = derp::NodeSecret::from_bytes([7; 32]).public();
        let sockets = Sockets::bind(0, true).unwrap();
        (Peer::new(key, 1), sockets)
    }

    fn send(peer: &Peer, sockets: &Sockets) -> Outcome {
        let packet = Padded {
            bytes: &[0; 64],
            ecn: 0,
        };
        peer.send(
            [packet].into_iter(),
            sockets,
            &mut Batch::new(),
            Instant::now(),
        )
    }

    #[test]
    fn a_path_that_ends_without_a_session_loses_nothing_that_waits() {
        let (peer, sockets) = peer();
        assert!(send(&peer, &sockets).needs_session);
        let mut state = peer.lock();
        state.holding = true;
        state.release(&peer.key, &sockets, &mut Batch::new(), &peer.counters);
        assert_eq!((state.staged.len(), state.holding), (1, false));
        assert_eq!(peer.counters.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn sleep_and_revocation_leave_no_packet_behind() {
        let (peer, sockets) = peer();
        let waiting = || {
            let state = peer.lock();
            (state.staged.len(), state.staged_bytes)
        };
        send(&peer, &sockets);
        assert_eq!(waiting(), (1, 64));
        peer.lock().sleep();
        assert_eq!(waiting(), (0, 0));
        peer.lock().revoke();
        assert!(!send(&peer, &sockets).needs_session, "nobody is woken");
        assert_eq!(waiting(), (0, 0));
    }

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!(padded_length(41, 1_280), 48);
        assert_eq!(padded_length(1_279, 1_279), 1_279);
        assert_eq!(padded_length(1_300, 1_280), 1_300);
    }
}
