//! The kinds of `culvert.dev/v1alpha1`, the reader of manifest files, and the shapes of the agent's status.
//!
//! From the outside in:
//!
//! * [`Mesh`] and [`Peer`] are the kinds as they are written, in files and in Kubernetes; [`crds`] renders their
//!   definitions.
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
mod config;
mod mesh;
mod pattern;
mod peer;
mod reader;
mod status;
mod store;

pub use code::{Code, Problem, UnknownCode};
pub use config::{MeshConfig, PeerConfig, PeerNode, RelayConfig};
pub use mesh::{
    ExternalRelay, Mesh, MeshSpec, MeshStatus, PortGuessing, PortMapping, Relays, Traversal,
};
pub use peer::{NodeSpec, Peer, PeerSpec, PeerStatus};
pub use reader::{
    Config, Document, FileRead, FolderRead, Kind, MAX_DOCUMENTS, MAX_FILE_BYTES, ObjectId,
    RenderError, read_manifests, render,
};
pub use status::{
    AgentReport, Filtering, ManifestError, ManifestStatus, Mapping, NatReport, NodeReport,
    PathKind, PathReport, PeerReport, Reason, RelayReport, Status,
};
pub use store::{Accepted, SavedState, Store, Surroundings};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// `apiVersion` of every kind.
pub const API_VERSION: &str = "culvert.dev/v1alpha1";

/// The definitions of all kinds, in the order in which they are best read.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![Mesh::crd(), Peer::crd()]
}
