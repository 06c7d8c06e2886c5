//! The deny list: who was let in and is no longer, until their passes have run out.
//!
//! A `ConfigMap` remembers who is let in, so that it shows when somebody no longer is, also to an operator that was away
//! meanwhile. It is written before anybody gets a pass, and only over the version that was looked at. Relays are told the
//! list as it is remembered: a serial is never used for two lists.

mod outpost;
mod register;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use derp::NodeKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use sync::{ClusterIdentity, ClusterSecret};

use super::draft::{Draft, find};
use super::ground::Ground;
use super::identity::{self, Identity};
use super::invites;
use super::names::{self, DENY_MAP, OPERATOR};
use super::peers::Verdict;
use super::relays::Site;
use crate::action::{Action, DenyPush};
use crate::world::{DenyFault, DenyProblem, World};
use outpost::Outpost;
use register::{Register, Who};

/// Most keys in an admit file.
const MAX_LISTED: usize = 8192;
/// Most nodes of this cluster that get passes.
const MAX_OWN: usize = 5000;
/// Seconds for which relays are told of a Mesh's end.
const FAREWELL: i64 = 3600;
/// Seconds by which a clock may have been wrong that gave a serial.
const WRONG_CLOCK: i64 = 366 * 24 * 3600;
/// Failures in a row after which one that may pass is worth telling.
const TELLING: u32 = 3;

/// Who is let in, as it is written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// Clusters that may have a membership.
    pub(crate) clusters: BTreeSet<ClusterIdentity>,
    /// Nodes of this cluster that may have a pass.
    pub(crate) nodes: BTreeSet<NodeKey>,
}

/// The admit file of relays: this cluster is their owner. Nodes given by hand have no passes, and neither have operators
/// of peers before anybody has spoken to them.
pub(crate) fn admit_file(ground: Ground<'_>, peers: &[Verdict<'_>]) -> String {
    let lines = listed_keys(peers)
        .into_iter()
        .map(|key| format!("node:{key}\n"));
    std::iter::once(format!("{}\n", ground.identity()))
        .chain(lines)
        .collect()
}

/// Writes down who is let in and who no longer is.
pub(crate) fn remember(ground: Ground<'_>, own: &[Site], peers: &[Verdict<'_>], draft: &mut Draft) {
    let admitted = peers.iter().filter(|peer| peer.is_admitted());
    let clusters = admitted.filter_map(|peer| peer.identity).map(Who::Cluster);
    let listed = listed_keys(peers).into_iter().map(Who::Node);
    let nodes = own_keys(ground.world).into_iter().map(Who::Own);
    let before = read(ground.world);
    let awaited = awaited(ground, &before, peers, draft);
    let all = clusters.chain(listed).chain(nodes).chain(awaited);
    let admitted = all.collect();
    let register = Register {
        outposts: outposts(ground, own),
        ..before.next(admitted, ground.now, later_serial(ground.world, ground.now))
    };
    replace(ground.world, register, draft);
}

/// Writes down that a cluster is let in, besides all others that are.
pub(crate) fn remember_also(ground: Ground<'_>, cluster: ClusterIdentity) -> Vec<Action> {
    let before = read(ground.world);
    let mut admitted = before.admitted.clone();
    admitted.insert(Who::Cluster(cluster));
    let mut draft = Draft::new(ground.now);
    let register = before.next(admitted, ground.now, None);
    replace(ground.world, register, &mut draft);
    draft.finish().0
}

/// Lets everybody go, as there is no Mesh, and gives the lists for relays that run elsewhere. They are told for an hour: a
/// relay that cannot be reached by then has its passes run out.
pub(crate) fn without_mesh(world: &World, draft: &mut Draft) -> Vec<DenyPush> {
    let Identity::Known(secret) = identity::read(world) else {
        return Vec::new();
    };
    let (before, now) = (read(world), draft.now());
    let serial = later_serial(world, now);
    let after = before.next(BTreeSet::new(), now, serial);
    replace(world, after, draft);
    if !before.has_denied_since(super::draft::later(now, -FAREWELL)) {
        return Vec::new();
    }
    pushes_to(world, &secret, &before, before.outposts.iter().cloned())
}

/// Who is let in by now.
pub(crate) fn remembered(world: &World) -> Remembered {
    let mut remembered = Remembered::default();
    for who in read(world).admitted {
        match who {
            Who::Cluster(cluster) => {
                remembered.clusters.insert(cluster);
            }
            Who::Own(key) => {
                remembered.nodes.insert(key);
            }
            Who::Node(_) => {}
        }
    }
    remembered
}

/// Whether a cluster was let in, no longer is, and its passes have not run out yet.
pub(crate) fn is_denied(ground: Ground<'_>, cluster: ClusterIdentity) -> bool {
    read(ground.world)
        .denied
        .contains_key(&Who::Cluster(cluster))
}

/// The lists that connected relays of this cluster have not taken yet.
pub(crate) fn pushes(ground: Ground<'_>, sites: &[Site]) -> Vec<DenyPush> {
    let connected = |site: &&Site| {
        let url = site.url.as_ref();
        url.is_some_and(|url| ground.is_connected(url))
    };
    let own = sites.iter().filter(|site| is_own(ground, site));
    let outposts = own.filter(connected).filter_map(Outpost::of);
    let register = read(ground.world);
    pushes_to(ground.world, ground.secret, &register, outposts)
}

/// What is wrong with a relay that does not take the deny list, and what to do.
pub(crate) fn problem(ground: Ground<'_>, site: &Site) -> Option<String> {
    let problem = ground.world.undenied.get(site.url.as_ref()?)?;
    if is_foreign(problem, site.is_assumed) || !is_own(ground, site) {
        return None;
    }
    let advice = match problem.fault {
        DenyFault::NotOwner => format!(
            "it does not know this cluster as its owner; add the line {} to its admit file, or name its owner in the Mesh",
            ground.identity()
        ),
        DenyFault::Unsupported => {
            format!(
                "{}; have what stands before it pass PUT /denylist, or update the relay",
                problem.message
            )
        }
        DenyFault::Stale { in_force } if is_plausible(in_force, ground.now) => return None,
        DenyFault::Stale { in_force } => {
            format!("it has a list of serial {in_force}, made by a wrong clock; restart the relay")
        }
        DenyFault::Other if problem.times >= TELLING => problem.message.clone(),
        DenyFault::Other => return None,
    };
    Some(format!("the deny list is not taken: {advice}"))
}

fn read(world: &World) -> Register {
    let found = find::<ConfigMap>(&world.owned.config_maps, DENY_MAP);
    found.map(Register::read).unwrap_or_default()
}

fn replace(world: &World, register: Register, draft: &mut Draft) {
    let found = find::<ConfigMap>(&world.owned.config_maps, DENY_MAP);
    if found.is_none() && register == Register::default() {
        return;
    }
    if let Some(end) = register.denied.values().min() {
        draft.wake_at(*end);
    }
    let map = ConfigMap {
        metadata: names::metadata(&world.release, OPERATOR, DENY_MAP),
        data: Some(register.write()),
        ..ConfigMap::default()
    };
    draft.swap(map, found);
}

fn pushes_to(
    world: &World,
    secret: &ClusterSecret,
    register: &Register,
    outposts: impl Iterator<Item = Outpost>,
) -> Vec<DenyPush> {
    let Some(list) = register.list(secret).filter(|_| register.serial > 0) else {
        return Vec::new();
    };
    let (json, question) = (list.to_json(), Register::default().list(secret));
    let due = |outpost: &Outpost| {
        let taken = world.denied.get(&outpost.url).copied();
        let problem = world.undenied.get(&outpost.url);
        let foreign = problem.is_some_and(|problem| is_foreign(problem, outpost.is_assumed));
        !foreign && taken.unwrap_or_default() < register.serial
    };
    let push = |outpost: Outpost| DenyPush {
        dial: outpost.dial.unwrap_or_else(|| outpost.url.clone()),
        relay: outpost.url,
        ca_bundle: outpost.ca_bundle,
        serial: register.serial,
        json: json.clone(),
        question: question
            .as_ref()
            .filter(|_| outpost.is_assumed)
            .map(derp::pass::DenyList::to_json),
    };
    outposts.filter(due).map(push).collect()
}

/// Whether the relay has turned out to be somebody else's, who had not been named.
fn is_foreign(problem: &DenyProblem, is_assumed: bool) -> bool {
    is_assumed && problem.fault == DenyFault::NotOwner
}

fn is_own(ground: Ground<'_>, site: &Site) -> bool {
    site.owner == Some(ground.identity())
}

/// Clusters that have just been let in and whose Peers no look has seen yet: the watch of Peers may be behind that of the
/// register. A Peer that was seen has left its operator's key in the register; if it is not there any more, it was deleted.
fn awaited(
    ground: Ground<'_>,
    before: &Register,
    peers: &[Verdict<'_>],
    draft: &mut Draft,
) -> Vec<Who> {
    let mut awaited = Vec::new();
    for (cluster, end) in invites::newcomers(ground.world, ground.now) {
        let identity = Some(cluster.to_string());
        let is_seen = peers.iter().any(|one| one.peer.spec.identity == identity)
            || before.admitted.contains(&Who::Node(cluster.relay_key()));
        if before.admitted.contains(&Who::Cluster(cluster)) && !is_seen {
            draft.wake_at(end);
            awaited.push(Who::Cluster(cluster));
        }
    }
    awaited
}

/// Relays that are there without this cluster's Mesh.
fn outposts(ground: Ground<'_>, own: &[Site]) -> Vec<Outpost> {
    let external = own.iter().filter(|site| site.is_external());
    let own = external.filter(|site| is_own(ground, site));
    own.filter_map(Outpost::of).map(Outpost::trimmed).collect()
}

/// The highest serial that a relay has instead of ours.
fn later_serial(world: &World, now: Timestamp) -> Option<u64> {
    let stale = world
        .undenied
        .values()
        .filter_map(|problem| match problem.fault {
            DenyFault::Stale { in_force } => Some(in_force),
            DenyFault::NotOwner | DenyFault::Unsupported | DenyFault::Other => None,
        });
    stale.filter(|serial| is_plausible(*serial, now)).max()
}

/// Serials are times.
fn is_plausible(serial: u64, now: Timestamp) -> bool {
    let latest = now.as_second().saturating_add(WRONG_CLOCK);
    serial <= u64::try_from(latest).unwrap_or_default()
}

/// Keys of the nodes that there are.
fn own_keys(world: &World) -> BTreeSet<NodeKey> {
    let names: BTreeSet<_> = world.nodes.iter().map(|node| &node.metadata.name).collect();
    let nodes = world.mesh_nodes.iter();
    let nodes = nodes.filter(|node| names.contains(&node.metadata.name));
    let key = |status: &api::MeshNodeStatus| status.public_key.as_ref()?.parse().ok();
    let keys = nodes.filter_map(|node| node.status.as_ref().and_then(key));
    keys.take(MAX_OWN).collect()
}

/// Keys in the admit file, sorted.
fn listed_keys(peers: &[Verdict<'_>]) -> BTreeSet<NodeKey> {
    let operators = peers.iter().filter(|peer| peer.is_admitted());
    let operators = operators.filter_map(|peer| Some(peer.identity?.relay_key()));
    let in_force = peers.iter().filter(|peer| peer.is_in_force());
    let nodes = in_force.flat_map(|peer| &peer.peer.spec.nodes);
    let nodes = nodes.filter_map(|node| node.public_key.parse().ok());
    operators.chain(nodes).take(MAX_LISTED).collect()
}
