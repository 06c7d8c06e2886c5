//! One node whose tunnel is awake: its path finding, its handshakes, its timers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use traversal::{Entropy, Local, Pair, PairEvent, Path, Transmit};

use crate::batch::Batch;
use crate::initiation::Initiation;
use crate::peer::{Peer, PeerState, Route, send_message};
use crate::relay_link::RelayLink;
use crate::shared::Shared;
use crate::sockets::Sockets;
use crate::wireguard::{INITIATION, Identity, Noise};

/// Interval of WireGuard's own timers.
const NOISE_TICK: Duration = Duration::from_millis(250);
/// Packets that nobody has asked for again for this long are no reason to go on knocking.
const WANTED: Duration = Duration::from_secs(15);

/// An awake tunnel.
pub(super) struct Live {
    pub(super) peer: Arc<Peer>,
    pub(super) pair: Pair,
    initiation: Option<Initiation>,
    wanted_at: Instant,
    next_noise: Instant,
    had_session: bool,
    seen_tx: u64,
    seen_rx: u64,
    /// Since when the path has been what it is, by both clocks: the wall clock may be stepped in between.
    since: (Option<Instant>, SystemTime),
    /// When a probe was answered last.
    proven: Option<Instant>,
    /// Kept up without data too.
    kept: bool,
}

/// What the path finding brought about.
#[derive(Debug, Default)]
pub(super) struct Pumped {
    /// A direct path was lost.
    pub(super) lost: bool,
    /// The relay through which nothing comes.
    pub(super) doubted: Option<u64>,
}

/// A relay and its round trip, in the order in which this node should be looked for.
pub(super) type Order = Vec<(Arc<RelayLink>, Option<Duration>)>;

impl Live {
    pub(super) fn new(
        peer: Arc<Peer>,
        now: Instant,
        entropy: Box<dyn Entropy>,
        local: Local,
        sockets: &Sockets,
        (order, refused): (&Order, bool),
    ) -> Self {
        let mut live = Self {
            pair: Pair::new(now, entropy, local),
            seen_tx: 0,
            seen_rx: 0,
            peer,
            initiation: None,
            wanted_at: now,
            next_noise: now,
            had_session: false,
            since: (None, SystemTime::now()),
            proven: None,
            kept: false,
        };
        live.relays_changed(now, sockets, order, refused);
        live
    }

    /// Packets wait for a session.
    pub(super) fn want(&mut self, now: Instant) {
        self.wanted_at = now;
        if !self.has_session() && self.initiation.is_none() {
            self.initiation = Some(Initiation::new(now));
        }
    }

    /// Whether the tunnel is to be kept up without data too, and its path probed.
    pub(super) fn keep(&mut self, kept: bool, now: Instant) {
        if kept != self.kept {
            self.kept = kept;
            self.pair.handle_kept(now, kept);
        }
        if kept {
            self.want(now);
        }
    }

    /// The node has told that it admits us no more: what it takes from now on is a new handshake, if that.
    pub(super) fn dismissed(&mut self, now: Instant) {
        self.peer.lock().sleep();
        self.note_session(now);
        self.pair.handle_unreachable(now, true);
    }

    /// A session came up.
    pub(super) fn established(&mut self, now: Instant) {
        (self.initiation, self.had_session, self.wanted_at) = (None, true, now);
        self.pair.handle_unreachable(now, false);
        self.pair.handle_session(now);
    }

    /// The node has just connected to a relay.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pair.handle_unreachable(now, false);
        if let Some(initiation) = &mut self.initiation {
            initiation.hurry(now);
        }
    }

    /// A relay does not know the node, or knows it no more: look on the next one.
    pub(super) fn absent(&mut self, now: Instant, relay: u64, order: &Order) {
        let mut state = self.peer.lock();
        if state.relay.as_ref().is_none_or(|link| link.id != relay) {
            // The answer to something older; by now another relay is in use.
            return;
        }
        if let Some(initiation) = &mut self.initiation {
            drop(state);
            if initiation.relay_failed(now, order.len()) {
                self.pair.handle_unreachable(now, true);
            }
        } else if let Some((link, rtt)) = after(order, relay) {
            state.relay = Some(Arc::clone(link));
            drop(state);
            self.pair.handle_relay(now, true, rtt.map(|rtt| rtt * 2));
        }
    }

    /// Relays came or went. The one in use stays as long as it is connected.
    pub(super) fn relays_changed(
        &mut self,
        now: Instant,
        sockets: &Sockets,
        order: &Order,
        refused: bool,
    ) {
        let mut state = self.peer.lock();
        let before = state.relay.as_ref().map(|link| link.id);
        let current = before.and_then(|id| order.iter().find(|(other, _)| other.id == id));
        let chosen = current.or_else(|| order.first()).cloned();
        state.relay = chosen.as_ref().map(|(link, _)| Arc::clone(link));
        if let Some((link, _)) = chosen.as_ref().filter(|_| current.is_none()) {
            // The peer answers where it hears us, and may have nothing to say by itself: an empty message tells it.
            let (key, route) = (self.peer.key, Route::Relay(link));
            let _ = state.send_control(&key, &[], route, None, sockets);
        }
        drop(state);
        self.pair.handle_admission(refused);
        // A packet crosses two relay connections; ours is the one whose round trip is known.
        let rtt = chosen.as_ref().and_then(|(_, rtt)| *rtt).map(|rtt| rtt * 2);
        self.pair.handle_relay(now, chosen.is_some(), rtt);
        if chosen.is_some()
            && let Some(initiation) = &mut self.initiation
        {
            initiation.hurry(now);
        }
    }

    /// Reads the traffic counters.
    pub(super) fn note_counters(&mut self, now: Instant) {
        let (tx, rx) = (&self.peer.counters.last_tx, &self.peer.counters.last_rx);
        let (tx, rx) = (tx.load(Ordering::Relaxed), rx.load(Ordering::Relaxed));
        let heard = self.peer.lock().heard;
        let received = (rx != self.seen_rx).then_some(heard).flatten();
        if tx != self.seen_tx || received.is_some() {
            self.pair.handle_traffic(now, tx != self.seen_tx, received);
        }
        (self.seen_tx, self.seen_rx) = (tx, rx);
        if self.peer.wanted.swap(false, Ordering::AcqRel) {
            self.want(now);
        }
    }

    /// Counters, WireGuard's timers, and the age of the path.
    pub(super) fn tick(&mut self, shared: &Shared, now: Instant) {
        self.note_counters(now);
        self.note_path(now);
        if self.kept {
            self.want(now);
        }
        if now < self.next_noise {
            return;
        }
        self.next_noise = now + NOISE_TICK;
        let mut state = self.peer.lock();
        let mut out = [0; INITIATION];
        if let Some(message) = state.noise.as_mut().and_then(|noise| noise.tick(&mut out))
            && let Some(route) = state.route()
            && let Err(address) =
                send_message(&self.peer.key, message, route, None, &shared.sockets)
        {
            self.pair.handle_send_error(now, Path::Direct(address));
        }
        drop(state);
        self.note_session(now);
    }

    /// Sends the initiation that is due, on the relay whose turn it is.
    pub(super) fn initiate(
        &mut self,
        identity: &Identity,
        now: Instant,
        order: impl FnOnce() -> Order,
    ) {
        let Some(initiation) = self
            .initiation
            .as_mut()
            .filter(|initiation| initiation.due() <= now)
        else {
            return;
        };
        if now.saturating_duration_since(self.wanted_at) > WANTED {
            self.initiation = None;
            return;
        }
        let order = order();
        if order.is_empty() {
            initiation.postpone(now);
            return;
        }
        let Some((link, rtt)) = order.get(initiation.relay(now, order.len())) else {
            return;
        };
        let mut state = self.peer.lock();
        state.relay = Some(Arc::clone(link));
        let noise = state
            .noise
            .get_or_insert_with(|| Noise::new(identity, &self.peer.key, self.peer.index));
        if let Some(message) = noise.initiate() {
            link.outbox.push(&self.peer.key, &message, message.len());
            state.initiated = Some(now);
        }
        initiation.sent(now, *rtt);
    }

    /// Carries out what the path finding asks for.
    pub(super) fn pump(&mut self, shared: &Shared, batch: &mut Batch, now: Instant) -> Pumped {
        if self.pair.poll_timeout().is_some_and(|due| due <= now) {
            self.pair.handle_timeout(now);
        }
        let before = self.pair.path();
        let mut pumped = Pumped::default();
        loop {
            let event = self.pair.poll_event();
            let transmit = self.pair.poll_transmit();
            if event.is_none() && transmit.is_none() {
                return pumped;
            }
            if let Some(event) = event {
                self.carry_out(shared, batch, event, now, &mut pumped);
                pumped.lost |= before != Path::Relay && self.pair.path() == Path::Relay;
            }
            if let Some(transmit) = transmit {
                self.transmit(shared, &transmit, now);
            }
        }
    }

    /// The next moment at which something is due here.
    pub(super) fn wake(&self) -> Option<Instant> {
        let initiation = self.initiation.as_ref().map(Initiation::due);
        [self.pair.poll_timeout(), initiation]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nothing to send, no session, nobody waits: only the table entry has to stay.
    pub(super) fn is_asleep(&self, now: Instant) -> bool {
        let asleep = !self.kept
            && self.initiation.is_none()
            && !self.has_session()
            && now.saturating_duration_since(self.wanted_at) > WANTED;
        if asleep {
            self.peer.lock().sleep();
        }
        asleep
    }

    pub(super) fn has_session(&self) -> bool {
        self.peer
            .lock()
            .noise
            .as_ref()
            .is_some_and(Noise::has_session)
    }

    /// Since when the path has been what it is.
    pub(super) fn path_since(&self) -> SystemTime {
        self.since.1
    }

    fn note_path(&mut self, now: Instant) {
        let status = self.pair.status(now);
        if status.since != self.since.0 {
            self.since = (status.since, wall_clock(now, status.since.unwrap_or(now)));
        }
        if status.proven != self.proven {
            self.proven = status.proven;
            self.peer.lock().probed_at = status.proven.map(|proven| wall_clock(now, proven));
        }
    }

    fn note_session(&mut self, now: Instant) {
        let has_session = self.has_session();
        if self.had_session && !has_session {
            self.pair.handle_session_lost(now);
        }
        self.had_session = has_session;
    }

    fn carry_out(
        &mut self,
        shared: &Shared,
        batch: &mut Batch,
        event: PairEvent,
        now: Instant,
        pumped: &mut Pumped,
    ) {
        let peer = Arc::clone(&self.peer);
        let mut state = peer.lock();
        let unreachable = match event {
            PairEvent::Hold { marker } => {
                state.holding = true;
                let (path, packet) = (state.path, marker.encode());
                Self::send_sealed(shared, &peer, &mut state, &packet, path, None)
            }
            PairEvent::DoubtRelay => {
                pumped.doubted = state.relay.as_ref().map(|link| link.id);
                None
            }
            PairEvent::Use(path) => {
                tracing::debug!(peer = ?peer.key, ?path, "path");
                state.path = path;
                state
                    .release(&peer.key, &shared.sockets, batch, &peer.counters)
                    .map(Path::Direct)
            }
        };
        drop(state);
        if let Some(path) = unreachable {
            pumped.lost = true;
            self.pair.handle_send_error(now, path);
        }
    }

    fn transmit(&mut self, shared: &Shared, transmit: &Transmit, now: Instant) {
        let packet = transmit.message.encode();
        let mut state = self.peer.lock();
        let failed = Self::send_sealed(
            shared,
            &self.peer,
            &mut state,
            &packet,
            transmit.via,
            transmit.ttl,
        );
        drop(state);
        if let Some(path) = failed {
            self.pair.handle_send_error(now, path);
        }
    }

    /// Seals and sends a control packet; the path when the kernel has no way there.
    fn send_sealed(
        shared: &Shared,
        peer: &Peer,
        state: &mut PeerState,
        packet: &[u8],
        via: Path,
        ttl: Option<u8>,
    ) -> Option<Path> {
        let relay = state.relay.clone();
        let route = match (via, &relay) {
            (Path::Direct(address), _) => Route::Direct(address),
            (Path::Relay, Some(link)) => Route::Relay(link),
            (Path::Relay, None) => return None,
        };
        state
            .send_control(&peer.key, packet, route, ttl, &shared.sockets)
            .err()
            .map(Path::Direct)
    }
}

/// What the wall clock showed at `at`.
fn wall_clock(now: Instant, at: Instant) -> SystemTime {
    SystemTime::now()
        .checked_sub(now.saturating_duration_since(at))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The relay that is tried after one where the node is not; `None` when there is no other.
fn after(order: &Order, relay: u64) -> Option<&(Arc<RelayLink>, Option<Duration>)> {
    let at = order.iter().position(|(link, _)| link.id == relay)?;
    let others = order.iter().skip(at + 1).chain(order);
    others.into_iter().find(|(link, _)| link.id != relay)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use derp::NodeSecret;
    use traversal::{PathState, Reason};

    use super::*;

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }

    fn relays(ids: &[u64]) -> Order {
        let link = |&id| {
            let link = RelayLink {
                id,
                url: "http://203.0.113.20:8080".parse().unwrap(),
                outbox: Arc::default(),
                connected: AtomicBool::new(true),
            };
            (Arc::new(link), None)
        };
        ids.iter().map(link).collect()
    }

    fn live(now: Instant, order: &Order) -> (Live, Identity, Sockets) {
        let secret = NodeSecret::from_bytes([7; 32]);
        let sockets = Sockets::bind(0, true).unwrap();
        let peer = Arc::new(Peer::new(secret.public(), 1));
        let entropy = Box::new(Zeros);
        let live = Live::new(
            peer,
            now,
            entropy,
            Local::default(),
            &sockets,
            (order, false),
        );
        let identity = Identity::new(&NodeSecret::from_bytes([8; 32]));
        (live, identity, sockets)
    }

    fn relay(live: &Live) -> Option<u64> {
        live.peer.lock().relay.as_ref().map(|link| link.id)
    }

    #[test]
    fn without_a_relay_nothing_is_due_at_once() {
        let now = Instant::now();
        let (mut live, identity, sockets) = live(now, &relays(&[]));
        live.want(now);
        live.initiate(&identity, now, || relays(&[]));
        assert!(live.wake().is_some_and(|due| due > now), "a busy loop");
        live.relays_changed(now, &sockets, &relays(&[4]), false);
        assert_eq!((live.wake(), relay(&live)), (Some(now), Some(4)));
    }

    #[test]
    fn the_relay_in_use_stays_until_it_is_lost() {
        let now = Instant::now();
        let (mut live, _, sockets) = live(now, &relays(&[1]));
        live.relays_changed(now, &sockets, &relays(&[2, 1]), false);
        assert_eq!(relay(&live), Some(1));
        live.relays_changed(now, &sockets, &relays(&[2, 3]), false);
        assert_eq!(relay(&live), Some(2));
        live.relays_changed(now, &sockets, &relays(&[]), true);
        assert_eq!(relay(&live), None);
        assert_eq!(live.pair.status(now).reason, Some(Reason::NotAdmitted));
    }

    #[test]
    fn a_node_that_left_its_relay_is_looked_for_on_the_next() {
        let now = Instant::now();
        let order = relays(&[1, 2, 3]);
        let (mut live, ..) = live(now, &order);
        for (gone, next) in [(1, 2), (2, 3), (3, 1), (2, 1)] {
            live.absent(now, gone, &order);
            assert_eq!(relay(&live), Some(next), "gone from {gone}");
        }
        let one = relays(&[1]);
        live.absent(now, 1, &one);
        assert_eq!(relay(&live), Some(1));
    }

    #[test]
    fn a_node_is_unreachable_when_no_relay_knows_it() {
        let now = Instant::now();
        let order = relays(&[1, 2]);
        let (mut live, identity, _) = live(now, &order);
        live.want(now);
        for relay in [1, 2] {
            assert_eq!(live.pair.status(now).reason, Some(Reason::Probing));
            live.initiate(&identity, now, || order.clone());
            live.absent(now, relay, &order);
        }
        let status = live.pair.status(now);
        assert_eq!(
            (status.state, status.reason),
            (PathState::None, Some(Reason::PeerUnreachable))
        );
    }

    #[test]
    fn a_node_that_is_kept_is_asked_for_ever_and_one_let_go_is_not() {
        let now = Instant::now();
        let order = relays(&[1]);
        let (mut live, identity, _) = live(now, &order);
        let ask = |live: &mut Live, from: u64, seconds: u64| {
            (from..from + seconds).any(|second| {
                let now = now + Duration::from_secs(second);
                let due = live.initiation.as_ref().map(Initiation::due);
                live.keep(live.kept, now);
                live.initiate(&identity, now, || order.clone());
                due.is_some_and(|due| due <= now)
            })
        };
        live.keep(true, now);
        for minute in 0..10 {
            assert!(ask(&mut live, minute * 60, 60), "minute {minute}");
            assert!(!live.is_asleep(now + Duration::from_secs(minute * 60)));
        }
        live.keep(false, now + Duration::from_secs(600));
        ask(&mut live, 600, 60);
        assert!(!ask(&mut live, 660, 60));
        assert!(live.is_asleep(now + Duration::from_secs(720)));
    }
}
