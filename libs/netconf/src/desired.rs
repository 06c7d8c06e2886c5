//! What the caller wants, and the names under which it is programmed.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The numbers and names that mark host configuration as ours.
///
/// Everything this crate programs can be found again by these alone, which is what
/// makes [`cleanup`](crate::Netconf::cleanup) work without a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The TUN device; at most 15 bytes of `[a-z0-9]`.
    pub device: String,
    /// Routing table id.
    pub table: u32,
    /// Priority of the rule `lookup table`, the same for both families. It lies after those of
    /// the network plugins that must see packets first and before cloud and main tables.
    pub rule_priority: u32,
    /// Routing protocol number on every route and rule.
    pub protocol: u8,
    /// Name of the nftables table, family `inet`.
    pub nft_table: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            device: "culvert0".to_owned(),
            table: 24370,
            rule_priority: 300,
            protocol: 173,
            nft_table: "culvert".to_owned(),
        }
    }
}

impl Names {
    /// The comment on every iptables rule of ours.
    pub(crate) fn comment(&self) -> &str {
        &self.nft_table
    }

    /// Names end up in nftables text and iptables arguments, so only a plain alphabet is let through.
    pub(crate) fn are_plain(&self) -> bool {
        let plain = |name: &str| {
            !name.is_empty()
                && name.len() <= 15
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        };
        plain(&self.device) && plain(&self.nft_table)
    }
}

/// The host configuration that is wanted, in terms of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// MTU of the device, bytes.
    pub mtu: u32,
    /// UDP port of the tunnel, exempt from connection tracking; 0: none yet.
    pub listen_port: u16,
    /// Addresses put on the device itself.
    pub addresses: Vec<IpNet>,
    /// What this node serves: pod prefixes and the `addresses`.
    pub local: Vec<IpNet>,
    /// Prefixes that have a live peer: routed into the device.
    pub remote: Vec<IpNet>,
    /// Every prefix the mesh has ever had; what is not in `remote` is unreachable rather than sent in the clear.
    pub held: Vec<IpNet>,
    /// Whether the device is wanted. It is made by the tunnel; here it is configured, and deleted when unwanted.
    pub device: bool,
}

impl Desired {
    /// Nothing is to be programmed.
    pub(crate) fn is_idle(&self) -> bool {
        !self.device && self.held.is_empty()
    }

    /// Whether the kernel must forward for something in `local` that is not an address of this host's device.
    pub(crate) fn forwards(&self, v6: bool) -> bool {
        self.device
            && self
                .local
                .iter()
                .any(|net| is_v6(net) == v6 && !self.addresses.iter().any(|own| host(own) == *net))
    }

    /// Whether any mesh prefix is IPv6.
    pub(crate) fn uses_v6(&self) -> bool {
        [&self.addresses, &self.local, &self.remote, &self.held]
            .into_iter()
            .flatten()
            .any(is_v6)
    }
}

/// Whether the prefix is IPv6.
pub(crate) fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

/// The single address of an interface address, as a prefix: `10.0.0.1/24` is `10.0.0.1/32`.
pub(crate) fn host(net: &IpNet) -> IpNet {
    IpNet::from(net.addr())
}

/// Whether two prefixes share an address.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether `address` lies in any of `nets`.
pub(crate) fn within(address: IpAddr, nets: &[IpNet]) -> bool {
    nets.iter().any(|net| net.contains(&address))
}
