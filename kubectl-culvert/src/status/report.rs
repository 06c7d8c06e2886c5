//! The status as one document, for programs.

use api::{
    Filtering, Mapping, MeshNode, MeshNodeStatus, PathKind, Peer, Reason, RefusedClaim, RelayFound,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde::Serialize;

use super::Found;

/// Everything. Fields are only ever added.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    mesh: MeshReport,
    relays: Vec<RelayFound>,
    peers: Vec<PeerReport>,
    nodes: Vec<NodeReport>,
    /// One entry per local node and remote node that are not idle.
    pub(super) paths: Vec<PathReport>,
    /// What is idle, counted.
    pub(super) idle: Vec<IdleReport>,
}

/// The `Ready` condition of an object.
#[derive(Serialize, Debug)]
struct Readiness {
    /// `True`, `False` or `Unknown`.
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct MeshReport {
    name: String,
    cluster_name: String,
    identity: Option<String>,
    ready: Readiness,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

/// A Peer.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerReport {
    name: String,
    cluster_name: Option<String>,
    ready: Readiness,
    path: Option<PathKind>,
    rtt_micros: Option<i64>,
    nodes: Option<String>,
    #[serde(rename = "allowedCIDRs")]
    allowed_cidrs: Vec<String>,
    refused: Vec<RefusedClaim>,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    name: String,
    ready: Readiness,
    nat: Option<api::NatFound>,
    home_relay: Option<String>,
    public_key: Option<String>,
    prefixes: Vec<String>,
    agent_version: Option<String>,
    /// When the agent last said that it is there, by its node's clock.
    heartbeat_at: Option<Time>,
    /// Peers that this node has not put into force.
    problems: Vec<NodeProblem>,
}

/// Why a node has not put a Peer into force.
#[derive(Serialize, Debug)]
pub(super) struct NodeProblem {
    pub(super) peer: String,
    pub(super) problem: String,
}

/// The path of one pair of nodes.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct PathReport {
    pub(super) node: String,
    pub(super) peer: String,
    pub(super) remote_node: String,
    pub(super) path: PathKind,
    pub(super) reason: Option<Reason>,
    pub(super) rtt_micros: Option<i64>,
    pub(super) endpoint: Option<String>,
    /// The local node's NAT, `MAPPING/FILTERING`.
    pub(super) nat: Option<String>,
}

/// Remote nodes of a peer that a local node does not list, because there is nothing to send to them. Where the list is full
/// there are others among them.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdleReport {
    pub(super) node: String,
    pub(super) peer: String,
    pub(super) remote_nodes: i64,
}

/// Puts together what was found.
pub(super) fn report(found: &Found) -> Report {
    let status = found.mesh.status.clone().unwrap_or_default();
    Report {
        mesh: MeshReport {
            name: found.mesh.name_any(),
            cluster_name: found.mesh.spec.cluster_name.clone(),
            identity: status.identity,
            ready: Readiness::of(&status.conditions),
            pod_cidrs: status.ranges.unwrap_or_default().pod_cidrs,
        },
        relays: status.relays,
        peers: peers(&found.peers),
        nodes: found.nodes.iter().map(node).collect(),
        paths: paths(found),
        idle: idle(found),
    }
}

/// The Peers.
pub(crate) fn peers(found: &[Peer]) -> Vec<PeerReport> {
    found.iter().map(peer).collect()
}

/// What the NAT of a node is called.
pub(super) fn nat(status: &MeshNodeStatus) -> Option<String> {
    let nat = status.nat.as_ref()?;
    let mapping = match nat.mapping {
        Mapping::EndpointIndependent => "EIM",
        Mapping::EndpointDependent => "EDM",
        Mapping::Unknown => "unknown",
    };
    let filtering = match nat.filtering {
        Filtering::EndpointIndependent => "EIF",
        Filtering::AddressDependent => "ADF",
        Filtering::AddressAndPortDependent => "APDF",
        Filtering::Unknown => "unknown",
    };
    Some(format!("{mapping}/{filtering}"))
}

/// The Peers that a node has not put into force.
pub(super) fn problems(node: &MeshNode) -> Vec<NodeProblem> {
    let peers = node.status.iter().flat_map(|status| &status.peers);
    let refused = peers.filter(|peer| !peer.accepted);
    let problem = |peer: &api::NodePeer| NodeProblem {
        peer: peer.name.clone(),
        problem: peer.problem.clone().unwrap_or_default(),
    };
    refused.map(problem).collect()
}

/// The path of every pair of nodes that is not idle.
pub(super) fn paths(found: &Found) -> Vec<PathReport> {
    let mut paths = Vec::new();
    for node in &found.nodes {
        let status = node.status.clone().unwrap_or_default();
        for peer in &status.peers {
            paths.extend(peer.nodes.iter().map(|remote| PathReport {
                node: node.name_any(),
                peer: peer.name.clone(),
                remote_node: remote.name.clone(),
                path: remote.path,
                reason: remote.reason,
                rtt_micros: remote.rtt_micros,
                endpoint: remote.endpoint.clone(),
                nat: nat(&status),
            }));
        }
    }
    paths
}

/// How many remote nodes are idle, per node and peer.
pub(super) fn idle(found: &Found) -> Vec<IdleReport> {
    let mut idle = Vec::new();
    for node in &found.nodes {
        for peer in node.status.iter().flat_map(|status| &status.peers) {
            let active = i64::try_from(peer.nodes.len()).unwrap_or(i64::MAX);
            let remote_nodes = peer.node_count.saturating_sub(active);
            if peer.accepted && remote_nodes > 0 {
                idle.push(IdleReport {
                    node: node.name_any(),
                    peer: peer.name.clone(),
                    remote_nodes,
                });
            }
        }
    }
    idle
}

impl Readiness {
    fn of(conditions: &[Condition]) -> Self {
        let ready = api::find_condition(conditions, "Ready");
        Self {
            status: ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
            reason: ready.map(|ready| ready.reason.clone()),
            message: ready.map(|ready| ready.message.clone()),
        }
    }
}

fn peer(peer: &Peer) -> PeerReport {
    let status = peer.status.clone().unwrap_or_default();
    PeerReport {
        name: peer.name_any(),
        cluster_name: status.cluster_name,
        ready: Readiness::of(&status.conditions),
        path: status.path,
        rtt_micros: status.rtt_micros,
        nodes: status.nodes,
        allowed_cidrs: peer.spec.allowed_cidrs.clone(),
        refused: status.refused,
    }
}

fn node(node: &MeshNode) -> NodeReport {
    let status = node.status.clone().unwrap_or_default();
    NodeReport {
        name: node.name_any(),
        ready: Readiness::of(&status.conditions),
        nat: status.nat,
        home_relay: status.home_relay,
        public_key: status.public_key,
        prefixes: node.spec.prefixes.clone(),
        agent_version: status.agent_version,
        heartbeat_at: status.heartbeat_at,
        problems: problems(node),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::fixture;

    #[test]
    fn every_pair_has_its_path() {
        let report = serde_json::to_value(report(&fixture::found())).expect("serialises");
        assert_eq!(
            report.pointer("/paths"),
            Some(&json!([
                {"node": "worker-1", "peer": "tokyo", "remoteNode": "tokyo-1", "path": "direct", "reason": null,
                 "rttMicros": 5000, "endpoint": "203.0.113.9:4000", "nat": "EDM/APDF"},
                {"node": "worker-1", "peer": "tokyo", "remoteNode": "tokyo-2", "path": "relay", "reason": "BothNatsHard",
                 "rttMicros": 41_000, "endpoint": "https://r.example.com", "nat": "EDM/APDF"},
            ]))
        );
        assert_eq!(
            report.pointer("/idle"),
            Some(&json!([{"node": "worker-1", "peer": "tokyo", "remoteNodes": 1}]))
        );
        assert_eq!(
            report.pointer("/nodes/1/problems"),
            Some(&json!([{"peer": "tokyo", "problem": "10.2.0.0/16 is eth1's network"}]))
        );
        assert_eq!(report.pointer("/mesh/ready/status"), Some(&json!("True")));
        assert_eq!(
            report.pointer("/nodes/1/ready/reason"),
            Some(&json!("TunMissing"))
        );
    }
}
