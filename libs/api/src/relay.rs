//! Relays as they are written in a `Mesh`, a `Peer` and a `MeshNode`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{CIDR, CLUSTER, HOST, LABEL, NAME, PASS, RELAY_URL};
use crate::rule;

/// Relays of a mesh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Relays {
    /// Relays that the operator runs in this cluster, each as a Deployment of its own. Not for a host without Kubernetes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub managed: Vec<ManagedRelay>,
    /// Relays that somebody runs already, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub external: Vec<ExternalRelay>,
}

/// A relay that somebody runs already.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalRelay {
    /// Where it listens: `https://host[:port]` or `http://host[:port]`, without path.
    #[schemars(length(max = 300), regex(pattern = RELAY_URL))]
    pub url: String,
    /// UDP port of its STUN service. Default: 3478; 0: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub stun_port: Option<i64>,
    /// Certificates (PEM) to trust for this relay instead of the public authorities. Empty: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// Address to connect to instead of `url`, in the same form, where `url` cannot be reached from here: a NAT seldom
    /// lets its own side in. Others still know the relay by `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300), regex(pattern = RELAY_URL))]
    pub dial: Option<String>,
    /// Identity of the cluster that owns the relay and lets us use it: the relay has it as a `cluster:` line in its admit
    /// file. Default: in a Mesh this cluster, in a Peer that peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 52), regex(pattern = CLUSTER))]
    pub owner: Option<String>,
    /// Pass to show to the relay. Not needed where the relay's admit file names this node's key, or the relay admits anybody.
    /// On Kubernetes the operator fills it in for every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = PASS))]
    pub pass: Option<String>,
}

/// A relay that the operator runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ManagedRelay {
    /// Name of the relay: a DNS label, at most 40 characters.
    #[schemars(length(max = 40), regex(pattern = LABEL))]
    pub name: String,
    /// How it is reached from outside.
    pub exposure: Exposure,
    /// How its connections are secured. Default: a certificate of its own, whose authority goes into each invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RelayTls>,
    /// Whether it answers STUN. Default: where the source address of a packet survives, that is with exposure HostPort,
    /// and with LoadBalancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stun: Option<bool>,
    /// Labels of the nodes it may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,
}

/// How a relay is reached from outside.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule::needs(&[
    ("NodePort", "host", "a NodePort needs host: the public address that leads to the nodes"),
    ("HostPort", "host", "a HostPort needs host: the public address that leads to the node"),
    ("Ingress", "host", "an Ingress needs host: the name that leads to the ingress controller"),
])))]
pub struct Exposure {
    /// Which way. LoadBalancer: the cloud gives the address; NodePort: a port of every node; HostPort: a port of the node
    /// where it runs; Ingress: through an ingress controller that passes upgrades.
    #[serde(rename = "type")]
    pub kind: ExposureKind,
    /// Host name or address by which others reach it. With LoadBalancer the default is what the load balancer reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = HOST))]
    pub host: Option<String>,
    /// TCP port by which others reach it. Default: 443, with NodePort the node port itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i64>,
    /// With NodePort: the port of the nodes. Default: the API server chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i64>,
    /// With Ingress: its class. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub class_name: Option<String>,
    /// Annotations for the Service or the Ingress, such as those a cloud's load balancer reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Ways to be reached from outside.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExposureKind {
    /// A Service of type LoadBalancer.
    LoadBalancer,
    /// A Service of type NodePort.
    NodePort,
    /// A port of the node where the relay runs.
    HostPort,
    /// An Ingress.
    Ingress,
}

/// How a relay's connections are secured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule::needs(&[
    ("Secret", "secretName", "secretName names the Secret with tls.crt and tls.key"),
    ("CertManager", "issuer", "issuer names the ClusterIssuer to ask"),
])))]
pub struct RelayTls {
    /// Where the certificate comes from. SelfSigned: the operator makes one; Secret: you do; CertManager: cert-manager
    /// does; None: plain HTTP, for an ingress that ends TLS itself.
    #[serde(rename = "type")]
    pub kind: TlsKind,
    /// Secret of type kubernetes.io/tls in the operator's namespace. With CertManager: where it is put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub secret_name: Option<String>,
    /// ClusterIssuer of cert-manager to ask, through an annotation of the Ingress. With another exposure nobody is asked: make a
    /// Certificate for `secretName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = NAME))]
    pub issuer: Option<String>,
}

/// Where a relay's certificate comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsKind {
    /// The operator makes one.
    SelfSigned,
    /// A Secret that somebody fills.
    Secret,
    /// cert-manager.
    CertManager,
    /// No TLS.
    None,
}

/// A relay as the operator found it, in the status of a `Mesh`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RelayFound {
    /// Name of a managed relay; `external-N` for those in the Mesh, `peer-NAME-N` for those in the Peer NAME, N from 0 up.
    #[schemars(length(max = 63))]
    pub name: String,
    /// How others reach it; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub url: Option<String>,
    /// How this cluster reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub dial: Option<String>,
    /// UDP port of its STUN service; 0: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub stun_port: Option<i64>,
    /// Certificates (PEM) to trust for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// Whether the operator is connected to it.
    #[serde(default)]
    pub inside: bool,
    /// Whether a peer has come over it; absent if none has for ten minutes, and of relays that do not run in this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<bool>,
    /// Why the operator is not connected, or what is missing for the relay to be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub problem: Option<String>,
}

/// The ranges of a cluster, as the operator found them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRanges {
    /// Ranges of pods.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 256), inner(length(max = 49), regex(pattern = CIDR)))]
    pub pod_cidrs: Vec<String>,
    /// Ranges of Services.
    #[serde(default, rename = "serviceCIDRs")]
    #[schemars(length(max = 64), inner(length(max = 49), regex(pattern = CIDR)))]
    pub service_cidrs: Vec<String>,
    /// Where the ranges of pods come from: `Spec` (the Mesh), `Nodes` (their `spec.podCIDRs`), `IPPool` (Calico),
    /// `cilium-config`, `kube-flannel-cfg` or `kubeadm-config` (ConfigMaps); empty: nowhere.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub source: String,
}
