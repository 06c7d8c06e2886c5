//! Tokens: what one cluster has to know to join another, in one line of text.
//!
//! `cvt1.` and base64url (RFC 4648 section 5, no padding) of this JSON:
//!
//! ```json
//! {"inviter": "cluster:...", "secret": "<base64>", "pass": "...", "expires": 1790000000, "kind": "Cluster",
//!  "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"],
//!  "relays": [{"url": "https://relay.example.org", "stunPort": 3478, "ca": ["<base64 of DER>"]}]}
//! ```
//!
//! Whoever has the text can use the invite, so it is treated like a key: never printed by `Debug`, and wiped.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use base64::{DecodeError as Base64Error, Engine as _};
use derp::{ClusterIdentity, ClusterSecret, RelayUrl};
use ipnet::IpNet;
use quinn::rustls::pki_types::CertificateDer;
use quinn::rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::message::{Capped, ClusterName, MAX_PREFIXES, is_statement};

/// The longest token, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// Relays in a token.
pub const MAX_TOKEN_RELAYS: usize = 8;
/// Certificates of one relay.
const MAX_CERTIFICATES: usize = 8;
/// All tokens begin like this, whatever their version.
const HEAD: &str = "cvt";
const PREFIX: &str = "cvt1.";
const PEM_LINE: usize = 64;

/// An invite, as its holder has it.
#[derive(Clone)]
pub struct Token {
    /// Who invites.
    pub inviter: ClusterIdentity,
    /// The temporary identity, as which the holder comes.
    pub secret: ClusterSecret,
    /// The pass by which relays let the temporary identity into their lobby.
    pub pass: String,
    /// Where to find the inviter: 1 to [`MAX_TOKEN_RELAYS`].
    pub relays: Vec<TokenRelay>,
    /// When it ends. The text has whole seconds, and leaves out what is beyond.
    pub expires: SystemTime,
    /// For whom it is.
    pub audience: Audience,
    /// What the inviter calls itself. For people to read.
    pub cluster_name: ClusterName,
    /// The ranges of its pods when it made this, at most [`MAX_PREFIXES`]: who cannot have them as neighbours need not ask.
    pub cidrs: Vec<IpNet>,
}

/// A relay, as a token describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRelay {
    /// Where it is.
    pub url: RelayUrl,
    /// Where it answers STUN, if it does.
    pub stun_port: Option<u16>,
    /// Certificates (PEM) to trust instead of the public ones, at most 8. The text has nothing of what is around them.
    pub ca_bundle: Option<String>,
}

/// For whom a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Audience {
    /// Another cluster.
    Cluster,
    /// A host without Kubernetes.
    Host,
}

/// Why something is not a token, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Nothing.
    #[error("the token is empty: give the whole line that the invite printed")]
    Empty,
    /// Something else.
    #[error("this is no token: one begins with `cvt1.`")]
    Form,
    /// Another version.
    #[error("the token's version is not known here: use the same release on both sides")]
    Version,
    /// Longer than any.
    #[error("longer than any token ({MAX_TOKEN} bytes): give one token and nothing else")]
    Long,
    /// The end is missing.
    #[error("the token is cut off: copy it up to its last character")]
    CutOff,
    /// Characters that no token has.
    #[error("the token was changed on its way: copy it again, or make a new one")]
    Changed,
    /// A field that is missing, or not as it should be.
    #[error("the token's content is not as it should be: make a new one, with this release")]
    Content,
    /// Too few or too many relays.
    #[error("a token needs 1 to {MAX_TOKEN_RELAYS} relays")]
    Relays,
    /// A CA bundle that is none.
    #[error("the CA bundle of a relay is not 1 to {MAX_CERTIFICATES} certificates in PEM")]
    CaBundle,
}

/// The JSON.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
struct Json {
    #[zeroize(skip)]
    inviter: ClusterIdentity,
    secret: String,
    pass: String,
    expires: u64,
    #[zeroize(skip)]
    kind: Audience,
    #[zeroize(skip)]
    cluster_name: ClusterName,
    #[zeroize(skip)]
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Capped::is_empty")]
    cidrs: Capped<IpNet, MAX_PREFIXES>,
    #[zeroize(skip)]
    relays: Capped<JsonRelay, MAX_TOKEN_RELAYS>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRelay {
    url: RelayUrl,
    #[serde(skip_serializing_if = "Option::is_none")]
    stun_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Capped::is_empty")]
    ca: Capped<String, MAX_CERTIFICATES>,
}

impl Token {
    /// The text, for whoever is invited and nobody else. Parsing gives the same token.
    ///
    /// # Errors
    /// When a field is not as its description has it, or there is too much of them all.
    pub fn to_text(&self) -> Result<Zeroizing<String>, TokenError> {
        let json = Json::try_from(self)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TOKEN));
        serde_json::to_writer(&mut *bytes, &json).map_err(|_| TokenError::Content)?;
        let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN * 2));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Long);
        }
        Ok(text)
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.expires
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads what [`Self::to_text`] writes, with white space around it.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = digits(text.trim())?;
        let bytes = URL_SAFE_NO_PAD.decode(digits).map_err(|error| match error {
            Base64Error::InvalidLength(_) | Base64Error::InvalidLastSymbol(..) => {
                TokenError::CutOff
            }
            Base64Error::InvalidByte(..) | Base64Error::InvalidPadding => TokenError::Changed,
        });
        let bytes = Zeroizing::new(bytes?);
        // What serde says may contain the secret.
        let json: Json =
            serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
                serde_json::error::Category::Eof => TokenError::CutOff,
                serde_json::error::Category::Data => TokenError::Content,
                serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
                    TokenError::Changed
                }
            })?;
        Self::try_from(json)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("inviter", &self.inviter)
            .field("invite", &self.secret.identity())
            .field("cluster_name", &self.cluster_name)
            .field("audience", &self.audience)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl TryFrom<&Token> for Json {
    type Error = TokenError;

    fn try_from(token: &Token) -> Result<Self, TokenError> {
        let relays = token.relays.iter().map(JsonRelay::try_from);
        let relays = Capped(relays.collect::<Result<Vec<_>, _>>()?);
        if relays.0.is_empty() || relays.0.len() > MAX_TOKEN_RELAYS {
            return Err(TokenError::Relays);
        }
        let expires = token.expires.duration_since(UNIX_EPOCH);
        if !is_statement(&token.pass) || token.cidrs.len() > MAX_PREFIXES {
            return Err(TokenError::Content);
        }
        Ok(Self {
            inviter: token.inviter,
            secret: token.secret.to_base64().to_string(),
            pass: token.pass.clone(),
            expires: expires.map_err(|_| TokenError::Content)?.as_secs(),
            kind: token.audience,
            cluster_name: token.cluster_name.clone(),
            cidrs: Capped(token.cidrs.clone()),
            relays,
        })
    }
}

impl TryFrom<Json> for Token {
    type Error = TokenError;

    fn try_from(mut json: Json) -> Result<Self, TokenError> {
        let secret = ClusterSecret::from_base64(&json.secret).map_err(|_| TokenError::Content)?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(json.expires));
        let relays = std::mem::take(&mut json.relays.0);
        if relays.is_empty() {
            return Err(TokenError::Relays);
        }
        if !is_statement(&json.pass) {
            return Err(TokenError::Content);
        }
        Ok(Self {
            inviter: json.inviter,
            secret,
            pass: std::mem::take(&mut json.pass),
            relays: relays
                .into_iter()
                .map(TokenRelay::try_from)
                .collect::<Result<_, _>>()?,
            expires: expires.ok_or(TokenError::Content)?,
            audience: json.kind,
            cluster_name: json.cluster_name.clone(),
            cidrs: std::mem::take(&mut json.cidrs.0),
        })
    }
}

impl TryFrom<&TokenRelay> for JsonRelay {
    type Error = TokenError;

    fn try_from(relay: &TokenRelay) -> Result<Self, TokenError> {
        let ca = relay.ca_bundle.as_deref().map(certificates).transpose()?;
        Ok(Self {
            url: relay.url.clone(),
            stun_port: relay.stun_port,
            ca: Capped(ca.unwrap_or_default()),
        })
    }
}

impl TryFrom<JsonRelay> for TokenRelay {
    type Error = TokenError;

    fn try_from(relay: JsonRelay) -> Result<Self, TokenError> {
        let certificates = relay.ca.0.iter().map(|text| pem(text));
        let bundle = certificates.collect::<Result<String, _>>()?;
        Ok(Self {
            url: relay.url,
            stun_port: relay.stun_port,
            ca_bundle: (!bundle.is_empty()).then_some(bundle),
        })
    }
}

/// What comes after the prefix.
fn digits(text: &str) -> Result<&str, TokenError> {
    if text.is_empty() {
        return Err(TokenError::Empty);
    }
    if text.len() > MAX_TOKEN {
        return Err(TokenError::Long);
    }
    if let Some(digits) = text.strip_prefix(PREFIX) {
        return Ok(digits);
    }
    if PREFIX.starts_with(text) {
        return Err(TokenError::CutOff);
    }
    let version = text
        .strip_prefix(HEAD)
        .and_then(|rest| rest.split_once('.'));
    let is_version = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    if version.is_some_and(|(version, _)| is_version(version)) {
        return Err(TokenError::Version);
    }
    Err(TokenError::Form)
}

/// The certificates of a bundle, each as base64 of its DER.
fn certificates(bundle: &str) -> Result<Vec<String>, TokenError> {
    let certificates = CertificateDer::pem_slice_iter(bundle.as_bytes());
    let certificates = certificates.map(|one| one.map(|der| STANDARD.encode(der)));
    let certificates: Result<Vec<_>, _> = certificates.take(MAX_CERTIFICATES + 1).collect();
    let certificates = certificates.map_err(|_| TokenError::CaBundle)?;
    if certificates.is_empty() || certificates.len() > MAX_CERTIFICATES {
        return Err(TokenError::CaBundle);
    }
    Ok(certificates)
}

/// A certificate in PEM (RFC 7468), from base64 of its DER.
fn pem(base64: &str) -> Result<String, TokenError> {
    let der = STANDARD.decode(base64).map_err(|_| TokenError::CaBundle)?;
    if der.is_empty() {
        return Err(TokenError::CaBundle);
    }
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, digit) in STANDARD.encode(der).chars().enumerate() {
        if index > 0 && index % PEM_LINE == 0 {
            pem.push('\n');
        }
        pem.push(digit);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    Ok(pem)
}

#[cfg(test)]
mod tests;
