//! Everything that decisions are made from: what was observed, as plain data.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::{Invite, Mesh, MeshNode, Peer, PeerSlice};
use derp::RelayUrl;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::Value;
use sync::{ClusterIdentity, ClusterName, ClusterSecret, PeerView, RelayState, Welcome};

use crate::heard::Heard;

/// What was observed, all at one moment.
#[derive(Clone, Debug)]
pub struct World {
    /// The time of this look.
    pub now: Timestamp,
    /// How this operator was installed.
    pub release: Release,
    /// Keys that nobody has used before, for whatever needs one.
    pub fresh: Fresh,
    /// Every Mesh.
    pub meshes: Vec<Arc<Mesh>>,
    /// Every Peer.
    pub peers: Vec<Arc<Peer>>,
    /// Every Invite.
    pub invites: Vec<Arc<Invite>>,
    /// Every `MeshNode`.
    pub mesh_nodes: Vec<Arc<MeshNode>>,
    /// When the agents of nodes were last heard.
    pub heard: Heard,
    /// Every `PeerSlice`.
    pub slices: Vec<Arc<PeerSlice>>,
    /// Every Node.
    pub nodes: Vec<Arc<Node>>,
    /// Where pods are; watched only while the plan asks for it.
    pub pods: Pods,
    /// What says which ranges this cluster uses.
    pub networks: Vec<NetworkObject>,
    /// What there is in the operator's own namespace.
    pub owned: Owned,
    /// What the conversations with peers and the connections to relays show.
    pub sync: SyncView,
    /// How the last attempt to join ended; `None` if this process has made none.
    pub join: Option<JoinOutcome>,
    /// Serial of the deny list that each relay has taken since it was last connected. Forget it when the relay's connection
    /// is lost: a relay that starts anew knows no list.
    pub denied: BTreeMap<RelayUrl, u64>,
    /// Why relays have not taken the deny list that they were sent last. Forget it with the rest.
    pub undenied: BTreeMap<RelayUrl, DenyProblem>,
}

/// Where the pods of this cluster are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    /// They are not watched, or have not been seen yet.
    #[default]
    Unknown,
    /// The operator may not see them.
    Forbidden,
    /// The name of the node of each address.
    Known(Arc<BTreeMap<IpAddr, Arc<str>>>),
}

/// Why a relay has not taken a deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyProblem {
    /// Which kind of failure.
    pub fault: DenyFault,
    /// The same for people.
    pub message: String,
    /// How often in a row.
    pub times: u32,
}

/// Ways in which a relay does not take a deny list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyFault {
    /// It has another one of this serial, or of a later one.
    Stale {
        /// The serial of that one, as far as the relay tells.
        in_force: u64,
    },
    /// It does not know this cluster as an owner.
    NotOwner,
    /// It, or what stands before it, knows no deny lists.
    Unsupported,
    /// It did not answer, or something else.
    Other,
}

/// How this operator was installed.
#[derive(Clone, Debug, Default)]
pub struct Release {
    /// Namespace of the operator and of everything it makes.
    pub namespace: String,
    /// `app.kubernetes.io/instance` of everything it makes.
    pub instance: String,
    /// Image of relays.
    pub relay_image: String,
    /// `imagePullPolicy` of relays; `None`: the API server's default.
    pub pull_policy: Option<String>,
    /// Names of the Secrets with which relays' images are pulled.
    pub pull_secrets: Vec<String>,
}

/// Keys from the system's randomness, made anew for every look. What is not used is thrown away.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// For the cluster, if it has none yet.
    pub identity: ClusterSecret,
    /// For one invite.
    pub invite: ClusterSecret,
}

/// An object that tells something about the cluster's ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkObject {
    /// What it is.
    pub kind: NetworkKind,
    /// The object as the API server gives it.
    pub object: Value,
}

/// Objects that tell something about the cluster's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkKind {
    /// `crd.projectcalico.org/v1` `IPPool`.
    CalicoPool,
    /// `crd.projectcalico.org/v1` `BlockAffinity`: the prefixes of one node.
    CalicoBlock,
    /// `cilium.io/v2` `CiliumNode`: the prefixes of one node.
    CiliumNode,
    /// `ConfigMap` `cilium-config` in `kube-system`.
    CiliumConfig,
    /// `ConfigMap` `kube-flannel-cfg` in `kube-flannel` or `kube-system`.
    FlannelConfig,
    /// `ConfigMap` `kubeadm-config` in `kube-system`.
    KubeadmConfig,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
    /// `Service` `kubernetes` in `default`: how pods reach the API server.
    ApiService,
    /// `discovery.k8s.io/v1` `EndpointSlice` `kubernetes` in `default`: where the API server really is.
    ApiEndpoints,
}

/// What there is in the operator's namespace. Objects without the operator's labels are there, too, where they matter:
/// Secrets that somebody else fills.
#[derive(Clone, Debug, Default)]
pub struct Owned {
    /// Deployments of relays.
    pub deployments: Vec<Arc<Deployment>>,
    /// Services of relays.
    pub services: Vec<Arc<Service>>,
    /// Ingresses of relays.
    pub ingresses: Vec<Arc<Ingress>>,
    /// Secrets: identity, memberships, certificates, tokens, the token to join with.
    pub secrets: Vec<Arc<Secret>>,
    /// Admit files and the deny list.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// Pods of agents, as far as they may be seen: their names and nodes only.
    pub agents: Vec<Arc<Pod>>,
    /// Disruption budgets of relays.
    pub disruption_budgets: Vec<Arc<PodDisruptionBudget>>,
}

/// What the conversations with peers and the connections to relays show.
#[derive(Clone, Debug, Default)]
pub struct SyncView {
    /// Whether this process holds the conversations: `false` until it has begun.
    pub running: bool,
    /// Every peer that is spoken to.
    pub peers: BTreeMap<ClusterIdentity, PeerView>,
    /// Every relay that is connected to.
    pub relays: BTreeMap<RelayUrl, RelayState>,
    /// When a peer was last heard over each of them.
    pub used: BTreeMap<RelayUrl, Timestamp>,
}

/// How an attempt to join ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOutcome {
    /// What was tried.
    pub attempt: JoinAttempt,
    /// When it ended.
    pub at: Timestamp,
    /// How many attempts with the same token and the same words have failed in a row, this one included; 0 after a success.
    pub failures: u32,
    /// What came of it.
    pub result: Result<Welcome, JoinFailure>,
}

/// What tells one attempt from another: a change of any of it is worth another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAttempt {
    /// Checksum of the token.
    pub token: String,
    /// Uid of the Secret that holds it: who puts a used token in once more has to be told so.
    pub secret: String,
    /// What this cluster called itself.
    pub cluster_name: ClusterName,
    /// The ranges it named.
    pub cidrs: Vec<IpNet>,
}

/// Why joining failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFailure {
    /// Which kind of failure.
    pub code: JoinCode,
    /// The same for people. What a remote said of it is data, never more.
    pub message: String,
}

/// Ways in which joining fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinCode {
    /// The invite is over, or unknown.
    Expired,
    /// The invite has been used.
    Used,
    /// A cluster of our name is there already.
    NameTaken,
    /// Our ranges overlap with others.
    Overlap,
    /// The invite does not let us bring these ranges.
    NotAllowed,
    /// The invite is for a host.
    WrongAudience,
    /// The inviter did not believe us.
    BadProof,
    /// The inviter has too much to do.
    Busy,
    /// No relay of the token lets us in or can be reached.
    RelayUnreachable,
    /// The relay is there, the inviter does not answer.
    InviterUnreachable,
    /// The token is none.
    BadToken,
}

/// What one that wants to join says ([`sync::JoinRequest`] without the way back); its proof has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAsk {
    /// Temporary identity of the invite.
    pub invite: ClusterIdentity,
    /// Its own identity.
    pub identity: ClusterIdentity,
    /// What it says that it is; `None` if its version does not say.
    pub audience: Option<sync::Audience>,
    /// What it calls itself.
    pub cluster_name: ClusterName,
    /// The ranges it names.
    pub cidrs: Vec<IpNet>,
}
