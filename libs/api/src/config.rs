//! Checked objects: what the rest of the agent works with.

use derp::{ClusterIdentity, NodeKey, RelayUrl};
use ipnet::IpNet;

use crate::{PortGuessing, PortMapping};

/// A [`Mesh`](crate::Mesh) that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// `metadata.name`.
    pub name: String,
    /// Name of this site in the mesh, a DNS label.
    pub cluster_name: String,
    /// What this site serves; no host bits, nothing special.
    pub pod_cidrs: Vec<IpNet>,
    /// Single addresses for the device, each with its full length.
    pub addresses: Vec<IpNet>,
    /// UDP port, 1-65535; `None`: choose one and keep it.
    pub listen_port: Option<u16>,
    /// MTU inside the mesh in bytes, 576-9000; `None`: the default.
    pub mtu: Option<u16>,
    /// Relays in order of preference, each URL once.
    pub relays: Vec<RelayConfig>,
    /// Whether to ask the gateway for a port.
    pub port_mapping: PortMapping,
    /// Whether to guess ports.
    pub port_guessing: PortGuessing,
}

impl MeshConfig {
    /// Everything that this site claims for itself.
    pub fn own_prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.pod_cidrs.iter().chain(&self.addresses).copied()
    }
}

/// One relay of a [`MeshConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Where it listens.
    pub url: RelayUrl,
    /// UDP port of its STUN service; `None`: it has none.
    pub stun_port: Option<u16>,
    /// PEM certificates to trust instead of the public authorities.
    pub ca_bundle: Option<String>,
    /// Where to connect instead of `url`.
    pub dial: Option<RelayUrl>,
    /// Who owns it and lets us use it.
    pub owner: Option<ClusterIdentity>,
    /// Pass to show to it.
    pub pass: Option<String>,
}

/// A [`Peer`](crate::Peer) that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// `metadata.name`.
    pub name: String,
    /// Name of its Mesh; `None`: the one there is.
    pub mesh_ref: Option<String>,
    /// Who it is, if its operator tells its nodes.
    pub identity: Option<ClusterIdentity>,
    /// Relays of its own that this cluster may use.
    pub relays: Vec<RelayConfig>,
    /// What the peer may use.
    pub allowed_cidrs: Vec<IpNet>,
    /// Its nodes, each name and each key once.
    pub nodes: Vec<PeerNode>,
}

/// One node of a [`PeerConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Name, unique within the Peer.
    pub name: String,
    /// Public key, unique among all Peers.
    pub public_key: NodeKey,
    /// Preferred relay; `None`: the Mesh's in order.
    pub home_relay: Option<RelayUrl>,
    /// Prefixes behind it, within the Peer's `allowed_cidrs`.
    pub prefixes: Vec<IpNet>,
}
