//! What is in force.
//!
//! The store is told the whole manifest folder at a time and answers with the objects in force. An object comes into
//! force when its document passes every check, alone and against all others. From then on it keeps its ground: a
//! document that turns bad leaves the last good state, and of two objects that contradict each other the one in force
//! stays. It goes when its document is gone from a file that can be read, when the Mesh goes, or when its prefixes
//! would now swallow something that this node reaches otherwise.

mod conflict;
mod folder;
mod learned;
mod saved;
mod settle;

pub use learned::RefusedNode;
pub use saved::SavedState;

use std::collections::BTreeMap;
use std::net::IpAddr;

use derp::{ClusterIdentity, NodeKey, RelayUrl};
use ipnet::IpNet;
use serde_json::Value;

use crate::reader::{Form, clipped, is_within, within};
use crate::{
    ClusterObjects, Config, FolderRead, Kind, ManifestStatus, MeshConfig, NodeSpec, ObjectId,
    PeerConfig, PeerNode, RelayConfig,
};
use folder::Folder;
use learned::{Told, Vetting};

/// Most relays in use, as many as a `MeshNode` may list.
const MAX_RELAYS: usize = 16;

/// What a Peer's prefixes must not touch, besides what the manifests say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks this node is directly connected to.
    pub connected: Vec<IpNet>,
    /// Addresses that the names of relays resolved to.
    pub relay_addresses: Vec<IpAddr>,
    /// Ranges of the cluster that this node belongs to.
    pub reserved: Vec<IpNet>,
}

/// The objects in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The Mesh; `None`: the agent idles.
    pub mesh: Option<MeshConfig>,
    /// The Peers, by name. Empty without a Mesh.
    pub peers: Vec<PeerConfig>,
}

/// Decides what is in force. See the head of this file.
#[derive(Debug)]
pub struct Store {
    own_key: NodeKey,
    held: BTreeMap<ObjectId, Held>,
    /// What Peers tell of their nodes, by the name of the Peer.
    told: BTreeMap<String, Told>,
    refused: Vec<RefusedNode>,
    accepted: Accepted,
    statuses: Vec<ManifestStatus>,
}

/// The last good state of an object.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    /// The file it was read from.
    file: String,
    spec: Value,
    form: Form,
    /// As written, and behind the nodes that are written those that the Peer told.
    config: Config,
    /// How many nodes are written.
    written: usize,
    /// Whether it was in force after the last update; if not, it has no ground to keep.
    in_force: bool,
}

impl Store {
    /// A store for the node with the key `own_key`, going on from what an earlier one saved.
    ///
    /// Nothing is in force before the first [`update`](Self::update). Saved objects that no longer pass are left out.
    pub fn new(own_key: NodeKey, saved: Option<SavedState>) -> Self {
        let (held, told) = saved
            .map(|saved| saved.restore(own_key))
            .unwrap_or_default();
        Self {
            own_key,
            held,
            told,
            refused: Vec::new(),
            accepted: Accepted::default(),
            statuses: Vec::new(),
        }
    }

    /// Whether anything is held from before. Without that there is nothing to go on with.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes what the Peer `peer`, or who speaks for it, tells of its nodes. From the next update on those that keep to
    /// the Peer's `allowedCIDRs` and contradict nobody are in force besides the written ones, as long as the Peer's
    /// identity is `identity`. Saved with the rest; not for [`FolderRead::Objects`], which bring it themselves.
    pub fn learn(
        &mut self,
        peer: &str,
        identity: Option<ClusterIdentity>,
        nodes: Vec<NodeSpec>,
    ) -> bool {
        let told = Told::new(identity, nodes);
        let changed = self.told.get(peer) != Some(&told);
        self.told.insert(peer.to_owned(), told);
        changed
    }

    /// What Peers told of their nodes and is not in force, at the last update.
    pub fn refused(&self) -> &[RefusedNode] {
        &self.refused
    }

    /// Takes the folder as it is now, and returns what is in force.
    pub fn update(&mut self, read: &FolderRead, surroundings: &Surroundings) -> &Accepted {
        let mut folder = Folder::read(read, self.own_key);
        self.held.retain(|id, held| folder.keeps(id, &held.file));
        if let FolderRead::Objects(objects) = read {
            self.told = learned::from_slices(objects);
            self.confine(objects);
        }
        folder.settle_duplicates(&self.held);
        let mesh = self.elect_mesh(&mut folder);
        let mut environment = Environment::new(mesh, surroundings);
        environment.note_relays(&self.held, &folder);
        self.decide_peers(&mut folder, &environment);
        self.statuses = folder.statuses(&self.held);
        self.accepted = self.in_force(environment);
        &self.accepted
    }

    /// What is in force since the last update.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// What became of every document, in the order of files and documents.
    pub fn statuses(&self) -> &[ManifestStatus] {
        &self.statuses
    }

    /// The last good state of every object, for [`Store::new`] after a restart.
    pub fn saved(&self) -> SavedState {
        SavedState::of(&self.held)
    }

    /// A last good state lasts only as far as the Peer still asks for it and the operator admits it.
    fn confine(&mut self, objects: &ClusterObjects) {
        let granted = objects.granted();
        self.held.retain(|id, held| match id.kind {
            Kind::Mesh => true,
            Kind::Peer => {
                let granted = granted.get(id.name.as_str());
                granted.map(|granted| held.confine(granted)).is_some()
            }
        });
    }

    /// Of several Meshes the one in force stays; else the first good one is taken.
    fn elect_mesh(&mut self, folder: &mut Folder) -> Option<MeshConfig> {
        let mut meshes = self.held.keys().filter(|id| id.kind == Kind::Mesh);
        let elected = meshes
            .next()
            .or_else(|| folder.good(Kind::Mesh).next().map(|(id, _)| id))?
            .clone();
        folder.refuse_meshes_besides(&elected);
        if let Some((id, held)) = folder.good(Kind::Mesh).next() {
            self.held.insert(id.clone(), held);
        }
        match &self.held.get(&elected)?.config {
            Config::Mesh(mesh) => Some(mesh.clone()),
            Config::Peer(_) => None,
        }
    }

    /// Decides which Peers come into force as written, which stay as they were, and which go.
    fn decide_peers(&mut self, folder: &mut Folder, environment: &Environment) {
        let written: BTreeMap<ObjectId, Held> = folder
            .good(Kind::Peer)
            .map(|(id, held)| (id.clone(), held))
            .collect();
        if environment.mesh.is_none() {
            // A deleted Mesh revokes: what only stood on its last good state does not return with the next one.
            self.held
                .retain(|id, _| id.kind == Kind::Mesh || written.contains_key(id));
        }
        let mut order: Vec<ObjectId> = folder.good(Kind::Peer).map(|(id, _)| id.clone()).collect();
        order.extend(
            self.held
                .keys()
                .filter(|id| id.kind == Kind::Peer && !written.contains_key(*id))
                .cloned(),
        );
        let mut vetting = Vetting::new(self.own_key, environment.mesh.as_ref());
        vetting.reserve(written.values().chain(self.held.values()));
        let proposals = order.into_iter().filter_map(|id| {
            let held = self.held.get(&id).filter(|held| held.in_force).cloned();
            let mut proposed = written.get(&id).or_else(|| self.held.get(&id))?.clone();
            proposed.in_force = true;
            vetting.add(&mut proposed, self.told.get(&id.name));
            Some(settle::Proposal { id, proposed, held })
        });
        let settled = settle::settle(environment, proposals.collect());
        self.refused = vetting.finish();
        for (id, problems) in settled.problems {
            folder.refuse(&id, problems);
        }
        for held in self.held.values_mut() {
            held.in_force = matches!(held.config, Config::Mesh(_));
        }
        self.held.extend(settled.in_force);
    }

    fn in_force(&self, environment: Environment) -> Accepted {
        let Some(mesh) = environment.mesh.clone() else {
            return Accepted::default();
        };
        let held = self.held.values().filter(|held| held.in_force);
        let peers = held.clone().filter_map(Held::peer);
        let written = held.filter(|held| held.form == Form::Manifest);
        let relays = written.filter_map(Held::peer).flat_map(|peer| &peer.relays);
        Accepted {
            peers: peers
                .map(|peer| conflict::without_unknown_relays(&environment, peer))
                .collect(),
            mesh: Some(with_relays(mesh, relays)),
        }
    }
}

/// The Mesh with the relays that Peers bring. On Kubernetes the operator has listed them already, with their passes.
fn with_relays<'a>(
    mut mesh: MeshConfig,
    relays: impl Iterator<Item = &'a RelayConfig>,
) -> MeshConfig {
    for relay in relays {
        let known = mesh.relays.iter().any(|known| known.url == relay.url);
        if !known && mesh.relays.len() < MAX_RELAYS {
            mesh.relays.push(relay.clone());
        }
    }
    mesh
}

/// What every Peer is held against.
#[derive(Debug, Default)]
struct Environment {
    mesh: Option<MeshConfig>,
    connected: Vec<IpNet>,
    relays: Vec<IpAddr>,
    reserved: Vec<IpNet>,
}

impl Environment {
    fn new(mesh: Option<MeshConfig>, surroundings: &Surroundings) -> Self {
        let relays = mesh.iter().flat_map(|mesh| &mesh.relays);
        let literal = relays.flat_map(addresses);
        Self {
            relays: literal
                .chain(surroundings.relay_addresses.iter().copied())
                .collect(),
            connected: surroundings.connected.clone(),
            reserved: surroundings.reserved.clone(),
            mesh,
        }
    }

    /// Relays that Peers bring have to be reachable as well.
    fn note_relays(&mut self, held: &BTreeMap<ObjectId, Held>, folder: &Folder) {
        let written: Vec<Held> = folder.good(Kind::Peer).map(|(_, held)| held).collect();
        let peers = held.values().chain(&written).filter_map(Held::peer);
        let relays = peers.flat_map(|peer| &peer.relays);
        self.relays.extend(relays.flat_map(addresses));
        self.relays.sort_unstable();
        self.relays.dedup();
    }
}

/// Addresses at which a relay is connected to, as far as they are no names.
fn addresses(relay: &RelayConfig) -> impl Iterator<Item = IpAddr> {
    let urls = std::iter::once(&relay.url).chain(&relay.dial);
    urls.filter_map(RelayUrl::address)
        .collect::<Vec<_>>()
        .into_iter()
}

impl Held {
    /// An object as it was just read, and in force.
    fn new(file: String, spec: Value, form: Form, config: Config) -> Self {
        let written = match &config {
            Config::Mesh(_) => 0,
            Config::Peer(peer) => peer.nodes.len(),
        };
        Self {
            file,
            spec,
            form,
            config,
            written,
            in_force: true,
        }
    }

    /// Takes away what lies outside these ranges.
    fn confine(&mut self, granted: &[IpNet]) {
        let Config::Peer(peer) = &mut self.config else {
            return;
        };
        let allowed = within(&peer.allowed_cidrs, granted);
        if allowed == peer.allowed_cidrs {
            return;
        }
        for node in &mut peer.nodes {
            node.prefixes.retain(|prefix| is_within(*prefix, &allowed));
        }
        peer.allowed_cidrs = allowed;
        self.spec = clipped(&self.spec, granted);
    }

    /// Nodes that the Peer told.
    fn told(&self) -> impl Iterator<Item = &PeerNode> {
        self.peer()
            .into_iter()
            .flat_map(|peer| peer.nodes.iter().skip(self.written))
    }

    fn peer(&self) -> Option<&PeerConfig> {
        match &self.config {
            Config::Mesh(_) => None,
            Config::Peer(peer) => Some(peer),
        }
    }
}

#[cfg(test)]
mod tests;
