//! The Mesh in force, and its status.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{ConditionStatus, Finding, Mesh, MeshStatus, RelayFound, conditions};
use kube::ResourceExt;

use super::draft::{Draft, by_age};
use super::ground::Ground;
use super::nodes::{self, Count};
use super::relays::{self, Site};
use crate::action::StatusOf;
use crate::world::World;

const ACCEPTED: &str = "Accepted";
const READY: &str = "Ready";
/// Most relays in a status.
const MAX_RELAYS: usize = 16;

/// What the status of the Mesh is made of, besides the ground.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// All relays.
    pub(crate) sites: &'a [Site],
    /// How many more there are.
    pub(crate) sites_left_out: usize,
    /// The nodes of this cluster.
    pub(crate) nodes: Count,
    /// Peers that are ready.
    pub(crate) ready_peers: usize,
    /// All Peers.
    pub(crate) peers: usize,
    /// Whether this cluster has joined; `None` if nobody asked it to.
    pub(crate) joined: Option<Finding>,
}

/// The Mesh that counts: the oldest.
pub(crate) fn in_force(world: &World) -> Option<&Mesh> {
    by_age(&world.meshes).into_iter().next()
}

/// Refuses every other Mesh.
pub(crate) fn refuse_others(world: &World, in_force: &Mesh, draft: &mut Draft) {
    let others = world.meshes.iter().map(Arc::as_ref);
    for other in others.filter(|mesh| mesh.name_any() != in_force.name_any()) {
        let message = format!(
            "Mesh {} is older and counts; delete one of the two",
            in_force.name_any()
        );
        refuse(other, "SecondMesh", &message, draft);
    }
}

/// Says that a Mesh cannot be.
pub(crate) fn refuse(mesh: &Mesh, reason: &'static str, message: &str, draft: &mut Draft) {
    let findings = [ACCEPTED, READY].map(|kind| Finding::new(kind, false, reason, message));
    let before = mesh.status.as_ref();
    let old = before.map_or(&[][..], |status| &status.conditions);
    let status = MeshStatus {
        conditions: conditions(&findings, old, mesh.metadata.generation, draft.now()),
        ..MeshStatus::default()
    };
    let write = StatusOf::Mesh(mesh.name_any(), Box::new(status.clone()));
    draft.status(&status, before, write);
}

/// Writes the status of the Mesh in force.
pub(crate) fn status(ground: Ground<'_>, facts: Facts<'_>, draft: &mut Draft) {
    let mesh = ground.mesh;
    let found = found(ground, facts.sites);
    let connected = found.iter().filter(|relay| relay.inside).count();
    let mut ready = relays::findings(ground, facts.sites, &found);
    if facts.sites_left_out > 0 {
        let (used, more) = (facts.sites.len(), facts.sites_left_out);
        ready.message = format!(
            "{}; {used} relays are used, and {more} more of peers are not: there is no room",
            ready.message
        );
    }
    let mut findings = findings(ground, &facts, ready);
    // No reason not to be ready: a cluster without peers has nobody who could show it.
    findings.extend(relays::reachable(ground, facts.sites, &found, draft));
    let before = mesh.status.as_ref();
    let old = before.map_or(&[][..], |status| &status.conditions);
    let status = MeshStatus {
        identity: Some(ground.identity().to_string()),
        ranges: Some(ground.ranges.status()),
        relay_summary: Some(format!("{connected}/{}", found.len())),
        relays: found,
        peers: Some(format!("{}/{}", facts.ready_peers, facts.peers)),
        nodes: Some(format!(
            "{}/{}",
            facts.nodes.all - facts.nodes.unready.len(),
            facts.nodes.all
        )),
        conditions: conditions(&findings, old, mesh.metadata.generation, draft.now()),
    };
    let write = StatusOf::Mesh(mesh.name_any(), Box::new(status.clone()));
    draft.status(&status, before, write);
}

/// Each name once: it is the key of the list.
fn found(ground: Ground<'_>, sites: &[Site]) -> Vec<RelayFound> {
    let mut names = BTreeSet::new();
    let found = sites.iter().map(|site| relays::found(ground, site));
    found
        .filter(|relay| names.insert(relay.name.clone()))
        .take(MAX_RELAYS)
        .collect()
}

fn findings(ground: Ground<'_>, facts: &Facts<'_>, relays: Finding) -> Vec<Finding> {
    let mut findings = vec![
        Finding::new(ACCEPTED, true, "Accepted", "the Mesh is in force"),
        ranges(ground),
    ];
    // Before it has joined, a cluster may have no relay.
    findings.extend(facts.joined.clone());
    findings.extend([relays, nodes::finding(&facts.nodes)]);
    let against = findings
        .iter()
        .find(|finding| finding.status != ConditionStatus::True);
    let ready = match against {
        Some(finding) => Finding::new(READY, finding.status, finding.reason, &*finding.message),
        None => Finding::new(READY, true, "Ready", "relays and agents are ready"),
    };
    findings.push(ready);
    findings
}

fn ranges(ground: Ground<'_>) -> Finding {
    const KIND: &str = "CIDRsResolved";
    let ranges = ground.ranges;
    if let Some((reason, message)) = nodes::unserved(ground) {
        return Finding::new(KIND, false, reason, message);
    }
    let left_out = nodes::left_out(ground).map_or_else(String::new, |text| format!("; {text}"));
    match ranges.source.as_str() {
        "" => {
            let message = "neither the Nodes nor a known network plugin tell the range of pods; set spec.podCIDRs";
            Finding::new(KIND, false, "NotFound", message)
        }
        "Nodes" => {
            let message = format!(
                "joined from the Nodes; set spec.podCIDRs to the whole range if nodes are to be added{left_out}"
            );
            Finding::new(KIND, true, "Nodes", message)
        }
        source => Finding::new(KIND, true, "Found", format!("from {source}{left_out}")),
    }
}
