//! What `culvert-agent status -o json` says.

use anyhow::{Context, Result};
use serde_json::Value;

/// A status document.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

/// One remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathState {
    /// `direct`, `relay`, `idle` or `none`.
    pub path: String,
    /// Why it is not direct.
    pub reason: Option<String>,
    /// Where to.
    pub endpoint: Option<String>,
    /// Round trip in microseconds.
    pub rtt_micros: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// When the last handshake was, RFC 3339.
    pub last_handshake: Option<String>,
}

/// One error of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestError {
    /// The file's name.
    pub file: String,
    /// The document's place in the file.
    pub document: u64,
    /// The field's path.
    pub field: String,
    /// The code.
    pub code: String,
}

impl Status {
    /// Reads the document.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map(Self)
            .context("the status is not JSON")
    }

    /// URLs of the relays that are connected.
    pub fn connected_relays(&self) -> Result<Vec<String>> {
        let relays = array(&self.0, "/relays")?.iter();
        let connected = relays.filter(|relay| relay["connected"] == Value::Bool(true));
        Ok(connected.filter_map(|relay| text(relay, "url")).collect())
    }

    /// The only remote node of a peer.
    pub fn path_to(&self, peer: &str) -> Result<PathState> {
        let peers = array(&self.0, "/peers")?;
        let found = peers
            .iter()
            .find(|entry| text(entry, "name").as_deref() == Some(peer));
        let nodes = array(
            found.with_context(|| format!("no peer {peer} in the status"))?,
            "/nodes",
        )?;
        let node = nodes
            .first()
            .with_context(|| format!("peer {peer} has no nodes"))?;
        Ok(PathState {
            path: text(node, "path").context("no path")?,
            reason: text(node, "reason"),
            endpoint: text(node, "endpoint"),
            rtt_micros: number(node, "rttMicros"),
            rx_bytes: number(node, "rxBytes").unwrap_or_default(),
            tx_bytes: number(node, "txBytes").unwrap_or_default(),
            last_handshake: text(node, "lastHandshake"),
        })
    }

    /// What the node found out about its NAT: mapping, filtering, reflexive addresses.
    pub fn nat(&self) -> Result<(String, String, Vec<String>)> {
        let nat = self
            .0
            .pointer("/node/nat")
            .context("no node.nat in the status")?;
        let seen = array(nat, "/reflexive")?
            .iter()
            .filter_map(|one| one.as_str().map(str::to_owned))
            .collect();
        Ok((
            text(nat, "mapping").context("no mapping")?,
            text(nat, "filtering").context("no filtering")?,
            seen,
        ))
    }

    /// The relay in use.
    pub fn home_relay(&self) -> Option<String> {
        self.0
            .pointer("/node/homeRelay")
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    /// The UDP port.
    pub fn listen_port(&self) -> Result<u16> {
        let port = self
            .0
            .pointer("/node/listenPort")
            .and_then(Value::as_u64)
            .context("no listenPort")?;
        Ok(u16::try_from(port)?)
    }

    /// Every error of every manifest.
    pub fn manifest_errors(&self) -> Result<Vec<ManifestError>> {
        let mut all = Vec::new();
        for manifest in array(&self.0, "/manifests")? {
            for error in array(manifest, "/errors")? {
                all.push(ManifestError {
                    file: text(error, "file").context("no file")?,
                    document: number(error, "document").unwrap_or_default(),
                    field: text(error, "field").unwrap_or_default(),
                    code: text(error, "code").context("no code")?,
                });
            }
        }
        Ok(all)
    }
}

impl PathState {
    /// Whether data goes directly.
    pub fn is_direct(&self) -> bool {
        self.path == "direct"
    }
}

fn array<'a>(value: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .with_context(|| format!("no list {pointer} in the status"))
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_contract_example() {
        let status = Status::parse(
            r#"{"node":{"listenPort":20443,"homeRelay":null,
                 "nat":{"mapping":"EIM","filtering":"APDF","reflexive":["203.0.113.34:20443"]}},
               "manifests":[{"kind":"Peer","name":"tokyo","accepted":false,"errors":[
                 {"file":"peers.yaml","document":0,"field":"spec.nodes[0].publicKey","code":"BadKey","message":"m"}]}],
               "peers":[{"name":"tokyo","nodes":[{"name":"tokyo-1","path":"relay","reason":"Probing",
                 "endpoint":"http://203.0.113.20:8080","rttMicros":1234,"rxBytes":1,"txBytes":2,"mtu":1280}]}]}"#,
        )
        .expect("JSON");
        let path = status.path_to("tokyo").expect("a peer");
        assert_eq!(
            (path.path.as_str(), path.reason.as_deref(), path.tx_bytes),
            ("relay", Some("Probing"), 2)
        );
        assert_eq!(status.nat().expect("a NAT").0, "EIM");
        assert_eq!(status.listen_port().expect("a port"), 20443);
        let errors = status.manifest_errors().expect("a list");
        assert_eq!(
            errors.first().map(|error| error.code.as_str()),
            Some("BadKey")
        );
        assert!(status.path_to("osaka").is_err());
    }
}
