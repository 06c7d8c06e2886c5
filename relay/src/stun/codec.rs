//! Binding requests and their answers (RFC 8489, RFC 5780), from a server's side.

use std::net::{IpAddr, SocketAddr};

const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const MAX_REQUEST: usize = 1500;
const MAX_ATTRIBUTES: usize = 32;
const MAX_UNKNOWN: usize = 8;
/// The longest answer to a shorter request: success with an IPv6 address, or with two of IPv4.
const FREE_LEN: usize = 44;

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const BINDING_ERROR: [u8; 2] = [0x01, 0x11];

const CHANGE_REQUEST: u16 = 0x0003;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
const OTHER_ADDRESS: u16 = 0x802c;
/// Attributes that must be understood and mean nothing here: credentials, padding, ICE.
const IGNORED: [u16; 9] = [
    0x0006,
    MESSAGE_INTEGRITY,
    0x0014,
    0x0015,
    0x001c,
    0x001d,
    0x001e,
    0x0024,
    0x0026,
];

const CHANGE_IP: u32 = 0x04;
const CHANGE_PORT: u32 = 0x02;

/// A binding request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    transaction: [u8; 12],
    length: usize,
    /// From where the answer shall come.
    pub(super) change: Change,
    /// Attributes that must be understood and are not.
    unknown: Vec<u16>,
}

/// From where an answer shall come, other than where the request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Change {
    pub(super) ip: bool,
    pub(super) port: bool,
}

impl Change {
    pub(super) fn is_wanted(self) -> bool {
        self.ip || self.port
    }
}

impl Request {
    /// Reads a datagram; `None` if it is anything but a well-formed binding request.
    pub(super) fn parse(datagram: &[u8]) -> Option<Self> {
        let (&[t0, t1, l0, l1, c0, c1, c2, c3], rest) = datagram.split_first_chunk::<8>()?;
        let (transaction, mut attributes) = rest.split_first_chunk::<12>()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let well_formed = [t0, t1] == BINDING_REQUEST
            && [c0, c1, c2, c3] == COOKIE
            && length == attributes.len()
            && length % 4 == 0
            && datagram.len() <= MAX_REQUEST;
        if !well_formed {
            return None;
        }
        let mut request = Self {
            transaction: *transaction,
            length: datagram.len(),
            change: Change::default(),
            unknown: Vec::new(),
        };
        let mut change = None;
        for _ in 0..MAX_ATTRIBUTES {
            if attributes.is_empty() {
                request.change = change.unwrap_or_default();
                return Some(request);
            }
            let at = datagram.len() - attributes.len();
            let (kind, value, rest) = split_attribute(attributes)?;
            match kind {
                CHANGE_REQUEST => change = change.or(Some(parse_change(value)?)),
                FINGERPRINT if !rest.is_empty() || value != fingerprint(datagram.get(..at)?) => {
                    return None;
                }
                0x8000.. => {}
                kind if IGNORED.contains(&kind) => {}
                kind => request.note_unknown(kind),
            }
            attributes = rest;
        }
        None
    }

    /// Treats CHANGE-REQUEST as unknown, because there is nowhere else to answer from.
    pub(super) fn refuse_change(&mut self) {
        self.note_unknown(CHANGE_REQUEST);
    }

    /// The answer, if there is one that is not too long: a success, or the error that names what is not understood.
    pub(super) fn answer(&self, from: SocketAddr, other: Option<SocketAddr>) -> Option<Answer> {
        if !self.unknown.is_empty() {
            let bytes = self.error();
            return (bytes.len() <= self.length).then_some(Answer::Refused(bytes));
        }
        let mut bytes = self.header(BINDING_SUCCESS);
        put_xor_address(&mut bytes, from, &self.transaction);
        if let Some(other) = other {
            let mut longer = bytes.clone();
            put_address(&mut longer, OTHER_ADDRESS, other);
            if longer.len() <= self.length.max(FREE_LEN) {
                bytes = longer;
            }
        }
        Some(Answer::Success(finish(bytes)))
    }

    fn error(&self) -> Vec<u8> {
        let mut bytes = self.header(BINDING_ERROR);
        put_attribute(&mut bytes, ERROR_CODE, &[0, 0, 4, 20]);
        let kinds: Vec<u8> = self
            .unknown
            .iter()
            .flat_map(|kind| kind.to_be_bytes())
            .collect();
        put_attribute(&mut bytes, UNKNOWN_ATTRIBUTES, &kinds);
        finish(bytes)
    }

    fn header(&self, kind: [u8; 2]) -> Vec<u8> {
        [kind.as_slice(), &[0, 0], &COOKIE, &self.transaction].concat()
    }

    fn note_unknown(&mut self, kind: u16) {
        if self.unknown.len() < MAX_UNKNOWN && !self.unknown.contains(&kind) {
            self.unknown.push(kind);
        }
    }
}

/// What goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The address that was seen.
    Success(Vec<u8>),
    /// Error 420.
    Refused(Vec<u8>),
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[k0, k1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let (padded, rest) = rest.split_at_checked(length.next_multiple_of(4))?;
    Some((u16::from_be_bytes([k0, k1]), padded.get(..length)?, rest))
}

fn parse_change(value: &[u8]) -> Option<Change> {
    let flags = u32::from_be_bytes(value.try_into().ok()?);
    Some(Change {
        ip: flags & CHANGE_IP != 0,
        port: flags & CHANGE_PORT != 0,
    })
}

/// CRC-32 of everything before the attribute (RFC 8489, section 14.7).
fn fingerprint(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    (!crc ^ 0x5354_554e).to_be_bytes()
}

fn put_xor_address(out: &mut Vec<u8>, address: SocketAddr, transaction: &[u8; 12]) {
    let mask: Vec<u8> = COOKIE.iter().chain(transaction).copied().collect();
    let port = address.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    let ip = ip_bytes(address.ip())
        .into_iter()
        .zip(mask)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    put_address_value(out, XOR_MAPPED_ADDRESS, port, ip);
}

fn put_address(out: &mut Vec<u8>, kind: u16, address: SocketAddr) {
    put_address_value(out, kind, address.port(), ip_bytes(address.ip()));
}

fn put_address_value(out: &mut Vec<u8>, kind: u16, port: u16, ip: Vec<u8>) {
    let family = if ip.len() == 4 { 1 } else { 2 };
    put_attribute(
        out,
        kind,
        &[&[0, family], port.to_be_bytes().as_slice(), &ip].concat(),
    );
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn finish(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(bytes.len() - HEADER_LEN).unwrap_or(u16::MAX);
    if let Some(place) = bytes.get_mut(2..4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
