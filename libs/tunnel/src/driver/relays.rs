//! The relay connections of the mesh: all of them stay up, in the order of preference.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use derp::client::{Client, Config, Event};
use derp::{NodeKey, NodeSecret, Refusal, RelayUrl};
use tokio::sync::mpsc;

use super::live::Order;
use crate::relay_link::{RelayInbox, RelayLink};
use crate::shared::Shared;
use crate::tunnel::{RelaySpec, RelayStatus};

const EVENTS: usize = 256;
/// Least time between two checks of one connection that a silent path asks for.
const CHECK: Duration = Duration::from_secs(2);

/// An event and the connection it is from.
pub(super) struct RelayEvent {
    pub(super) relay: u64,
    event: Event,
}

/// What an event means for tunnels.
#[derive(Default)]
pub(super) struct Outcome {
    /// The set of connected relays is another.
    pub(super) changed: bool,
    /// A relay has just connected.
    pub(super) connected: bool,
    /// A node is known to be at the relay (`true`) or not.
    pub(super) presence: Option<(NodeKey, bool)>,
}

/// All relay connections.
pub(super) struct Relays {
    shared: Arc<Shared>,
    secret: NodeSecret,
    connections: Vec<Connection>,
    next_id: u64,
    events: mpsc::Receiver<RelayEvent>,
    events_in: mpsc::Sender<RelayEvent>,
}

struct Connection {
    spec: RelaySpec,
    link: Arc<RelayLink>,
    client: Client,
    rtt: Option<Duration>,
    problem: Option<String>,
    /// What the relay complains about.
    told: Option<String>,
    /// When a silent path last had it checked.
    checked: Option<Instant>,
}

impl Relays {
    pub(super) fn new(shared: Arc<Shared>, secret: NodeSecret) -> Self {
        let (events_in, events) = mpsc::channel(EVENTS);
        Self {
            shared,
            secret,
            connections: Vec::new(),
            next_id: 0,
            events,
            events_in,
        }
    }

    /// The next event of any connection; never ends.
    pub(super) async fn next(&mut self) -> RelayEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Connects what is new, closes what is gone, keeps the rest, in the given order. Another pass or STUN port is no
    /// reason to connect anew.
    pub(super) fn apply(&mut self, specs: &[RelaySpec]) {
        let mut old = std::mem::take(&mut self.connections);
        for spec in specs {
            let kept = old
                .iter()
                .position(|connection| connection.spec.connects_like(spec))
                .map(|at| old.swap_remove(at));
            let mut connection = kept.unwrap_or_else(|| self.connect(spec.clone()));
            connection.adopt(spec);
            self.connections.push(connection);
        }
        for connection in old {
            connection.link.connected.store(false, Ordering::Release);
        }
        let links = self
            .connections
            .iter()
            .map(|connection| Arc::clone(&connection.link))
            .collect();
        self.shared.relays.store(Arc::new(links));
    }

    pub(super) fn handle(&mut self, RelayEvent { relay, event }: RelayEvent) -> Outcome {
        let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.link.id == relay)
        else {
            return Outcome::default();
        };
        connection.handle(event)
    }

    /// Asks every connection for a sign of life.
    pub(super) fn check(&self) {
        self.connections
            .iter()
            .for_each(|connection| connection.client.check_now());
    }

    /// A path through this connection has fallen silent: is it the connection?
    pub(super) fn doubt(&mut self, relay: u64, now: Instant) {
        let mut all = self.connections.iter_mut();
        if let Some(one) = all.find(|one| one.link.id == relay)
            && one.checked.is_none_or(|checked| now >= checked + CHECK)
        {
            one.checked = Some(now);
            one.client.check_now();
        }
    }

    /// Connected relays, the given home first, then in the mesh's order.
    pub(super) fn order(&self, home: Option<&RelayUrl>) -> Order {
        let mut order: Vec<&Connection> = self
            .connections
            .iter()
            .filter(|one| one.link.is_connected())
            .collect();
        order.sort_by_key(|connection| Some(&connection.spec.url) != home);
        order
            .into_iter()
            .map(|connection| (Arc::clone(&connection.link), connection.rtt))
            .collect()
    }

    pub(super) fn connected(&self) -> Vec<&RelayUrl> {
        self.connections
            .iter()
            .filter(|one| one.link.is_connected())
            .map(|one| &one.spec.url)
            .collect()
    }

    /// Whether relays can be reached but none lets us in.
    pub(super) fn refusal(&self) -> bool {
        let refuses = |one: &Connection| one.refusal().is_some();
        self.connected().is_empty() && self.connections.iter().any(refuses)
    }

    pub(super) fn report(&self) -> Vec<RelayStatus> {
        let status = |one: &Connection| RelayStatus {
            url: one.spec.url.clone(),
            connected: one.link.is_connected(),
            rtt: one.rtt,
            problem: one.problem.clone().or_else(|| one.told.clone()),
            refusal: one.refusal(),
        };
        self.connections.iter().map(status).collect()
    }

    fn connect(&mut self, spec: RelaySpec) -> Connection {
        let id = self.next_id;
        self.next_id += 1;
        let inbox = RelayInbox {
            relay: id,
            queue: Arc::clone(&self.shared.relayed),
        };
        let config = Config {
            ca_bundle: spec.ca_bundle.clone(),
            dial: spec.dial.clone(),
            pass: spec.pass.clone(),
            ..Config::new(spec.url.clone(), self.secret.clone())
        };
        let (events_in, events) = mpsc::channel(EVENTS);
        let client = Client::spawn(config, Arc::new(inbox), events_in);
        tokio::spawn(forward(id, events, self.events_in.clone()));
        let link = Arc::new(RelayLink {
            id,
            url: spec.url.clone(),
            outbox: client.outbox(),
            connected: AtomicBool::new(false),
        });
        Connection {
            spec,
            link,
            client,
            rtt: None,
            problem: None,
            told: None,
            checked: None,
        }
    }
}

impl Connection {
    /// Takes over what `spec` says and a standing connection does not depend on.
    fn adopt(&mut self, spec: &RelaySpec) {
        self.client.set_pass(spec.pass.clone());
        self.spec = spec.clone();
    }

    fn handle(&mut self, event: Event) -> Outcome {
        match event {
            Event::Connected { handshake, .. } => {
                tracing::info!(relay = %self.spec.url, ms = handshake.as_millis(), "relay connected");
                self.link.connected.store(true, Ordering::Release);
                (self.problem, self.told) = (None, None);
                Outcome {
                    changed: true,
                    connected: true,
                    presence: None,
                }
            }
            Event::Disconnected { error } => {
                let was = self.link.connected.swap(false, Ordering::AcqRel);
                // What the relay said last is why it then closed the connection.
                let problem = self.told.take().unwrap_or(error);
                if was || self.problem.as_ref() != Some(&problem) {
                    tracing::warn!(relay = %self.spec.url, problem, "relay not connected");
                }
                self.problem = Some(problem);
                Outcome {
                    changed: true,
                    ..Outcome::default()
                }
            }
            Event::PeerGone { key, .. } => Outcome {
                presence: Some((key, false)),
                ..Outcome::default()
            },
            Event::PeerPresent { key } => Outcome {
                presence: Some((key, true)),
                ..Outcome::default()
            },
            Event::Health(problem) => {
                self.told = Some(problem).filter(|text| !text.is_empty());
                Outcome::default()
            }
            Event::Rtt(rtt) => {
                self.rtt = Some(rtt);
                Outcome::default()
            }
            Event::Restarting { .. } => Outcome::default(),
        }
    }

    /// Why the relay does not let us in; not while it does.
    fn refusal(&self) -> Option<Refusal> {
        self.client.refusal().filter(|_| !self.link.is_connected())
    }
}

async fn forward(relay: u64, mut events: mpsc::Receiver<Event>, to: mpsc::Sender<RelayEvent>) {
    while let Some(event) = events.recv().await {
        if to.send(RelayEvent { relay, event }).await.is_err() {
            return;
        }
    }
}
