//! Nodes that are not written, but told by the Peer itself: proposals, each taken or refused on its own.

use std::collections::BTreeMap;

use derp::{ClusterIdentity, NodeKey, RelayUrl};

use super::Held;
use crate::check::accept_nodes;
use crate::reader::MAX_NODES;
use crate::{ClusterObjects, Config, MeshConfig, NodeSpec, PeerNode, Problem};

/// Refused nodes that are remembered, and characters of their names.
const MAX_REFUSED: usize = 256;
const MAX_NAME: usize = 253;

/// A node, or a prefix of one, that a Peer told and that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedNode {
    /// Name of the Peer.
    pub peer: String,
    /// Name that it gave the node.
    pub node: String,
    /// What is wrong. The field counts from what was told.
    pub problem: Problem,
}

/// What a Peer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Who told it. `None`: somebody who has looked at that already.
    identity: Option<ClusterIdentity>,
    nodes: Vec<NodeSpec>,
}

impl Told {
    pub(super) fn new(identity: Option<ClusterIdentity>, mut nodes: Vec<NodeSpec>) -> Self {
        nodes.truncate(MAX_NODES);
        Self { identity, nodes }
    }
}

/// What the slices of all Peers tell.
pub(super) fn from_slices(objects: &ClusterObjects) -> BTreeMap<String, Told> {
    let told = objects.told().into_iter();
    told.map(|(peer, nodes)| (peer, Told::new(None, nodes)))
        .collect()
}

/// Adds told nodes to Peers, one Peer after the other.
pub(super) struct Vetting {
    own_key: NodeKey,
    relays: Vec<RelayUrl>,
    /// Which Peer has a key.
    taken: BTreeMap<NodeKey, String>,
    refused: Vec<RefusedNode>,
}

impl Vetting {
    pub(super) fn new(own_key: NodeKey, mesh: Option<&MeshConfig>) -> Self {
        let relays = mesh.iter().flat_map(|mesh| &mesh.relays);
        Self {
            own_key,
            relays: relays.map(|relay| relay.url.clone()).collect(),
            taken: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    /// Keeps keys for who has them: first those that are written, then those of told nodes in force.
    pub(super) fn reserve<'a>(&mut self, peers: impl Iterator<Item = &'a Held> + Clone) {
        for held in peers.clone() {
            for node in held
                .peer()
                .iter()
                .flat_map(|peer| &peer.nodes)
                .take(held.written)
            {
                self.take(node.public_key, held);
            }
        }
        for held in peers.filter(|held| held.in_force) {
            for node in held.told() {
                self.take(node.public_key, held);
            }
        }
    }

    /// Puts the nodes that `told` holds behind the written ones of a Peer, in the place of those that were there.
    pub(super) fn add(&mut self, held: &mut Held, told: Option<&Told>) {
        let written = held.written;
        let Config::Peer(peer) = &mut held.config else {
            return;
        };
        peer.nodes.truncate(written);
        let Some(told) =
            told.filter(|told| told.identity.is_none() || told.identity == peer.identity)
        else {
            return;
        };
        let rival = |key| {
            let owner = self.taken.get(&key).filter(|owner| **owner != peer.name);
            owner.map(String::as_str)
        };
        let brought: Vec<RelayUrl> = peer.relays.iter().map(|relay| relay.url.clone()).collect();
        let outcome = accept_nodes(peer, &told.nodes, self.own_key, rival);
        for mut node in outcome.accepted {
            self.taken.insert(node.public_key, peer.name.clone());
            node.home_relay = node
                .home_relay
                .filter(|url| self.relays.contains(url) || brought.contains(url));
            peer.nodes.push(node);
        }
        for (node, problem) in outcome.refused {
            self.refuse(&peer.name, &node, problem);
        }
    }

    pub(super) fn finish(self) -> Vec<RefusedNode> {
        self.refused
    }

    fn take(&mut self, key: NodeKey, held: &Held) {
        if let Some(peer) = held.peer() {
            self.taken.entry(key).or_insert_with(|| peer.name.clone());
        }
    }

    fn refuse(&mut self, peer: &str, node: &str, problem: Problem) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.push(RefusedNode {
                peer: peer.to_owned(),
                node: node.chars().take(MAX_NAME).collect(),
                problem,
            });
        }
    }
}

impl From<&PeerNode> for NodeSpec {
    fn from(node: &PeerNode) -> Self {
        Self {
            name: node.name.clone(),
            public_key: node.public_key.to_string(),
            home_relay: node.home_relay.as_ref().map(ToString::to_string),
            prefixes: node.prefixes.iter().map(ToString::to_string).collect(),
        }
    }
}
