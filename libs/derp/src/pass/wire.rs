//! The parts that signed statements are made of.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{LIFETIME, MAX_PASS_TEXT, PassError};
use crate::identity::{ClusterIdentity, ClusterSecret};
use crate::key::NodeKey;

/// The end of the year 9999, the last that RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// When something ends, in whole seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Expiry(u64);

impl Expiry {
    pub(super) fn at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs().min(LAST_SECOND))
    }

    pub(super) fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }

    pub(super) fn renew_at(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0).saturating_sub(LIFETIME / 2)
    }

    pub(super) fn check(self, now: SystemTime) -> Result<(), PassError> {
        (now < self.time()).then_some(()).ok_or(PassError::Expired)
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    fn from_bytes(bytes: [u8; 8]) -> Result<Self, PassError> {
        let seconds = u64::from_be_bytes(bytes);
        (seconds <= LAST_SECOND)
            .then_some(Self(seconds))
            .ok_or(PassError::Malformed)
    }
}

/// An Ed25519 signature over a label and what is signed. The label keeps one kind of statement from passing for another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature([u8; 64]);

impl Signature {
    pub(super) fn by(signer: &ClusterSecret, label: &[u8], body: &[u8]) -> Self {
        Self(signer.sign(&labelled(label, body)))
    }

    pub(super) fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 64] {
        &self.0
    }

    pub(super) fn check(
        &self,
        signer: &ClusterIdentity,
        label: &[u8],
        body: &[u8],
    ) -> Result<(), PassError> {
        signer
            .verify(&labelled(label, body), &self.0)
            .then_some(())
            .ok_or(PassError::Signature)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

/// What is left of a statement that is being read.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Behind the tag that says what this is.
    pub(super) fn new(bytes: &'a [u8], tag: u8) -> Result<Self, PassError> {
        match bytes.split_first() {
            Some((first, rest)) if *first == tag => Ok(Self(rest)),
            Some(_) | None => Err(PassError::Malformed),
        }
    }

    pub(super) fn identity(&mut self) -> Result<ClusterIdentity, PassError> {
        ClusterIdentity::from_bytes(self.take()?).map_err(|_| PassError::Malformed)
    }

    pub(super) fn node_key(&mut self) -> Result<NodeKey, PassError> {
        NodeKey::from_written(self.take()?).map_err(|_| PassError::Malformed)
    }

    pub(super) fn byte(&mut self) -> Result<u8, PassError> {
        self.take().map(|[byte]| byte)
    }

    pub(super) fn expiry(&mut self) -> Result<Expiry, PassError> {
        Expiry::from_bytes(self.take()?)
    }

    pub(super) fn signature(&mut self) -> Result<Signature, PassError> {
        self.take().map(Signature)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn end(self) -> Result<(), PassError> {
        self.is_empty().then_some(()).ok_or(PassError::Malformed)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PassError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(PassError::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// No other text gives the same bytes: padding and left-over bits are refused.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, PassError> {
    if text.len() > MAX_PASS_TEXT {
        return Err(PassError::Malformed);
    }
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| PassError::Malformed)
}

fn labelled(label: &[u8], body: &[u8]) -> Vec<u8> {
    [label, body].concat()
}
