//! The STUN Binding codec (RFC 8489), with what RFC 5780 adds for telling NATs apart.
//!
//! A message is a header of 20 bytes, `type u16 | length u16 | cookie u32 | transaction id 96 bits`, followed by
//! attributes, `type u16 | length u16 | value | padding to 4`. The length counts what follows the header. All numbers
//! are big-endian. Parsing is total: any bytes give a value or an error.

mod crc;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use self::crc::crc32;

/// The constant in every header (RFC 8489 section 5).
pub const MAGIC_COOKIE: u32 = 0x2112_a442;
/// Our requests are at least this long, so that no answer to them needs to be longer than they are.
pub const MIN_REQUEST: usize = 80;

const HEADER: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// XOR-MAPPED-ADDRESS as servers from before RFC 5389 write it.
const OLD_XOR_MAPPED_ADDRESS: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;

/// DERP servers answer only requests whose first attribute is SOFTWARE with this value.
const SOFTWARE_NAME: &[u8] = b"tailnode";
/// What the CRC of FINGERPRINT is combined with (RFC 8489 section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const FINGERPRINT_LEN: usize = 8;
/// Attributes read from one message.
const MAX_ATTRIBUTES: usize = 32;

/// Ties an answer to its request; must be unpredictable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What a server is asked to change about its answer's source (RFC 5780 section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Change {
    /// Answer from the address that was asked.
    #[default]
    Nothing,
    /// Answer from the same IP and another port.
    Port,
    /// Answer from another IP and another port.
    IpAndPort,
}

/// A Binding success response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Of the request that this answers.
    pub transaction: TransactionId,
    /// The requester as the server saw it.
    pub mapped: SocketAddr,
    /// Another address at which the same server answers (RFC 5780 section 7.4).
    pub other: Option<SocketAddr>,
    /// Where the server says it sent this from (RFC 5780 section 7.3).
    pub origin: Option<SocketAddr>,
}

/// Why bytes are not a usable Binding success response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No STUN header, or a length that does not fit.
    #[error("not a STUN message")]
    NotStun,
    /// STUN, but something else than a Binding success response.
    #[error("message type {0:#06x}")]
    Type(u16),
    /// An attribute runs past the end, or there are too many.
    #[error("malformed attributes")]
    Attributes,
    /// An address attribute of the wrong length or family.
    #[error("malformed address")]
    Address,
    /// The checksum is wrong, or is not the last attribute.
    #[error("wrong fingerprint")]
    Fingerprint,
    /// No mapped address, or one that nobody can have.
    #[error("no usable mapped address")]
    Mapped,
}

/// Whether a datagram is STUN rather than WireGuard, whose first bytes are alike: the cookie decides.
pub fn is_stun(datagram: &[u8]) -> bool {
    let Some(header) = Header::read(datagram) else {
        return false;
    };
    header.cookie == MAGIC_COOKIE
        && header.kind & 0xc000 == 0
        && HEADER + header.len == datagram.len()
}

/// A Binding request: SOFTWARE, CHANGE-REQUEST if something is to change, filler, FINGERPRINT.
pub fn request(transaction: TransactionId, change: Change) -> Vec<u8> {
    let mut message = Vec::with_capacity(MIN_REQUEST);
    message.extend(BINDING_REQUEST.to_be_bytes());
    message.extend([0; 2]);
    message.extend(MAGIC_COOKIE.to_be_bytes());
    message.extend(transaction.0);
    push_attribute(&mut message, SOFTWARE, SOFTWARE_NAME);
    match change {
        Change::Nothing => {}
        Change::Port => push_attribute(&mut message, CHANGE_REQUEST, &[0, 0, 0, 0x02]),
        Change::IpAndPort => push_attribute(&mut message, CHANGE_REQUEST, &[0, 0, 0, 0x06]),
    }
    // A repeated attribute is ignored by receivers (RFC 8489 section 14), which makes it harmless filler.
    let filler = MIN_REQUEST.saturating_sub(message.len() + 4 + FINGERPRINT_LEN);
    push_attribute(&mut message, SOFTWARE, &vec![b' '; filler]);
    finish(&mut message);
    message
}

/// Reads a Binding success response.
pub fn parse_response(datagram: &[u8]) -> Result<Response, ParseError> {
    if !is_stun(datagram) {
        return Err(ParseError::NotStun);
    }
    let header = Header::read(datagram).ok_or(ParseError::NotStun)?;
    if header.kind != BINDING_SUCCESS {
        return Err(ParseError::Type(header.kind));
    }
    let mut found = Found::default();
    for attribute in attributes(datagram) {
        found.note(attribute?, header.transaction, datagram)?;
    }
    let mapped = found
        .xor
        .or(found.old_xor)
        .or(found.plain)
        .filter(usable)
        .ok_or(ParseError::Mapped)?;
    Ok(Response {
        transaction: header.transaction,
        mapped,
        other: found.other,
        origin: found.origin,
    })
}

struct Header {
    kind: u16,
    len: usize,
    cookie: u32,
    transaction: TransactionId,
}

impl Header {
    fn read(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (transaction, _) = rest.split_first_chunk()?;
        Some(Self {
            kind: u16::from_be_bytes(*kind),
            len: usize::from(u16::from_be_bytes(*len)),
            cookie: u32::from_be_bytes(*cookie),
            transaction: TransactionId(*transaction),
        })
    }
}

struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// Where in the message it begins.
    offset: usize,
    /// Whether nothing follows it.
    is_last: bool,
}

/// The attributes of a message, with an error in place of what does not parse.
fn attributes(message: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, ParseError>> {
    let mut rest = message.get(HEADER..).unwrap_or_default();
    let mut count = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        count += 1;
        let offset = message.len() - rest.len();
        let next = (count <= MAX_ATTRIBUTES)
            .then(|| split_attribute(rest))
            .flatten();
        let Some((kind, value, after)) = next else {
            rest = &[];
            return Some(Err(ParseError::Attributes));
        };
        rest = after;
        Some(Ok(Attribute {
            kind,
            value,
            offset,
            is_last: after.is_empty(),
        }))
    })
}

/// Type, value, and what follows the padding.
fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes(*len));
    let value = rest.get(..len)?;
    let after = rest.get(len.next_multiple_of(4)..)?;
    Some((u16::from_be_bytes(*kind), value, after))
}

/// The attributes that matter; the first of each kind counts.
#[derive(Default)]
struct Found {
    xor: Option<SocketAddr>,
    old_xor: Option<SocketAddr>,
    plain: Option<SocketAddr>,
    other: Option<SocketAddr>,
    origin: Option<SocketAddr>,
}

impl Found {
    fn note(
        &mut self,
        attribute: Attribute<'_>,
        id: TransactionId,
        message: &[u8],
    ) -> Result<(), ParseError> {
        let Attribute { kind, value, .. } = attribute;
        let (place, mask) = match kind {
            XOR_MAPPED_ADDRESS => (&mut self.xor, true),
            OLD_XOR_MAPPED_ADDRESS => (&mut self.old_xor, true),
            MAPPED_ADDRESS => (&mut self.plain, false),
            OTHER_ADDRESS => (&mut self.other, false),
            RESPONSE_ORIGIN => (&mut self.origin, false),
            FINGERPRINT => return check_fingerprint(&attribute, message),
            _ => return Ok(()),
        };
        let address = parse_address(value).ok_or(ParseError::Address)?;
        place.get_or_insert(if mask { xor(address, id) } else { address });
        Ok(())
    }
}

fn check_fingerprint(attribute: &Attribute<'_>, message: &[u8]) -> Result<(), ParseError> {
    let covered = message
        .get(..attribute.offset)
        .ok_or(ParseError::Fingerprint)?;
    let expected = (crc32(covered) ^ FINGERPRINT_XOR).to_be_bytes();
    (attribute.is_last && attribute.value == expected)
        .then_some(())
        .ok_or(ParseError::Fingerprint)
}

/// `0 | family u8 | port u16 | address`, of exactly the family's length.
fn parse_address(value: &[u8]) -> Option<SocketAddr> {
    let ([_, family], rest) = value.split_first_chunk()?;
    let (port, ip) = rest.split_first_chunk()?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Masks or unmasks an address (RFC 8489 section 14.2).
fn xor(address: SocketAddr, transaction: TransactionId) -> SocketAddr {
    let [first, second, ..] = MAGIC_COOKIE.to_be_bytes();
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() ^ MAGIC_COOKIE)),
        IpAddr::V6(ip) => {
            let mut mask = [0; 16];
            let (cookie, id) = mask.split_at_mut(4);
            cookie.copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            id.copy_from_slice(&transaction.0);
            IpAddr::V6(Ipv6Addr::from_bits(
                ip.to_bits() ^ u128::from_be_bytes(mask),
            ))
        }
    };
    SocketAddr::new(ip, address.port() ^ u16::from_be_bytes([first, second]))
}

fn usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
}

fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), b' ');
}

/// Writes the length, then the fingerprint over all before it.
fn finish(message: &mut Vec<u8>) {
    let len = message.len() + FINGERPRINT_LEN - HEADER;
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    }
    let crc = crc32(message) ^ FINGERPRINT_XOR;
    push_attribute(message, FINGERPRINT, &crc.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod server {
    //! The other side of the protocol, for simulated servers.

    use super::*;

    /// Transaction and wish of a Binding request.
    pub(crate) fn parse_request(datagram: &[u8]) -> Option<(TransactionId, Change)> {
        let header = Header::read(datagram)
            .filter(|header| is_stun(datagram) && header.kind == BINDING_REQUEST)?;
        let mut change = Change::Nothing;
        for attribute in attributes(datagram) {
            let attribute = attribute.ok()?;
            match (attribute.kind, attribute.value) {
                (CHANGE_REQUEST, [0, 0, 0, 0x02]) => change = Change::Port,
                (CHANGE_REQUEST, [0, 0, 0, 0x06]) => change = Change::IpAndPort,
                (FINGERPRINT, _) => check_fingerprint(&attribute, datagram).ok()?,
                _ => {}
            }
        }
        Some((header.transaction, change))
    }

    /// A Binding success response.
    pub(crate) fn response(
        transaction: TransactionId,
        mapped: SocketAddr,
        other: Option<SocketAddr>,
    ) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(BINDING_SUCCESS.to_be_bytes());
        message.extend([0; 2]);
        message.extend(MAGIC_COOKIE.to_be_bytes());
        message.extend(transaction.0);
        push_attribute(
            &mut message,
            XOR_MAPPED_ADDRESS,
            &address(xor(mapped, transaction)),
        );
        if let Some(other) = other {
            push_attribute(&mut message, OTHER_ADDRESS, &address(other));
        }
        finish(&mut message);
        message
    }

    fn address(address: SocketAddr) -> Vec<u8> {
        let (family, ip) = match address.ip() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (2, ip.octets().to_vec()),
        };
        [vec![0, family], address.port().to_be_bytes().to_vec(), ip].concat()
    }
}

#[cfg(test)]
mod tests;
