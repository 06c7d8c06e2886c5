//! The kind `PeerSlice`: nodes of a peer, as the operator accepted them.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::NAME;
use crate::peer::NodeSpec;

/// Nodes in one slice.
pub const MAX_SLICE_NODES: usize = 100;

/// Nodes of a peer. All slices of a Peer together are what its operator told and this one accepted.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "culvert.dev",
    version = "v1alpha1",
    kind = "PeerSlice",
    shortname = "cvs",
    category = "culvert",
    status = "PeerSliceStatus",
    doc = "Nodes of a peer, as the operator accepted them. Owned by the Peer; written by the operator only.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peer"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PeerSliceSpec {
    /// Name of the Peer.
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub peer: String,
    /// Its nodes.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub nodes: Vec<NodeSpec>,
}

/// What is known about a `PeerSlice`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PeerSliceStatus {
    /// Conditions, one per type; `Ready`: the slice is complete.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
