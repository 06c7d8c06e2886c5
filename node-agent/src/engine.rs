//! What the agent drives, and what it learns from it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use api::{Accepted, NatReport, PeerReport, RelayReport, Surroundings};
use derp::{NodeKey, RelayUrl};
use jiff::Timestamp;
use prometheus_client::registry::Registry;

/// What shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is in force.
    pub accepted: Accepted,
    /// Remote nodes whose paths are kept up and probed without data, too.
    pub probed: BTreeSet<NodeKey>,
    /// Passes for relays of the Mesh that come without one.
    pub passes: BTreeMap<RelayUrl, String>,
}

/// Everything that touches the network: tunnels and the host's configuration.
pub trait Engine: Send {
    /// What this node is surrounded by now. Called twice a second, so it answers from what it has learned.
    fn surroundings(&mut self) -> impl Future<Output = Surroundings> + Send;

    /// Makes the world as planned. Without a Mesh: revokes and idles. Called again after a failure, and again with the
    /// same argument now and then, which must disturb nothing.
    fn apply(&mut self, plan: &Plan) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Who tells how things are.
    fn reporter(&self) -> Arc<dyn Reporter>;

    /// Stops the traffic for the end of the process. What is configured on the host stays.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;
}

/// Tells how things are, from any thread.
pub trait Reporter: Send + Sync {
    /// How things are now. Answers soon, whatever the engine is doing.
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>>;

    /// Adds metrics of its own to those of the agent.
    fn register(&self, _registry: &mut Registry) {}
}

/// The engine's part of the status.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// UDP port of direct paths in use; `None` while there is no Mesh.
    pub listen_port: Option<u16>,
    /// URL of the relay where this node is heard.
    pub home_relay: Option<String>,
    /// Every relay of the Mesh.
    pub relays: Vec<RelayReport>,
    /// The NAT in front of this node.
    pub nat: NatReport,
    /// Every Peer in force.
    pub peers: Vec<PeerReport>,
    /// When a probe to a remote node was last answered, for those that ever answered one.
    pub probed: BTreeMap<NodeKey, Timestamp>,
    /// How this host is configured.
    pub host: HostReport,
}

/// How the host is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostReport {
    /// Whether the last attempt made it as wanted; `None` before the first.
    pub programmed: Option<bool>,
    /// Why it did not.
    pub problem: Option<String>,
    /// What is in the way or missing all the same.
    pub conditions: Vec<netconf::Condition>,
}
