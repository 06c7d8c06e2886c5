//! The status of an agent, as `culvert-agent status -o json` prints it.

use std::fmt;
use std::net::SocketAddr;

use derp::NodeKey;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Code, Problem};

/// The whole document.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The process.
    pub agent: AgentReport,
    /// This node, as others see it.
    pub node: NodeReport,
    /// Every relay of the Mesh, the preferred one first.
    #[serde(default)]
    pub relays: Vec<RelayReport>,
    /// Every document of the manifest folder, and every file that could not be read.
    pub manifests: Vec<ManifestStatus>,
    /// Every Peer in force.
    pub peers: Vec<PeerReport>,
}

/// The process.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// Version of the program.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
}

/// This node, as others see it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its public key.
    pub public_key: NodeKey,
    /// UDP port of direct paths.
    pub listen_port: u16,
    /// URL of the relay where it is heard; `None` while connected to none.
    pub home_relay: Option<String>,
    /// The NAT in front of it.
    pub nat: NatReport,
}

/// A connection to a relay.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RelayReport {
    /// Its URL.
    pub url: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// Round trip on the connection, in microseconds.
    pub rtt_micros: Option<u64>,
    /// Why it is not connected, or what it complains about.
    pub problem: Option<String>,
}

/// What is known about the NAT in front of a node.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NatReport {
    /// How it chooses public ports.
    pub mapping: Mapping,
    /// What it lets in.
    pub filtering: Filtering,
    /// Public addresses as seen by STUN servers.
    pub reflexive: Vec<SocketAddr>,
}

/// Mapping behaviour of a NAT (RFC 4787, section 4.1).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Endpoint-independent: one public port for all destinations.
    #[serde(rename = "EIM")]
    EndpointIndependent,
    /// Endpoint-dependent: another public port for another destination.
    #[serde(rename = "EDM")]
    EndpointDependent,
    /// Not measured, or it cannot be told.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
}

/// Filtering behaviour of a NAT (RFC 4787, section 5).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Endpoint-independent: anybody may answer.
    #[serde(rename = "EIF")]
    EndpointIndependent,
    /// Address-dependent: only addresses that were written to.
    #[serde(rename = "ADF")]
    AddressDependent,
    /// Address and port-dependent: only endpoints that were written to.
    #[serde(rename = "APDF")]
    AddressAndPortDependent,
    /// Not measured, or it cannot be told.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
}

/// What became of one document of the manifest folder.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ManifestStatus {
    /// Its kind as written; `None` where that could not be read.
    pub kind: Option<String>,
    /// Its name as written; `None` where that could not be read.
    pub name: Option<String>,
    /// Whether it is in force as written. If not, its last good state is, if there was one.
    pub accepted: bool,
    /// Why not.
    pub errors: Vec<ManifestError>,
}

/// One thing that is wrong with a manifest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ManifestError {
    /// Name of the file within the folder.
    pub file: String,
    /// Position of the document in the file, from 0; also 0 for the file as a whole.
    pub document: usize,
    /// Path of the field; empty for the document or file as a whole.
    pub field: String,
    /// Which rule is broken.
    pub code: Code,
    /// What was expected and how to put it right.
    pub message: String,
}

impl ManifestError {
    pub(crate) fn new(file: &str, document: usize, problem: &Problem) -> Self {
        Self {
            file: file.to_owned(),
            document,
            field: problem.field.clone(),
            code: problem.code,
            message: problem.message.clone(),
        }
    }
}

/// A Peer and how its nodes are reached.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// Name of the Peer.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<PathReport>,
}

/// How one remote node is reached.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PathReport {
    /// Name of the node.
    pub name: String,
    /// Its public key.
    pub public_key: NodeKey,
    /// What data uses now.
    pub path: PathKind,
    /// Why it is not direct; `None` when it is.
    pub reason: Option<Reason>,
    /// Remote `ip:port`, or the relay's URL.
    pub endpoint: Option<String>,
    /// Last round trip in microseconds.
    pub rtt_micros: Option<u64>,
    /// When data began to use this path.
    pub path_since: Option<Timestamp>,
    /// When keys were last agreed.
    pub last_handshake: Option<Timestamp>,
    /// Bytes received in the tunnel.
    pub rx_bytes: u64,
    /// Bytes sent in the tunnel.
    pub tx_bytes: u64,
    /// MTU inside the tunnel, in bytes.
    pub mtu: u16,
}

/// What data uses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// From node to node.
    Direct,
    /// Through a relay.
    Relay,
    /// Nothing: there is nothing to send.
    Idle,
    /// Nothing, though there is something to send.
    None,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Idle => "idle",
            Self::None => "none",
        })
    }
}

/// Why a node is not reached directly.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum Reason {
    /// A direct path is being tried.
    Probing,
    /// Both NATs use another port for every destination.
    BothNatsHard,
    /// One NAT uses another port for every destination, the other lets in only endpoints it has written to.
    HardNatAgainstPortRestricted,
    /// One side can send no UDP at all.
    UdpBlocked,
    /// No STUN server told one side its public address.
    NoReflexiveAddress,
    /// The remote node does not answer on any path.
    PeerUnreachable,
    /// No relay can be reached.
    RelayUnreachable,
    /// The relay does not admit this node's key: neither a pass nor its admit file does.
    NotAdmitted,
    /// Only guessing ports could help, and the Mesh forbids it.
    GuessingDisabled,
    /// The budget for guessing ports is spent for now.
    BudgetSpent,
    /// There is nothing to send.
    Idle,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: &'static [Self] = &[
        Self::Probing,
        Self::BothNatsHard,
        Self::HardNatAgainstPortRestricted,
        Self::UdpBlocked,
        Self::NoReflexiveAddress,
        Self::PeerUnreachable,
        Self::RelayUnreachable,
        Self::NotAdmitted,
        Self::GuessingDisabled,
        Self::BudgetSpent,
        Self::Idle,
    ];

    /// What a person may do about it, in one line.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Probing => "wait: a direct path is being tried",
            Self::BothNatsHard => {
                "both NATs give every destination another port; forward the agent's UDP port on one of them, or stay on the relay"
            }
            Self::HardNatAgainstPortRestricted => {
                "one NAT gives every destination another port; forward the agent's UDP port on either side, or stay on the relay"
            }
            Self::UdpBlocked => {
                "one side can send no UDP; allow outbound UDP in its firewall, or stay on the relay"
            }
            Self::NoReflexiveAddress => {
                "no STUN server answers; check stunPort of the Mesh's relays and that UDP to them is allowed"
            }
            Self::PeerUnreachable => {
                "the remote node answers nowhere; check that its agent runs, that its Peer names this node's key, and that the relay admits it"
            }
            Self::RelayUnreachable => {
                "no relay can be reached; check the URLs in the Mesh and that TCP to them is allowed"
            }
            Self::NotAdmitted => {
                "the relay refuses this node's key; it needs a pass of a cluster that owns the relay, or a line in its admit file"
            }
            Self::GuessingDisabled => {
                "set traversal.portGuessing to Polite or Fast in the Mesh to let ports be guessed"
            }
            Self::BudgetSpent => "wait: guessing goes on when its budget has filled up again",
            Self::Idle => "nothing to do: the tunnel opens with the first packet",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn enums_have_their_documented_spelling() {
        let text = |value: serde_json::Result<serde_json::Value>| value.expect("serialises");
        assert_eq!(text(serde_json::to_value(PathKind::None)), json!("none"));
        assert_eq!(
            text(serde_json::to_value(Mapping::EndpointDependent)),
            json!("EDM")
        );
        assert_eq!(
            text(serde_json::to_value(NatReport::default())),
            json!({"mapping": "unknown", "filtering": "unknown", "reflexive": []})
        );
        for reason in Reason::ALL {
            assert_eq!(
                text(serde_json::to_value(reason)),
                json!(reason.to_string())
            );
            assert!(!reason.advice().is_empty());
        }
    }
}
