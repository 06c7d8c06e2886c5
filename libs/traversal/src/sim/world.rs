//! The internet between the two nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::node::Outgoing;
use super::{Kind, Nat, Node, Random};
use crate::stun::server::{parse_request, response};
use crate::stun::{Change, is_stun};
use crate::{Path, StunSocket};

/// The two addresses of the STUN server.
const STUN: [[u8; 4]; 2] = [[203, 0, 113, 20], [203, 0, 113, 21]];
const STUN_PORT: u16 = 3_478;
const OTHER_STUN_PORT: u16 = 3_479;
/// Public addresses of the two sites.
const WAN: [[u8; 4]; 2] = [[198, 51, 100, 1], [192, 0, 2, 1]];
const DEFAULT_TTL: u8 = 64;

/// How a run is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) kinds: [Kind; 2],
    pub(crate) seed: u64,
    /// One way between the two sites.
    pub(crate) delay: Duration,
    /// One way through the relay.
    pub(crate) relay_delay: Duration,
    /// Of every hundred datagrams, on the direct path and towards the STUN server.
    pub(crate) loss: u64,
    /// Of every hundred packets through the relay.
    pub(crate) relay_loss: u64,
    /// At most this much more delay, different for each datagram.
    pub(crate) jitter: Duration,
    /// How much later the second node starts.
    pub(crate) offset: Duration,
}

impl Settings {
    pub(crate) fn new(one: Kind, other: Kind) -> Self {
        Self {
            kinds: [one, other],
            seed: 1,
            delay: Duration::from_millis(10),
            relay_delay: Duration::from_millis(20),
            loss: 0,
            relay_loss: 0,
            jitter: Duration::ZERO,
            offset: Duration::ZERO,
        }
    }
}

/// Two nodes and all between them.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) nodes: [Node; 2],
    /// What node 0 or node 1 sends straight to the other is lost.
    pub(crate) cut: [bool; 2],
    pub(crate) relay_up: bool,
    settings: Settings,
    random: Random,
    events: BTreeMap<(Instant, u64), Event>,
    serial: u64,
    /// The relay keeps the order.
    relayed: [Instant; 2],
    /// Only packets of the present session can be opened.
    generation: u64,
}

#[derive(Debug, Clone)]
enum Event {
    Start(usize),
    Session(u64),
    Datagram(Datagram),
    Relayed {
        to: usize,
        generation: u64,
        body: Body,
    },
}

#[derive(Debug, Clone)]
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    body: Body,
    generation: u64,
    /// The site that sent it, if any.
    site: Option<usize>,
}

#[derive(Debug, Clone)]
enum Body {
    Stun(Vec<u8>),
    Control(Vec<u8>),
    Data(u64),
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "virtual time has to begin somewhere"
    )]
    pub(crate) fn new(settings: Settings) -> Self {
        let start = Instant::now();
        let mut random = Random(settings.seed);
        let open = [1, 0].map(|peer| {
            settings.kinds[peer]
                .is_public()
                .then(|| IpAddr::from(WAN[peer]))
        });
        let nodes = [0, 1].map(|site| {
            let nat = Nat::new(settings.kinds[site], IpAddr::from(WAN[site]));
            Node::new(start, nat, open[site], &mut random)
        });
        let mut world = Self {
            now: start,
            nodes,
            cut: [false; 2],
            relay_up: true,
            settings,
            random,
            events: BTreeMap::new(),
            serial: 0,
            relayed: [start; 2],
            generation: 0,
        };
        world.plan(start, Event::Start(0));
        world.plan(start + settings.offset, Event::Start(1));
        world
    }

    /// Goes on until `done`, or for `limit` at most; how long it took, if it came to pass.
    pub(crate) fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let (began, deadline) = (self.now, self.now + limit);
        let mut turns = 0;
        while !done(self) {
            let next = self.due().filter(|due| *due <= deadline);
            let Some(next) = next else {
                self.now = deadline;
                return None;
            };
            turns = if next > self.now { 0 } else { turns + 1 };
            assert!(turns < 1_000, "time stands still");
            self.now = next.max(self.now);
            self.turn();
        }
        Some(self.now - began)
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.until(time, |_| false);
    }

    pub(crate) fn both_direct(&self) -> bool {
        self.nodes.iter().all(Node::is_direct)
    }

    /// Pod data flows both ways from now on.
    pub(crate) fn begin_data(&mut self, every: Duration) {
        for node in &mut self.nodes {
            (node.next_data, node.data_every) = (Some(self.now), every);
        }
    }

    pub(crate) fn end_data(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.next_data = None);
    }

    /// The relay's client notices at once at both ends.
    pub(crate) fn set_relay(&mut self, up: bool) {
        self.relay_up = up;
        for node in &mut self.nodes {
            node.pair.handle_relay(self.now, up, None);
        }
        self.pump();
    }

    /// The agent of a node is killed and comes back.
    pub(crate) fn restart(&mut self, site: usize) {
        self.begin(site);
    }

    /// Both ends have kept every promise.
    pub(crate) fn check(&self) {
        for node in &self.nodes {
            assert!(node.watch.broken.is_empty(), "{:?}", node.watch.broken);
        }
    }

    fn due(&self) -> Option<Instant> {
        let events = self.events.keys().next().map(|(at, _)| *at);
        self.nodes.iter().filter_map(Node::due).chain(events).min()
    }

    fn turn(&mut self) {
        while let Some(entry) = self
            .events
            .first_entry()
            .filter(|entry| entry.key().0 <= self.now)
        {
            let event = entry.remove();
            self.happen(event);
            self.pump();
        }
        self.pump();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(site) => self.begin(site),
            Event::Session(generation) if generation == self.generation => {
                self.nodes
                    .iter_mut()
                    .for_each(|node| node.begin_session(self.now));
            }
            Event::Session(_) => {}
            Event::Datagram(datagram) => self.arrive(datagram),
            Event::Relayed {
                to,
                generation,
                body,
            } => {
                if generation == self.generation {
                    self.deliver(to, Path::Relay, body);
                }
            }
        }
    }

    fn begin(&mut self, site: usize) {
        let servers = vec![SocketAddr::from((STUN[0], STUN_PORT))];
        self.nodes[site].start(self.now, servers, &mut self.random);
        if self.nodes.iter().all(|node| node.started.is_some()) {
            // Initiation, response, first data: all through the relay.
            self.generation += 1;
            self.plan(
                self.now + self.settings.relay_delay * 3,
                Event::Session(self.generation),
            );
        }
    }

    fn pump(&mut self) {
        for site in [0, 1] {
            for outgoing in self.nodes[site].run(self.now) {
                self.send(site, outgoing);
            }
        }
    }

    fn send(&mut self, site: usize, outgoing: Outgoing) {
        let inside = self.nodes[site].address;
        let fresh = SocketAddr::new(inside.ip(), self.nodes[site].fresh_port);
        let (from, to, ttl, body) = match outgoing {
            Outgoing::Stun(stun) => {
                assert!(stun.bytes.len() >= 80 && is_stun(&stun.bytes));
                let from = if stun.socket == StunSocket::Data {
                    inside
                } else {
                    fresh
                };
                (from, Path::Direct(stun.to), None, Body::Stun(stun.bytes))
            }
            Outgoing::Control(control) => (
                inside,
                control.via,
                control.ttl,
                Body::Control(control.message.encode()),
            ),
            Outgoing::Data { seq, via } => (inside, via, None, Body::Data(seq)),
        };
        match to {
            Path::Relay => self.relay(1 - site, body),
            Path::Direct(to) => {
                let ttl = ttl.unwrap_or(DEFAULT_TTL);
                let generation = self.generation;
                self.leave(
                    site,
                    Datagram {
                        from,
                        to,
                        ttl,
                        body,
                        generation,
                        site: Some(site),
                    },
                );
            }
        }
    }

    fn relay(&mut self, to: usize, body: Body) {
        if !self.relay_up || self.random.percent(self.settings.relay_loss) {
            return;
        }
        let at = (self.now + self.settings.relay_delay + self.jitter()).max(self.relayed[to]);
        self.relayed[to] = at;
        self.plan(
            at,
            Event::Relayed {
                to,
                generation: self.generation,
                body,
            },
        );
    }

    /// Out through the site's router and over the core.
    fn leave(&mut self, site: usize, mut datagram: Datagram) {
        let nat = &mut self.nodes[site].nat;
        if nat.kind != Kind::Public {
            datagram.ttl -= 1;
            if datagram.ttl == 0 {
                return;
            }
        }
        let Some(from) = nat.outbound(self.now, &mut self.random, datagram.from, datagram.to)
        else {
            return;
        };
        datagram.from = from;
        self.cross(datagram);
    }

    fn cross(&mut self, mut datagram: Datagram) {
        datagram.ttl -= 1;
        if datagram.ttl > 0 && !self.random.percent(self.settings.loss) {
            let at = self.now + self.settings.delay + self.jitter();
            self.plan(at, Event::Datagram(datagram));
        }
    }

    fn arrive(&mut self, mut datagram: Datagram) {
        if let Some(server) = STUN
            .iter()
            .position(|ip| datagram.to.ip() == IpAddr::from(*ip))
        {
            self.answer(server, &datagram);
            return;
        }
        let is_for = |node: &Node| node.nat.wan == datagram.to.ip();
        let Some(site) = self.nodes.iter().position(is_for) else {
            return;
        };
        if datagram.site.is_some_and(|from| self.cut[from]) {
            return;
        }
        let Node {
            nat,
            address,
            fresh_port,
            ..
        } = &mut self.nodes[site];
        let inside = if nat.kind == Kind::Public {
            datagram.to
        } else {
            let Some(inside) = nat.inbound(self.now, datagram.from, datagram.to.port()) else {
                return;
            };
            datagram.ttl -= 1;
            if datagram.ttl == 0 {
                return;
            }
            inside
        };
        match datagram.body {
            Body::Stun(bytes) => {
                let socket = if inside == *address {
                    StunSocket::Data
                } else {
                    StunSocket::Fresh
                };
                assert!(inside == *address || inside.port() <= *fresh_port);
                self.nodes[site]
                    .prober
                    .handle_packet(self.now, socket, datagram.from, &bytes);
            }
            body @ (Body::Control(_) | Body::Data(_)) if datagram.generation == self.generation => {
                self.deliver(site, Path::Direct(datagram.from), body);
            }
            Body::Control(_) | Body::Data(_) => {}
        }
    }

    fn deliver(&mut self, site: usize, via: Path, body: Body) {
        let node = &mut self.nodes[site];
        if !node.session {
            return;
        }
        match body {
            Body::Stun(_) => {}
            Body::Control(packet) => node.receive_control(self.now, via, &packet),
            Body::Data(seq) => node.receive_data(self.now, seq, via),
        }
    }

    fn answer(&mut self, server: usize, datagram: &Datagram) {
        let Body::Stun(bytes) = &datagram.body else {
            return;
        };
        let Some((id, change)) = parse_request(bytes) else {
            return;
        };
        let (ip, port) = match change {
            Change::Nothing => (STUN[server], datagram.to.port()),
            Change::Port => (STUN[server], OTHER_STUN_PORT),
            Change::IpAndPort => (STUN[1 - server], OTHER_STUN_PORT),
        };
        let other = SocketAddr::from((STUN[1 - server], STUN_PORT));
        let bytes = response(id, datagram.from, Some(other));
        self.cross(Datagram {
            from: SocketAddr::from((ip, port)),
            to: datagram.from,
            ttl: DEFAULT_TTL,
            body: Body::Stun(bytes),
            generation: 0,
            site: None,
        });
    }

    fn jitter(&mut self) -> Duration {
        let most = u64::try_from(self.settings.jitter.as_micros()).unwrap_or_default();
        Duration::from_micros(self.random.below(most + 1))
    }

    fn plan(&mut self, at: Instant, event: Event) {
        self.serial += 1;
        self.events.insert((at, self.serial), event);
    }
}
