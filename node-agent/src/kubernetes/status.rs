//! The status of this node's `MeshNode`. Pure: what is known in, the status out; and whether it is worth writing.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{
    Code, ConditionStatus, Filtering, Finding, MAX_REPORTED_NODES, MAX_REPORTED_PEERS,
    ManifestStatus, Mapping, MeshNodeStatus, NatFound, NodePath, NodePeer, PathKind, PathReport,
    PeerReport, conditions,
};
use derp::NodeKey;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use netconf::{Condition, ConditionCode};

use crate::{HostReport, Snapshot};

/// Paths in one status: with these it stays well below what the API server takes.
const MAX_PATHS: usize = 1024;
/// Entries of the lists that have a bound of 16.
const MAX_FEW: usize = 16;
/// Characters of the bound of `problem`.
const MAX_PROBLEM: usize = 1024;

/// What to know about a status that has no room for everything.
const LEFT_OUT: &str =
    "not every path is listed here: there is room for 256 Peers, 64 paths of one, 1024 in all";

/// Shortest time between two writes.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Longest time between two writes: who reads them takes three times that for silence.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Shortest time between two writes for which the time of a probe is reason enough.
const PROBED: Duration = Duration::from_secs(10);
/// Shortest time between two changes of round trips.
const RTT: Duration = Duration::from_secs(30);

/// What a status is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) public_key: NodeKey,
    /// UDP port of direct paths while the tunnel names none.
    pub(crate) port: u16,
    pub(crate) snapshot: &'a Snapshot,
    /// What became of every object.
    pub(crate) manifests: &'a [ManifestStatus],
    /// `metadata.generation` of the MeshNode.
    pub(crate) generation: Option<i64>,
}

/// The status now. `before` is the last one that is known, for the times of its conditions.
pub(crate) fn status(facts: &Facts<'_>, before: &MeshNodeStatus, now: Timestamp) -> MeshNodeStatus {
    let snapshot = facts.snapshot;
    let port = snapshot.listen_port.unwrap_or(facts.port);
    let connected = snapshot.relays.iter().filter(|relay| relay.connected);
    let (peers, is_whole) = peers(facts);
    MeshNodeStatus {
        public_key: Some(facts.public_key.to_string()),
        listen_port: Some(i64::from(port)),
        home_relay: snapshot.home_relay.clone(),
        nat: Some(nat(snapshot)),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        connected_relays: connected
            .map(|relay| relay.url.clone())
            .take(MAX_FEW)
            .collect(),
        heartbeat_at: Some(Time(whole_seconds(now))),
        peers,
        conditions: conditions(
            &findings(facts, is_whole),
            &before.conditions,
            facts.generation,
            now,
        ),
    }
}

/// Whether `next` is to be written in the place of `written`, `since` after that.
pub(crate) fn is_due(written: &MeshNodeStatus, next: &MeshNodeStatus, since: Duration) -> bool {
    if since < DEBOUNCE {
        return false;
    }
    let other = without_times(written) != without_times(next);
    other || since >= HEARTBEAT || since >= PROBED && probes(written) != probes(next)
}

/// Lets the round trips of paths that are as they were stay as written, unless they have changed much and the last such change
/// was written `since` ago.
pub(crate) fn damp(written: &MeshNodeStatus, next: &mut MeshNodeStatus, since: Duration) {
    for peer in &mut next.peers {
        for path in &mut peer.nodes {
            let Some(before) = written_path(written, &peer.name, path) else {
                continue;
            };
            let news = match (before.rtt_micros, path.rtt_micros) {
                (Some(before), Some(after)) => since >= RTT && has_moved(before, after),
                (Some(_), None) => since >= RTT,
                (None, _) => true,
            };
            if !news {
                path.rtt_micros = before.rtt_micros;
            }
        }
    }
}

/// The round trips of all paths.
pub(crate) fn round_trips(status: &MeshNodeStatus) -> Vec<Option<i64>> {
    let nodes = status.peers.iter().flat_map(|peer| &peer.nodes);
    nodes.map(|node| node.rtt_micros).collect()
}

fn nat(snapshot: &Snapshot) -> NatFound {
    let reflexive = snapshot.nat.reflexive.iter().map(ToString::to_string);
    NatFound {
        mapping: snapshot.nat.mapping,
        filtering: snapshot.nat.filtering,
        reflexive: reflexive.take(MAX_FEW).collect(),
    }
}

/// Every Peer there is, in force or not, by name; and whether all of their paths are there.
fn peers(facts: &Facts<'_>) -> (Vec<NodePeer>, bool) {
    let mut peers: BTreeMap<&str, NodePeer> = BTreeMap::new();
    let is_peer = |one: &&ManifestStatus| one.kind.as_deref() == Some("Peer");
    for manifest in facts.manifests.iter().filter(is_peer) {
        if let Some(name) = manifest.name.as_deref() {
            peers.insert(name, unreached(name, manifest));
        }
    }
    let (mut left, mut is_whole) = (MAX_PATHS, true);
    let reports = &facts.snapshot.peers;
    for (index, report) in reports.iter().enumerate() {
        // One is kept for each that follows: it may be the one that is probed.
        let most = left.saturating_sub(reports.len() - index - 1);
        let peer = peers.entry(&report.name).or_insert_with(|| NodePeer {
            name: report.name.clone(),
            accepted: true,
            ..NodePeer::default()
        });
        is_whole &= reach(peer, report, facts.snapshot, most.min(MAX_REPORTED_NODES));
        left = left.saturating_sub(peer.nodes.len());
    }
    let mut peers: Vec<NodePeer> = peers.into_values().collect();
    if peers.len() > MAX_REPORTED_PEERS {
        is_whole = false;
        peers.sort_by_key(|peer| !peer.accepted);
        peers.truncate(MAX_REPORTED_PEERS);
        peers.sort_by(|a, b| a.name.cmp(&b.name));
    }
    (peers, is_whole)
}

fn unreached(name: &str, manifest: &ManifestStatus) -> NodePeer {
    let problem = manifest.errors.first();
    NodePeer {
        name: name.to_owned(),
        accepted: manifest.accepted,
        problem: problem.map(|error| {
            let text = format!("{}: {}", error.code, error.message);
            text.chars().take(MAX_PROBLEM).collect()
        }),
        ..NodePeer::default()
    }
}

/// Fills in how a Peer is reached; says whether there was room for all paths.
fn reach(peer: &mut NodePeer, report: &PeerReport, snapshot: &Snapshot, most: usize) -> bool {
    let mut busy: Vec<&PathReport> = report.nodes.iter().collect();
    busy.retain(|node| node.path != PathKind::Idle);
    let is_whole = busy.len() <= most;
    busy.sort_by_key(|node| (!snapshot.probed.contains_key(&node.public_key), &node.name));
    busy.truncate(most);
    busy.sort_by(|a, b| a.name.cmp(&b.name));
    let answered = report
        .nodes
        .iter()
        .filter_map(|node| snapshot.probed.get(&node.public_key));
    peer.probed_at = answered.max().map(|at| Time(whole_seconds(*at)));
    peer.node_count = i64::try_from(report.nodes.len()).unwrap_or(i64::MAX);
    peer.nodes = busy.into_iter().map(path).collect();
    is_whole
}

fn path(node: &PathReport) -> NodePath {
    let micros = node
        .rtt_micros
        .map(|micros| micros.min(u64::from(u32::MAX)));
    NodePath {
        name: node.name.clone(),
        path: node.path,
        reason: node.reason,
        endpoint: node.endpoint.clone(),
        rtt_micros: micros.and_then(|micros| i64::try_from(micros).ok()),
    }
}

/// As the API server keeps it.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn findings(facts: &Facts<'_>, is_whole: bool) -> Vec<Finding> {
    let host = &facts.snapshot.host;
    let plane = data_plane(facts);
    let firewall = firewall(host);
    let mut ready = ready(facts, &plane, &firewall);
    if !is_whole {
        ready.message = format!("{}; {LEFT_OUT}", ready.message);
    }
    vec![ready, plane, nat_classified(facts.snapshot), firewall]
}

/// What the condition `Ready` sums up.
fn ready(facts: &Facts<'_>, plane: &Finding, firewall: &Finding) -> Finding {
    let failing = [plane, firewall]
        .into_iter()
        .find(|finding| finding.status != ConditionStatus::True);
    if let Some(finding) = failing {
        return Finding {
            kind: "Ready",
            ..finding.clone()
        };
    }
    let relays = &facts.snapshot.relays;
    if !relays.is_empty() && !relays.iter().any(|relay| relay.connected) {
        let first = relays.first();
        let problem = first.and_then(|relay| relay.problem.as_deref());
        let url = first.map_or("", |relay| relay.url.as_str());
        let message = format!(
            "no relay is connected; {url}: {}",
            problem.unwrap_or("connecting")
        );
        return Finding::new("Ready", false, "RelayUnreachable", message);
    }
    Finding::new("Ready", true, "Programmed", "this node is linked as wanted")
}

fn data_plane(facts: &Facts<'_>) -> Finding {
    const KIND: &str = "DataPlane";
    let host = &facts.snapshot.host;
    if let Some(error) = mesh_problem(facts.manifests) {
        return Finding::new(KIND, false, error.0, error.1);
    }
    match host.programmed {
        None => {
            let message = "the agent has programmed nothing yet";
            return Finding::new(KIND, ConditionStatus::Unknown, "Starting", message);
        }
        Some(false) => {
            let problem = host
                .problem
                .as_deref()
                .unwrap_or("the host is not as wanted");
            return Finding::new(KIND, false, "ApplyFailed", problem);
        }
        Some(true) if facts.snapshot.listen_port.is_none() => {
            let message = "no Mesh is in force, so nothing is programmed";
            return Finding::new(KIND, false, "NoMesh", message);
        }
        Some(true) => {}
    }
    let broken = find(host, |place| place == Place::Broken);
    if let Some(condition) = broken {
        return Finding::new(KIND, false, condition.code.as_str(), &condition.message);
    }
    match find(host, |place| place == Place::Note) {
        Some(note) => Finding::new(KIND, true, note.code.as_str(), &note.message),
        None => Finding::new(
            KIND,
            true,
            "Programmed",
            "device, routes and rules are in place",
        ),
    }
}

fn firewall(host: &HostReport) -> Finding {
    const KIND: &str = "FirewallOpen";
    if host.programmed.is_none() {
        let message = "the firewall has not been looked at yet";
        return Finding::new(KIND, ConditionStatus::Unknown, "Starting", message);
    }
    match find(host, |place| place == Place::Firewall) {
        Some(found) => Finding::new(KIND, false, found.code.as_str(), &found.message),
        None => Finding::new(KIND, true, "Open", "no firewall of this host is in the way"),
    }
}

fn nat_classified(snapshot: &Snapshot) -> Finding {
    const KIND: &str = "NATClassified";
    let nat = &snapshot.nat;
    let mapping = match nat.mapping {
        Mapping::EndpointIndependent => "EIM",
        Mapping::EndpointDependent => "EDM",
        Mapping::Unknown => {
            let message = "no two STUN answers could be compared; without STUN on two addresses or relays paths may stay relayed";
            return Finding::new(KIND, ConditionStatus::Unknown, "NotMeasured", message);
        }
    };
    let filtering = match nat.filtering {
        Filtering::EndpointIndependent => "EIF",
        Filtering::AddressDependent => "ADF",
        Filtering::AddressAndPortDependent => "APDF",
        Filtering::Unknown => "filtering unknown",
    };
    Finding::new(KIND, true, "Measured", format!("{mapping}, {filtering}"))
}

/// Why there is no Mesh in force as written.
fn mesh_problem(manifests: &[ManifestStatus]) -> Option<(&'static str, String)> {
    let of_all = |one: &&ManifestStatus| one.kind.as_deref() != Some("Peer");
    let errors = manifests.iter().filter(of_all).flat_map(|one| &one.errors);
    let mut errors = errors.filter(|error| error.code != Code::NotReadYet);
    let error = errors.next()?;
    Some(("MeshRefused", format!("{}: {}", error.code, error.message)))
}

/// Where a condition of the host counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Packets cannot flow.
    Broken,
    /// They can, and somebody should know something.
    Note,
    /// A firewall stops them.
    Firewall,
}

fn place(code: ConditionCode) -> Place {
    match code {
        ConditionCode::DeviceMissing
        | ConditionCode::ForeignRule
        | ConditionCode::Conflict
        | ConditionCode::ForwardingOff
        | ConditionCode::LinkdownRoutesIgnored
        | ConditionCode::NftMissing => Place::Broken,
        ConditionCode::DeviceSysctl | ConditionCode::Ipv6Forwarding | ConditionCode::OldFlows => {
            Place::Note
        }
        ConditionCode::ForeignDrop
        | ConditionCode::IptablesMissing
        | ConditionCode::IptablesUnlocked => Place::Firewall,
    }
}

fn find(host: &HostReport, wanted: impl Fn(Place) -> bool) -> Option<&Condition> {
    let mut conditions = host.conditions.iter();
    conditions.find(|condition| wanted(place(condition.code)))
}

/// The status without the times, which change all the time.
fn without_times(status: &MeshNodeStatus) -> MeshNodeStatus {
    let mut status = status.clone();
    status.heartbeat_at = None;
    for peer in &mut status.peers {
        peer.probed_at = None;
    }
    status
}

fn probes(status: &MeshNodeStatus) -> Vec<Option<&Time>> {
    status
        .peers
        .iter()
        .map(|peer| peer.probed_at.as_ref())
        .collect()
}

/// The path that was written, if it is still the same one.
fn written_path<'a>(
    written: &'a MeshNodeStatus,
    peer: &str,
    path: &NodePath,
) -> Option<&'a NodePath> {
    let mut peers = written.peers.iter();
    let mut nodes = peers.find(|one| one.name == peer)?.nodes.iter();
    nodes
        .find(|one| one.name == path.name && one.path == path.path && one.endpoint == path.endpoint)
}

/// Whether a round trip has changed by more than a fifth.
fn has_moved(before: i64, after: i64) -> bool {
    before.abs_diff(after) > before.unsigned_abs() / 5
}

#[cfg(test)]
mod tests;
