//! Fields of the control messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{CandidateKind, Filtering, Mapping, Udp};

/// What addresses and ports are combined with.
const MASK: u128 = 0x2112_a442_c01e_7e57_9a3d_51b6_e80f_7c24;
const PORT_MASK: u16 = 0x2112;

#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_be_bytes());
    }

    /// `family u8 (4 or 6) | port u16 | address`, masked.
    pub(super) fn address(&mut self, address: SocketAddr) {
        let (family, ip) = match address.ip() {
            IpAddr::V4(ip) => (
                4,
                (u128::from(ip.to_bits()) << 96 ^ MASK).to_be_bytes()[..4].to_vec(),
            ),
            IpAddr::V6(ip) => (6, (ip.to_bits() ^ MASK).to_be_bytes().to_vec()),
        };
        self.u8(family);
        self.0.extend((address.port() ^ PORT_MASK).to_be_bytes());
        self.0.extend(ip);
    }
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn address(&mut self) -> Option<SocketAddr> {
        let family = self.u8()?;
        let port = u16::from_be_bytes(self.take()?) ^ PORT_MASK;
        let ip = match family {
            4 => {
                let [a, b, c, d, ..] = MASK.to_be_bytes();
                let masked = u32::from_be_bytes(self.take()?);
                IpAddr::V4(Ipv4Addr::from_bits(
                    masked ^ u32::from_be_bytes([a, b, c, d]),
                ))
            }
            6 => IpAddr::V6(Ipv6Addr::from_bits(
                u128::from_be_bytes(self.take()?) ^ MASK,
            )),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }
}

pub(super) fn mapping(mapping: Mapping) -> u8 {
    match mapping {
        Mapping::Unknown => 0,
        Mapping::EndpointIndependent => 1,
        Mapping::EndpointDependent => 2,
    }
}

pub(super) fn read_mapping(byte: u8) -> Mapping {
    match byte {
        1 => Mapping::EndpointIndependent,
        2 => Mapping::EndpointDependent,
        _ => Mapping::Unknown,
    }
}

pub(super) fn filtering(filtering: Filtering) -> u8 {
    match filtering {
        Filtering::Unknown => 0,
        Filtering::EndpointIndependent => 1,
        Filtering::AddressDependent => 2,
        Filtering::AddressAndPortDependent => 3,
    }
}

pub(super) fn read_filtering(byte: u8) -> Filtering {
    match byte {
        1 => Filtering::EndpointIndependent,
        2 => Filtering::AddressDependent,
        3 => Filtering::AddressAndPortDependent,
        _ => Filtering::Unknown,
    }
}

pub(super) fn udp(udp: Udp) -> u8 {
    match udp {
        Udp::Unknown => 0,
        Udp::Works => 1,
        Udp::Blocked => 2,
    }
}

pub(super) fn read_udp(byte: u8) -> Udp {
    match byte {
        1 => Udp::Works,
        2 => Udp::Blocked,
        _ => Udp::Unknown,
    }
}

pub(super) fn kind(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Host => 1,
        CandidateKind::PortMapped => 2,
        CandidateKind::Reflexive => 3,
        CandidateKind::PeerReflexive => 4,
    }
}

pub(super) fn read_kind(byte: u8) -> Option<CandidateKind> {
    match byte {
        1 => Some(CandidateKind::Host),
        2 => Some(CandidateKind::PortMapped),
        3 => Some(CandidateKind::Reflexive),
        4 => Some(CandidateKind::PeerReflexive),
        _ => None,
    }
}
