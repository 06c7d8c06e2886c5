//! Follows what there is: relays, peers, connections that come in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use derp::{ClusterIdentity, ClusterSecret, NodeKey, RelayUrl};
use quinn::Incoming;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::door::Door;
use super::lobby::Lobby;
use super::peer::{Peer, PeerHandle};
use super::relays::{News, Relays};
use super::talk::{Context, changed};
use super::{Config, DownReason, Inputs, PeerState, PeerView, RelayState};
use crate::join::JoinRequest;
use crate::message::CloseReason;
use crate::quic::{Endpoint, LinkTiming, SetupError, Switch};

/// Connections of one peer that wait to be answered.
const MAX_WAITING: usize = 4;

/// The task behind a [`super::Sync`].
pub(super) struct Hub {
    config: Arc<Config>,
    us: ClusterIdentity,
    inputs: Inputs,
    endpoint: Arc<Endpoint>,
    relays: Relays,
    peers: BTreeMap<ClusterIdentity, PeerHandle>,
    lobby: Lobby,
    tasks: JoinSet<()>,
    peer_views: watch::Sender<BTreeMap<ClusterIdentity, PeerView>>,
}

impl Hub {
    pub(super) fn new(
        config: Config,
        secret: ClusterSecret,
        inputs: Inputs,
        requests: mpsc::Sender<JoinRequest>,
    ) -> Result<Self, SetupError> {
        let timing = LinkTiming {
            keep_alive: config.timing.keep_alive,
            idle: config.timing.idle,
            handshake: config.timing.handshake,
        };
        let endpoint = Arc::new(Endpoint::new(&secret, timing)?);
        let us = secret.identity();
        Ok(Self {
            config: Arc::new(config),
            us,
            inputs,
            relays: Relays::new(secret, Arc::clone(endpoint.switch())),
            peers: BTreeMap::new(),
            lobby: Lobby::new(us, Arc::clone(&endpoint), requests),
            endpoint,
            tasks: JoinSet::new(),
            peer_views: watch::Sender::default(),
        })
    }

    pub(super) fn peers(&self) -> watch::Receiver<BTreeMap<ClusterIdentity, PeerView>> {
        self.peer_views.subscribe()
    }

    pub(super) fn relays(&self) -> watch::Receiver<BTreeMap<RelayUrl, RelayState>> {
        self.relays.views()
    }

    pub(super) fn switch(&self) -> Arc<Switch> {
        Arc::clone(self.endpoint.switch())
    }

    /// Runs until `stopped` resolves, in whatever way.
    pub(super) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        self.inputs.relays.mark_changed();
        self.inputs.peers.mark_changed();
        self.inputs.invites.mark_changed();
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                wanted = changed(&mut self.inputs.relays) => {
                    self.relays.set(wanted);
                    self.show_no_relay();
                }
                wanted = changed(&mut self.inputs.peers) => self.set_peers(&wanted),
                wanted = changed(&mut self.inputs.invites) => self.set_invites(&wanted),
                news = self.relays.next() => self.hear(news),
                Some(_) = self.tasks.join_next() => {}
                Some((address, incoming)) = self.endpoint.accept() => self.accept(address, incoming),
            }
        }
        self.endpoint.close(CloseReason::Shutdown).await;
    }

    fn hear(&self, news: News) {
        match news {
            News::Connected => self.wake(|_| true),
            News::Disconnected => self.show_no_relay(),
            News::Present(key) => self.wake(|identity| identity.relay_key() == key),
            News::Other => {}
        }
    }

    fn set_invites(&mut self, wanted: &BTreeSet<ClusterIdentity>) {
        let (us, peers) = (self.us.relay_key(), &self.peers);
        let is_taken =
            |key: &NodeKey| *key == us || peers.keys().any(|identity| identity.relay_key() == *key);
        self.lobby.set(wanted, is_taken, &mut self.tasks);
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
        if key == self.us.relay_key() {
            return Some(DownReason::Ourselves);
        }
        let taken = self.peers.keys().any(|other| other.relay_key() == key);
        (taken || self.lobby.knows(&key)).then_some(DownReason::SameAddress)
    }

    fn start(&mut self, identity: ClusterIdentity) {
        let address = self.endpoint.switch().pin(identity.relay_key());
        let context = Context {
            peer: identity,
            config: Arc::clone(&self.config),
            door: Arc::new(Door::new(self.us, identity, self.peer_views.clone())),
            records: self.inputs.records.clone(),
            memberships: self.inputs.memberships.clone(),
        };
        let peer = Peer::new(self.us, address, Arc::clone(&self.endpoint), context);
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
            // If it is nobody's, it was unpinned while its first datagram waited: not even a refusal.
            let nobody = self.lobby.accept(address, incoming);
            return nobody.into_iter().for_each(Incoming::ignore);
        };
        if let Err(full) = handle.incoming.try_send(incoming) {
            full.into_inner().refuse();
        }
    }

    fn wake(&self, whom: impl Fn(&ClusterIdentity) -> bool) {
        let peers = self.peers.iter();
        for (_, handle) in peers.filter(|(identity, _)| whom(identity)) {
            handle.wake.notify_one();
        }
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
