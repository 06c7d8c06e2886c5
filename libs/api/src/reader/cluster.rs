//! Objects of the API server, as the agent of one node sees them.
//!
//! They are turned into the same documents that manifests give, so that the same rules hold. A node's Mesh is put
//! together from the cluster's `Mesh` and the node's own `MeshNode`. `PeerSlice`s hold what a Peer told of its nodes.

use std::collections::BTreeMap;

use derp::NodeKey;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Document, Form, Kind, ObjectId, read_spec};
use crate::{AdmittedPeer, Code, MeshNodeSpec, MeshSpec, NodeSpec, Problem, Relays};

mod clip;

pub(crate) use clip::{clipped, is_within, within};

/// Most nodes of one Peer, as many as may be written into a `Peer`.
pub(crate) const MAX_NODES: usize = 8192;

/// Everything in the API server that concerns one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterObjects {
    /// Name of the node.
    pub node: String,
    /// Every `Mesh`.
    pub meshes: Vec<StoredObject>,
    /// The `MeshNode` of this node, if there is one.
    pub mesh_node: Option<StoredObject>,
    /// Every `Peer`.
    pub peers: Vec<StoredObject>,
    /// Every `PeerSlice`.
    pub slices: Vec<StoredObject>,
}

/// An object as the API server holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; empty if there is none.
    pub uid: String,
    /// `spec`; null if there is none.
    pub spec: Value,
}

impl ClusterObjects {
    /// Ranges of the whole cluster, which no Peer may have on this node.
    #[must_use]
    pub fn reserved(&self) -> Vec<IpNet> {
        let node = self.mesh_node_spec().unwrap_or_default();
        node.reserved
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect()
    }

    /// Names of the Peers that this node probes.
    #[must_use]
    pub fn probes(&self) -> Vec<String> {
        self.mesh_node_spec().unwrap_or_default().probes
    }

    /// What has to be there before a Mesh can come into force, for people; `None` if nothing is missing.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let waits = !self.meshes.is_empty() && self.mesh_node.is_none();
        waits.then(|| {
            format!(
                "the MeshNode {}, which the operator makes; see its logs if it does not come",
                self.node
            )
        })
    }

    /// What each Peer may use at most: what it asks for, and of that what the operator has admitted. Others may not be in
    /// force. While the operator has not decided, all may be.
    pub(crate) fn granted(&self) -> BTreeMap<&str, Vec<IpNet>> {
        let admitted = self.mesh_node_spec().and_then(|node| node.admitted);
        let granted = |peer: &StoredObject| match &admitted {
            None => Some(asked(peer)),
            Some(admitted) => Some(within(&asked(peer), &ranges(admitted, peer)?)),
        };
        let peers = self.peers.iter();
        let granted = peers.filter_map(|peer| Some((peer.name.as_str(), granted(peer)?)));
        granted.collect()
    }

    /// The objects as documents, each with a name that takes the place of a file's. While the MeshNode is missing, or does
    /// not say which Peers may be in force, nothing new comes into force; what is deleted goes all the same.
    pub(crate) fn documents(
        &self,
        own_key: NodeKey,
    ) -> impl Iterator<Item = (String, Result<Document, Problem>)> {
        let waiting = || Err(self.waiting());
        let node = self.mesh_node_spec();
        let meshes = self.meshes.iter().map(move |mesh| {
            let spec = node.as_ref().map_or_else(waiting, |node| {
                Ok(mesh_spec(&mesh.spec, node).unwrap_or_default())
            });
            (Kind::Mesh, &mesh.name, spec)
        });
        let meshes = meshes.map(move |(kind, name, spec)| {
            let document = spec.map(|spec| document(kind, name, spec, own_key));
            (format!("{}/{name}", kind.name()), document)
        });
        let admitted = self.mesh_node_spec().and_then(|node| node.admitted);
        let peers = self.peers.iter().map(move |peer| {
            let document = match &admitted {
                None => waiting().map(|spec| document(Kind::Peer, &peer.name, spec, own_key)),
                Some(admitted) => Ok(peer_document(peer, admitted, own_key)),
            };
            (format!("{}/{}", Kind::Peer.name(), peer.name), document)
        });
        meshes.chain(peers)
    }

    /// What the slices say of every Peer, by its name, in the order of the slices' names. A node that cannot be read is
    /// left out.
    pub(crate) fn told(&self) -> BTreeMap<String, Vec<NodeSpec>> {
        let mut slices: Vec<&StoredObject> = self.slices.iter().collect();
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        let mut told: BTreeMap<String, Vec<NodeSpec>> = BTreeMap::new();
        for slice in slices {
            let Some(peer) = slice.spec.get("peer").and_then(Value::as_str) else {
                continue;
            };
            let nodes = slice.spec.get("nodes").and_then(Value::as_array);
            let nodes = nodes.into_iter().flatten().filter_map(typed);
            let list = told.entry(peer.to_owned()).or_default();
            list.extend(nodes);
            list.truncate(MAX_NODES);
        }
        told
    }

    fn mesh_node_spec(&self) -> Option<MeshNodeSpec> {
        typed(&self.mesh_node.as_ref()?.spec)
    }

    fn waiting(&self) -> Problem {
        let what = self
            .missing()
            .unwrap_or_else(|| format!("the operator to decide in MeshNode {}", self.node));
        let message = format!("waiting for {what}; what was in force stays");
        Problem::new("", Code::NotReadYet, message)
    }
}

/// The Mesh as this node is to see it; `None` if it is none.
fn mesh_spec(mesh: &Value, node: &MeshNodeSpec) -> Option<Value> {
    let mesh: MeshSpec = typed(mesh)?;
    let spec = MeshSpec {
        pod_cidrs: node.prefixes.clone(),
        addresses: Vec::new(),
        relays: Some(Relays {
            managed: Vec::new(),
            external: node.relays.clone(),
        }),
        ..mesh
    };
    serde_json::to_value(spec).ok()
}

/// What a Peer asks for, as far as it can be read.
fn asked(peer: &StoredObject) -> Vec<IpNet> {
    let asked = peer.spec.get("allowedCIDRs").and_then(Value::as_array);
    let asked = asked.into_iter().flatten().filter_map(Value::as_str);
    asked.filter_map(|text| text.parse().ok()).collect()
}

/// What the operator lets this very Peer use.
fn ranges(admitted: &[AdmittedPeer], peer: &StoredObject) -> Option<Vec<IpNet>> {
    let mut admitted = admitted.iter();
    let found = admitted.find(|one| one.name == peer.name && one.uid == peer.uid)?;
    let texts = found.allowed_cidrs.iter();
    Some(texts.filter_map(|text| text.parse().ok()).collect())
}

/// A Peer as far as it is admitted.
fn peer_document(peer: &StoredObject, admitted: &[AdmittedPeer], own_key: NodeKey) -> Document {
    let Some(ranges) = ranges(admitted, peer) else {
        let message = "the operator has not admitted this Peer, or no longer does; `kubectl describe peer` says why";
        return Document {
            object: Err(vec![Problem::new("", Code::NotAdmitted, message)]),
            ..document(Kind::Peer, &peer.name, peer.spec.clone(), own_key)
        };
    };
    document(
        Kind::Peer,
        &peer.name,
        clipped(&peer.spec, &ranges),
        own_key,
    )
}

fn document(kind: Kind, name: &str, spec: Value, own_key: NodeKey) -> Document {
    let id = ObjectId {
        kind,
        name: name.to_owned(),
    };
    Document {
        index: 0,
        kind: Some(kind.name().to_owned()),
        name: Some(name.to_owned()),
        object: read_spec(&id, &spec, Form::Stored, own_key),
        id: Some(id),
        spec,
        form: Form::Stored,
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}
