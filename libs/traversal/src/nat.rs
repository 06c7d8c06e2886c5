//! What kind of NAT this host is behind, learned from STUN servers.

mod filtering;
mod mapping;
mod prober;
mod request;

use std::fmt;
use std::net::SocketAddr;

pub use self::prober::NatProber;

/// How the NAT picks the public port of one local socket (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mapping {
    /// Not enough answers to tell.
    #[default]
    Unknown,
    /// One public port for all destinations.
    EndpointIndependent,
    /// A new public port per destination.
    EndpointDependent,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "EIM",
            Self::EndpointDependent => "EDM",
        })
    }
}

/// From whom the NAT lets packets in (RFC 4787 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filtering {
    /// No server could tell.
    #[default]
    Unknown,
    /// From anyone.
    EndpointIndependent,
    /// From addresses that were sent to.
    AddressDependent,
    /// From exactly the address and port that were sent to.
    AddressAndPortDependent,
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "EIF",
            Self::AddressDependent => "ADF",
            Self::AddressAndPortDependent => "APDF",
        })
    }
}

/// Whether UDP gets out and back at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Udp {
    /// Not asked yet, or nobody to ask.
    #[default]
    Unknown,
    /// A server answered.
    Works,
    /// Every server was silent.
    Blocked,
}

/// What is known about the NAT in front of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatProfile {
    /// How public ports are picked.
    pub mapping: Mapping,
    /// Who gets in.
    pub filtering: Filtering,
    /// Whether UDP works.
    pub udp: Udp,
    /// Public addresses of the data socket, IPv4 first.
    pub reflexive: Vec<SocketAddr>,
}

/// The socket a request leaves from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StunSocket {
    /// The WireGuard socket of the destination's address family.
    Data,
    /// A socket that has talked to nobody else: one per run and family, opened when first needed.
    Fresh,
}

/// A request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StunTransmit {
    /// From where.
    pub socket: StunSocket,
    /// Where to.
    pub to: SocketAddr,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// What the prober has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatEvent {
    /// The profile is now this.
    ProfileChanged(NatProfile),
    /// The fresh sockets have served; close them.
    FreshSocketDone,
}

#[cfg(test)]
mod tests;
