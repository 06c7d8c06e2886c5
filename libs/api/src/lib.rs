//! The kinds of `culvert.dev/v1alpha1`, the reader of manifest files, and the shapes of the agent's status.
//!
//! From the outside in:
//!
//! * [`Mesh`] and [`Peer`] are the kinds as they are written, in files and in Kubernetes; [`Invite`], [`MeshNode`] and
//!   [`PeerSlice`] are in Kubernetes only. [`crds`] renders the definitions, [`Finding`] becomes a condition.
//! * [`MeshConfig`] and [`PeerConfig`] are the same after every check: an object that cannot be wrong.
//! * [`read_manifests`] turns the bytes of one file into such objects, or into [`Problem`]s with a field path and a
//!   [`Code`] each. It is total: no input makes it panic, and what it may cost is bounded.
//! * [`Store`] holds what is in force. It takes a whole manifest folder at a time and decides between what was
//!   accepted before, what is new, and what contradicts what.
//! * [`Status`] is the JSON document of `culvert-agent status -o json`.
//!
//! Nothing here opens a file, reads a clock or talks to anybody.

mod check;
mod code;
mod condition;
mod config;
mod invite;
mod mesh;
mod mesh_node;
mod pattern;
mod peer;
mod peer_slice;
mod reader;
mod reference;
mod relay;
mod rule;
mod status;
mod store;

pub use check::{check_label, check_prefix, overlap};
pub use code::{Code, Problem, UnknownCode};
pub use condition::{ConditionStatus, Finding, conditions, find_condition, is_true};
pub use config::{MeshConfig, PeerConfig, PeerNode, RelayConfig};
pub use invite::{Audience, DEFAULT_TTL, Invite, InviteSpec, InviteStatus, Redeemed};
pub use mesh::{Mesh, MeshSpec, MeshStatus, PortGuessing, PortMapping, Traversal};
pub use mesh_node::{
    AdmittedPeer, MAX_ADMITTED_PEERS, MAX_ADMITTED_RANGES, MAX_NODE_PREFIXES, MAX_REPORTED_NODES,
    MAX_REPORTED_PEERS, MeshNode, MeshNodeSpec, MeshNodeStatus, NatFound, NodePath, NodePeer,
};
pub use peer::{NodeSpec, Peer, PeerSpec, PeerStatus, RefusedClaim};
pub use peer_slice::{MAX_SLICE_NODES, PeerSlice, PeerSliceSpec, PeerSliceStatus};
pub use reader::{
    ClusterObjects, Config, Document, FileRead, FolderRead, Kind, MAX_DOCUMENTS, MAX_FILE_BYTES,
    ObjectId, RenderError, StoredObject, read_manifests, render,
};
pub use reference::reference;
pub use relay::{
    ClusterRanges, Exposure, ExposureKind, ExternalRelay, ManagedRelay, RelayFound, RelayTls,
    Relays, TlsKind,
};
pub use status::{
    AgentReport, Filtering, ManifestError, ManifestStatus, Mapping, NatReport, NodeReport,
    PathKind, PathReport, PeerReport, Reason, RelayReport, Status,
};
pub use store::{Accepted, RefusedNode, SavedState, Store, Surroundings};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// `apiVersion` of every kind.
pub const API_VERSION: &str = "culvert.dev/v1alpha1";

/// The definitions of all kinds, in the order in which they are best read.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        Mesh::crd(),
        Peer::crd(),
        Invite::crd(),
        MeshNode::crd(),
        PeerSlice::crd(),
    ]
}
