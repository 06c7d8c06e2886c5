//! One pair of nodes: from the relay to a direct path and back.

mod budget;
mod drive;
mod hello;
mod ladder;
mod liveness;
mod probes;
mod reason;
mod relay;
mod retry;
mod status;
mod switch;
mod targets;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use self::budget::Outbox;
use self::hello::{Exchange, News};
use self::ladder::{Barrier, Ladder};
use self::liveness::Liveness;
use self::probes::Probes;
pub use self::reason::Reason;
use self::relay::Relay;
use self::retry::Retry;
use self::switch::Hold;
use crate::control::{Control, Hello};
use crate::{Candidate, CandidateContext, CandidateKind, Entropy, NatProfile, acceptable, entropy};

/// A way to reach the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Through a relay.
    Relay,
    /// From the data socket straight to this address.
    Direct(SocketAddr),
}

/// What this node has to offer, and where it will not probe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Local {
    /// The NAT in front of this node.
    pub profile: NatProfile,
    /// Where this node may be reachable.
    pub candidates: Vec<Candidate>,
    /// Pod ranges, mesh ranges and addresses of the device, of this site and of every peer.
    pub own_prefixes: Vec<IpNet>,
    /// Networks this host is directly attached to.
    pub connected: Vec<IpNet>,
}

/// A control message to seal and send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Which way.
    pub via: Path,
    /// Time to live of this one packet; `None` is the system's default.
    pub ttl: Option<u8>,
    /// What.
    pub message: Control,
}

/// What the data path has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairEvent {
    /// Send `marker` as the last packet on the present path, then keep data back until the next [`Self::Use`].
    Hold {
        /// The message to send.
        marker: Control,
    },
    /// Data goes here from now on, first what was kept back.
    Use(Path),
    /// Nothing comes through the relay although something should: is its connection still alive? Asked once per silence.
    DoubtRelay,
}

/// What data uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// A direct path.
    Direct,
    /// A relay.
    Relay,
    /// Nothing, and nothing is wanted.
    Idle,
    /// Nothing, though something is wanted.
    None,
}

/// How a pair stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairStatus {
    /// What data uses now.
    pub state: PathState,
    /// Why not a direct path.
    pub reason: Option<Reason>,
    /// The far end of the direct path.
    pub endpoint: Option<SocketAddr>,
    /// Round trip of the path in use.
    pub rtt: Option<Duration>,
    /// Since when this path is in use.
    pub since: Option<Instant>,
    /// When a probe was answered last: then a path led to the peer and back.
    pub proven: Option<Instant>,
}

/// One pair of nodes, from this one's side.
///
/// The pair begins on the relay. Once there is a session, both sides tell each other where they may be reached, and
/// try: an address that answers a probe becomes the path for data. It stays so while it answers; when it falls silent,
/// data goes back to the relay and the trying begins again.
///
/// Everything handed to [`Self::handle_control`] must have come out of the WireGuard session with the peer.
pub struct Pair {
    entropy: Box<dyn Entropy>,
    local: Local,
    session: bool,
    relay: Relay,
    traffic: Traffic,
    exchange: Exchange,
    /// The next attempt waits for a newer hello of the peer.
    outdated: bool,
    ladder: Ladder,
    retry: Retry,
    probes: Probes,
    /// The direct path that data uses; none: the relay.
    direct: Option<Liveness>,
    /// The direct path that was used last.
    last: Option<SocketAddr>,
    hold: Option<Hold>,
    /// Since when data uses this path.
    since: Instant,
    /// When a probe was answered last.
    proven: Option<Instant>,
    outbox: Outbox,
    events: VecDeque<PairEvent>,
}

/// When pod data moved last.
#[derive(Debug)]
struct Traffic {
    sent: Option<Instant>,
    any: Instant,
    asleep: bool,
    /// Kept up and probed whether there is data or not.
    kept: bool,
}

/// Data this recent makes a path busy.
const BUSY: Duration = Duration::from_secs(2);
/// Without data for this long, the pair sleeps.
const SLEEP: Duration = Duration::from_secs(180);
/// The first data after this long is reason to try again.
const PAUSE: Duration = Duration::from_secs(60);
impl Pair {
    /// A pair that knows nothing yet, on the relay.
    pub fn new(now: Instant, mut entropy: Box<dyn Entropy>, local: Local) -> Self {
        let epoch = entropy::id(entropy.as_mut());
        Self {
            entropy,
            session: false,
            relay: Relay::default(),
            traffic: Traffic {
                sent: None,
                any: now,
                asleep: false,
                kept: false,
            },
            exchange: Exchange::new(epoch, &local),
            local,
            outdated: false,
            ladder: Ladder::default(),
            retry: Retry::default(),
            probes: Probes::default(),
            direct: None,
            last: None,
            hold: None,
            since: now,
            proven: None,
            outbox: Outbox::new(now),
            events: VecDeque::new(),
        }
    }

    /// A WireGuard session came up, the first or a re-keyed one.
    pub fn handle_session(&mut self, now: Instant) {
        let first = !std::mem::replace(&mut self.session, true);
        self.relay.peer_missing = false;
        if first {
            self.traffic.any = now;
            self.wake(now);
        }
        self.relay.probe_soon(now);
        self.exchange.announce(now);
        self.drive(now);
    }

    /// There is no session any more.
    pub fn handle_session_lost(&mut self, now: Instant) {
        self.session = false;
        self.exchange.pause();
        self.ladder.stop();
        self.retry.stop();
        self.use_relay(now);
        self.since = now;
    }

    /// This node's candidates, profile or networks have changed.
    pub fn handle_local(&mut self, now: Instant, local: Local) {
        let before = self.exchange.candidates_seq();
        self.local = local;
        if self.exchange.offer(now, &self.local, !self.traffic.asleep)
            && before != self.exchange.candidates_seq()
        {
            self.try_again(now);
        }
        self.drive(now);
    }

    /// A relay that both may use is connected, or none is. The round trip is the way to the peer and back.
    pub fn handle_relay(&mut self, now: Instant, up: bool, rtt: Option<Duration>) {
        let came = up && !self.relay.up;
        (self.relay.up, self.relay.rtt) = (up, rtt.or(self.relay.rtt));
        if came {
            self.relay.trust();
            self.relay.probe_soon(now);
            self.exchange.announce(now);
            self.try_again(now);
        }
        self.drive(now);
    }

    /// Whether the pair is to be kept up without data too, and its path probed: every ten seconds, which only ever
    /// says how it is. A path is given up by the same rules as any other.
    pub fn handle_kept(&mut self, now: Instant, kept: bool) {
        let began = !std::mem::replace(&mut self.traffic.kept, kept) && kept;
        if began && self.traffic.asleep {
            self.wake(now);
        } else if began {
            self.relay.probe_soon(now);
            self.direct.iter_mut().for_each(Liveness::hurry);
        }
        self.drive(now);
    }

    /// The relay does not admit this node, or does again.
    pub fn handle_admission(&mut self, refused: bool) {
        self.relay.refused = refused;
    }

    /// The peer is not to be found on any relay, or is again.
    pub fn handle_unreachable(&mut self, now: Instant, unreachable: bool) {
        if self.relay.peer_missing && !unreachable {
            self.try_again(now);
        }
        if !unreachable {
            self.relay.probe_soon(now);
        }
        self.relay.peer_missing = unreachable;
        self.drive(now);
    }

    /// An authenticated control message arrived.
    pub fn handle_control(&mut self, now: Instant, via: Path, message: Control) {
        self.relay.peer_missing = false;
        self.heard(now, via);
        match message {
            Control::Hello(hello) => self.handle_hello(now, hello),
            Control::Barrier { epoch, round, seen } => {
                self.handle_barrier(now, epoch, Barrier { round, seen })
            }
            Control::Probe { id } => self.handle_probe(now, via, id),
            Control::ProbeReply { id, .. } => self.handle_reply(now, via, id),
            Control::Marker { id } => self.answer_marker(now, id),
            Control::MarkerReply { id } => self.handle_marker_reply(now, id),
            // Ends the session, which is the caller's.
            Control::Bye => {}
        }
        self.drive(now);
    }

    /// Pod data moved since the last call.
    pub fn handle_traffic(&mut self, now: Instant, sent: bool, received: Option<Path>) {
        if !sent && received.is_none() {
            return;
        }
        let silence = now.saturating_duration_since(self.traffic.any);
        self.traffic.any = now;
        received.into_iter().for_each(|via| self.heard(now, via));
        self.traffic.sent = if sent { Some(now) } else { self.traffic.sent };
        if received.is_none() {
            self.suspect_relay(now);
        }
        if self.traffic.asleep {
            self.wake(now);
        } else if silence > PAUSE {
            self.try_again(now);
        }
        if silence > BUSY {
            self.distrust(now);
        }
        self.drive(now);
    }

    /// Some authenticated packet arrived on this path.
    pub fn handle_authenticated(&mut self, now: Instant, via: Path) {
        self.relay.peer_missing = false;
        self.heard(now, via);
        self.drive(now);
    }

    /// The system refused to send there.
    pub fn handle_send_error(&mut self, now: Instant, via: Path) {
        let Path::Direct(address) = via else { return };
        self.ladder.skip(address);
        self.probes.forget(address);
        if self
            .hold
            .as_ref()
            .is_some_and(|hold| hold.target == address)
        {
            self.cancel_hold();
        }
        if self.path() == via && self.relay.up {
            self.demote(now);
        }
        self.drive(now);
    }

    /// Interfaces, addresses or routes have changed.
    pub fn handle_network_change(&mut self, now: Instant) {
        if let Some(direct) = &mut self.direct {
            direct.hurry();
        }
        if self.may_try() {
            self.retry.event_soon(now);
        }
        self.drive(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.drive(now);
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.pop()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<PairEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due()
    }

    /// The path that data is on, or will be once the events are carried out.
    pub fn path(&self) -> Path {
        self.direct
            .as_ref()
            .map_or(Path::Relay, |direct| Path::Direct(direct.address))
    }

    /// Whether the pair has a session and does not sleep.
    pub fn is_active(&self, now: Instant) -> bool {
        self.session && !self.is_asleep(now)
    }

    fn handle_hello(&mut self, now: Instant, hello: Hello) {
        let news = self.exchange.handle(now, hello);
        if news == News::Restart {
            self.forget_peer(now);
        }
        let wanted = match news {
            News::Candidates | News::Restart => true,
            News::Nothing | News::Profile => std::mem::take(&mut self.outdated),
            News::Stale => false,
        };
        if wanted {
            self.try_again(now);
        }
    }

    /// The peer has begun anew and knows nothing of us: nor do we of it.
    fn forget_peer(&mut self, now: Instant) {
        (self.ladder, self.probes, self.last) = (Ladder::default(), Probes::default(), None);
        self.exchange.announce(now);
        // The answer to a probe that is under way means nothing any more.
        self.relay.probe_soon(now);
        if self.relay.up {
            self.use_relay(now);
        }
    }

    fn handle_barrier(&mut self, now: Instant, epoch: u64, barrier: Barrier) {
        let known = self
            .exchange
            .remote()
            .is_some_and(|remote| remote.epoch == epoch);
        if !known || !self.ladder.handle_barrier(now, barrier) {
            return;
        }
        match self.targets(now) {
            Some(targets) => {
                self.retry.started(now);
                self.ladder.follow(now, targets);
            }
            None => self.exchange.announce(now),
        }
    }

    /// Answers on the path where the probe came from, and asks back there: what came through one way may now do so
    /// the other way, and waiting for the next turn would cost seconds.
    fn handle_probe(&mut self, now: Instant, via: Path, id: u64) {
        let observed = match via {
            Path::Direct(address) => address,
            Path::Relay => SocketAddr::from(([0, 0, 0, 0], 0)),
        };
        self.outbox
            .push(now, via, None, Control::ProbeReply { id, observed });
        let Path::Direct(address) = via else {
            return self.relay.probed(now);
        };
        if self.may_use(address) && self.probes.heard(now, address) && !self.traffic.asleep {
            self.probe(now, via, None);
        }
    }

    /// A packet from a mesh range has come through some tunnel: a path there would run inside itself. Private
    /// addresses have shown that they mean the same to both.
    fn may_use(&self, address: SocketAddr) -> bool {
        let context = CandidateContext {
            own_prefixes: &self.local.own_prefixes,
            connected: &[],
            same_public_ip: true,
        };
        let kind = CandidateKind::PeerReflexive;
        acceptable(&Candidate { kind, address }, &context).is_ok()
    }

    fn handle_reply(&mut self, now: Instant, via: Path, id: u64) {
        let Some(answered) = self.probes.answered(now, id, via) else {
            return;
        };
        self.proven = Some(now);
        match (via, &mut self.direct) {
            (Path::Relay, _) => {
                self.relay.answered(now);
                let old = self.relay.measured;
                self.relay.measured =
                    Some(old.map_or(answered.rtt, |old| (old * 3 + answered.rtt) / 4));
            }
            (Path::Direct(address), Some(direct)) if direct.address == address => {
                direct.answered(now, answered.sent, answered.rtt);
            }
            (Path::Direct(address), _) => self.consider(now, address, answered.rtt),
        }
    }

    /// Tries to get direct now, if it is not.
    fn try_again(&mut self, now: Instant) {
        if self.may_try() {
            self.retry.event(now);
        }
    }

    fn may_try(&self) -> bool {
        self.session && self.direct.is_none() && !self.traffic.asleep
    }

    fn wake(&mut self, now: Instant) {
        (self.traffic.asleep, self.since) = (false, now);
        self.relay.probe_soon(now);
        self.exchange.offer(now, &self.local, true);
        self.try_again(now);
    }

    /// Data flows again after a silence: is the path still there?
    fn distrust(&mut self, now: Instant) {
        let Some(direct) = &mut self.direct else {
            return;
        };
        direct.hurry();
        if direct.is_stale(now) && self.relay.up {
            self.demote(now);
            self.retry.event(now);
        }
    }
}

#[cfg(test)]
mod tests;
