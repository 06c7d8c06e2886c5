//! Node keys: X25519, the same for WireGuard and as an address on relays.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_box::SecretKey;
use rand::{RngCore as _, TryRngCore as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

const HEX_PREFIX: &str = "nodekey:";
const BASE64_LENGTH: usize = 44;

/// Points of small order on Curve25519 (RFC 7748 section 6.1): a session with one of them has no secret.
const LOW_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    [
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    below_prime_or_above(0xec),
    below_prime_or_above(0xed),
    below_prime_or_above(0xee),
];

const fn below_prime_or_above(first: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = first;
    bytes[31] = 0x7f;
    bytes
}

/// The operating system gives no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the operating system gives no randomness")]
pub struct NoRandomness;

/// Why something is not a node key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Neither of the two text forms.
    #[error(
        "expected 44 characters of base64, as `wg pubkey` prints, or nodekey: and 64 hex digits"
    )]
    Form,
    /// A key that gives no secrecy.
    #[error("this key is all zeros or of low order, so nothing sealed with it would be secret")]
    Weak,
    /// A number that is not reduced: a second name for the key of somebody else.
    #[error(
        "this is not how the key is written; print it again with `wg pubkey` or culvert-agent keygen"
    )]
    NotReduced,
}

/// A node's public key: 32 bytes, WireGuard's static key and the address on relays.
///
/// Text that X25519 would take for the same point as another key is refused (RFC 7748 section 5): a list of keys has no
/// key twice if it has no text twice. Raw bytes come from frames, where a second name for a key leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Takes 32 raw bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::Weak`] for points of low order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let mut canonical = bytes;
        canonical[31] &= 0x7f;
        if LOW_ORDER.contains(&canonical) {
            return Err(KeyError::Weak);
        }
        Ok(Self(bytes))
    }

    /// Takes 64 hex digits.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if they are something else, or the key is weak or not reduced.
    pub fn from_hex(digits: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; KEY_LEN];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyError::Form)?;
        Self::from_written(bytes)
    }

    /// 64 hex digits, as in the certificates and HTTP headers of relays.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The raw bytes, as in frames.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Takes bytes that somebody wrote down: no second name for a key.
    pub(crate) fn from_written(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let key = Self::from_bytes(bytes)?;
        is_reduced(&bytes)
            .then_some(key)
            .ok_or(KeyError::NotReduced)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_base64(&self.0))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = encode_base64(&self.0);
        write!(f, "{}…", text.get(..8).unwrap_or_default())
    }
}

impl FromStr for NodeKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.strip_prefix(HEX_PREFIX) {
            Some(digits) => Self::from_hex(digits),
            None => Self::from_written(decode_base64(text)?),
        }
    }
}

impl TryFrom<String> for NodeKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<NodeKey> for String {
    fn from(key: NodeKey) -> Self {
        key.to_string()
    }
}

/// A node's private key. Never printed, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeSecret([u8; 32]);

impl NodeSecret {
    /// Makes a key from the operating system's randomness.
    ///
    /// # Panics
    ///
    /// If there is none: no other key is as good.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; KEY_LEN];
        rand::rngs::OsRng.unwrap_mut().fill_bytes(&mut bytes);
        Self::from_bytes(bytes)
    }

    /// Takes 32 random bytes and clamps them (RFC 7748 section 5).
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// Reads base64, as `wg genkey` prints.
    ///
    /// # Errors
    ///
    /// [`KeyError::Form`] for anything else.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(Self::from_bytes)
    }

    /// As `wg genkey` prints; for the key file and nothing else.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The raw bytes, clamped.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> NodeKey {
        // A clamped scalar times the base point is never of low order.
        NodeKey(*self.to_box_key().public_key().as_bytes())
    }

    pub(crate) fn to_box_key(&self) -> SecretKey {
        SecretKey::from(self.0)
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret(..)")
    }
}

/// Whether the number is below 2^255 - 19, so that no other bytes mean the same key.
fn is_reduced(bytes: &[u8; KEY_LEN]) -> bool {
    let [first, middle @ .., last] = bytes;
    let highest = *last == 0x7f && middle.iter().all(|byte| *byte == 0xff);
    *last <= 0x7f && !(highest && *first >= 0xed)
}

fn encode_base64(bytes: &[u8; KEY_LEN]) -> String {
    STANDARD.encode(bytes)
}

fn decode_base64(text: &str) -> Result<[u8; 32], KeyError> {
    if text.len() != BASE64_LENGTH {
        return Err(KeyError::Form);
    }
    let bytes = STANDARD.decode(text).map_err(|_| KeyError::Form)?;
    bytes.try_into().map_err(|_| KeyError::Form)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_text_forms_name_the_same_key() {
        let key = NodeSecret::from_bytes([7; 32]).public();
        let hex: NodeKey = format!("nodekey:{}", hex::encode(key.as_bytes()))
            .parse()
            .unwrap();
        assert_eq!(hex, key);
        assert_eq!(key.to_string().len(), 44);
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn weak_keys_are_refused_also_with_the_unused_bit_set() {
        for mut point in LOW_ORDER {
            assert_eq!(NodeKey::from_bytes(point), Err(KeyError::Weak));
            point[31] |= 0x80;
            assert_eq!(NodeKey::from_bytes(point), Err(KeyError::Weak));
        }
    }

    #[test]
    fn a_key_is_written_in_one_way() {
        let key = NodeSecret::from_bytes([7; 32]).public();
        let mut second = *key.as_bytes();
        second[31] |= 0x80;
        // 2^255 - 19 + 9: the base point once more.
        let nine = below_prime_or_above(0xed + 9);
        for bytes in [second, nine] {
            let forms = [
                encode_base64(&bytes),
                format!("nodekey:{}", hex::encode(bytes)),
            ];
            for text in forms {
                assert_eq!(text.parse::<NodeKey>(), Err(KeyError::NotReduced), "{text}");
            }
        }
        let largest = encode_base64(&below_prime_or_above(0xeb));
        assert!(largest.parse::<NodeKey>().is_ok());
    }

    #[test]
    fn a_secret_prints_nothing() {
        assert_eq!(format!("{:?}", NodeSecret::generate()), "NodeSecret(..)");
        assert_ne!(
            NodeSecret::generate().to_bytes(),
            NodeSecret::generate().to_bytes()
        );
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "AAAA",
            "nodekey:12",
            &"x".repeat(44),
            &"AAAA".repeat(11),
            "cluster:AAAA",
        ] {
            assert!(text.parse::<NodeKey>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<NodeKey>();
        }
    }
}
