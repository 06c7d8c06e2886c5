//! The kind `Mesh` as written by a user.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, LABEL};
use crate::relay::{ClusterRanges, RelayFound, Relays};
use crate::rule;

/// What this site is in the mesh: what it serves, and which relays it uses.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "culvert.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    shortname = "cvm",
    category = "culvert",
    status = "MeshStatus",
    doc = "This cluster's (or host's) membership in a mesh. There is exactly one.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterName"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".status.peers"),
    printcolumn(name = "Relays", type_ = "string", json_path = ".status.relaySummary"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Pod CIDRs",
        type_ = "string",
        json_path = ".status.ranges.podCIDRs",
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
pub struct MeshSpec {
    /// Name of this cluster or host in the mesh: a DNS label (1 to 63 of a-z, 0-9 and -, no - at the ends).
    #[schemars(length(max = 63), regex(pattern = LABEL), extend("x-kubernetes-validations" = rule::immutable("clusterName")))]
    pub cluster_name: String,
    /// Prefixes this site serves. The kernel already routes to them. May be empty when `addresses` is given. On
    /// Kubernetes the default is what the operator finds; give it where that is wrong.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 49), regex(pattern = CIDR)), extend("x-kubernetes-validations" = rule::prefixes()))]
    pub pod_cidrs: Vec<String>,
    /// Addresses to put on the device itself, each with its full length (`10.99.0.1/32`). For a host without pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49), regex(pattern = CIDR)))]
    pub addresses: Vec<String>,
    /// UDP port for direct paths. Default: a random one in 10000-29999, kept from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<i64>,
    /// MTU inside the mesh in bytes, 576 to 9000; at least 1280 with IPv6 prefixes. Default: 1280.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 9000))]
    pub mtu: Option<i64>,
    /// Relays of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relays: Option<Relays>,
    /// How hard to try for direct paths. Read and checked; without effect in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traversal: Option<Traversal>,
}

/// How hard to try for direct paths. Without effect in this version, which neither asks for ports nor guesses any.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Traversal {
    /// Whether to ask the gateway to map a port (PCP, NAT-PMP, UPnP). Default: Enabled. Without effect in this version.
    #[serde(default)]
    pub port_mapping: PortMapping,
    /// Whether to guess ports of a hard NAT, and how fast. Default: Polite. Without effect in this version.
    #[serde(default)]
    pub port_guessing: PortGuessing,
}

/// Whether to ask the gateway to map a port.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortMapping {
    /// Ask.
    #[default]
    Enabled,
    /// Never ask.
    Disabled,
}

/// Whether to guess ports of a hard NAT.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortGuessing {
    /// Guess within a small budget of packets.
    #[default]
    Polite,
    /// Guess as fast as the limits of the node allow.
    Fast,
    /// Never guess.
    Disabled,
}

/// What is known about a `Mesh`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// Identity of this cluster: what a peer's `spec.identity` is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 52))]
    pub identity: Option<String>,
    /// Ranges of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<ClusterRanges>,
    /// Relays, in order of preference.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub relays: Vec<RelayFound>,
    /// Relays that are connected, of all: `1/1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub relay_summary: Option<String>,
    /// Peers that are ready, of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub peers: Option<String>,
    /// Nodes that are ready, of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub nodes: Option<String>,
    /// Conditions, one per type; `Ready` sums them up.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
