//! The one task that decides: it feeds the sans-IO cores with what happens and carries out what they ask for.

mod live;
mod relays;
mod report;
mod stun;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use derp::{NodeKey, NodeSecret, RelayUrl};
use ipnet::IpNet;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot};
use traversal::control::Control;
use traversal::{Candidate, CandidateKind, Entropy, Local};

use self::live::Live;
use self::relays::{RelayEvent, Relays};
use self::stun::{Stun, StunEvent};
use crate::batch::Batch;
use crate::peer::Peer;
use crate::shared::{DataEvent, Directory, Shared, StunDatagram};
use crate::table::PrefixTable;
use crate::tunnel::{NodeSpec, Status, Wanted};

/// How often counters are read and WireGuard's timers looked at while any tunnel is awake.
const TICK: Duration = Duration::from_millis(50);
/// Longest sleep with nothing awake.
const IDLE: Duration = Duration::from_secs(1);
/// Events taken per turn before timers are looked at.
const EVENTS_PER_TURN: usize = 256;

/// What the outside asks of the driver.
pub(crate) enum Command {
    Apply(Wanted, oneshot::Sender<()>),
    NetworkChanged(oneshot::Sender<()>),
    Status(oneshot::Sender<Status>),
}

/// State that only the driver's task touches.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    listen_port: u16,
    relays: Relays,
    stun: Stun,
    wanted: Wanted,
    homes: HashMap<NodeKey, RelayUrl>,
    live: BTreeMap<NodeKey, Live>,
    batch: Batch,
    next_tick: Instant,
    next_refill: Instant,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, secret: NodeSecret, listen_port: u16) -> Self {
        let now = Instant::now();
        Self {
            relays: Relays::new(Arc::clone(&shared), secret),
            stun: Stun::new(entropy()),
            shared,
            listen_port,
            wanted: Wanted::default(),
            homes: HashMap::new(),
            live: BTreeMap::new(),
            batch: Batch::new(),
            next_tick: now,
            next_refill: now,
        }
    }

    /// Runs until every handle is gone.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<DataEvent>,
        mut datagrams: mpsc::Receiver<StunDatagram>,
    ) {
        let mut batch = Vec::with_capacity(EVENTS_PER_TURN);
        let mut stun = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let wake = tokio::time::Instant::from_std(self.next_wake());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                read = events.recv_many(&mut batch, EVENTS_PER_TURN) => if read == 0 { return },
                read = datagrams.recv_many(&mut stun, EVENTS_PER_TURN) => if read == 0 { return },
                event = self.relays.next() => self.handle_relay(event),
                event = self.stun.next() => self.handle_stun(event),
                () = tokio::time::sleep_until(wake) => {}
            }
            batch.drain(..).for_each(|event| self.handle_data(event));
            stun.drain(..).for_each(|StunDatagram { from, bytes }| {
                self.stun.handle_data_socket(Instant::now(), from, &bytes);
            });
            self.advance(Instant::now());
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let idle = if self.live.is_empty() {
            now + IDLE
        } else {
            self.next_tick
        };
        let pairs = self.live.values().filter_map(Live::wake);
        pairs
            .chain(self.stun.wake())
            .chain([self.next_refill])
            .fold(idle, Instant::min)
    }

    fn handle_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Apply(wanted, done) => {
                self.apply(wanted, now);
                let _ = done.send(());
            }
            Command::NetworkChanged(done) => {
                self.network_changed(now);
                let _ = done.send(());
            }
            Command::Status(answer) => {
                let _ = answer.send(self.report(now));
            }
        }
    }

    fn handle_data(&mut self, event: DataEvent) {
        let now = Instant::now();
        match event {
            DataEvent::Wanted(key) => self.with_live(key, now, |live| live.want(now)),
            DataEvent::Established(key) => self.with_live(key, now, |live| live.established(now)),
            DataEvent::Control {
                key,
                message: Control::Bye,
                ..
            } => {
                if let Some(live) = self.live.get_mut(&key) {
                    live.dismissed(now);
                }
            }
            DataEvent::Awake(key) => self.with_live(key, now, |live| live.note_counters(now)),
            DataEvent::Control { key, via, message } => {
                self.with_live(key, now, |live| live.pair.handle_control(now, via, message));
            }
            DataEvent::Unreachable { key, address } => {
                self.with_live(key, now, |live| {
                    live.pair
                        .handle_send_error(now, traversal::Path::Direct(address))
                });
            }
        }
    }

    fn handle_stun(&mut self, event: StunEvent) {
        self.stun.handle(Instant::now(), event);
    }

    fn handle_relay(&mut self, event: RelayEvent) {
        let (now, relay) = (Instant::now(), event.relay);
        let outcome = self.relays.handle(event);
        if outcome.changed {
            self.relays_changed(now);
        }
        if outcome.connected {
            self.stun.refresh(now);
        }
        if let Some((key, present)) = outcome.presence
            && let Some(live) = self.live.get_mut(&key)
        {
            match present {
                true => live.hurry(now),
                false => live.absent(now, relay, &self.relays.order(self.homes.get(&key))),
            }
        }
    }

    /// A relay came or went: tunnels on a lost one move, and whoever waits may try now.
    fn relays_changed(&mut self, now: Instant) {
        for (key, live) in &mut self.live {
            let order = self.relays.order(self.homes.get(key));
            live.relays_changed(now, &self.shared.sockets, &order, self.relays.refusal());
        }
    }

    /// Runs `act` on a node's tunnel, waking it if it sleeps; unknown nodes are ignored.
    fn with_live(&mut self, key: NodeKey, now: Instant, act: impl FnOnce(&mut Live)) {
        if !self.live.contains_key(&key) {
            let Some(peer) = self
                .shared
                .directory
                .load()
                .by_key
                .get(&key)
                .map(Arc::clone)
            else {
                return;
            };
            let order = self.relays.order(self.homes.get(&key));
            let live = Live::new(
                peer,
                now,
                entropy(),
                self.local(),
                &self.shared.sockets,
                (&order, self.relays.refusal()),
            );
            self.live.insert(key, live);
        }
        if let Some(live) = self.live.get_mut(&key) {
            act(live);
        }
    }

    /// Timers, and everything the cores want sent.
    fn advance(&mut self, now: Instant) {
        if now >= self.next_refill {
            self.shared.identity.refill_gate();
            self.next_refill = now + IDLE;
        }
        if self.stun.advance(now, &self.shared.sockets) {
            self.local_changed(now);
        }
        let tick = now >= self.next_tick;
        if tick {
            self.next_tick = now + TICK;
        }
        let (relays, homes, shared, batch) =
            (&self.relays, &self.homes, &self.shared, &mut self.batch);
        let (mut lost, mut doubted) = (false, Vec::new());
        self.live.retain(|key, live| {
            if tick {
                live.tick(shared, now);
            }
            live.initiate(&shared.identity, now, || relays.order(homes.get(key)));
            let pumped = live.pump(shared, batch, now);
            lost |= pumped.lost;
            doubted.extend(pumped.doubted);
            !(tick && live.is_asleep(now))
        });
        if lost {
            self.stun.refresh(now);
            self.relays.check();
        }
        for relay in doubted {
            self.relays.doubt(relay, now);
        }
        self.stun
            .set_active(self.live.values().any(|live| live.pair.is_active(now)));
    }

    fn apply(&mut self, wanted: Wanted, now: Instant) {
        if wanted.relays != self.wanted.relays {
            self.relays.apply(&wanted.relays);
            self.stun.set_relays(&wanted.relays);
        }
        self.homes = wanted
            .nodes
            .iter()
            .filter_map(|node| Some((node.key, node.home_relay.clone()?)))
            .collect();
        self.publish(&wanted);
        let directory = self.shared.directory.load_full();
        self.live
            .retain(|key, _| directory.by_key.contains_key(key));
        self.wanted = wanted;
        self.keep_probed(now);
        self.stun.set_local(now, &self.host_sockets());
        self.local_changed(now);
        self.relays_changed(now);
    }

    /// Wakes the tunnels that are probed, and lets those sleep that no longer are.
    fn keep_probed(&mut self, now: Instant) {
        let probed = self.wanted.probed.clone();
        for (_, live) in self
            .live
            .iter_mut()
            .filter(|(key, _)| !probed.contains(key))
        {
            live.keep(false, now);
        }
        for key in probed {
            self.with_live(key, now, |live| live.keep(true, now));
        }
    }

    /// Swaps the snapshot that the data threads read, keeping the sessions of nodes that stay and no others.
    fn publish(&self, wanted: &Wanted) {
        let old = self.shared.directory.load_full();
        let mut new = Directory::default();
        for prefix in &wanted.local {
            new.local.insert(*prefix, ());
        }
        for node in &wanted.nodes {
            let peer = old
                .by_key
                .get(&node.key)
                .map_or_else(|| self.new_peer(&old, &new, node), Arc::clone);
            new.by_index.insert(peer.index, Arc::clone(&peer));
            new.by_key.insert(node.key, peer);
        }
        new.table = prefix_table(&wanted.nodes, &new.by_key);
        let new = Arc::new(new);
        self.shared.directory.store(Arc::clone(&new));
        // Also those that sleep: a handshake may just have been answered.
        let gone = old.by_key.values();
        for peer in gone.filter(|peer| !new.by_key.contains_key(&peer.key)) {
            let mut state = peer.lock();
            state.dismiss(&peer.key, &self.shared.sockets);
            state.revoke();
        }
    }

    fn new_peer(&self, old: &Directory, new: &Directory, node: &NodeSpec) -> Arc<Peer> {
        let mut random = entropy();
        let index = loop {
            let mut bytes = [0; 4];
            random.fill(&mut bytes);
            let index = u32::from_le_bytes(bytes) >> 8;
            if !old.by_index.contains_key(&index) && !new.by_index.contains_key(&index) {
                break index;
            }
        };
        Arc::new(Peer::new(node.key, index))
    }

    fn network_changed(&mut self, now: Instant) {
        self.relays.check();
        self.stun.refresh(now);
        for live in self.live.values_mut() {
            live.pair.handle_network_change(now);
        }
    }

    fn local_changed(&mut self, now: Instant) {
        let local = self.local();
        for live in self.live.values_mut() {
            live.pair.handle_local(now, local.clone());
        }
    }

    fn host_sockets(&self) -> Vec<SocketAddr> {
        self.wanted
            .host_addresses
            .iter()
            .map(|&ip| SocketAddr::new(ip, self.listen_port))
            .collect()
    }

    /// What this node has to offer and where it will not probe.
    fn local(&self) -> Local {
        let profile = self.stun.profile().clone();
        let hosts = self
            .host_sockets()
            .into_iter()
            .map(|address| (CandidateKind::Host, address));
        let reflexive = profile
            .reflexive
            .iter()
            .map(|&address| (CandidateKind::Reflexive, address));
        let candidates = hosts
            .chain(reflexive)
            .map(|(kind, address)| Candidate { kind, address })
            .collect();
        let mesh = self
            .wanted
            .nodes
            .iter()
            .flat_map(|node| node.prefixes.iter().copied());
        let own_prefixes: Vec<IpNet> = self.wanted.local.iter().copied().chain(mesh).collect();
        Local {
            profile,
            candidates,
            own_prefixes,
            connected: self.wanted.connected.clone(),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
    }
}

fn prefix_table(nodes: &[NodeSpec], peers: &HashMap<NodeKey, Arc<Peer>>) -> PrefixTable<Arc<Peer>> {
    let mut table = PrefixTable::default();
    for node in nodes {
        let Some(peer) = peers.get(&node.key) else {
            continue;
        };
        node.prefixes
            .iter()
            .for_each(|&prefix| table.insert(prefix, Arc::clone(peer)));
    }
    table
}

/// The operating system's randomness as the cores want it.
struct System(SystemRandom);

impl Entropy for System {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Without randomness nothing here is safe to go on with.
        if self.0.fill(bytes).is_err() {
            tracing::error!("the system has no randomness");
            std::process::abort();
        }
    }
}

fn entropy() -> Box<dyn Entropy> {
    Box::new(System(SystemRandom::new()))
}
