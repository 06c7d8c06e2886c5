//! What a packet on the wide area is, told from its bytes alone.

use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The classes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// STUN (RFC 8489) over UDP.
    Stun,
    /// WireGuard over UDP, with its message type, 1 to 4.
    WireGuard(u8),
    /// TCP from or to a relay.
    RelayTcp,
    /// An ICMP error that quotes one of the classes above.
    IcmpError,
    /// IPv6 neighbour discovery and multicast listener reports: the lab's own kernels.
    Neighbour,
    /// Anything else.
    Foreign,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stun => f.write_str("STUN"),
            Self::WireGuard(kind) => write!(f, "WireGuard type {kind}"),
            Self::RelayTcp => f.write_str("TCP of the relay"),
            Self::IcmpError => f.write_str("ICMP error"),
            Self::Neighbour => f.write_str("IPv6 neighbour discovery"),
            Self::Foreign => f.write_str("foreign"),
        }
    }
}

/// Puts an IP packet into its class.
pub fn classify(packet: &[u8], relays: &[SocketAddr]) -> Class {
    let Some(packet) = Parsed::read(packet) else {
        return Class::Foreign;
    };
    match (packet.protocol, packet.source.is_ipv4()) {
        (ICMP, true) => icmp(packet.payload, &[3, 11, 12], relays),
        (ICMP6, false) if is_neighbour(packet.payload) => Class::Neighbour,
        (ICMP6, false) => icmp(packet.payload, &[1, 2, 3, 4], relays),
        (HOP_BY_HOP, false) if packet.payload.first() == Some(&ICMP6) => Class::Neighbour,
        _ => carried(&packet, relays, false),
    }
}

/// A sealed packet at least this long carries data: the control messages of two nodes with a few candidates are shorter.
pub const DATA: usize = 700;

/// Whether a packet of a class carries data of at least [`DATA`] bytes, sealed: by UDP to the other node, or in a DERP frame to
/// or from a relay without TLS.
pub(super) fn carries_data(packet: &[u8], class: Class) -> bool {
    let payload = Parsed::read(packet).map_or(&[][..], |packet| packet.payload);
    match class {
        Class::WireGuard(4) => payload.len() >= 8 + DATA,
        Class::RelayTcp => payload.windows(FRAME_HEAD).any(holds_data),
        Class::Stun
        | Class::WireGuard(_)
        | Class::IcmpError
        | Class::Neighbour
        | Class::Foreign => false,
    }
}

/// A DERP frame's type and length, a node key, and a WireGuard message's type.
const FRAME_HEAD: usize = 1 + 4 + 32 + 4;

/// The start of a DERP frame, to a node (type 4) or from one (type 5), with a WireGuard data message.
fn holds_data(head: &[u8]) -> bool {
    let length = array(head, 1)
        .map(u32::from_be_bytes)
        .and_then(|length| usize::try_from(length).ok());
    matches!(head.first(), Some(4 | 5))
        && length.is_some_and(|length| (32 + DATA..1 << 14).contains(&length))
        && array(head, 37) == Some([4, 0, 0, 0])
}

/// A packet of a TCP connection with a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) client: SocketAddr,
    pub(super) relay: SocketAddr,
    /// Whether the client asks for a connection with it: SYN without ACK.
    pub(super) opens: bool,
    /// Whether it ends the connection: FIN or RST.
    pub(super) ends: bool,
}

/// What a packet means to a TCP connection (RFC 9293 section 3.1) with one of these relays; `None` of all other packets.
pub(super) fn segment(packet: &[u8], relays: &[SocketAddr]) -> Option<Segment> {
    let packet = Parsed::read(packet).filter(|packet| packet.protocol == TCP)?;
    let (from, to) = packet.ends()?;
    let flags = packet.payload.get(13)?;
    let (client, relay) = if relays.contains(&to) {
        (from, to)
    } else {
        (to, from)
    };
    relays.contains(&relay).then_some(Segment {
        client,
        relay,
        opens: flags & (SYN | ACK) == SYN,
        ends: flags & (FIN | RST) != 0,
    })
}

/// A packet in words: addresses, protocol, ports and the first bytes.
pub(super) fn describe(packet: &[u8]) -> String {
    let mut text = match Parsed::read(packet) {
        Some(parsed) => {
            let (from, to) = parsed.ports().unwrap_or_default();
            format!(
                "{}:{from} > {}:{to} protocol {} length {}: ",
                parsed.source,
                parsed.target,
                parsed.protocol,
                packet.len()
            )
        }
        None => format!("unreadable, length {}: ", packet.len()),
    };
    for byte in packet.iter().take(96) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const HOP_BY_HOP: u8 = 0;

/// Flags of TCP.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// RFC 8489 section 5.
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

struct Parsed<'a> {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

impl<'a> Parsed<'a> {
    /// Reads the IP header. Fragments behind the first have no ports, and are unreadable.
    fn read(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_v4(packet),
            6 => Self::read_v6(packet),
            _ => None,
        }
    }

    fn read_v4(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let fragment = u16::from_be_bytes(array(packet, 6)?) & 0x1fff;
        if fragment != 0 || header < 20 {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::from(array::<4>(packet, 12)?).into(),
            target: Ipv4Addr::from(array::<4>(packet, 16)?).into(),
            protocol: *packet.get(9)?,
            payload: packet.get(header..)?,
        })
    }

    fn read_v6(packet: &'a [u8]) -> Option<Self> {
        Some(Self {
            source: Ipv6Addr::from(array::<16>(packet, 8)?).into(),
            target: Ipv6Addr::from(array::<16>(packet, 24)?).into(),
            protocol: *packet.get(6)?,
            payload: packet.get(40..)?,
        })
    }

    fn ports(&self) -> Option<(u16, u16)> {
        let from = u16::from_be_bytes(array(self.payload, 0)?);
        Some((from, u16::from_be_bytes(array(self.payload, 2)?)))
    }

    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (from, to) = self.ports()?;
        Some((
            SocketAddr::new(self.source, from),
            SocketAddr::new(self.target, to),
        ))
    }
}

/// A packet that carries something, whole or as an ICMP error quotes it (`quoted`: cut off anywhere behind 8 bytes of payload).
fn carried(packet: &Parsed<'_>, relays: &[SocketAddr], quoted: bool) -> Class {
    let Some((from, to)) = packet.ends() else {
        return Class::Foreign;
    };
    match packet.protocol {
        TCP if relays.contains(&from) || relays.contains(&to) => Class::RelayTcp,
        UDP => udp(packet.payload, quoted),
        _ => Class::Foreign,
    }
}

fn udp(datagram: &[u8], quoted: bool) -> Class {
    let length = array(datagram, 4)
        .map(u16::from_be_bytes)
        .map_or(0, usize::from);
    let payload = datagram.get(8..).unwrap_or_default();
    // Segments of one large send are captured as one packet, whose UDP length says so; a quotation tells the original's length.
    let length = if quoted {
        length.saturating_sub(8)
    } else {
        payload.len()
    };
    if quoted && payload.len() < 8 {
        return Class::Foreign;
    }
    if is_stun(payload, length) {
        return Class::Stun;
    }
    match (payload.first_chunk(), length) {
        (Some([1, 0, 0, 0]), 148) => Class::WireGuard(1),
        (Some([2, 0, 0, 0]), 92) => Class::WireGuard(2),
        (Some([3, 0, 0, 0]), 64) => Class::WireGuard(3),
        (Some([4, 0, 0, 0]), 32..) => Class::WireGuard(4),
        _ => Class::Foreign,
    }
}

fn is_stun(payload: &[u8], length: usize) -> bool {
    let told = array(payload, 2)
        .map(u16::from_be_bytes)
        .map_or(0, usize::from);
    payload.first().is_some_and(|byte| byte & 0xc0 == 0)
        && array(payload, 4) == Some(MAGIC_COOKIE)
        && told + 20 == length
}

fn icmp(message: &[u8], errors: &[u8], relays: &[SocketAddr]) -> Class {
    let is_error = message.first().is_some_and(|kind| errors.contains(kind));
    let quoted = message.get(8..).and_then(Parsed::read);
    let known = quoted.is_some_and(|quoted| carried(&quoted, relays, true) != Class::Foreign);
    if is_error && known {
        Class::IcmpError
    } else {
        Class::Foreign
    }
}

/// RFC 4861 messages, and RFC 3810 reports.
fn is_neighbour(message: &[u8]) -> bool {
    matches!(message.first(), Some(133..=137 | 143))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 203, 0, 113, 20,
        ];
        packet.extend_from_slice(payload);
        packet
    }

    fn udp_of(payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len() + 8)
            .expect("short")
            .to_be_bytes();
        let mut datagram = vec![0x30, 0x39, 0x0d, 0x96, length[0], length[1], 0, 0];
        datagram.extend_from_slice(payload);
        datagram
    }

    fn padded(kind: u8, length: usize) -> Vec<u8> {
        let mut message = vec![0; length];
        message[0] = kind;
        message
    }

    fn stun() -> Vec<u8> {
        let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        message.extend([7; 12]);
        message
    }

    #[test]
    fn knows_each_class() {
        let relay: SocketAddr = "203.0.113.20:8080".parse().expect("an address");
        let see = |packet: &[u8]| classify(packet, &[relay]);
        assert_eq!(see(&ip(UDP, &udp_of(&stun()))), Class::Stun);
        assert_eq!(see(&ip(UDP, &udp_of(&padded(1, 148)))), Class::WireGuard(1));
        assert_eq!(see(&ip(UDP, &udp_of(&padded(2, 92)))), Class::WireGuard(2));
        assert_eq!(see(&ip(UDP, &udp_of(&padded(4, 32)))), Class::WireGuard(4));
        assert_eq!(see(&ip(UDP, &udp_of(&padded(1, 147)))), Class::Foreign);
        assert_eq!(see(&ip(UDP, &udp_of(&padded(5, 64)))), Class::Foreign);
        let mut tcp = vec![0; 20];
        tcp[2..4].copy_from_slice(&8080_u16.to_be_bytes());
        assert_eq!(see(&ip(TCP, &tcp)), Class::RelayTcp);
        tcp[3] += 1;
        assert_eq!(see(&ip(TCP, &tcp)), Class::Foreign);
    }

    #[test]
    fn knows_how_connections_begin_and_end() {
        let relay: SocketAddr = "203.0.113.20:8080".parse().expect("an address");
        let client: SocketAddr = "10.0.0.1:40000".parse().expect("an address");
        let see = |flags: u8| {
            let mut tcp = vec![0; 20];
            tcp[..2].copy_from_slice(&40_000_u16.to_be_bytes());
            tcp[2..4].copy_from_slice(&8080_u16.to_be_bytes());
            tcp[13] = flags;
            segment(&ip(TCP, &tcp), &[relay]).map(|seen| (seen.client, seen.opens, seen.ends))
        };
        assert_eq!(see(SYN), Some((client, true, false)));
        assert_eq!(see(SYN | ACK), Some((client, false, false)));
        assert_eq!(see(ACK | FIN), Some((client, false, true)));
        assert_eq!(see(RST), Some((client, false, true)));
        assert_eq!(segment(&ip(UDP, &udp_of(&stun())), &[relay]), None);
        assert_eq!(segment(&ip(TCP, &[0; 20]), &[relay]), None, "of nobody");
    }

    #[test]
    fn knows_data_either_way() {
        let relay: SocketAddr = "203.0.113.20:8080".parse().expect("an address");
        let see = |packet: &[u8]| carries_data(packet, classify(packet, &[relay]));
        assert!(see(&ip(UDP, &udp_of(&padded(4, DATA)))));
        assert!(!see(&ip(UDP, &udp_of(&padded(4, 160)))));
        let framed = |length: usize| {
            let mut tcp = vec![0; 32];
            tcp[2..4].copy_from_slice(&8080_u16.to_be_bytes());
            tcp.push(5);
            tcp.extend(u32::try_from(length + 32).expect("short").to_be_bytes());
            tcp.extend([9; 32]);
            tcp.extend(padded(4, length));
            ip(TCP, &tcp)
        };
        assert!(see(&framed(DATA)));
        assert!(!see(&framed(160)));
    }

    #[test]
    fn an_error_counts_by_what_it_quotes() {
        let quote = |inner: &[u8], cut: usize| {
            let mut message = vec![11, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&inner[..cut]);
            classify(&ip(ICMP, &message), &[])
        };
        let handshake = ip(UDP, &udp_of(&padded(1, 148)));
        assert_eq!(quote(&handshake, handshake.len()), Class::IcmpError);
        assert_eq!(quote(&handshake, 20 + 8 + 8), Class::IcmpError);
        let other = ip(UDP, &udp_of(b"something else"));
        assert_eq!(quote(&other, other.len()), Class::Foreign);
        let echo = ip(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(classify(&echo, &[]), Class::Foreign);
    }

    #[test]
    fn cut_packets_are_foreign() {
        let whole = ip(UDP, &udp_of(&stun()));
        for length in 0..28 {
            assert_eq!(classify(&whole[..length], &[]), Class::Foreign, "{length}");
        }
    }
}
