//! A host that is a peer of clusters like a cluster of one node: it syncs with their operators and shows passes to their
//! relays.

mod passes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::{Accepted, NodeSpec, PeerConfig, RelayConfig};
use derp::{ClusterIdentity, NodeKey, RelayUrl};
use ipnet::IpNet;
use sync::{
    ClusterName, ClusterSecret, Config, Inputs, NodeName, NodeRecord, PeerView, Records, Sync,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::passes::Passes;
use crate::state::Memberships;
use crate::{Reporter, StateFolder, Told};

/// Time between two looks at which relay this node listens on.
const LOOK: Duration = Duration::from_secs(1);

/// This host among clusters. Does nothing as long as the host has no identity or no Peer has one.
pub(crate) struct Member {
    state: StateFolder,
    node_key: NodeKey,
    reporter: Arc<dyn Reporter>,
    /// Names of the Peers in force that have an identity.
    names: BTreeMap<ClusterIdentity, String>,
    relays: Vec<RelayConfig>,
    running: Option<Running>,
    memberships: Memberships,
    told: Vec<Told>,
    /// Whether a peer has told something, or Peers have changed, since the last look.
    news: bool,
}

struct Running {
    secret: ClusterSecret,
    passes: Passes,
    relays: watch::Sender<Vec<sync::Relay>>,
    peers: watch::Sender<BTreeSet<ClusterIdentity>>,
    mine: watch::Sender<Mine>,
    views: watch::Receiver<BTreeMap<ClusterIdentity, PeerView>>,
    /// Ends the conversations when dropped.
    _sync: Sync,
    speaker: AbortHandle,
}

/// What this host tells of itself, besides where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mine {
    name: String,
    key: NodeKey,
    prefixes: Vec<IpNet>,
}

impl Member {
    pub(crate) fn new(state: StateFolder, node_key: NodeKey, reporter: Arc<dyn Reporter>) -> Self {
        let memberships = state.memberships().unwrap_or_else(|error| {
            tracing::warn!(%error, "peers have to admit this host to their relays again");
            Memberships::default()
        });
        Self {
            state,
            node_key,
            reporter,
            names: BTreeMap::new(),
            relays: Vec::new(),
            running: None,
            memberships,
            told: Vec::new(),
            news: false,
        }
    }

    /// Resolves when a peer has told something.
    pub(crate) async fn changed(&mut self) {
        let views = self.running.as_mut().map(|running| &mut running.views);
        if let Some(views) = views
            && views.changed().await.is_ok()
        {
            self.news = true;
            return;
        }
        std::future::pending().await
    }

    /// Looks at what peers tell, and renews what has to be renewed; `true` if what they tell of their nodes has changed.
    pub(crate) fn look(&mut self) -> bool {
        let now = SystemTime::now();
        let changed = self.listen(now);
        self.show_passes(now);
        changed
    }

    /// What peers tell of their nodes.
    pub(crate) fn told(&self) -> &[Told] {
        &self.told
    }

    fn listen(&mut self, now: SystemTime) -> bool {
        let Some(running) = &mut self.running else {
            return !std::mem::take(&mut self.told).is_empty();
        };
        let unseen = running.views.has_changed().unwrap_or(false);
        if !std::mem::take(&mut self.news) && !unseen {
            return false;
        }
        let views = running.views.borrow_and_update().clone();
        let mut news = memberships(&views, running.secret.identity(), now);
        news.retain(|(owner, text)| self.memberships.by_owner.get(owner) != Some(text));
        if !news.is_empty() {
            self.memberships.by_owner.extend(news);
            self.keep_memberships();
        }
        let before = std::mem::replace(&mut self.told, told(&views, &self.names));
        // A peer that has said nothing yet has not taken back what it said before.
        let silent = before.iter().filter(|old| {
            let named = self.names.get(&old.identity) == Some(&old.peer);
            named && !self.told.iter().any(|new| new.peer == old.peer)
        });
        let silent: Vec<Told> = silent.cloned().collect();
        self.told.extend(silent);
        self.told.sort_by(|a, b| a.peer.cmp(&b.peer));
        self.told != before
    }

    /// Follows what has come into force.
    pub(crate) fn follow(&mut self, accepted: &Accepted) {
        let with_identity = |peer: &PeerConfig| Some((peer.identity?, peer.name.clone()));
        self.names = accepted.peers.iter().filter_map(with_identity).collect();
        self.news = true;
        let mesh = accepted.mesh.as_ref();
        self.relays = mesh.map(|mesh| mesh.relays.clone()).unwrap_or_default();
        let Some(mesh) = mesh.filter(|_| !self.names.is_empty()) else {
            self.running = None;
            return;
        };
        let mine = Mine {
            name: mesh.cluster_name.clone(),
            key: self.node_key,
            prefixes: mesh.own_prefixes().collect(),
        };
        let renamed = |running: &Running| running.mine.borrow().name != mine.name;
        if self.running.as_ref().is_some_and(renamed) {
            self.running = None;
        }
        match &self.running {
            Some(running) => {
                let identities: BTreeSet<_> = self.names.keys().copied().collect();
                set(&running.peers, identities);
                set(&running.mine, mine);
            }
            None => self.start(mine),
        }
        self.show_passes(SystemTime::now());
    }

    /// The pass of this node for a relay.
    pub(crate) fn pass(&self, relay: &RelayUrl) -> Option<String> {
        self.running.as_ref()?.passes.of_node(relay)
    }

    fn start(&mut self, mine: Mine) {
        match self.try_start(mine) {
            Ok(running) => self.running = running,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot speak to the peers' operators; their nodes stay as they were last told"
                );
            }
        }
    }

    fn try_start(&mut self, mine: Mine) -> anyhow::Result<Option<Running>> {
        let Some(secret) = self.state.identity()? else {
            return Ok(None);
        };
        let name: ClusterName = mine.name.parse()?;
        self.memberships.generation = self.memberships.generation.saturating_add(1);
        self.keep_memberships();
        let (relays, relays_out) = watch::channel(Vec::new());
        let (peers, peers_out) = watch::channel(self.names.keys().copied().collect());
        let (records, records_out) = watch::channel(Arc::<Records>::default());
        let (mine, mine_out) = watch::channel(mine);
        let inputs = Inputs {
            relays: relays_out,
            peers: peers_out,
            records: records_out,
            memberships: watch::channel(BTreeMap::new()).1,
            invites: watch::channel(BTreeSet::new()).1,
        };
        let config = Config::new(name, self.memberships.generation);
        let sync = Sync::spawn(config, secret.clone(), inputs)?;
        let speaker = tokio::spawn(speak(mine_out, Arc::clone(&self.reporter), records));
        tracing::info!(identity = %secret.identity(), "speaking to the peers' operators");
        Ok(Some(Running {
            passes: Passes::new(secret.clone(), self.node_key),
            secret,
            relays,
            peers,
            mine,
            views: sync.peers(),
            _sync: sync,
            speaker: speaker.abort_handle(),
        }))
    }

    /// Passes of both keys for all relays, the node's own for the tunnel and the identity's for the conversations.
    fn show_passes(&mut self, now: SystemTime) {
        let Some(running) = &mut self.running else {
            return;
        };
        running
            .passes
            .renew(&self.relays, &self.memberships.by_owner, now);
        let relay = |relay: &RelayConfig| sync::Relay {
            url: relay.url.clone(),
            dial: relay.dial.clone(),
            ca_bundle: relay.ca_bundle.clone(),
            pass: running.passes.of_identity(&relay.url),
        };
        let relays: Vec<_> = self.relays.iter().map(relay).collect();
        set(&running.relays, relays);
    }

    fn keep_memberships(&self) {
        if let Err(error) = self.state.save_memberships(&self.memberships) {
            tracing::warn!(%error, "what lets this host use its peers' relays would not survive a restart");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.speaker.abort();
    }
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|before| {
        let changed = *before != value;
        *before = value;
        changed
    });
}

/// What peers say that lets us use their relays, as far as it does.
fn memberships(
    views: &BTreeMap<ClusterIdentity, PeerView>,
    us: ClusterIdentity,
    now: SystemTime,
) -> Vec<(ClusterIdentity, String)> {
    let good = |(owner, view): (&ClusterIdentity, &PeerView)| {
        let text = view.membership.as_ref()?;
        let membership: derp::pass::Membership = text.parse().ok()?;
        let lets_in = membership.scope() == derp::pass::Scope::Mesh;
        (lets_in && membership.verify(owner, &us, now).is_ok()).then(|| (*owner, text.clone()))
    };
    views.iter().filter_map(good).collect()
}

/// What peers propose, by the names of their Peers.
fn told(
    views: &BTreeMap<ClusterIdentity, PeerView>,
    names: &BTreeMap<ClusterIdentity, String>,
) -> Vec<Told> {
    let one = |(identity, peer): (&ClusterIdentity, &String)| {
        let records = views.get(identity)?.records.as_ref()?;
        Some(Told {
            peer: peer.clone(),
            identity: *identity,
            nodes: records
                .iter()
                .map(|(name, record)| spec(name, record))
                .collect(),
        })
    };
    names.iter().filter_map(one).collect()
}

fn spec(name: &NodeName, record: &NodeRecord) -> NodeSpec {
    NodeSpec {
        name: name.as_str().to_owned(),
        public_key: record.public_key().to_string(),
        home_relay: record.home_relay().map(ToString::to_string),
        prefixes: record.prefixes().iter().map(ToString::to_string).collect(),
    }
}

/// Tells where this node listens, whenever that changes.
async fn speak(
    mut mine: watch::Receiver<Mine>,
    reporter: Arc<dyn Reporter>,
    records: watch::Sender<Arc<Records>>,
) {
    let mut generation = 0;
    let mut last = None;
    loop {
        let home = reporter.snapshot().await.home_relay;
        let now = (mine.borrow_and_update().clone(), home);
        if last.as_ref() != Some(&now) {
            generation += 1;
            match own_records(&now.0, now.1.as_deref(), generation) {
                Some(own) => {
                    records.send_replace(Arc::new(own));
                }
                None => tracing::warn!("this host has more prefixes than can be told to peers"),
            }
            last = Some(now);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = mine.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn own_records(mine: &Mine, home: Option<&str>, generation: u64) -> Option<Records> {
    let home = home.and_then(|url| url.parse().ok());
    let record = NodeRecord::new(mine.key, home, mine.prefixes.clone(), generation).ok()?;
    let mut records = Records::default();
    records
        .insert(mine.name.parse().ok()?, Arc::new(record))
        .ok()?;
    Some(records)
}

#[cfg(test)]
mod tests;
