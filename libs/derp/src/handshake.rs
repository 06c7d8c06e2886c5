//! What both sides tell each other in the handshake: JSON in a box between their keys.
//!
//! The box is X25519 with XSalsa20-Poly1305; sealed means 24 bytes of nonce, 16 of tag, then the ciphertext.

use crypto_box::aead::Aead as _;
use crypto_box::{Nonce, PublicKey, SalsaBox};
use serde_json::{Map, Value, json};

use crate::frame::VERSION;
use crate::key::{KEY_LEN, NoRandomness, NodeKey, NodeSecret};

const NONCE_LEN: usize = 24;
const MESH_KEY_LEN: usize = 32;

/// What a client says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo {
    /// Protocol version.
    pub version: u32,
    /// The secret that relays of one mesh share.
    pub mesh_key: Option<[u8; MESH_KEY_LEN]>,
    /// Whether the client answers pings.
    pub can_ack_pings: bool,
    /// Whether the client only measures.
    pub is_prober: bool,
    /// A name for statistics.
    pub app_name: Option<String>,
    /// The text of a [`Pass`](crate::pass::Pass), in a field that other implementations skip.
    pub pass: Option<String>,
}

/// What a server says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerInfo {
    /// Protocol version.
    pub version: u32,
    /// Bytes per second that the client may send; no limit if absent.
    pub bytes_per_second: Option<u64>,
    /// Bytes that the client may send at once.
    pub bytes_burst: Option<u64>,
}

/// Why a handshake message could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Too short for key, nonce and tag.
    #[error("the handshake message is cut short")]
    Short,
    /// The key in front is no node key: weak, or not reduced.
    #[error("the handshake message is from a weak key")]
    WeakKey,
    /// The box does not open: it was sealed by or for another key, or damaged.
    #[error("the handshake box does not open")]
    Box,
    /// Not the JSON that is expected.
    #[error("the handshake message is not the JSON expected")]
    Json,
}

/// A nonce for one box. Never use one twice with the same keys.
#[derive(Debug, Clone, Copy)]
pub struct BoxNonce([u8; NONCE_LEN]);

impl BoxNonce {
    /// A random nonce.
    ///
    /// # Errors
    ///
    /// [`NoRandomness`] if the operating system has none to give.
    pub fn random() -> Result<Self, NoRandomness> {
        use rand::TryRngCore as _;
        let mut bytes = [0; NONCE_LEN];
        rand::rngs::OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// A nonce whose uniqueness is the caller's to keep.
    #[must_use]
    pub fn from_bytes(bytes: [u8; NONCE_LEN]) -> Self {
        Self(bytes)
    }
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self {
            version: VERSION,
            mesh_key: None,
            can_ack_pings: true,
            is_prober: false,
            app_name: None,
            pass: None,
        }
    }
}

impl ClientInfo {
    /// The payload of a ClientInfo frame: our key, nonce, box.
    #[must_use]
    pub fn seal(&self, ours: &NodeSecret, server: &NodeKey, nonce: BoxNonce) -> Vec<u8> {
        let mut payload = ours.public().as_bytes().to_vec();
        payload.extend(seal(&self.to_json(), ours, server, nonce));
        payload
    }

    /// Opens the payload of a ClientInfo frame, and so proves that the client holds the key it names.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if it is not a box from that key to ours, with the JSON expected.
    pub fn open(payload: &[u8], ours: &NodeSecret) -> Result<(NodeKey, Self), OpenError> {
        let (key, sealed) = payload
            .split_first_chunk::<KEY_LEN>()
            .ok_or(OpenError::Short)?;
        let key = NodeKey::from_bytes(*key).map_err(|_| OpenError::WeakKey)?;
        let info = Self::from_json(&open(sealed, ours, &key)?).ok_or(OpenError::Json)?;
        Ok((key, info))
    }

    fn to_json(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("version", (self.version != 0).then(|| json!(self.version)));
        fields.add("meshKey", self.mesh_key.map(|key| json!(hex::encode(key))));
        fields.add("CanAckPings", Some(json!(self.can_ack_pings)));
        fields.add("IsProber", self.is_prober.then_some(Value::Bool(true)));
        fields.add("AppName", self.app_name.as_ref().map(|name| json!(name)));
        fields.add("culvertPass", self.pass.as_ref().map(|pass| json!(pass)));
        fields.finish()
    }

    fn from_json(bytes: &[u8]) -> Option<Self> {
        let fields = read_object(bytes)?;
        let flag = |name| field(&fields, name).map_or(Some(false), Value::as_bool);
        let text = |name| {
            field(&fields, name)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        Some(Self {
            version: version(&fields)?,
            mesh_key: mesh_key(&fields)?,
            can_ack_pings: flag("CanAckPings")?,
            is_prober: flag("IsProber")?,
            app_name: text("AppName"),
            pass: text("culvertPass"),
        })
    }
}

impl Default for ServerInfo {
    fn default() -> Self {
        Self {
            version: VERSION,
            bytes_per_second: None,
            bytes_burst: None,
        }
    }
}

impl ServerInfo {
    /// The payload of a ServerInfo frame: nonce, box.
    #[must_use]
    pub fn seal(&self, ours: &NodeSecret, client: &NodeKey, nonce: BoxNonce) -> Vec<u8> {
        seal(&self.to_json(), ours, client, nonce)
    }

    /// Opens the payload of a ServerInfo frame.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if it is not a box from the server to us, with the JSON expected.
    pub fn open(payload: &[u8], ours: &NodeSecret, server: &NodeKey) -> Result<Self, OpenError> {
        Self::from_json(&open(payload, ours, server)?).ok_or(OpenError::Json)
    }

    fn to_json(self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("version", Some(json!(self.version)));
        fields.add(
            "TokenBucketBytesPerSecond",
            self.bytes_per_second.map(|rate| json!(rate)),
        );
        fields.add(
            "TokenBucketBytesBurst",
            self.bytes_burst.map(|burst| json!(burst)),
        );
        fields.finish()
    }

    fn from_json(bytes: &[u8]) -> Option<Self> {
        let fields = read_object(bytes)?;
        let number = |name| {
            field(&fields, name)
                .and_then(Value::as_u64)
                .filter(|value| *value > 0)
        };
        Some(Self {
            version: version(&fields)?,
            bytes_per_second: number("TokenBucketBytesPerSecond"),
            bytes_burst: number("TokenBucketBytesBurst"),
        })
    }
}

/// An object written in the order of its fields, as other implementations do.
#[derive(Default)]
struct Fields(String);

impl Fields {
    fn add(&mut self, name: &str, value: Option<Value>) {
        let Some(value) = value else { return };
        let comma = if self.0.is_empty() { "" } else { "," };
        self.0.push_str(&format!("{comma}\"{name}\":{value}"));
    }

    fn finish(self) -> Vec<u8> {
        format!("{{{}}}", self.0).into_bytes()
    }
}

fn seal(plain: &[u8], ours: &NodeSecret, theirs: &NodeKey, nonce: BoxNonce) -> Vec<u8> {
    // The cipher refuses only messages of many gigabytes; an empty box would be refused by the reader.
    let sealed = salsa_box(ours, theirs)
        .encrypt(&Nonce::from(nonce.0), plain)
        .unwrap_or_default();
    [nonce.0.as_slice(), &sealed].concat()
}

fn open(sealed: &[u8], ours: &NodeSecret, theirs: &NodeKey) -> Result<Vec<u8>, OpenError> {
    let (nonce, sealed) = sealed
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(OpenError::Short)?;
    salsa_box(ours, theirs)
        .decrypt(&Nonce::from(*nonce), sealed)
        .map_err(|_| OpenError::Box)
}

fn salsa_box(ours: &NodeSecret, theirs: &NodeKey) -> SalsaBox {
    SalsaBox::new(
        &PublicKey::from_bytes(*theirs.as_bytes()),
        &ours.to_box_key(),
    )
}

fn read_object(bytes: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(bytes).ok()
}

/// Other implementations take keys in any case.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let same = |(key, _): &(&String, &Value)| key.eq_ignore_ascii_case(name);
    fields
        .iter()
        .find(same)
        .map(|(_, value)| value)
        .filter(|value| !value.is_null())
}

fn version(fields: &Map<String, Value>) -> Option<u32> {
    let Some(value) = field(fields, "version") else {
        return Some(0);
    };
    u32::try_from(value.as_u64()?).ok()
}

fn mesh_key(fields: &Map<String, Value>) -> Option<Option<[u8; MESH_KEY_LEN]>> {
    let Some(value) = field(fields, "meshKey") else {
        return Some(None);
    };
    let text = value.as_str()?;
    if text.is_empty() {
        return Some(None);
    }
    let mut key = [0; MESH_KEY_LEN];
    hex::decode_to_slice(text, &mut key).ok()?;
    Some(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> NodeSecret {
        let mut bytes = [0; KEY_LEN];
        hex::decode_to_slice(text, &mut bytes).unwrap();
        NodeSecret::from_bytes(bytes)
    }

    fn server() -> NodeSecret {
        secret("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f")
    }

    fn client() -> NodeSecret {
        secret("202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e7f")
    }

    fn nonce() -> BoxNonce {
        BoxNonce::from_bytes(std::array::from_fn(|index| u8::try_from(index).unwrap()))
    }

    const CLIENT_INFO: &str = "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254000102030405060708090a0b0c0d0e0f101112131415161777c36a41cfb75cd14a2fa666e8ab4f1e18f0c9550e0b21c02f518cc30888b4f763f7e31611c0eeca0ebb12cbb089fdb9";
    const CLIENT_INFO_EXTRA: &str = "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254000102030405060708090a0b0c0d0e0f101112131415161747b62cd52c63a618c15ca82482e3649118f0c9550e0b21c02f518cc30888b4f763f7e31611c0eeca0ebb12cbb089fde8d6ed149f881a045a";
    const SERVER_INFO: &str = "000102030405060708090a0b0c0d0e0f1011121314151617b180b3f5eb0e99721944e594af753a9e18f0c9550e0b21c02f518cc359";

    #[test]
    fn seals_known_bytes() {
        let info = ClientInfo::default().seal(&client(), &server().public(), nonce());
        assert_eq!(hex::encode(info), CLIENT_INFO);
        let info = ServerInfo::default().seal(&server(), &client().public(), nonce());
        assert_eq!(hex::encode(info), SERVER_INFO);
    }

    #[test]
    fn opens_known_bytes_and_skips_unknown_keys() {
        for text in [CLIENT_INFO, CLIENT_INFO_EXTRA] {
            let opened = ClientInfo::open(&hex::decode(text).unwrap(), &server());
            assert_eq!(opened, Ok((client().public(), ClientInfo::default())));
        }
        let opened = ServerInfo::open(
            &hex::decode(SERVER_INFO).unwrap(),
            &client(),
            &server().public(),
        );
        assert_eq!(opened, Ok(ServerInfo::default()));
    }

    #[test]
    fn refuses_other_keys_and_damage() {
        let mut bytes = hex::decode(CLIENT_INFO).unwrap();
        assert_eq!(ClientInfo::open(&bytes, &client()), Err(OpenError::Box));
        assert_eq!(
            ClientInfo::open(&bytes[..40], &server()),
            Err(OpenError::Short)
        );
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(ClientInfo::open(&bytes, &server()), Err(OpenError::Box));
        bytes[..32].fill(0);
        assert_eq!(ClientInfo::open(&bytes, &server()), Err(OpenError::WeakKey));
    }

    #[test]
    fn every_field_round_trips() {
        let info = ClientInfo {
            version: 2,
            mesh_key: Some([7; 32]),
            can_ack_pings: false,
            is_prober: true,
            app_name: Some("a \"name\"".to_owned()),
            pass: Some("EQ-_".to_owned()),
        };
        assert_eq!(ClientInfo::from_json(&info.to_json()), Some(info));
        let info = ServerInfo {
            version: 2,
            bytes_per_second: Some(5),
            bytes_burst: Some(6),
        };
        assert_eq!(ServerInfo::from_json(&info.to_json()), Some(info));
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let info = ClientInfo::from_json(
            br#"{"VERSION":2,"canackpings":true,"isprober":true,"deep":{"a":[1]}}"#,
        );
        assert_eq!(
            info,
            Some(ClientInfo {
                is_prober: true,
                ..ClientInfo::default()
            })
        );
    }

    #[test]
    fn refuses_json_of_other_shape() {
        for text in [
            "",
            "[]",
            "{",
            r#"{"version":-1}"#,
            r#"{"version":"2"}"#,
            r#"{"meshKey":"00"}"#,
            r#"{"CanAckPings":1}"#,
        ] {
            assert_eq!(ClientInfo::from_json(text.as_bytes()), None, "{text}");
        }
    }
}
