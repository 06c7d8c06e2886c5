//! Which node probes which Peer for all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::MeshNode;
use kube::ResourceExt;

use super::is_ready;
use crate::plan::draft::find;
use crate::plan::ground::Ground;
use crate::plan::peers::Verdict;

/// Most Peers that one node probes.
const MAX_PROBES: usize = 256;

/// Peers by the node that probes them. Whoever does so already goes on while it is fit; a new one is the fittest node that
/// has the least to do.
pub(super) fn elect(ground: Ground<'_>, peers: &[Verdict<'_>]) -> BTreeMap<String, Vec<String>> {
    let mut names: Vec<&str> = peers
        .iter()
        .filter(|peer| peer.is_in_force())
        .map(|peer| peer.name.as_str())
        .collect();
    names.sort_unstable();
    let mut elected: BTreeMap<String, Vec<String>> = nodes(ground)
        .map(|node| (node.name_any(), Vec::new()))
        .collect();
    let (held, open): (Vec<_>, Vec<_>) = names
        .into_iter()
        .map(|peer| (peer, holder(ground, peer)))
        .partition(|(_, holder)| holder.is_some());
    for (peer, holder) in held {
        if let Some(peers) = holder.and_then(|holder| elected.get_mut(&holder)) {
            peers.push(peer.to_owned());
        }
    }
    for (peer, _) in open {
        let least = elected
            .iter_mut()
            .filter(|(_, peers)| peers.len() < MAX_PROBES)
            .min_by_key(|(node, peers)| (unfitness(ground, node), peers.len()));
        if let Some((_, peers)) = least {
            peers.push(peer.to_owned());
        }
    }
    elected.values_mut().for_each(|peers| peers.sort());
    elected
}

/// The node that probes a Peer already, unless another one would be fitter.
fn holder(ground: Ground<'_>, peer: &str) -> Option<String> {
    let probes = |node: &&MeshNode| node.spec.probes.iter().any(|probed| probed == peer);
    let rank = |node: &MeshNode| unfitness(ground, &node.name_any());
    let best = nodes(ground).map(rank).min()?;
    let mut holders = nodes(ground).filter(probes);
    let holder = holders.find(|node| rank(node) == best)?;
    Some(holder.name_any())
}

/// How little use a node's probes are: of one that is not ready least, then of one that serves nothing. Peers do not know
/// the latter, and refuse it.
fn unfitness(ground: Ground<'_>, name: &str) -> (bool, bool) {
    let node = find(&ground.world.mesh_nodes, name);
    let is_ready = node.is_some_and(|node| is_ready(ground.world, node));
    let serves = node.is_some_and(|node| !node.spec.prefixes.is_empty());
    (!is_ready, !serves)
}

/// Those whose Node is there, by name.
fn nodes(ground: Ground<'_>) -> impl Iterator<Item = &MeshNode> {
    let world = ground.world;
    let mut nodes: Vec<&MeshNode> = world
        .mesh_nodes
        .iter()
        .map(Arc::as_ref)
        .filter(|node: &&MeshNode| find(&world.nodes, &node.name_any()).is_some())
        .collect();
    nodes.sort_by_key(|node| node.name_any());
    nodes.into_iter()
}
