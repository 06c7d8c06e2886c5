//! `MeshNodes`: what each node's agent is told.

mod count;
mod prefixes;
mod probes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::{AdmittedPeer, ExternalRelay, MAX_NODE_PREFIXES, MeshNode, MeshNodeSpec, is_true};
use derp::NodeKey;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sync::{NodeName, NodeRecord, Records};

use super::discovery::texts;
use super::draft::{Draft, find};
use super::ground::Ground;
use super::names::{self, GATEWAY_LABEL};
use super::passes::{Passes, relay_pass};
use super::peers::Verdict;
use super::relays::Site;
use crate::action::Kind;
use crate::world::{Pods, World};

pub(crate) use count::{Count, count, finding};

/// Most reserved ranges.
const MAX_RESERVED: usize = 320;
const UNSEEN: &str = "no Node has a range of its own, and the operator has not seen the pods yet";
const FORBIDDEN: &str = "no Node has a range of its own, and the operator may not see which pods it has; \
    set operator.watchPods in the chart's values";

/// Sees to the `MeshNodes`: one per Node.
pub(crate) fn write(
    ground: Ground<'_>,
    sites: &[Site],
    passes: &Passes<'_>,
    peers: &[Verdict<'_>],
    draft: &mut Draft,
) {
    let prefixes = prefixes::of_nodes(ground);
    let probes = probes::elect(ground, peers);
    let reserved: Vec<_> = ground.ranges.reserved().take(MAX_RESERVED).collect();
    let admitted = admitted(peers);
    for node in present(ground.world) {
        let name = node.name_any();
        let found = find(&ground.world.mesh_nodes, &name);
        let mut served = texts(prefixes.get(&name).map_or(&[], Vec::as_slice));
        served.truncate(MAX_NODE_PREFIXES);
        let spec = MeshNodeSpec {
            prefixes: served,
            reserved: texts(&reserved),
            relays: relays(sites, passes, found.and_then(public_key)),
            probes: probes.get(&name).cloned().unwrap_or_default(),
            admitted: Some(admitted.clone()),
        };
        if let Some(at) = ground.world.heard.silent_at(&name) {
            draft.wake_at(at);
        }
        draft.apply(mesh_node(node, name, spec), found);
    }
    for gone in &ground.world.mesh_nodes {
        if find(&ground.world.nodes, &gone.name_any()).is_none() {
            draft.delete(Kind::MeshNode, gone.as_ref());
        }
    }
}

/// Whether it has to be known where pods are: no node has a range of its own.
pub(crate) fn needs_pods(ground: Ground<'_>) -> bool {
    somebody_should_serve(ground) && !prefixes::are_given(ground)
}

/// Why nodes do not serve what they should: a reason, and the same for people.
pub(crate) fn unserved(ground: Ground<'_>) -> Option<(&'static str, String)> {
    let prefixes = prefixes::of_nodes(ground);
    let mut served = prefixes.iter();
    if let Some((node, all)) = served.find(|(_, all)| all.len() > MAX_NODE_PREFIXES) {
        let (count, advice) = (all.len(), too_many(ground));
        let message = format!(
            "node {node} should serve {count} prefixes and serves the first {MAX_NODE_PREFIXES}; {advice}"
        );
        return Some(("TooManyPrefixes", message));
    }
    let nobody = prefixes.values().all(Vec::is_empty);
    if !nobody || !somebody_should_serve(ground) {
        return None;
    }
    let message = match &ground.world.pods {
        Pods::Unknown => UNSEEN.to_owned(),
        Pods::Forbidden => {
            format!("{FORBIDDEN}, or label a node {GATEWAY_LABEL}=true to link the pods on it")
        }
        // A cluster without pods is as it should be.
        Pods::Known(_) => prefixes::stray(ground).map(stray_message)?,
    };
    Some(("NothingServed", message))
}

/// Whose pods are not linked though others are, for people.
pub(crate) fn left_out(ground: Ground<'_>) -> Option<String> {
    if !needs_pods(ground) {
        let without = prefixes::without(ground);
        return (!without.is_empty()).then(|| {
            let nodes = count::named(&without);
            format!("no range is known to belong to {nodes}: the pods there are not linked")
        });
    }
    match &ground.world.pods {
        Pods::Unknown => Some(UNSEEN.to_owned()),
        Pods::Forbidden => {
            let gateway = prefixes::gateway(ground)?;
            Some(format!("only pods on {gateway} are linked: {FORBIDDEN}"))
        }
        Pods::Known(_) => prefixes::stray(ground).map(stray_message),
    }
}

fn somebody_should_serve(ground: Ground<'_>) -> bool {
    !ground.ranges.pods.is_empty() && present(ground.world).next().is_some()
}

fn too_many(ground: Ground<'_>) -> &'static str {
    if needs_pods(ground) {
        "the pods at the others are not linked: run fewer pods there, or take a network plugin that gives nodes ranges"
    } else {
        "give it fewer, larger ones"
    }
}

fn stray_message((address, node): (IpAddr, &str)) -> String {
    format!(
        "pods whose addresses lie outside the ranges of this cluster, such as {address} on {node}, are not linked; \
        correct spec.podCIDRs if they should be"
    )
}

/// Deletes all `MeshNodes`.
pub(crate) fn delete_all(world: &World, draft: &mut Draft) {
    for node in &world.mesh_nodes {
        draft.delete(Kind::MeshNode, node.as_ref());
    }
}

/// What peers are told of this cluster's nodes: those whose agent has made its key.
pub(crate) fn records(world: &World) -> Records {
    let mut records = Records::default();
    for node in &world.mesh_nodes {
        if let Some((name, record)) = record(node) {
            // What is beyond the bounds is not told.
            let _ = records.insert(name, Arc::new(record));
        }
    }
    records
}

/// What agents may put into force: each Peer that stands in nobody's way, with its ranges.
fn admitted(peers: &[Verdict<'_>]) -> Vec<AdmittedPeer> {
    let in_force = peers.iter().filter(|peer| peer.is_in_force());
    let mut admitted: Vec<AdmittedPeer> = in_force
        .map(|peer| AdmittedPeer {
            name: peer.name.clone(),
            uid: peer.peer.uid().unwrap_or_default(),
            allowed_cidrs: texts(&peer.allowed),
        })
        .collect();
    admitted.sort_by(|a, b| a.name.cmp(&b.name));
    admitted
}

/// Whether a node's agent says that it is ready, and both still live: nobody takes back what a dead agent said.
fn is_ready(world: &World, node: &MeshNode) -> bool {
    let (status, name) = (node.status.as_ref(), node.name_any());
    status.is_some_and(|status| is_true(&status.conditions, "Ready"))
        && !world.heard.is_silent(&name, world.now)
        && find(&world.nodes, &name).is_some_and(is_alive)
}

fn is_alive(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|one| one.type_ == "Ready");
    ready.is_some_and(|ready| ready.status == "True")
}

fn present(world: &World) -> impl Iterator<Item = &Node> {
    let nodes = world.nodes.iter().map(Arc::as_ref);
    nodes.filter(|node| node.metadata.deletion_timestamp.is_none())
}

fn public_key(node: &MeshNode) -> Option<NodeKey> {
    node.status.as_ref()?.public_key.as_ref()?.parse().ok()
}

fn record(node: &MeshNode) -> Option<(NodeName, NodeRecord)> {
    let name = node.name_any().parse().ok()?;
    let home = node.status.as_ref()?.home_relay.as_ref();
    let record = NodeRecord::new(
        public_key(node)?,
        home.and_then(|url| url.parse().ok()),
        super::discovery::usable(&node.spec.prefixes),
        // What is told last counts, whatever its number. That of the object would rise with each pass.
        0,
    );
    Some((name, record.ok()?))
}

fn relays(sites: &[Site], passes: &Passes<'_>, key: Option<NodeKey>) -> Vec<ExternalRelay> {
    let relay = |site: &Site| {
        let pass = relay_pass(passes, site.owner, key);
        site.external().map(|relay| ExternalRelay { pass, ..relay })
    };
    sites.iter().filter_map(relay).collect()
}

/// The labels are the Node's name only: what else a Node is labelled with is not the agent's business.
fn mesh_node(node: &Node, name: String, spec: MeshNodeSpec) -> MeshNode {
    let mut owner = names::owner_reference(node);
    if let Some(owner) = &mut owner {
        // Whoever deletes a Node does not wait for this.
        owner.block_owner_deletion = Some(false);
        owner.controller = Some(false);
    }
    MeshNode {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/part-of".to_owned(),
                "culvert".to_owned(),
            )])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}
