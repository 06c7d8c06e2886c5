//! The thread from the network to the TUN device: demultiplexes by receiver index, never by source address.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use derp::NodeKey;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use traversal::control::Control;
use traversal::{Path, stun};

use crate::batch::Batch;
use crate::packet::{ECN_CE, Header, clamp_mss, mark_congestion};
use crate::peer::{Peer, PeerState, Route, send_message};
use crate::relay_link::RelayLink;
use crate::shared::{DataEvent, Directory, Shared, count};
use crate::sockets::Slots;
use crate::wireguard::{Gate, Message, Noise, Opened, Refusal};

/// How long one wait may last before the stop flag is looked at again.
const WAIT_MS: u16 = 250;
/// Reads per wake-up and source, so that neither the relay nor the sockets starve the other.
const TURNS: usize = 4;
/// Our own initiation is given this long before the peer's is taken although our key is the lower one.
const TIE_BREAK: Duration = Duration::from_millis(250);

/// Runs until the tunnel stops.
pub(crate) fn run(shared: &Shared) {
    let mut inbound = Inbound::new(shared);
    let mut slots = Slots::new();
    while !shared.is_stopping() {
        wait(shared);
        inbound.directory = shared.directory.load_full();
        for _ in 0..TURNS {
            let read = shared.sockets.receive(&mut slots, |from, ecn, datagram| {
                inbound.handle(&Via::Direct(from), ecn, datagram);
            });
            if read == 0 {
                break;
            }
        }
        inbound.drain_relays();
    }
}

fn wait(shared: &Shared) {
    let (v4, v6) = shared.sockets.descriptors();
    let mut fds = vec![
        PollFd::new(v4, PollFlags::POLLIN),
        PollFd::new(shared.relayed.as_fd(), PollFlags::POLLIN),
    ];
    fds.extend(v6.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    if let Err(error) = poll(&mut fds, PollTimeout::from(WAIT_MS)) {
        tracing::debug!(%error, "poll");
    }
}

/// Where a datagram came from.
enum Via {
    Direct(SocketAddr),
    Relay { link: Arc<RelayLink>, key: NodeKey },
}

impl Via {
    fn path(&self) -> Path {
        match self {
            Self::Direct(from) => Path::Direct(*from),
            Self::Relay { .. } => Path::Relay,
        }
    }

    fn route(&self) -> Route<'_> {
        match self {
            Self::Direct(from) => Route::Direct(*from),
            Self::Relay { link, .. } => Route::Relay(link),
        }
    }

    /// What handshake budgets and cookies are bound to: the address, or on relays the key the relay vouches for.
    fn source(&self) -> IpAddr {
        match self {
            Self::Direct(from) => from.ip(),
            Self::Relay { key, .. } => {
                Ipv6Addr::from(key.as_bytes().first_chunk().copied().unwrap_or([0; 16])).into()
            }
        }
    }
}

struct Inbound<'a> {
    shared: &'a Shared,
    directory: Arc<Directory>,
    /// Opened packets, one at a time.
    plain: Vec<u8>,
    batch: Batch,
    budgets: Budgets,
}

impl<'a> Inbound<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            directory: shared.directory.load_full(),
            plain: vec![0; 65_536],
            batch: Batch::new(),
            budgets: Budgets::new(Instant::now()),
        }
    }

    fn drain_relays(&mut self) {
        for relayed in self.shared.relayed.drain() {
            let Some(link) = self.shared.relay(relayed.relay) else {
                continue;
            };
            for (key, datagram) in relayed.frames() {
                self.handle(
                    &Via::Relay {
                        link: Arc::clone(&link),
                        key,
                    },
                    0,
                    datagram,
                );
            }
        }
    }

    fn handle(&mut self, via: &Via, ecn: u8, datagram: &[u8]) {
        if stun::is_stun(datagram) {
            if let Via::Direct(from) = via {
                self.shared.tell_stun(*from, datagram);
            }
            return;
        }
        match Message::parse(datagram) {
            Some(Message::Data { index }) => self.data(via, index, ecn, datagram),
            Some(Message::Initiation) => self.initiation(via, datagram),
            Some(Message::Response { index } | Message::Cookie { index }) => {
                self.answer(via, index, datagram)
            }
            None => count(&self.shared.drops.malformed),
        }
    }

    fn data(&mut self, via: &Via, index: u32, ecn: u8, datagram: &[u8]) {
        let Some(peer) = self.directory.by_index.get(&index).map(Arc::clone) else {
            return self.unknown_session(via);
        };
        let mut state = peer.lock();
        let Some(noise) = state.noise.as_mut() else {
            drop(state);
            return self.unknown_session(via);
        };
        let had_session = noise.has_session();
        let length = match noise.open(via.source(), datagram, &mut self.plain) {
            Opened::Packet(packet) => packet.len(),
            Opened::Keepalive => 0,
            Opened::Refused(Refusal::NoSession) => {
                drop(state);
                return self.unknown_session(via);
            }
            Opened::Reply(_) | Opened::Duplicate | Opened::Refused(_) => return,
        };
        heard(&mut state, via);
        if !had_session {
            self.established(&peer, &mut state);
        }
        drop(state);
        if length > 0 {
            self.deliver(&peer, via, ecn, length, datagram.len());
        }
    }

    /// An inner packet of `length` bytes lies in `plain`.
    fn deliver(&mut self, peer: &Peer, via: &Via, ecn: u8, length: usize, sealed: usize) {
        let Some(packet) = self.plain.get_mut(..length) else {
            return;
        };
        if Control::is_control(packet) {
            match Control::decode(packet) {
                Ok(message) => self.shared.tell(DataEvent::Control {
                    key: peer.key,
                    via: via.path(),
                    message,
                }),
                Err(error) => tracing::debug!(%error, peer = ?peer.key, "control message"),
            }
            return;
        }
        let Some(header) = Header::parse(packet) else {
            return count(&self.shared.drops.malformed);
        };
        let owner = self.directory.owner(header.source);
        if owner.is_none_or(|owner| owner.key != peer.key) {
            return count(&self.shared.drops.foreign_source);
        }
        if !self.directory.serves(header.destination) {
            return count(&self.shared.drops.foreign_destination);
        }
        if ecn == ECN_CE && !mark_congestion(packet) {
            return count(&self.shared.drops.congestion);
        }
        clamp_mss(packet, self.shared.mtu.load(Ordering::Relaxed));
        if let Err(error) = self.shared.tun.load().write(packet) {
            tracing::trace!(%error, "device write");
            return count(&self.shared.drops.device);
        }
        self.account(peer, via, sealed);
    }

    fn account(&self, peer: &Peer, via: &Via, sealed: usize) {
        let bytes = u64::try_from(sealed).unwrap_or(u64::MAX);
        peer.counters.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        if matches!(via, Via::Direct(_)) {
            peer.counters
                .rx_direct_bytes
                .fetch_add(bytes, Ordering::Relaxed);
        }
        self.shared
            .note_traffic(peer, &peer.counters.last_rx, Instant::now());
    }

    /// Somebody uses a session we do not have, most likely from before a restart of ours: ask for a new one.
    fn unknown_session(&self, via: &Via) {
        count(&self.shared.drops.unknown_session);
        if let Via::Relay { key, .. } = via
            && let Some(peer) = self.directory.by_key.get(key)
        {
            self.shared.want(peer);
        }
    }

    /// mac1, then the budget, then the cookie, then Diffie-Hellman.
    fn initiation(&mut self, via: &Via, datagram: &[u8]) {
        if !self.shared.identity.has_mac1(via.source(), datagram)
            || !self.budgets.take(via.source(), Instant::now())
        {
            return count(&self.shared.drops.handshakes_refused);
        }
        match self.shared.identity.gate(via.source(), datagram) {
            Gate::Pass => {}
            Gate::Cookie(cookie) => return self.reply_unproved(via, &cookie),
            Gate::Refuse => return count(&self.shared.drops.handshakes_refused),
        }
        match self.admitted(via, datagram) {
            Some(peer) => self.respond(via, &peer, datagram),
            None => count(&self.shared.drops.handshakes_refused),
        }
    }

    fn admitted(&self, via: &Via, datagram: &[u8]) -> Option<Arc<Peer>> {
        let initiator = self.shared.identity.initiator(datagram)?;
        match via {
            Via::Relay { key, .. } if *key != initiator => None,
            Via::Relay { .. } | Via::Direct(_) => {
                self.directory.by_key.get(&initiator).map(Arc::clone)
            }
        }
    }

    fn respond(&mut self, via: &Via, peer: &Arc<Peer>, datagram: &[u8]) {
        let mut state = peer.lock();
        if state.is_revoked() || self.loses_tie(&state, peer, via) {
            return;
        }
        let noise = state
            .noise
            .get_or_insert_with(|| Noise::new(&self.shared.identity, &peer.key, peer.index));
        match noise.open(via.source(), datagram, &mut self.plain) {
            Opened::Reply(response) => {
                state.handshake = Some(SystemTime::now());
                // An initiation may be a copy that somebody kept: it says which relay to answer on, and no more.
                note_relay(&mut state, via);
                send_back(self.shared, via, peer, response);
            }
            Opened::Refused(refusal) => tracing::debug!(?refusal, peer = ?peer.key, "initiation"),
            Opened::Packet(_) | Opened::Keepalive | Opened::Duplicate => {}
        }
    }

    /// Without a session both sides may initiate at once: the lower key's initiation stands while it is fresh, unless
    /// the peer is heard on another relay than the one that ours went to, where it may not be.
    fn loses_tie(&self, state: &PeerState, peer: &Peer, via: &Via) -> bool {
        let has_session = state.noise.as_ref().is_some_and(Noise::has_session);
        let fresh = state.initiated.is_some_and(|at| at.elapsed() < TIE_BREAK);
        let met = match via {
            Via::Direct(_) => true,
            Via::Relay { link, .. } => state.relay.as_ref().is_some_and(|ours| ours.id == link.id),
        };
        !has_session && fresh && met && self.shared.key < peer.key
    }

    /// A handshake response or a cookie reply.
    fn answer(&mut self, via: &Via, index: u32, datagram: &[u8]) {
        let Some(peer) = self.directory.by_index.get(&index).map(Arc::clone) else {
            return;
        };
        if !matches!(
            self.shared.identity.gate(via.source(), datagram),
            Gate::Pass
        ) {
            return count(&self.shared.drops.handshakes_refused);
        }
        let mut state = peer.lock();
        let Some(noise) = state.noise.as_mut() else {
            return;
        };
        let had_session = noise.has_session();
        if let Opened::Reply(keepalive) = noise.open(via.source(), datagram, &mut self.plain) {
            send_back(self.shared, via, &peer, keepalive);
            heard(&mut state, via);
            (state.initiated, state.handshake) = (None, Some(SystemTime::now()));
            if !had_session {
                self.established(&peer, &mut state);
            }
        }
    }

    fn established(&mut self, peer: &Peer, state: &mut PeerState) {
        let unreachable = state.release(
            &peer.key,
            &self.shared.sockets,
            &mut self.batch,
            &peer.counters,
        );
        self.shared.tell(DataEvent::Established(peer.key));
        if let Some(address) = unreachable {
            self.shared.tell(DataEvent::Unreachable {
                key: peer.key,
                address,
            });
        }
    }

    /// A cookie goes back to whoever asked; a relay vouches for the key.
    fn reply_unproved(&self, via: &Via, cookie: &[u8]) {
        match via {
            Via::Direct(from) => {
                if let Err(error) = self.shared.sockets.send_one(*from, cookie, None) {
                    tracing::debug!(%error, "cookie reply");
                }
            }
            Via::Relay { link, key } => link.outbox.push(key, cookie, cookie.len()),
        }
    }
}

fn send_back(shared: &Shared, via: &Via, peer: &Peer, message: &[u8]) {
    if let Err(address) = send_message(&peer.key, message, via.route(), None, &shared.sockets) {
        shared.tell(DataEvent::Unreachable {
            key: peer.key,
            address,
        });
    }
}

/// Notes where an authenticated packet came from.
fn heard(state: &mut PeerState, via: &Via) {
    state.heard = Some(via.path());
    note_relay(state, via);
}

/// Answers go out on the relay where the peer was heard. What waited in the queue while its relay was lost does not
/// lead back there: nobody would say again that it is gone.
fn note_relay(state: &mut PeerState, via: &Via) {
    let Via::Relay { link, .. } = via else { return };
    let moved = match &state.relay {
        Some(current) => current.id != link.id && link.is_connected(),
        None => true,
    };
    if moved {
        state.relay = Some(Arc::clone(link));
    }
}

/// Initiations a source may send: a bucket each, shared with the few others that the hash puts there.
///
/// The table is as large as it ever gets, so that a flood from many sources costs neither memory nor a search.
struct Budgets {
    hasher: RandomState,
    buckets: Box<[Bucket]>,
}

#[derive(Clone)]
struct Bucket {
    tokens: f32,
    at: Instant,
}

impl Budgets {
    const RATE: f32 = 20.0;
    const BURST: f32 = 40.0;
    const BUCKETS: usize = 8_192;

    fn new(now: Instant) -> Self {
        let full = Bucket {
            tokens: Self::BURST,
            at: now,
        };
        Self {
            hasher: RandomState::new(),
            buckets: vec![full; Self::BUCKETS].into(),
        }
    }

    fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let hash = self.hasher.hash_one(source);
        let at = usize::try_from(hash).unwrap_or_default() % Self::BUCKETS;
        let Some(bucket) = self.buckets.get_mut(at) else {
            return false;
        };
        (bucket.tokens, bucket.at) = (bucket.level(now), now);
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

impl Bucket {
    fn level(&self, now: Instant) -> f32 {
        let gained = now.saturating_duration_since(self.at).as_secs_f32() * Budgets::RATE;
        (self.tokens + gained).min(Budgets::BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut budgets = Budgets::new(start);
        let source: IpAddr = [203, 0, 113, 7].into();
        assert_eq!((0..100).filter(|_| budgets.take(source, start)).count(), 40);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| budgets.take(source, later)).count(), 20);
    }

    #[test]
    fn a_flood_from_many_sources_takes_no_memory_and_leaves_others_their_share() {
        let start = Instant::now();
        let mut budgets = Budgets::new(start);
        for number in 0..20_000_u32 {
            budgets.take(std::net::Ipv4Addr::from(number).into(), start);
        }
        assert_eq!(budgets.buckets.len(), Budgets::BUCKETS);
        assert!(budgets.take([203, 0, 113, 8].into(), start));
    }
}
