//! The kind `Invite`: an offer to join.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printer column has a type of its own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, DURATION};
use crate::rule;

/// How long an invite is good if it does not say.
pub const DEFAULT_TTL: &str = "15m";

/// An offer to one cluster or host to join. The operator answers with a token.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "culvert.dev",
    version = "v1alpha1",
    kind = "Invite",
    shortname = "cvi",
    category = "culvert",
    status = "InviteStatus",
    doc = "An offer to one cluster or host to join. The token is in a Secret until it is used or expires.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(
        name = "Joined",
        type_ = "string",
        json_path = ".status.redeemed[*].clusterName"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule::immutable("an invite")))]
pub struct InviteSpec {
    /// Who may join with it. Default: Cluster.
    #[serde(default, rename = "type")]
    pub audience: Audience,
    /// How many may. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub uses: Option<i64>,
    /// How long it is good, such as 15m or 24h. Default: 15m; at most 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = DURATION))]
    pub ttl: Option<String>,
    /// Prefixes that whoever joins may bring. Default: what it names, if that passes every check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 49), regex(pattern = CIDR)), extend("x-kubernetes-validations" = rule::prefixes()))]
    pub cidrs: Vec<String>,
}

/// Who may join.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// A cluster.
    #[default]
    Cluster,
    /// A host without Kubernetes.
    Host,
}

/// What became of an `Invite`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InviteStatus {
    /// The temporary identity that the token holds the secret of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 52))]
    pub identity: Option<String>,
    /// Until when it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Secret in the operator's namespace that holds the token under the key `token`. It is deleted with its last use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub secret_name: Option<String>,
    /// Who has joined with it.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub redeemed: Vec<Redeemed>,
    /// Conditions, one per type; `Ready`: the token can be used.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One who has joined.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Redeemed {
    /// Its identity.
    #[schemars(length(max = 52))]
    pub identity: String,
    /// What it calls itself.
    #[schemars(length(max = 63))]
    pub cluster_name: String,
    /// When.
    pub at: Time,
}
