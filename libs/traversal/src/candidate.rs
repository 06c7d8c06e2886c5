//! Addresses at which a node may be reachable, and which of them may be probed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Candidates kept of one peer.
pub(crate) const MAX_CANDIDATES: usize = 32;
/// Candidates kept of one kind.
const MAX_PER_KIND: usize = 6;
/// Candidates kept that were seen from outside.
const MAX_REFLEXIVE: usize = 4;

/// How an address was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// Opened on the gateway by a port mapping protocol.
    PortMapped,
    /// Seen by a STUN server.
    Reflexive,
    /// Seen by the peer itself.
    PeerReflexive,
}

impl CandidateKind {
    /// No NAT stands between this address and its node that has to be opened first.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Host | Self::PortMapped)
    }

    fn limit(self) -> usize {
        match self {
            Self::Host | Self::PortMapped => MAX_PER_KIND,
            Self::Reflexive | Self::PeerReflexive => MAX_REFLEXIVE,
        }
    }
}

/// An address at which a node may be reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// How the address was learned.
    pub kind: CandidateKind,
    /// Where to send.
    pub address: SocketAddr,
}

/// What decides, besides the address itself, whether a candidate may be probed.
#[derive(Debug, Clone, Copy)]
pub struct CandidateContext<'a> {
    /// Pod ranges, mesh ranges and addresses of the device: a probe there would go into the tunnel.
    pub own_prefixes: &'a [IpNet],
    /// Networks this host is directly attached to.
    pub connected: &'a [IpNet],
    /// Both nodes show the same public address.
    pub same_public_ip: bool,
}

/// Why a candidate is not probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Port 0.
    #[error("port 0")]
    Port,
    /// `0.0.0.0/8` or `::`.
    #[error("unspecified address")]
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    #[error("loopback address")]
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`.
    #[error("link-local address")]
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8`.
    #[error("multicast address")]
    Multicast,
    /// `255.255.255.255` or the reserved block `240.0.0.0/4` around it.
    #[error("broadcast or reserved address")]
    Broadcast,
    /// An IPv4 address written as IPv6.
    #[error("IPv4 address in IPv6 form")]
    Mapped,
    /// An address where clouds serve credentials.
    #[error("cloud metadata address")]
    Metadata,
    /// Inside our own pod, mesh or device ranges.
    #[error("inside the mesh's own ranges")]
    OwnRange,
    /// A private address of a network that we do not share.
    #[error("private address of another network")]
    Private,
}

/// Whether `candidate` may be probed. Documentation ranges are addresses like any other.
pub fn acceptable(candidate: &Candidate, context: &CandidateContext<'_>) -> Result<(), Refusal> {
    let ip = candidate.address.ip();
    if candidate.address.port() == 0 {
        return Err(Refusal::Port);
    }
    match ip {
        IpAddr::V4(ip) => routable_v4(ip)?,
        IpAddr::V6(ip) => routable_v6(ip)?,
    }
    let within = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&ip));
    if within(context.own_prefixes) {
        return Err(Refusal::OwnRange);
    }
    if is_private(ip) && !context.same_public_ip && !within(context.connected) {
        return Err(Refusal::Private);
    }
    Ok(())
}

/// An address that only means something inside one network: RFC 1918, RFC 4193, RFC 6598.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Drops repetitions and what is over the limits; earlier entries win.
pub(crate) fn capped(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let of_kind = kept
            .iter()
            .filter(|other| other.kind == candidate.kind)
            .count();
        let known = kept.iter().any(|other| other.address == candidate.address);
        if !known && of_kind < candidate.kind.limit() && kept.len() < MAX_CANDIDATES {
            kept.push(*candidate);
        }
    }
    kept
}

fn routable_v4(ip: Ipv4Addr) -> Result<(), Refusal> {
    /// Where clouds serve instance metadata; not all of them use a link-local address.
    const METADATA: [Ipv4Addr; 3] = [
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(168, 63, 129, 16),
        Ipv4Addr::new(100, 100, 100, 200),
    ];
    let [first, ..] = ip.octets();
    match first {
        0 => Err(Refusal::Unspecified),
        127 => Err(Refusal::Loopback),
        _ if METADATA.contains(&ip) => Err(Refusal::Metadata),
        _ if ip.is_link_local() => Err(Refusal::LinkLocal),
        224..=239 => Err(Refusal::Multicast),
        240..=255 => Err(Refusal::Broadcast),
        _ => Ok(()),
    }
}

fn routable_v6(ip: Ipv6Addr) -> Result<(), Refusal> {
    /// Where a large cloud serves instance metadata over IPv6.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        _ if ip.is_unspecified() => Err(Refusal::Unspecified),
        _ if ip.is_loopback() => Err(Refusal::Loopback),
        _ if ip.is_multicast() => Err(Refusal::Multicast),
        _ if ip.is_unicast_link_local() => Err(Refusal::LinkLocal),
        METADATA => Err(Refusal::Metadata),
        // Both `::ffff:a.b.c.d` and the older `::a.b.c.d` (RFC 4291 section 2.5.5).
        _ if ip.to_ipv4().is_some() => Err(Refusal::Mapped),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: CandidateContext<'_> = CandidateContext {
        own_prefixes: &[],
        connected: &[],
        same_public_ip: false,
    };

    fn candidate(text: &str) -> Candidate {
        Candidate {
            kind: CandidateKind::Host,
            address: text.parse().unwrap(),
        }
    }

    #[test]
    fn refuses_what_must_never_be_probed() {
        let cases = [
            ("192.0.2.1:0", Refusal::Port),
            ("0.0.0.0:1", Refusal::Unspecified),
            ("0.1.2.3:1", Refusal::Unspecified),
            ("[::]:1", Refusal::Unspecified),
            ("127.1.2.3:1", Refusal::Loopback),
            ("[::1]:1", Refusal::Loopback),
            ("169.254.1.1:1", Refusal::LinkLocal),
            ("[fe80::1]:1", Refusal::LinkLocal),
            ("224.0.0.1:1", Refusal::Multicast),
            ("[ff02::1]:1", Refusal::Multicast),
            ("255.255.255.255:1", Refusal::Broadcast),
            ("240.0.0.1:1", Refusal::Broadcast),
            ("[::ffff:192.0.2.1]:1", Refusal::Mapped),
            ("[::ffff:127.0.0.1]:1", Refusal::Mapped),
            ("[::192.0.2.1]:1", Refusal::Mapped),
            ("169.254.169.254:80", Refusal::Metadata),
            ("168.63.129.16:80", Refusal::Metadata),
            ("100.100.100.200:80", Refusal::Metadata),
            ("[fd00:ec2::254]:80", Refusal::Metadata),
            ("10.1.2.3:1", Refusal::Private),
            ("172.31.2.3:1", Refusal::Private),
            ("192.168.2.3:1", Refusal::Private),
            ("100.64.0.1:1", Refusal::Private),
            ("100.127.255.1:1", Refusal::Private),
            ("[fd12::1]:1", Refusal::Private),
        ];
        for (text, refusal) in cases {
            assert_eq!(
                acceptable(&candidate(text), &NOWHERE),
                Err(refusal),
                "{text}"
            );
        }
    }

    #[test]
    fn accepts_public_and_documentation_addresses() {
        for text in [
            "203.0.113.9:1",
            "198.51.100.1:65535",
            "8.8.8.8:53",
            "100.128.0.1:1",
            "[2001:db8::1]:1",
        ] {
            assert_eq!(acceptable(&candidate(text), &NOWHERE), Ok(()), "{text}");
        }
    }

    #[test]
    fn private_addresses_need_a_shared_network() {
        let connected = ["192.168.7.0/24".parse().unwrap()];
        let attached = CandidateContext {
            connected: &connected,
            ..NOWHERE
        };
        assert_eq!(acceptable(&candidate("192.168.7.9:1"), &attached), Ok(()));
        assert_eq!(
            acceptable(&candidate("192.168.8.9:1"), &attached),
            Err(Refusal::Private)
        );
        let same = CandidateContext {
            same_public_ip: true,
            ..NOWHERE
        };
        assert_eq!(acceptable(&candidate("192.168.8.9:1"), &same), Ok(()));
    }

    #[test]
    fn own_ranges_are_refused_even_when_connected() {
        let pods = ["10.1.0.0/16".parse().unwrap()];
        let context = CandidateContext {
            own_prefixes: &pods,
            connected: &pods,
            same_public_ip: true,
        };
        assert_eq!(
            acceptable(&candidate("10.1.2.3:1"), &context),
            Err(Refusal::OwnRange)
        );
    }

    #[test]
    fn limits_hold_per_kind_and_in_total() {
        let many = |kind, net: u8| {
            (1..=50).map(move |host| Candidate {
                kind,
                address: SocketAddr::from(([203, 0, net, host], 1)),
            })
        };
        let all: Vec<_> = many(CandidateKind::Host, 1)
            .chain(many(CandidateKind::PortMapped, 2))
            .chain(many(CandidateKind::Reflexive, 3))
            .chain(many(CandidateKind::Reflexive, 1))
            .collect();
        let kept = capped(&all);
        assert_eq!(kept.len(), 6 + 6 + 4);
        assert_eq!(
            kept.iter()
                .filter(|kept| kept.kind == CandidateKind::Reflexive)
                .count(),
            4
        );
        let mut addresses: Vec<_> = kept.iter().map(|kept| kept.address).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), kept.len(), "the same address twice");
    }
}
