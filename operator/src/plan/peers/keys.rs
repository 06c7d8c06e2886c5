//! Who has which node key. One key is one node: whoever comes second is told who was there.

use std::collections::BTreeMap;

use derp::NodeKey;
use kube::ResourceExt;

use super::judge::{Problem, Verdict};
use crate::plan::ground::Ground;

/// Keys that are taken, and by whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// The nodes of this cluster whose agents say so.
    own: BTreeMap<NodeKey, String>,
    /// The nodes of Peers.
    holders: BTreeMap<NodeKey, String>,
    /// Peers that have told a key and had it in force before.
    kept: BTreeMap<NodeKey, String>,
}

impl Keys {
    /// Those of the nodes of this cluster.
    pub(super) fn of_nodes(ground: Ground<'_>) -> Self {
        let mut keys = Self::default();
        for node in &ground.world.mesh_nodes {
            let status = node.status.as_ref();
            let key = status.and_then(|status| status.public_key.as_ref());
            if let Some(key) = key.and_then(|key| key.parse().ok()) {
                let holder = format!("node {} of this cluster", node.name_any());
                keys.own.entry(key).or_insert(holder);
            }
        }
        keys
    }

    /// Takes the keys of nodes that are given by hand in a Peer; none, if another Peer has one of them. What an agent says of
    /// its own key does not count: no node of this cluster can take a Peer out of force.
    pub(super) fn take_written(&mut self, peer: &Verdict<'_>) -> Option<Problem> {
        if peer.peer.spec.nodes.is_empty() {
            return None;
        }
        let mut all = self.holders.clone();
        for node in &peer.peer.spec.nodes {
            // One that cannot be read is what agents complain about.
            let Ok(key) = node.public_key.parse() else {
                continue;
            };
            if let Some(holder) = all.insert(key, holder(&node.name, &peer.name)) {
                let message = format!(
                    "the public key of node {} is that of {holder}; every node makes its own",
                    node.name
                );
                return Some(Problem::new("DuplicateKey", message));
            }
        }
        self.holders = all;
        None
    }

    /// The node of this cluster that says it has this key.
    pub(super) fn own(&self, key: NodeKey) -> Option<&str> {
        self.own.get(&key).map(String::as_str)
    }

    /// Keeps a key that a Peer told for it.
    pub(super) fn keep(&mut self, key: NodeKey, peer: &str) {
        self.kept.entry(key).or_insert_with(|| peer.to_owned());
    }

    /// Takes a key that a Peer tells for one of its nodes, or says who has it.
    pub(super) fn take(&mut self, key: NodeKey, node: &str, peer: &str) -> Result<(), String> {
        let taken = self.own.get(&key).or_else(|| self.holders.get(&key));
        if let Some(holder) = taken {
            return Err(holder.clone());
        }
        if let Some(other) = self.kept.get(&key).filter(|other| *other != peer) {
            return Err(format!("a node of Peer {other}, which had it first"));
        }
        self.holders.insert(key, holder(node, peer));
        Ok(())
    }
}

fn holder(node: &str, peer: &str) -> String {
    format!("node {node} of Peer {peer}")
}
