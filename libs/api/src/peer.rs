//! The kind `Peer` as written by a user.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, NAME, NODE_KEY, RELAY_URL};

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
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PeerSpec {
    /// Name of the Mesh this Peer belongs to. Default: the one Mesh there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub mesh_ref: Option<String>,
    /// Prefixes the peer may use. Nothing outside them is ever routed to it or taken from it.
    #[serde(rename = "allowedCIDRs")]
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)))]
    pub allowed_cidrs: Vec<String>,
    /// The peer's nodes.
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
    /// Conditions, one per type; `Ready` sums them up.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]), length(max = 16))]
    pub conditions: Vec<Condition>,
}
