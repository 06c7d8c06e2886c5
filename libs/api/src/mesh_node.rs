//! The kind `MeshNode`: what the operator tells the agent of a node, and what that agent reports.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, NAME};
use crate::relay::ExternalRelay;
use crate::status::{Filtering, Mapping, PathKind, Reason};

/// Peers that may be in force at a time.
pub const MAX_ADMITTED_PEERS: usize = 256;
/// Ranges of all of them together, so that a `MeshNode` stays small.
pub const MAX_ADMITTED_RANGES: usize = 4096;
/// Prefixes that one node may serve.
pub const MAX_NODE_PREFIXES: usize = 256;
/// Peers in the status of a node: as many as may be in force.
pub const MAX_REPORTED_PEERS: usize = MAX_ADMITTED_PEERS;
/// Nodes of one peer in the status of a node.
pub const MAX_REPORTED_NODES: usize = 64;

/// What the operator tells a node's agent. The object has the name of its Node.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "culvert.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    shortname = "cvn",
    category = "culvert",
    status = "MeshNodeStatus",
    doc = "A node of this cluster in the mesh. Made by the operator; the status is written by the node's agent.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "NAT", type_ = "string", json_path = ".status.nat.mapping"),
    printcolumn(name = "Home relay", type_ = "string", json_path = ".status.homeRelay"),
    printcolumn(name = "Prefixes", type_ = "string", json_path = ".spec.prefixes"),
    printcolumn(name = "Heard", type_ = "date", json_path = ".status.heartbeatAt"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeSpec {
    /// Prefixes that this node serves: its range, or where nodes have none the addresses of its pods.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)))]
    pub prefixes: Vec<String>,
    /// Ranges of the whole cluster, which no peer may have on this node.
    #[serde(default)]
    #[schemars(length(max = 320), inner(length(max = 49), regex(pattern = CIDR)))]
    pub reserved: Vec<String>,
    /// Relays, in order of preference, each with the pass of this node.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub relays: Vec<ExternalRelay>,
    /// Peers that this node probes for all others.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 253), regex(pattern = NAME)))]
    pub probes: Vec<String>,
    /// Peers that may be in force, and the ranges that each may use. Nothing else is programmed. Absent: not decided yet;
    /// what is in force stays, and nothing new comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub admitted: Option<Vec<AdmittedPeer>>,
}

/// A Peer that the operator has found to be in nobody's way.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AdmittedPeer {
    /// Name of the Peer.
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub name: String,
    /// Its `metadata.uid`: one that is made anew is another.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Ranges that it may use, as far as it still asks for them.
    #[serde(default, rename = "allowedCIDRs")]
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)))]
    pub allowed_cidrs: Vec<String>,
}

/// What a node's agent reports.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeStatus {
    /// The node's public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44))]
    pub public_key: Option<String>,
    /// UDP port of its direct paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<i64>,
    /// Relay where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub home_relay: Option<String>,
    /// The NAT in front of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatFound>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub agent_version: Option<String>,
    /// Relays to which it is connected.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 300)))]
    pub connected_relays: Vec<String>,
    /// When the agent last said that it is there, by the node's clock. It does so every 15 s; who reads it looks at whether it
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_at: Option<Time>,
    /// How peers are reached; of more than 256 first those in force.
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub peers: Vec<NodePeer>,
    /// Conditions, one per type; `Ready` sums them up.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The NAT in front of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NatFound {
    /// How it chooses public ports.
    pub mapping: Mapping,
    /// What it lets in.
    pub filtering: Filtering,
    /// Public addresses, as STUN servers see them.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub reflexive: Vec<String>,
}

/// How a peer is reached from a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodePeer {
    /// Name of the Peer.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Whether this agent has put it into force; if not, `problem` says why.
    pub accepted: bool,
    /// What is wrong with it on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub problem: Option<String>,
    /// When a probe inside the tunnel to one of its nodes was last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<Time>,
    /// Nodes of the peer known here.
    #[serde(default)]
    #[schemars(range(min = 0, max = 8192))]
    pub node_count: i64,
    /// Those that are not idle: up to 64, up to 1024 of all peers, those that are probed first. The condition `Ready` says how
    /// many are left out.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<NodePath>,
}

/// The path from one node to another.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodePath {
    /// Name of the remote node.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What data uses now.
    pub path: PathKind,
    /// Why it is not direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Remote `ip:port`, or the relay's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub endpoint: Option<String>,
    /// Round trip in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub rtt_micros: Option<i64>,
}
