//! The kind `Peer` as written by a user.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, CLUSTER, NAME, NODE_KEY, RELAY_URL};
use crate::relay::ExternalRelay;
use crate::rule;
use crate::status::PathKind;

/// A remote cluster or host that is admitted, and what it may use.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "culvert.dev",
    version = "v1alpha1",
    kind = "Peer",
    shortname = "cvp",
    category = "culvert",
    status = "PeerStatus",
    doc = "A remote cluster or host that this one admits. Deleting it revokes.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path"),
    printcolumn(name = "RTT", type_ = "string", json_path = ".status.rtt"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Remote CIDRs",
        type_ = "string",
        json_path = ".spec.allowedCIDRs",
        priority = 1
    ),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".status.clusterName",
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
#[schemars(extend("x-kubernetes-validations" = rule::set_once("identity")))]
pub struct PeerSpec {
    /// Name of the Mesh this Peer belongs to. Default: the one Mesh there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub mesh_ref: Option<String>,
    /// Identity of the peer, as its `kubectl culvert identity`, or the status of its Mesh, shows it. Its operator then tells
    /// its nodes. Without: only the `nodes` given here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 52), regex(pattern = CLUSTER))]
    pub identity: Option<String>,
    /// Prefixes the peer may use. Nothing outside them is ever routed to it or taken from it.
    #[serde(rename = "allowedCIDRs")]
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)), extend("x-kubernetes-validations" = rule::prefixes()))]
    pub allowed_cidrs: Vec<String>,
    /// Relays of the peer that this cluster may use, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub relays: Vec<ExternalRelay>,
    /// The peer's nodes, where they are given by hand. The others come from its operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub nodes: Vec<NodeSpec>,
}

/// One node of a peer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Name of the node, unique within the Peer: DNS labels joined by dots.
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub name: String,
    /// Public key of the node: 44 characters of base64, as `culvert-agent keygen` prints it, or `nodekey:` and 64 hex digits.
    #[schemars(length(max = 100), regex(pattern = NODE_KEY))]
    pub public_key: String,
    /// URL of the relay where the node prefers to listen, one of the Mesh's. Default: the Mesh's relays in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300), regex(pattern = RELAY_URL))]
    pub home_relay: Option<String>,
    /// Prefixes behind this node, all within `allowedCIDRs`. The most specific one of all nodes gets a packet.
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)))]
    pub prefixes: Vec<String>,
}

/// What is known about a `Peer`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// What the peer calls itself. For people to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub cluster_name: Option<String>,
    /// What data of the probing nodes uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathKind>,
    /// Round trip of that path, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub rtt_micros: Option<i64>,
    /// The same in milliseconds, for people: `4.1ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub rtt: Option<String>,
    /// Nodes of the peer that are in force, of all that it proposes: `3/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub nodes: Option<String>,
    /// What the peer proposed and was refused, the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub refused: Vec<RefusedClaim>,
    /// Conditions, one per type; `Ready` sums them up.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Something that a peer claims and may not have.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RefusedClaim {
    /// Name of its node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Which rule is broken: a code of the manifest reader.
    #[schemars(length(max = 63))]
    pub code: String,
    /// What it claims, who stands against it, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}
