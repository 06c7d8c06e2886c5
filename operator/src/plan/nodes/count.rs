//! The nodes of this cluster and their agents, as told to people.

use std::collections::{BTreeMap, BTreeSet};

use api::Finding;
use derp::NodeKey;
use kube::ResourceExt;

use super::{is_ready, present, public_key};
use crate::plan::draft::find;
use crate::world::World;

/// Names in a message.
const MAX_NAMES: usize = 5;

/// The nodes of this cluster, as counted for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Nodes that have an agent, or had one.
    pub(crate) all: usize,
    /// Those of them whose agent is not ready.
    pub(crate) unready: Vec<String>,
    /// Those of the latter whose agent says nothing.
    silent: BTreeSet<String>,
    /// Nodes that never had an agent.
    without: Vec<String>,
    /// Nodes that have one key.
    twins: Vec<String>,
}

/// Counts the nodes.
pub(crate) fn count(world: &World) -> Count {
    let mut count = Count {
        twins: twins(world),
        ..Count::default()
    };
    let scheduled = scheduled(world);
    for name in present(world).map(|node| node.name_any()) {
        let node = find(&world.mesh_nodes, &name);
        if !scheduled.contains(name.as_str()) && node.and_then(public_key).is_none() {
            count.without.push(name);
            continue;
        }
        count.all += 1;
        if !node.is_some_and(|node| is_ready(world, node)) {
            if world.heard.is_silent(&name, world.now) {
                count.silent.insert(name.clone());
            }
            count.unready.push(name);
        }
    }
    count
}

/// Whether the agents are ready.
pub(crate) fn finding(count: &Count) -> Finding {
    const KIND: &str = "AgentsReady";
    let no = |reason, message| Finding::new(KIND, false, reason, message);
    if count.all + count.without.len() == 0 {
        return no("NoNodes", "there is no Node".to_owned());
    }
    if count.all == 0 {
        let message =
            "no node has an agent; look at the DaemonSet, its nodeSelector and its tolerations";
        return no("NoAgents", message.to_owned());
    }
    if !count.twins.is_empty() {
        let message = format!(
            "nodes {} have the same key, so that peers take only one of them: on all but one remove the agent's state folder, \
            which was copied, and restart the agent",
            named(&count.twins)
        );
        return no("DuplicateKey", message);
    }
    if count.unready.is_empty() {
        let mut message = "the agent of every node is ready".to_owned();
        if !count.without.is_empty() {
            message = format!(
                "every agent is ready; without one are {}",
                named(&count.without)
            );
        }
        return Finding::new(KIND, true, "Ready", message);
    }
    let shown = |name: &String| match count.silent.contains(name) {
        true => format!("{name} (silent)"),
        false => name.clone(),
    };
    let shown: Vec<String> = count.unready.iter().map(shown).collect();
    let message = format!(
        "the agents of {} of {} nodes are not ready: {}; look at their MeshNodes and pods",
        count.unready.len(),
        count.all,
        named(&shown)
    );
    no("AgentsNotReady", message)
}

/// Nodes that a pod of the DaemonSet is meant for.
fn scheduled(world: &World) -> BTreeSet<&str> {
    let specs = world
        .owned
        .agents
        .iter()
        .filter_map(|pod| pod.spec.as_ref());
    specs.filter_map(|spec| spec.node_name.as_deref()).collect()
}

/// The nodes of the first key that several have.
fn twins(world: &World) -> Vec<String> {
    let mut holders: BTreeMap<NodeKey, Vec<String>> = BTreeMap::new();
    for node in &world.mesh_nodes {
        if let Some(key) = public_key(node) {
            holders.entry(key).or_default().push(node.name_any());
        }
    }
    let mut twins = holders.into_values().filter(|holders| holders.len() > 1);
    twins.next().unwrap_or_default()
}

/// The first of these names, and how many more there are.
pub(super) fn named(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMES).map(String::as_str).collect();
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
