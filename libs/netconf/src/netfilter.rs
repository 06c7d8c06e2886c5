//! The two questions put to the kernel's netfilter over netlink: has any nftables ruleset changed, and which
//! tracked flows carry a translated source.

mod conntrack;

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

pub(crate) use conntrack::forget_translated;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource id.
const GENERIC: usize = 4;
const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
const NFTA_GEN_ID: u16 = 1;

/// Number of the nftables ruleset in force; every transaction of anybody, iptables-nft included, makes it another.
pub(crate) async fn generation() -> io::Result<u32> {
    let mut found = None;
    exchange(NFT_MSG_GETGEN, 0, 0, &[], |payload| {
        if let Some(id) = attribute(payload, NFTA_GEN_ID).and_then(|id| id.try_into().ok()) {
            found = Some(u32::from_be_bytes(id));
        }
    })
    .await?;
    found.ok_or_else(|| io::Error::other("no nftables generation in the kernel's answer"))
}

/// Sends one request on a socket of its own and hands every answer's attributes to `each`.
async fn exchange(
    kind: u16,
    flags: u16,
    family: u8,
    attributes: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    let flags = flags | NLM_F_REQUEST | if flags == NLM_F_DUMP { 0 } else { NLM_F_ACK };
    let message = request(kind, flags, family, attributes)?;
    socket.send_to(&message, &SocketAddr::new(0, 0)).await?;
    loop {
        let (datagram, _) = socket.recv_from_full().await?;
        if datagram.is_empty() || read_all(&datagram, &mut each)? {
            return Ok(());
        }
    }
}

fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADER + GENERIC + attributes.len();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    Ok(message)
}

/// Whether the answer is complete.
fn read_all(datagram: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_at_checked(HEADER) {
        let length = u32_at(header, 0).and_then(|length| usize::try_from(length).ok());
        let Some((message, after)) =
            length.and_then(|length| rest.split_at_checked(align(length).min(rest.len())))
        else {
            break;
        };
        let Some(payload) = length.and_then(|length| message.get(HEADER..length)) else {
            break;
        };
        match u16_at(header, 4) {
            Some(NLMSG_DONE) => return Ok(true),
            Some(NLMSG_ERROR) => return acknowledged(payload).map(|()| true),
            _ => each(payload.get(GENERIC..).unwrap_or_default()),
        }
        rest = after;
    }
    Ok(false)
}

fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The value of the first attribute of `kind`.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        // The two top bits say how the value is encoded.
        if u16_at(rest, 2)? & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(align(length)..)?;
    }
}

/// Appends an attribute.
fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) -> Option<()> {
    let length = u16::try_from(value.len().checked_add(4)?).ok()?;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(align(message.len()), 0);
    Some(())
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_round_trip() {
        let mut message = Vec::new();
        push_attribute(&mut message, 0x8001, b"nested").expect("fits");
        push_attribute(&mut message, 7, b"abcd").expect("fits");
        assert_eq!(attribute(&message, 1), Some(&b"nested"[..]));
        assert_eq!(attribute(&message, 7), Some(&b"abcd"[..]));
        assert_eq!(attribute(&message, 8), None);
    }

    #[test]
    fn errors_of_the_kernel_are_errors() {
        let mut message = request(NLMSG_ERROR, 0, 0, &[]).expect("fits");
        message.truncate(HEADER);
        message.extend((-2_i32).to_ne_bytes());
        let error = read_all(&message, &mut |_: &[u8]| ()).expect_err("ENOENT");
        assert_eq!(error.raw_os_error(), Some(2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut seen = 0_usize;
            let _ = read_all(&bytes, &mut |payload: &[u8]| seen += payload.len());
            prop_assert!(seen <= bytes.len());
            let _ = attribute(&bytes, 1);
        }
    }
}
