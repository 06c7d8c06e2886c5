//! Cluster identities: Ed25519, of another curve form than node keys and never to be mistaken for one.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::key::{decode_base64, encode_base64};

const PREFIX: &str = "cluster:";

/// The y coordinates of the points of small order on edwards25519, also where they are not reduced (RFC 8032 section
/// 5.1.3): anybody can sign for such a key.
const SMALL_ORDER: [[u8; 32]; 7] = [
    with_ends(0, 0, 0),
    with_ends(1, 0, 0),
    with_ends(0xec, 0xff, 0x7f),
    with_ends(0xed, 0xff, 0x7f),
    with_ends(0xee, 0xff, 0x7f),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];

const fn with_ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Why something is not a cluster identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ClusterKeyError {
    /// Not the text form.
    #[error("expected cluster: and 44 characters of base64")]
    Form,
    /// A key for which anybody can sign.
    #[error("this cluster identity is all zeros or of small order, so anybody could sign for it")]
    Weak,
}

/// The public half of a cluster's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey([u8; 32]);

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", encode_base64(&self.0))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = encode_base64(&self.0);
        write!(f, "{PREFIX}{}…", text.get(..8).unwrap_or_default())
    }
}

impl FromStr for ClusterKey {
    type Err = ClusterKeyError;

    fn from_str(text: &str) -> Result<Self, ClusterKeyError> {
        let text = text.strip_prefix(PREFIX).ok_or(ClusterKeyError::Form)?;
        let bytes = decode_base64(text).map_err(|_| ClusterKeyError::Form)?;
        let mut y = bytes;
        y[31] &= 0x7f;
        if SMALL_ORDER.contains(&y) {
            return Err(ClusterKeyError::Weak);
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: [u8; 32]) -> Result<ClusterKey, ClusterKeyError> {
        format!("{PREFIX}{}", encode_base64(&bytes)).parse()
    }

    #[test]
    fn the_text_form_round_trips() {
        let key = parse([7; 32]).unwrap();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 52);
    }

    #[test]
    fn weak_identities_are_refused_whatever_their_sign() {
        for mut point in SMALL_ORDER {
            assert_eq!(parse(point), Err(ClusterKeyError::Weak));
            point[31] |= 0x80;
            assert_eq!(parse(point), Err(ClusterKeyError::Weak));
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let bare = encode_base64(&[7; 32]);
        let twice = format!("cluster:cluster:{bare}");
        let hex = format!("cluster:nodekey:{}", hex::encode([7; 32]));
        for text in ["", "cluster:", "cluster:short", &bare, &twice, &hex] {
            assert_eq!(
                text.parse::<ClusterKey>(),
                Err(ClusterKeyError::Form),
                "{text}"
            );
        }
    }
}
