//! What is on the host now, as far as it concerns us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::iptables::Chain;
use crate::nft::{NativeDrop, Table};

/// A reading of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// Whether the kernel has IPv6.
    pub v6: bool,
    /// The device of our name.
    pub device: Option<Device>,
    /// Addresses of other devices that are up.
    pub addresses: Vec<IpAddr>,
    /// Routes in our table with our protocol number.
    pub routes: BTreeSet<Route>,
    /// Number of routes in our table that are not ours.
    pub foreign_routes: usize,
    /// Rules with our table and protocol number.
    pub rules: BTreeSet<Rule>,
    /// Priorities of other rules that use our priority or table.
    pub foreign_rules: BTreeSet<u32>,
    /// The nftables table of our name.
    pub table: Table,
    /// Base chains that iptables holds.
    pub chains: Vec<Chain>,
    /// Base chains of native nftables that can drop what we carry.
    pub native_drops: Vec<NativeDrop>,
    /// Programs that would have been needed to read a firewall.
    pub missing: BTreeSet<&'static str>,
    /// Values of the sysctls we look at, by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// Those of them that can be read and not written from here, as in a container.
    pub locked: BTreeSet<String>,
    /// Legacy iptables is in use, and the lock that its users on the host share is out of reach.
    pub unlocked_iptables: bool,
    /// Translated flows were to be forgotten and it is not known to have happened.
    pub flows_pending: bool,
}

/// Our device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// It is a TUN or TAP device.
    pub tun: bool,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Packets.
    pub queue: u32,
    /// Without link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// IPv6 is turned off on it, and cannot be turned on from here.
    pub no_v6: bool,
}

/// A route in our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Where it leads.
    pub target: Target,
}

/// Where a [`Route`] leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Nowhere, with the metric that lets any other route win.
    Unreachable,
    /// Into our device, with the metric of a live route.
    Device {
        /// Source address for packets of the host itself.
        source: Option<IpAddr>,
        /// Bytes.
        mtu: u32,
    },
    /// Some other shape, with its metric: never wanted.
    Other {
        /// Its metric.
        metric: u32,
        /// Its type as the kernel numbers it.
        kind: u8,
    },
}

/// A rule with our table and protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// IPv6.
    pub v6: bool,
    /// Its priority.
    pub priority: u32,
}
