//! A node: the machines under test and the little of a tunnel they need.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Nat, Random};
use crate::control::Control;
use crate::{
    Candidate, CandidateKind, Local, NatEvent, NatProber, Pair, PairEvent, PairStatus, Path,
    StunTransmit, Transmit,
};

/// What one side has received of the other's stream of pod data.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) received: u64,
    pub(crate) reordered: u64,
    pub(crate) highest: Option<u64>,
    pub(crate) last: Option<Instant>,
    /// Longest time without a packet.
    pub(crate) gap: Duration,
    pub(crate) direct: u64,
}

impl Stream {
    fn note(&mut self, now: Instant, seq: u64, via: Path) {
        self.received += 1;
        self.direct += u64::from(via != Path::Relay);
        self.reordered += u64::from(self.highest.is_some_and(|highest| seq < highest));
        self.highest = self.highest.max(Some(seq));
        self.gap = self
            .gap
            .max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
    }
}

/// Things that must never happen, noted when they do.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// This node has no NAT to open.
    public: bool,
    /// The peer's address, if it has no NAT.
    open_peer: Option<IpAddr>,
    answered: BTreeSet<SocketAddr>,
    heard_from: BTreeSet<SocketAddr>,
    opened: BTreeSet<SocketAddr>,
    barriers: u32,
    sent: VecDeque<Instant>,
    pub(crate) broken: Vec<String>,
    pub(crate) messages: u64,
}

/// One node.
pub(crate) struct Node {
    pub(crate) nat: Nat,
    pub(crate) address: SocketAddr,
    pub(crate) pair: Pair,
    pub(crate) prober: NatProber,
    pub(crate) started: Option<Instant>,
    pub(crate) session: bool,
    pub(crate) stream: Stream,
    pub(crate) watch: Watch,
    pub(crate) uses: Vec<(Instant, Path)>,
    /// When the pair doubted that the relay's connection is alive.
    pub(crate) doubts: Vec<Instant>,
    /// Sequence number of the next packet of pod data, and when it leaves.
    pub(crate) next_seq: u64,
    pub(crate) next_data: Option<Instant>,
    pub(crate) data_every: Duration,
    /// Port of the present fresh socket.
    pub(crate) fresh_port: u16,
    path: Path,
    holding: bool,
    staged: VecDeque<u64>,
    local: Vec<SocketAddr>,
    unreported: (bool, Option<Path>),
    next_report: Instant,
}

/// What a node puts on the wire.
#[derive(Debug, Clone)]
pub(crate) enum Outgoing {
    Stun(StunTransmit),
    Control(Transmit),
    Data { seq: u64, via: Path },
}

impl Node {
    pub(crate) fn new(
        now: Instant,
        nat: Nat,
        open_peer: Option<IpAddr>,
        random: &mut Random,
    ) -> Self {
        let public = nat.kind.is_public();
        let inside = if public {
            nat.wan
        } else {
            IpAddr::from([192, 168, 1, 2])
        };
        let address = SocketAddr::new(inside, 20_443);
        Self {
            nat,
            address,
            pair: Pair::new(now, Box::new(Random(random.next())), Local::default()),
            prober: NatProber::new(Box::new(Random(random.next()))),
            started: None,
            session: false,
            stream: Stream::default(),
            watch: Watch {
                public,
                open_peer,
                ..Watch::default()
            },
            uses: Vec::new(),
            doubts: Vec::new(),
            next_seq: 0,
            next_data: None,
            data_every: Duration::from_millis(10),
            fresh_port: 50_000,
            path: Path::Relay,
            holding: false,
            staged: VecDeque::new(),
            local: vec![address],
            unreported: (false, None),
            next_report: now,
        }
    }

    /// The agent begins, or begins anew after a crash.
    pub(crate) fn start(&mut self, now: Instant, servers: Vec<SocketAddr>, random: &mut Random) {
        self.pair = Pair::new(now, Box::new(Random(random.next())), Local::default());
        self.prober = NatProber::new(Box::new(Random(random.next())));
        (self.path, self.holding, self.session) = (Path::Relay, false, false);
        self.staged.clear();
        let Watch {
            public,
            open_peer,
            broken,
            ..
        } = std::mem::take(&mut self.watch);
        self.watch = Watch {
            public,
            open_peer,
            broken,
            ..Watch::default()
        };
        self.started = Some(now);
        self.prober.set_local(now, &self.local);
        self.prober.set_servers(now, servers);
        self.announce(now);
        self.pair.handle_relay(now, true, None);
    }

    pub(crate) fn status(&self, now: Instant) -> PairStatus {
        self.pair.status(now)
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.path != Path::Relay
    }

    pub(crate) fn begin_session(&mut self, now: Instant) {
        self.session = true;
        self.pair.handle_session(now);
    }

    /// When this node has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.started?;
        let report = (self.unreported != (false, None)).then_some(self.next_report);
        let data = self.next_data.filter(|_| self.session);
        [
            self.pair.poll_timeout(),
            self.prober.poll_timeout(),
            data,
            report,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due and returns what to send.
    pub(crate) fn run(&mut self, now: Instant) -> Vec<Outgoing> {
        let mut out = Vec::new();
        if self.started.is_none() {
            return out;
        }
        if self.prober.poll_timeout().is_some_and(|due| due <= now) {
            self.prober.handle_timeout(now);
        }
        if self.pair.poll_timeout().is_some_and(|due| due <= now) {
            self.pair.handle_timeout(now);
        }
        self.emit_data(now, &mut out);
        self.report(now);
        while let Some(event) = self.prober.poll_event() {
            match event {
                NatEvent::ProfileChanged(_) => self.announce(now),
                NatEvent::FreshSocketDone => self.fresh_port += 1,
            }
        }
        out.extend(std::iter::from_fn(|| self.prober.poll_transmit()).map(Outgoing::Stun));
        self.pump(now, &mut out);
        out
    }

    fn emit_data(&mut self, now: Instant, out: &mut Vec<Outgoing>) {
        let Some(due) = self.next_data.filter(|due| *due <= now && self.session) else {
            return;
        };
        let seq = self.next_seq;
        (self.next_seq, self.next_data) = (seq + 1, Some(due.max(now) + self.data_every));
        // The first packet after a silence is reported at once.
        if !self.unreported.0 && now >= self.next_report + Duration::from_millis(100) {
            self.next_report = now;
        }
        self.unreported.0 = true;
        if self.holding {
            self.staged.push_back(seq);
        } else {
            out.push(Outgoing::Data {
                seq,
                via: self.path,
            });
        }
    }

    /// The tunnel's counters reach the pair every 50 ms.
    fn report(&mut self, now: Instant) {
        if self.unreported != (false, None) && now >= self.next_report {
            let (sent, received) = std::mem::take(&mut self.unreported);
            self.next_report = now + Duration::from_millis(50);
            self.pair.handle_traffic(now, sent, received);
        }
    }

    fn pump(&mut self, now: Instant, out: &mut Vec<Outgoing>) {
        loop {
            let (event, transmit) = (self.pair.poll_event(), self.pair.poll_transmit());
            if event.is_none() && transmit.is_none() {
                return;
            }
            if let Some(event) = event {
                self.carry_out(now, event, out);
            }
            if let Some(transmit) = transmit {
                self.watch.sent(now, &transmit);
                out.push(Outgoing::Control(transmit));
            }
        }
    }

    fn carry_out(&mut self, now: Instant, event: PairEvent, out: &mut Vec<Outgoing>) {
        match event {
            PairEvent::Hold { marker } => {
                self.holding = true;
                out.push(Outgoing::Control(Transmit {
                    via: self.path,
                    ttl: None,
                    message: marker,
                }));
            }
            PairEvent::DoubtRelay => self.doubts.push(now),
            PairEvent::Use(path) => {
                self.watch.used(path);
                if path == Path::Relay && self.path != Path::Relay {
                    self.prober.refresh(now);
                }
                (self.path, self.holding) = (path, false);
                self.uses.push((now, path));
                out.extend(
                    self.staged
                        .drain(..)
                        .map(|seq| Outgoing::Data { seq, via: path }),
                );
            }
        }
    }

    /// Tells the pair what this node has to offer.
    pub(crate) fn announce(&mut self, now: Instant) {
        let local = self.offer();
        self.pair.handle_local(now, local);
    }

    /// The same, and that a server has seen one more address.
    pub(crate) fn announce_also(&mut self, now: Instant, address: SocketAddr) {
        let mut local = self.offer();
        let kind = CandidateKind::Reflexive;
        local.candidates.push(Candidate { kind, address });
        self.pair.handle_local(now, local);
    }

    fn offer(&self) -> Local {
        let profile = self.prober.profile().clone();
        let hosts = self.local.iter().map(|&address| Candidate {
            kind: CandidateKind::Host,
            address,
        });
        let seen = profile.reflexive.iter().map(|&address| Candidate {
            kind: CandidateKind::Reflexive,
            address,
        });
        let candidates = hosts.chain(seen).collect();
        Local {
            profile,
            candidates,
            ..Local::default()
        }
    }

    pub(crate) fn receive_data(&mut self, now: Instant, seq: u64, via: Path) {
        self.stream.note(now, seq, via);
        self.unreported.1 = Some(via);
    }

    pub(crate) fn receive_control(&mut self, now: Instant, via: Path, packet: &[u8]) {
        let message = Control::decode(packet).expect("our own message");
        self.watch.received(via, &message);
        self.pair.handle_control(now, via, message);
    }
}

impl Watch {
    /// No more than 500 messages in any second; nothing at full time to live to an address behind a NAT, unless it
    /// was opened from here and the peer has raised its barrier, or packets come from there.
    fn sent(&mut self, now: Instant, transmit: &Transmit) {
        self.messages += 1;
        self.sent.push_back(now);
        while self
            .sent
            .front()
            .is_some_and(|at| *at + Duration::from_secs(1) <= now)
        {
            self.sent.pop_front();
        }
        if self.sent.len() > 500 {
            self.broken
                .push(format!("{} messages in a second", self.sent.len()));
        }
        let (Path::Direct(to), Control::Probe { .. }) = (transmit.via, &transmit.message) else {
            return;
        };
        if transmit.ttl.is_some() {
            self.opened.insert(to);
        } else if !self.may_send(to) {
            self.broken
                .push(format!("full time to live to {to} before the barrier"));
        }
    }

    fn may_send(&self, to: SocketAddr) -> bool {
        let opened = (self.public || self.opened.contains(&to)) && self.barriers > 0;
        opened || self.heard_from.contains(&to) || self.open_peer == Some(to.ip())
    }

    fn used(&mut self, path: Path) {
        if let Path::Direct(address) = path
            && !self.answered.contains(&address)
        {
            self.broken
                .push(format!("data to {address}, which never answered"));
        }
    }

    fn received(&mut self, via: Path, message: &Control) {
        if let Path::Direct(from) = via {
            self.heard_from.insert(from);
        }
        match (message, via) {
            (Control::Barrier { .. }, _) => self.barriers += 1,
            (Control::ProbeReply { .. }, Path::Direct(from)) => {
                self.answered.insert(from);
            }
            _ => {}
        }
    }
}
