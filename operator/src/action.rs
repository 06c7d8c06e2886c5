//! What is to be done, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use api::{InviteStatus, MeshNode, MeshStatus, Peer, PeerSlice, PeerSliceStatus, PeerStatus};
use derp::RelayUrl;
use derp::pass::Membership;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use sync::{ClusterIdentity, ClusterName, JoinAnswer, Records, Relay};

use crate::world::JoinAttempt;

/// What is to be done now. An unchanged world gives no actions.
#[derive(Debug, Default)]
pub struct Plan {
    /// Writes, in this order. One that fails does not keep the others from being tried.
    pub actions: Vec<Action>,
    /// What the conversations with peers are to be given; `None`: there is to be none.
    pub sync: Option<SyncInput>,
    /// An attempt to join that is to be made. It is given again and again until its outcome is seen in the world: leave alone
    /// the one that runs.
    pub join: Option<JoinOrder>,
    /// Deny lists that relays are to be told.
    pub denylists: Vec<DenyPush>,
    /// Whether all pods are to be watched: where they are says what each node serves.
    pub watch_pods: bool,
    /// When to look again even if nothing happens.
    pub wake_after: Option<Duration>,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Action {
    /// Server-side apply, with force, of an object whose given fields are the operator's.
    Apply(Object),
    /// The same, if the object is still of the version in its metadata; without one, if there is none yet. Else it fails.
    Swap(Object),
    /// Create; that there is one of this name already is no failure, and it stays as it is.
    Create(Object),
    /// Make a certificate (`plan::issue_certificate`) and apply the Secret with it.
    Certify(CertificateOrder),
    /// Server-side apply, with force, of a status.
    ApplyStatus(StatusOf),
    /// Use an invite. Must fail if the Invite is no longer of this version.
    Redeem(Redemption),
    /// Delete, if it is still this very object. That there is none is no failure.
    Delete(Target),
    /// Tell people.
    Event(Note),
}

/// An object that the operator writes.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each variant is what its name says")]
pub enum Object {
    Deployment(Box<Deployment>),
    Service(Box<Service>),
    Ingress(Box<Ingress>),
    Secret(Box<Secret>),
    ConfigMap(Box<ConfigMap>),
    PodDisruptionBudget(Box<PodDisruptionBudget>),
    MeshNode(Box<MeshNode>),
    Peer(Box<Peer>),
    PeerSlice(Box<PeerSlice>),
}

/// Kinds that the operator writes or deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is what its name says")]
pub enum Kind {
    Deployment,
    Service,
    Ingress,
    Secret,
    ConfigMap,
    PodDisruptionBudget,
    MeshNode,
    Peer,
    PeerSlice,
}

/// The status of an object, whole.
#[derive(Clone, Debug, PartialEq)]
pub enum StatusOf {
    /// Of the Mesh of this name.
    Mesh(String, Box<MeshStatus>),
    /// Of the Peer of this name.
    Peer(String, Box<PeerStatus>),
    /// Of the Invite of this name, if it is still of this version: whoever uses it writes there, too.
    Invite(String, Option<String>, Box<InviteStatus>),
    /// Of the `PeerSlice` of this name.
    PeerSlice(String, Box<PeerSliceStatus>),
}

/// An invite that is used by somebody.
#[derive(Clone, Debug, PartialEq)]
pub struct Redemption {
    /// Name of the Invite.
    pub name: String,
    /// The version of it that was looked at: replace the status with `metadata.resourceVersion` set to this.
    pub resource_version: String,
    /// The new status, whole.
    pub status: Box<InviteStatus>,
}

/// An object to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for those that have none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid, as a precondition.
    pub uid: Option<String>,
}

/// An Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The object it is about.
    pub about: ObjectReference,
    /// Whether somebody should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// What was done, one CamelCase word.
    pub action: &'static str,
    /// The same for people.
    pub note: String,
}

/// A certificate to be made: an authority of its own, a leaf signed by it, both in one Secret of type kubernetes.io/tls.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateOrder {
    /// Metadata of the Secret.
    pub metadata: Box<ObjectMeta>,
    /// Host names and addresses of the leaf.
    pub names: BTreeSet<String>,
    /// Key (PEM) of the authority that signed before: others have pinned it, so it stays.
    pub authority: Option<Authority>,
}

/// A certificate authority of one relay.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate (PEM).
    pub certificate: String,
    /// Its key (PEM). A secret.
    pub key: String,
}

/// What the conversations with peers are to be given.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncInput {
    /// What this cluster calls itself.
    pub cluster_name: ClusterName,
    /// Relays to be connected to, each with a pass if it needs one.
    pub relays: Vec<Relay>,
    /// Peers to speak to.
    pub peers: BTreeSet<ClusterIdentity>,
    /// The nodes of this cluster.
    pub records: Records,
    /// Temporary identities of open invites.
    pub invites: BTreeSet<ClusterIdentity>,
    /// What each peer is to be given for the relays of this cluster.
    pub memberships: BTreeMap<ClusterIdentity, Membership>,
}

/// An attempt to join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinOrder {
    /// Text of the token. A secret.
    pub token: String,
    /// What is said, and what tells this attempt from others: give it back with the outcome.
    pub attempt: JoinAttempt,
}

/// A deny list for one relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyPush {
    /// The relay, as [`crate::world::World::denied`] names it.
    pub relay: RelayUrl,
    /// Where to reach it: `PUT /denylist` there.
    pub dial: RelayUrl,
    /// Certificates (PEM) to trust for it.
    pub ca_bundle: Option<String>,
    /// Serial of the list.
    pub serial: u64,
    /// The signed list.
    pub json: String,
    /// A signed list with nobody on it, to be put first: a relay that does not take even this from us is another's, and is
    /// told of nobody.
    pub question: Option<String>,
}

/// What somebody who wants to join is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it hears.
    pub reply: JoinAnswer,
    /// Whether an invite is used by this: then the reply must not go out before its [`Action::Redeem`] has succeeded. If
    /// that fails because the Invite has changed, ask again with a new look at the world.
    pub redeems: bool,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for JoinOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinOrder")
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

macro_rules! objects {
    ($($name:ident),*) => {
        impl Object {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)*
                }
            }

            /// Its metadata.
            #[must_use]
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$name(object) => &object.metadata,)*
                }
            }

            /// Its metadata, to be changed.
            pub(crate) fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(Self::$name(object) => &mut object.metadata,)*
                }
            }

            /// The object as it is sent.
            #[must_use]
            pub fn to_value(&self) -> Value {
                match self {
                    // Objects are made of numbers, texts, lists and maps with text keys, which are never refused.
                    $(Self::$name(object) => serde_json::to_value(object).unwrap_or_default(),)*
                }
            }
        }

        $(
            impl From<$name> for Object {
                fn from(object: $name) -> Self {
                    Self::$name(Box::new(object))
                }
            }
        )*
    };
}

objects!(
    Deployment,
    Service,
    Ingress,
    Secret,
    ConfigMap,
    PodDisruptionBudget,
    MeshNode,
    Peer,
    PeerSlice
);
