//! How a cluster is to be.

use ipnet::Ipv4Net;

use crate::firewall::Firewall;
use crate::profile::Profile;
use crate::site::Masquerade;

/// How kube-proxy serves Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// With nftables.
    Nftables,
    /// With iptables over nftables.
    Iptables,
}

impl Proxy {
    /// What kube-proxy calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Its name, a DNS label of at most ten letters.
    pub name: String,
    /// The router's behaviour.
    pub nat: Profile,
    /// How many nodes. With [`Profile::Public`] no more than four.
    pub nodes: u8,
    /// What masquerades pod packets that leave the cluster.
    pub masquerade: Masquerade,
    /// Whether nodes drop what is forwarded and nobody accepts.
    pub forward_drop: Option<Firewall>,
    /// How Services are served.
    pub proxy: Proxy,
    /// Whether the objects of nodes say which range of pods each has, as it has all the same.
    pub node_ranges: bool,
    /// The pods' range, a /16. Default: 10.(100 + n).0.0/16, n from 1 up in the lab.
    pub pods: Option<Ipv4Net>,
    /// The services' range. Default: 10.(200 + n).0.0/16.
    pub services: Option<Ipv4Net>,
    /// The LAN. Default: 192.168.(20 + n).0/24.
    pub lan: Option<Ipv4Net>,
}

impl ClusterSpec {
    /// One node behind a router, an nftables masquerade, kube-proxy with nftables.
    pub fn new(name: &str, nat: Profile) -> Self {
        Self {
            name: name.to_owned(),
            nat,
            nodes: 1,
            masquerade: Masquerade::Nft,
            forward_drop: None,
            proxy: Proxy::Nftables,
            node_ranges: true,
            pods: None,
            services: None,
            lan: None,
        }
    }

    /// The same with another number of nodes.
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    /// The same with another masquerade.
    pub fn masquerade(self, masquerade: Masquerade) -> Self {
        Self { masquerade, ..self }
    }

    /// The same with another way to serve Services.
    pub fn proxy(self, proxy: Proxy) -> Self {
        Self { proxy, ..self }
    }

    /// The same, and nobody says which range of pods a node has: to all but its own network plugin pods have single
    /// addresses.
    pub fn without_node_ranges(self) -> Self {
        Self {
            node_ranges: false,
            ..self
        }
    }

    /// The same with nodes that drop what is forwarded.
    pub fn forward_drop(self, firewall: Firewall) -> Self {
        Self {
            forward_drop: Some(firewall),
            ..self
        }
    }
}
