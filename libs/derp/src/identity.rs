//! Who a cluster is: an Ed25519 key, and the X25519 form of it that relays know.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::key::{NoRandomness, NodeKey, NodeSecret};

const PREFIX: &str = "cluster:";
const BASE64_LENGTH: usize = 44;

/// What stands before the key in a SubjectPublicKeyInfo of Ed25519 (RFC 8410 section 4).
const SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// What stands before the seed in a PKCS #8 key of Ed25519 (RFC 8410 section 7).
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why something is not a cluster's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not the text form.
    #[error("expected `cluster:` and 44 characters of base64")]
    Form,
    /// 32 bytes that are no point on the curve, or not in the one form that a point has.
    #[error("this is not an Ed25519 public key")]
    Point,
    /// A key that proves nothing.
    #[error("this key is all zeros or of low order, so anybody could sign for it")]
    Weak,
}

/// A cluster's public key. Compares by its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterIdentity {
    bytes: [u8; 32],
    relay_key: NodeKey,
}

impl ClusterIdentity {
    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// When they are no point in canonical form (RFC 8032 section 5.1.3), or one of low order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, IdentityError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| IdentityError::Point)?;
        if key.is_weak() || bytes == [0; 32] {
            return Err(IdentityError::Weak);
        }
        if key.to_edwards().compress().to_bytes() != bytes {
            return Err(IdentityError::Point);
        }
        Self::from_point(&key)
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The address of this cluster on relays: the X25519 form of the key. Two identities share each address, so nothing
    /// leads back from it.
    #[must_use]
    pub fn relay_key(&self) -> NodeKey {
        self.relay_key
    }

    /// Whether this cluster has signed the message (strict: RFC 8032 without its cofactor).
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.bytes)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }

    /// The key as TLS carries it (RFC 7250): a DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn to_spki(self) -> Vec<u8> {
        [SPKI_HEAD.as_slice(), &self.bytes].concat()
    }

    fn from_point(key: &VerifyingKey) -> Result<Self, IdentityError> {
        let relay_key = NodeKey::from_bytes(key.to_montgomery().to_bytes());
        Ok(Self {
            bytes: key.to_bytes(),
            relay_key: relay_key.map_err(|_| IdentityError::Weak)?,
        })
    }
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = STANDARD.encode(self.bytes);
        write!(f, "{PREFIX}{}…", text.get(..8).unwrap_or_default())
    }
}

impl FromStr for ClusterIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::from_bytes(read_text(text)?)
    }
}

impl TryFrom<String> for ClusterIdentity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<ClusterIdentity> for String {
    fn from(identity: ClusterIdentity) -> Self {
        identity.to_string()
    }
}

/// A cluster's secret seed. Never printed, wiped when dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct ClusterSecret {
    seed: [u8; 32],
    #[zeroize(skip)]
    identity: ClusterIdentity,
}

impl ClusterSecret {
    /// Makes an identity from the operating system's randomness.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut seed = Zeroizing::new([0; 32]);
        OsRng
            .try_fill_bytes(seed.as_mut_slice())
            .map_err(|_| NoRandomness)?;
        Self::from_seed(*seed).map_err(|_| NoRandomness)
    }

    /// Takes the 32 bytes of a seed (RFC 8032 section 5.1.5).
    ///
    /// # Errors
    /// [`IdentityError::Weak`] for a seed of zeros: that is a file nobody wrote.
    pub fn from_seed(mut seed: [u8; 32]) -> Result<Self, IdentityError> {
        if seed == [0; 32] {
            return Err(IdentityError::Weak);
        }
        let identity = ClusterIdentity::from_point(&SigningKey::from_bytes(&seed).verifying_key())?;
        let secret = Self { seed, identity };
        seed.zeroize();
        Ok(secret)
    }

    /// Reads what [`Self::to_base64`] writes.
    ///
    /// # Errors
    /// When it is not 44 characters of base64, or the seed is all zeros.
    pub fn from_base64(text: &str) -> Result<Self, IdentityError> {
        Self::from_seed(*Zeroizing::new(decode(text)?))
    }

    /// The seed, for the place where it is kept and nothing else.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.seed))
    }

    /// The public half.
    #[must_use]
    pub fn identity(&self) -> ClusterIdentity {
        self.identity
    }

    /// The X25519 form, with which the cluster speaks to relays.
    #[must_use]
    pub fn relay_secret(&self) -> NodeSecret {
        NodeSecret::from_bytes(*Zeroizing::new(self.signing_key().to_scalar_bytes()))
    }

    /// Signs a message (RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing_key().sign(message).to_bytes()
    }

    /// The seed as a DER PKCS #8 key, as TLS libraries take it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([PKCS8_HEAD.as_slice(), &self.seed].concat())
    }

    fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(&self.seed)
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

/// The bytes of an identity's text, which may be no point on the curve.
pub(crate) fn read_text(text: &str) -> Result<[u8; 32], IdentityError> {
    decode(text.strip_prefix(PREFIX).ok_or(IdentityError::Form)?)
}

fn decode(text: &str) -> Result<[u8; 32], IdentityError> {
    if text.len() != BASE64_LENGTH {
        return Err(IdentityError::Form);
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| IdentityError::Form)?);
    bytes.as_slice().try_into().map_err(|_| IdentityError::Form)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(seed: u8) -> ClusterSecret {
        ClusterSecret::from_seed([seed; 32]).unwrap()
    }

    /// The other key with the same X25519 form: its sign bit is the other one.
    fn negated(identity: ClusterIdentity) -> ClusterIdentity {
        let mut bytes = *identity.as_bytes();
        bytes[31] ^= 0x80;
        ClusterIdentity::from_bytes(bytes).unwrap()
    }

    #[test]
    fn the_first_vector_of_rfc_8032_gives_its_public_key() {
        let seed: [u8; 32] = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let secret = ClusterSecret::from_seed(seed).unwrap();
        assert_eq!(secret.identity().as_bytes()[..4], [0xd7, 0x5a, 0x98, 0x01]);
        let signature = secret.sign(b"");
        assert_eq!(signature[..4], [0xe5, 0x56, 0x43, 0x00]);
        assert!(secret.identity().verify(b"", &signature));
        assert!(!secret.identity().verify(b"x", &signature));
    }

    #[test]
    fn the_text_form_round_trips() {
        let identity = secret(7).identity();
        let text = identity.to_string();
        assert!(text.starts_with("cluster:"));
        assert_eq!(text.len(), 8 + 44);
        assert_eq!(text.parse(), Ok(identity));
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(
            serde_json::from_str::<ClusterIdentity>(&json).unwrap(),
            identity
        );
        assert_eq!(
            ClusterSecret::from_base64(&secret(7).to_base64())
                .unwrap()
                .identity(),
            identity
        );
    }

    #[test]
    fn the_relay_address_is_the_public_half_of_the_relay_secret() {
        for seed in 1..50 {
            let secret = secret(seed);
            assert_eq!(
                secret.relay_secret().public(),
                secret.identity().relay_key()
            );
        }
    }

    #[test]
    fn two_identities_share_an_address_and_are_not_the_same() {
        let one = secret(3).identity();
        let other = negated(one);
        assert_eq!(one.relay_key(), other.relay_key());
        assert_ne!(one, other);
        assert!(!other.verify(b"pass", &secret(3).sign(b"pass")));
    }

    #[test]
    fn weak_keys_are_refused() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let mut order_two = [0xff; 32];
        order_two[0] = 0xec;
        order_two[31] = 0x7f;
        for bytes in [[0; 32], identity_point, order_two] {
            assert!(ClusterIdentity::from_bytes(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(
            ClusterSecret::from_seed([0; 32]).err(),
            Some(IdentityError::Weak)
        );
    }

    #[test]
    fn other_forms_are_refused() {
        let bare = secret(7).identity().to_string().split_off(8);
        for text in [
            "",
            "cluster:",
            &bare,
            &format!("node:{bare}"),
            &format!("cluster:{bare}="),
        ] {
            assert_eq!(
                text.parse::<ClusterIdentity>(),
                Err(IdentityError::Form),
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_prints_nothing() {
        let one = ClusterSecret::generate().unwrap();
        assert_eq!(format!("{one:?}"), "ClusterSecret(..)");
        assert_ne!(
            one.identity(),
            ClusterSecret::generate().unwrap().identity()
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_what_is_taken_round_trips(bytes: [u8; 32]) {
            if let Ok(identity) = ClusterIdentity::from_bytes(bytes) {
                prop_assert_eq!(identity.to_string().parse(), Ok(identity));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<ClusterIdentity>();
        }
    }
}
