//! The certificate that a relay appends to its TLS chain to name its key a round trip early.
//!
//! Its subject's common name is `derpkey` and the key in hex; its serial number is the protocol version. It proves
//! nothing by itself: it counts because TLS 1.3 signs and encrypts the chain it comes in.

use crate::key::NodeKey;

/// What the common name begins with, before the key in hex.
pub const METACERT_PREFIX: &str = "derpkey";

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION_TAG: u8 = 0xa0;
/// 2.5.4.3 (RFC 5280, appendix A.1).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The server key in a certificate (DER), if it is a metacert of a protocol version other than 0.
#[must_use]
pub fn metacert_key(der: &[u8]) -> Option<NodeKey> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (fields, _) = expect(certificate, SEQUENCE)?;
    let fields = expect(fields, VERSION_TAG).map_or(fields, |(_, rest)| rest);
    let (serial, fields) = expect(fields, INTEGER)?;
    if !matches!(serial, [1..=0x7f] | [0, 0x80..=0xff]) || serial.len() > 2 {
        return None;
    }
    // Signature algorithm, issuer and validity stand before the subject.
    let fields = (0..3).try_fold(fields, |rest, _| Some(expect(rest, SEQUENCE)?.1))?;
    let (subject, _) = expect(fields, SEQUENCE)?;
    NodeKey::from_hex(common_name(subject)?.strip_prefix(METACERT_PREFIX)?).ok()
}

fn common_name(mut subject: &[u8]) -> Option<&str> {
    while let Some((set, rest)) = expect(subject, SET) {
        let (attribute, _) = expect(set, SEQUENCE)?;
        let (kind, value) = expect(attribute, OBJECT_IDENTIFIER)?;
        if kind == COMMON_NAME {
            let (_, text, _) = element(value)?;
            return std::str::from_utf8(text).ok();
        }
        subject = rest;
    }
    None
}

fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(input)?;
    (found == tag).then_some((content, rest))
}

/// Splits one DER element off: tag, content, rest. Lengths of up to two bytes are enough for certificates.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = input.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NodeSecret;

    fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82];
        out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        out.extend_from_slice(content);
        out
    }

    fn certificate(serial: &[u8], name: &str) -> Vec<u8> {
        let attribute = [
            wrap(OBJECT_IDENTIFIER, &COMMON_NAME),
            wrap(0x0c, name.as_bytes()),
        ]
        .concat();
        let subject = wrap(SEQUENCE, &wrap(SET, &wrap(SEQUENCE, &attribute)));
        let empty = wrap(SEQUENCE, &[]);
        let version = wrap(VERSION_TAG, &wrap(INTEGER, &[2]));
        let fields = [
            version,
            wrap(INTEGER, serial),
            empty.clone(),
            empty.clone(),
            empty,
            subject,
        ]
        .concat();
        wrap(SEQUENCE, &wrap(SEQUENCE, &fields))
    }

    #[test]
    fn finds_the_key() {
        let key = NodeSecret::from_bytes([1; 32]).public();
        let name = format!("derpkey{}", key.to_hex());
        assert_eq!(metacert_key(&certificate(&[2], &name)), Some(key));
        assert_eq!(metacert_key(&certificate(&[0, 200], &name)), Some(key));
    }

    #[test]
    fn refuses_other_certificates() {
        let key = NodeSecret::from_bytes([1; 32]).public();
        let name = format!("derpkey{}", key.to_hex());
        for der in [
            certificate(&[0], &name),
            certificate(&[1, 0], &name),
            certificate(&[], &name),
            certificate(&[2], "relay.example"),
            certificate(&[2], "derpkey00"),
            Vec::new(),
        ] {
            assert_eq!(metacert_key(&der), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(cut in 0_usize..200, byte: u8, at in 0_usize..200) {
            let name = format!("derpkey{}", NodeSecret::from_bytes([1; 32]).public().to_hex());
            let mut der = certificate(&[2], &name);
            if let Some(place) = der.get_mut(at) { *place = byte; }
            der.truncate(cut);
            proptest::prop_assert!(metacert_key(&der).is_none() || cut > 100);
        }
    }
}
