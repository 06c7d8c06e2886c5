//! Inner IP packets: the few header fields the data path looks at, checked before any is used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const PROTOCOL_TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const FLAG_SYN: u8 = 0x02;

/// "Congestion experienced", the only ECN mark that a receiver has to carry inwards (RFC 6040).
pub(crate) const ECN_CE: u8 = 0b11;

/// The addresses and length of a well-formed IPv4 or IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Whole packet by its own length field, never more than the buffer it was read from.
    pub(crate) length: usize,
    pub(crate) ecn: u8,
}

impl Header {
    /// Reads the header; `None` for anything that is not one whole IP packet.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let header_length = usize::from(header[0] & 0x0f) * 4;
        if header_length < IPV4_HEADER || length < header_length || length > packet.len() {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            length,
            ecn: header[1] & 0b11,
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > packet.len() {
            return None;
        }
        Some(Self {
            source: v6(header, 8)?.into(),
            destination: v6(header, 24)?.into(),
            length,
            ecn: (header[1] >> 4) & 0b11,
        })
    }
}

/// Marks an ECN-capable packet as having met congestion; `false` if it must be dropped instead (RFC 6040 section 4.2).
pub(crate) fn mark_congestion(packet: &mut [u8]) -> bool {
    let Some(header) = Header::parse(packet) else {
        return false;
    };
    if header.ecn == 0 {
        return false;
    }
    match header.source {
        IpAddr::V4(_) => {
            let Some(&[first, tos]) = packet.first_chunk::<2>() else {
                return false;
            };
            let before = u16::from_be_bytes([first, tos]);
            let after = u16::from_be_bytes([first, tos | ECN_CE]);
            if let Some(byte) = packet.get_mut(1) {
                *byte = tos | ECN_CE;
            }
            adjust_checksum(packet, 10, before, after);
        }
        IpAddr::V6(_) => {
            if let Some(byte) = packet.get_mut(1) {
                *byte |= ECN_CE << 4;
            }
        }
    }
    true
}

/// Lowers the MSS option of a TCP SYN so that a full segment fits an inner `mtu` (RFC 9293 section 3.7.1).
///
/// Never raises it, and leaves fragments and packets with IPv6 extension headers alone.
pub(crate) fn clamp_mss(packet: &mut [u8], mtu: usize) {
    let Some((tcp, overhead)) = tcp_offset(packet) else {
        return;
    };
    let Some(segment) = packet.get(tcp..) else {
        return;
    };
    let Some(&header) = segment.first_chunk::<TCP_HEADER>() else {
        return;
    };
    let options_end = usize::from(header[12] >> 4) * 4;
    if header[13] & FLAG_SYN == 0 || options_end < TCP_HEADER || options_end > segment.len() {
        return;
    }
    let Ok(limit) = u16::try_from(mtu.saturating_sub(overhead + TCP_HEADER)) else {
        return;
    };
    let Some(at) = segment.get(TCP_HEADER..options_end).and_then(mss_option) else {
        return;
    };
    lower_mss(packet, tcp, tcp + TCP_HEADER + at, limit);
}

fn lower_mss(packet: &mut [u8], tcp: usize, at: usize, limit: u16) {
    let Some(value) = packet.get_mut(at..at + 2) else {
        return;
    };
    let Some(&[high, low]) = value.first_chunk::<2>() else {
        return;
    };
    let before = u16::from_be_bytes([high, low]);
    if before <= limit {
        return;
    }
    value.copy_from_slice(&limit.to_be_bytes());
    if (at - tcp).is_multiple_of(2) {
        adjust_checksum(packet, tcp + 16, before, limit);
    } else {
        adjust_checksum(packet, tcp + 16, before.swap_bytes(), limit.swap_bytes());
    }
}

/// Offset of the TCP header and size of the IP headers before it.
fn tcp_offset(packet: &[u8]) -> Option<(usize, usize)> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
            (header[9] == PROTOCOL_TCP && fragment == 0)
                .then_some((usize::from(header[0] & 0x0f) * 4, IPV4_HEADER))
        }
        6 => (*packet.get(6)? == PROTOCOL_TCP).then_some((IPV6_HEADER, IPV6_HEADER)),
        _ => None,
    }
}

/// Offset of the two value bytes of the MSS option (kind 2, length 4).
fn mss_option(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            0 => return None,
            1 => at += 1,
            2 => return (*options.get(at + 1)? == 4 && at + 4 <= options.len()).then_some(at + 2),
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
    None
}

/// Incremental Internet checksum update (RFC 1624 equation 3).
fn adjust_checksum(packet: &mut [u8], at: usize, before: u16, after: u16) {
    let Some(field) = packet.get_mut(at..at + 2) else {
        return;
    };
    let Some(&[high, low]) = field.first_chunk::<2>() else {
        return;
    };
    let mut sum =
        u32::from(!u16::from_be_bytes([high, low])) + u32::from(!before) + u32::from(after);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap_or(u16::MAX);
    field.copy_from_slice(&(!folded).to_be_bytes());
}

fn v6(header: &[u8; IPV6_HEADER], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn tcp_checksum(packet: &[u8]) -> u16 {
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, PROTOCOL_TCP]);
        pseudo.extend(u16::try_from(packet.len() - 20).unwrap().to_be_bytes());
        pseudo.extend(&packet[20..]);
        checksum(&pseudo)
    }

    /// An IPv4 SYN whose options are `options`, with right checksums.
    fn syn(options: &[u8]) -> Vec<u8> {
        let length = u16::try_from(40 + options.len()).unwrap();
        let mut packet = vec![0x45, 0x02];
        packet.extend(length.to_be_bytes());
        packet.extend([
            0,
            1,
            0x40,
            0,
            64,
            PROTOCOL_TCP,
            0,
            0,
            10,
            1,
            0,
            2,
            10,
            2,
            0,
            3,
        ]);
        let ip = checksum(&packet);
        packet[10..12].copy_from_slice(&ip.to_be_bytes());
        packet.extend([0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0]);
        packet.push(u8::try_from((20 + options.len()) / 4).unwrap() << 4);
        packet.extend([FLAG_SYN, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(options);
        let tcp = tcp_checksum(&packet);
        packet[36..38].copy_from_slice(&tcp.to_be_bytes());
        packet
    }

    #[test]
    fn addresses_and_length_come_from_the_header() {
        let mut packet = syn(&[2, 4, 5, 180]);
        let length = packet.len();
        packet.extend([0; 7]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(header.source, "10.1.0.2".parse::<IpAddr>().unwrap());
        assert_eq!(header.destination, "10.2.0.3".parse::<IpAddr>().unwrap());
        assert_eq!((header.length, header.ecn), (length, 2));
    }

    #[test]
    fn a_length_field_below_the_header_or_beyond_the_buffer_is_refused() {
        let mut packet = syn(&[2, 4, 5, 180]);
        packet[2..4].copy_from_slice(&5_u16.to_be_bytes());
        assert_eq!(Header::parse(&packet), None);
        packet[2..4].copy_from_slice(&2_000_u16.to_be_bytes());
        assert_eq!(Header::parse(&packet), None);
        assert_eq!(Header::parse(&[]), None);
    }

    #[test]
    fn the_mss_is_lowered_and_the_checksum_stays_right() {
        for options in [&[2_u8, 4, 5, 180][..], &[1, 2, 4, 5, 180, 1, 1, 0][..]] {
            let mut packet = syn(options);
            clamp_mss(&mut packet, 1_280);
            let at = packet.windows(2).position(|pair| pair == [2, 4]).unwrap() + 2;
            assert_eq!(packet[at..at + 2], 1_240_u16.to_be_bytes());
            assert_eq!(tcp_checksum(&packet), 0);
        }
    }

    #[test]
    fn a_small_mss_is_left_alone() {
        let mut packet = syn(&[2, 4, 2, 24]);
        let before = packet.clone();
        clamp_mss(&mut packet, 1_280);
        assert_eq!(packet, before);
    }

    #[test]
    fn congestion_marks_capable_packets_and_refuses_others() {
        let mut packet = syn(&[2, 4, 5, 180]);
        assert!(mark_congestion(&mut packet));
        assert_eq!(packet[1] & 0b11, ECN_CE);
        assert_eq!(checksum(&packet[..20]), 0);
        packet[1] &= !0b11;
        assert!(!mark_congestion(&mut packet));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Header::parse(&bytes);
            clamp_mss(&mut bytes, 1_280);
            let _ = mark_congestion(&mut bytes);
        }
    }
}
