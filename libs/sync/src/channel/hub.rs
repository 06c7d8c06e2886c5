//! Follows what there is: relays, peers, connections that come in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use derp::client::{self, Client};
use derp::{NodeKey, RelayUrl};
use quinn::Incoming;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::door::Door;
use super::peer::{Peer, PeerHandle};
use super::talk::{Context, changed};
use super::{Config, DownReason, PeerState, PeerView, Relay, RelayState};
use crate::identity::{ClusterIdentity, ClusterSecret};
use crate::message::{CloseReason, Records};
use crate::quic::{Endpoint, LinkInbox, LinkTiming, SetupError, Switch};

/// Events of relays that wait to be looked at.
const MAX_EVENTS: usize = 256;
/// Connections of one peer that wait to be answered.
const MAX_WAITING: usize = 4;
/// Longest text of a relay that is shown.
const MAX_PROBLEM: usize = 256;

/// The task behind a [`super::Sync`].
pub(super) struct Hub {
    config: Arc<Config>,
    secret: ClusterSecret,
    records: watch::Receiver<Arc<Records>>,
    endpoint: Arc<Endpoint>,
    peers: BTreeMap<ClusterIdentity, PeerHandle>,
    tasks: JoinSet<()>,
    relays: BTreeMap<RelayUrl, Connected>,
    events: mpsc::Sender<RelayEvent>,
    incoming_events: Option<mpsc::Receiver<RelayEvent>>,
    peer_views: watch::Sender<BTreeMap<ClusterIdentity, PeerView>>,
    relay_views: watch::Sender<BTreeMap<RelayUrl, RelayState>>,
}

/// A relay that is kept connected.
struct Connected {
    relay: Relay,
    number: u64,
    _client: Client,
    forwarder: AbortHandle,
}

/// Something that happened at a relay.
struct RelayEvent {
    number: u64,
    url: RelayUrl,
    event: client::Event,
}

impl Hub {
    pub(super) fn new(
        config: Config,
        secret: ClusterSecret,
        records: watch::Receiver<Arc<Records>>,
    ) -> Result<Self, SetupError> {
        let timing = LinkTiming {
            keep_alive: config.timing.keep_alive,
            idle: config.timing.idle,
            handshake: config.timing.handshake,
        };
        let (events, incoming_events) = mpsc::channel(MAX_EVENTS);
        Ok(Self {
            endpoint: Arc::new(Endpoint::new(&secret, timing)?),
            config: Arc::new(config),
            secret,
            records,
            peers: BTreeMap::new(),
            tasks: JoinSet::new(),
            relays: BTreeMap::new(),
            events,
            incoming_events: Some(incoming_events),
            peer_views: watch::Sender::default(),
            relay_views: watch::Sender::default(),
        })
    }

    pub(super) fn peers(&self) -> watch::Receiver<BTreeMap<ClusterIdentity, PeerView>> {
        self.peer_views.subscribe()
    }

    pub(super) fn relays(&self) -> watch::Receiver<BTreeMap<RelayUrl, RelayState>> {
        self.relay_views.subscribe()
    }

    pub(super) fn switch(&self) -> Arc<Switch> {
        Arc::clone(self.endpoint.switch())
    }

    /// Runs until `stopped` resolves, in whatever way.
    pub(super) async fn run(
        mut self,
        mut relays: watch::Receiver<Vec<Relay>>,
        mut peers: watch::Receiver<BTreeSet<ClusterIdentity>>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let Some(mut events) = self.incoming_events.take() else {
            return;
        };
        let wanted = relays.borrow_and_update().clone();
        self.set_relays(wanted);
        let wanted = peers.borrow_and_update().clone();
        self.set_peers(&wanted);
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                wanted = changed(&mut relays) => self.set_relays(wanted),
                wanted = changed(&mut peers) => self.set_peers(&wanted),
                Some(event) = events.recv() => self.relay_event(event),
                Some(_) = self.tasks.join_next() => {}
                Some((address, incoming)) = self.endpoint.accept() => self.accept(address, incoming),
            }
        }
        self.endpoint.close(CloseReason::Shutdown).await;
    }

    fn set_relays(&mut self, wanted: Vec<Relay>) {
        let wanted: BTreeMap<_, _> = wanted
            .into_iter()
            .map(|one| (one.url.clone(), one))
            .collect();
        self.relays.retain(|url, connected| {
            let stays = wanted.get(url) == Some(&connected.relay);
            if !stays {
                connected.forwarder.abort();
                self.endpoint.switch().remove_relay(connected.number);
            }
            stays
        });
        self.relay_views.send_modify(|views| {
            views.retain(|url, _| self.relays.contains_key(url));
            for url in wanted.keys() {
                views.entry(url.clone()).or_default();
            }
        });
        for (url, relay) in wanted {
            if !self.relays.contains_key(&url) {
                let connected = self.connect(relay);
                self.relays.insert(url, connected);
            }
        }
        self.show_no_relay();
    }

    fn connect(&mut self, relay: Relay) -> Connected {
        let switch = self.endpoint.switch();
        let number = switch.next_relay();
        let inbox = Arc::new(LinkInbox::new(Arc::clone(switch), number));
        let mut config = client::Config::new(relay.url.clone(), self.secret.relay_secret());
        config.ca_bundle.clone_from(&relay.ca_bundle);
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let client = Client::spawn(config, inbox, sender);
        switch.add_relay(number, client.outbox());
        let forward = forward(number, relay.url.clone(), receiver, self.events.clone());
        Connected {
            relay,
            number,
            _client: client,
            forwarder: self.tasks.spawn(forward),
        }
    }

    fn relay_event(&mut self, told: RelayEvent) {
        let RelayEvent { number, url, event } = told;
        if self.relays.get(&url).is_none_or(|one| one.number != number) {
            return;
        }
        let switch = Arc::clone(self.endpoint.switch());
        match event {
            client::Event::Connected { .. } => {
                switch.set_connected(number, true);
                self.show(&url, |state| {
                    state.connected = true;
                    state.problem = None;
                });
                self.wake_all();
            }
            client::Event::Disconnected { error } => {
                switch.set_connected(number, false);
                self.show(&url, |state| {
                    state.connected = false;
                    state.problem = Some(shortened(error));
                });
                self.show_no_relay();
            }
            client::Event::PeerGone { key, .. } => switch.set_gone(number, &key),
            client::Event::PeerPresent { key } => self.wake(&key),
            client::Event::Health(text) => self.show(&url, |state| {
                state.problem = (!text.is_empty()).then(|| shortened(text));
            }),
            client::Event::Rtt(rtt) => {
                switch.set_rtt(number, rtt);
                self.show(&url, |state| state.rtt = Some(rtt));
            }
            client::Event::Restarting { .. } => {}
        }
    }

    fn set_peers(&mut self, wanted: &BTreeSet<ClusterIdentity>) {
        let known = std::mem::take(&mut self.peers);
        for (identity, handle) in known {
            if wanted.contains(&identity) {
                self.peers.insert(identity, handle);
                continue;
            }
            self.endpoint.switch().unpin(&identity.relay_key());
            let _ = handle.stop.send(CloseReason::NotAdmitted);
        }
        self.peer_views.send_modify(|views| {
            views.retain(|identity, _| wanted.contains(identity));
            for identity in wanted {
                views.entry(*identity).or_default();
            }
        });
        for identity in wanted {
            if self.peers.contains_key(identity) {
                continue;
            }
            match self.obstacle(identity) {
                Some(reason) => self.show_obstacle(identity, reason),
                None => self.start(*identity),
            }
        }
        self.show_no_relay();
    }

    /// Why this peer cannot be spoken to whatever it does.
    fn obstacle(&self, identity: &ClusterIdentity) -> Option<DownReason> {
        let key = identity.relay_key();
        if key == self.secret.identity().relay_key() {
            return Some(DownReason::Ourselves);
        }
        let taken = self.peers.keys().any(|other| other.relay_key() == key);
        taken.then_some(DownReason::SameAddress)
    }

    fn start(&mut self, identity: ClusterIdentity) {
        let address = self.endpoint.switch().pin(identity.relay_key());
        let us = self.secret.identity();
        let context = Context {
            config: Arc::clone(&self.config),
            door: Arc::new(Door::new(us, identity, self.peer_views.clone())),
            records: self.records.clone(),
        };
        let peer = Peer::new(us, identity, address, Arc::clone(&self.endpoint), context);
        let (incoming, waiting) = mpsc::channel(MAX_WAITING);
        let (stop, stopped) = oneshot::channel();
        let wake = Arc::new(Notify::new());
        self.tasks
            .spawn(peer.run(waiting, Arc::clone(&wake), stopped));
        let handle = PeerHandle {
            address,
            incoming,
            wake,
            stop,
        };
        self.peers.insert(identity, handle);
    }

    fn accept(&self, address: SocketAddr, incoming: Incoming) {
        let handle = self.peers.values().find(|handle| handle.address == address);
        let Some(handle) = handle else {
            // It was unpinned while its first datagram waited: not even a refusal.
            return incoming.ignore();
        };
        if let Err(full) = handle.incoming.try_send(incoming) {
            full.into_inner().refuse();
        }
    }

    fn wake_all(&self) {
        for handle in self.peers.values() {
            handle.wake.notify_one();
        }
    }

    fn wake(&self, key: &NodeKey) {
        let peers = self.peers.iter();
        for (_, handle) in peers.filter(|(identity, _)| identity.relay_key() == *key) {
            handle.wake.notify_one();
        }
    }

    fn show(&self, url: &RelayUrl, change: impl FnOnce(&mut RelayState)) {
        self.relay_views.send_modify(|views| {
            if let Some(state) = views.get_mut(url) {
                change(state);
            }
        });
    }

    fn show_obstacle(&self, identity: &ClusterIdentity, reason: DownReason) {
        tracing::info!(?identity, %reason, "this peer cannot be spoken to");
        self.peer_views.send_modify(|views| {
            if let Some(view) = views.get_mut(identity) {
                view.state = PeerState::Down { reason };
            }
        });
    }

    /// Peers that we do not speak to are not at fault while no relay is connected.
    fn show_no_relay(&self) {
        if self.endpoint.switch().is_connected() {
            return;
        }
        self.peer_views.send_if_modified(|views| {
            let mut changed = false;
            for view in views.values_mut() {
                if let PeerState::Down { reason } = &mut view.state
                    && reason.may_be_the_relay()
                {
                    *reason = DownReason::NoRelay;
                    changed = true;
                }
            }
            changed
        });
    }
}

/// Passes the events of one relay on, with its number.
async fn forward(
    number: u64,
    url: RelayUrl,
    mut from: mpsc::Receiver<client::Event>,
    to: mpsc::Sender<RelayEvent>,
) {
    while let Some(event) = from.recv().await {
        let url = url.clone();
        if to.send(RelayEvent { number, url, event }).await.is_err() {
            return;
        }
    }
}

fn shortened(mut text: String) -> String {
    let end = text
        .char_indices()
        .nth(MAX_PROBLEM)
        .map_or(text.len(), |(index, _)| index);
    text.truncate(end);
    text
}
