//! The tunnel's status in the words of the status document.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::{
    Filtering, Mapping, NatReport, PathKind, PathReport, PeerConfig, PeerNode, PeerReport, Reason,
    RelayReport,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use derp::NodeKey;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use traversal::PathState;
use tunnel::{Endpoint, NodeStatus, RelayStatus, Tunnel};

use crate::{HostReport, Reporter, Snapshot};

/// What a status is made of.
pub(super) struct View {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) peers: Vec<PeerConfig>,
    pub(super) port: u16,
    pub(super) mtu: u16,
}

/// Asks the tunnel whenever it is asked.
pub(super) struct ViewReporter {
    pub(super) view: Arc<ArcSwapOption<View>>,
    pub(super) host: Arc<ArcSwap<HostReport>>,
}

impl Reporter for ViewReporter {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>> {
        let view = self.view.load_full();
        Box::pin(async move {
            let snapshot = match view {
                Some(view) => view.snapshot().await,
                None => Snapshot::default(),
            };
            Snapshot {
                host: HostReport::clone(&self.host.load()),
                ..snapshot
            }
        })
    }

    fn register(&self, registry: &mut Registry) {
        let Some(view) = self.view.load_full() else {
            return;
        };
        let dropped = Family::<Cause, Counter>::default();
        for (cause, count) in view.tunnel.drops() {
            let cause = cause.to_owned();
            dropped.get_or_create(&Cause { cause }).inc_by(count);
        }
        registry.register(
            "dropped_packets",
            "Packets and datagrams that went nowhere, by cause",
            dropped,
        );
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: String,
}

impl View {
    async fn snapshot(&self) -> Snapshot {
        let Ok(status) = self.tunnel.status().await else {
            return Snapshot::default();
        };
        let nodes: HashMap<NodeKey, &NodeStatus> =
            status.nodes.iter().map(|node| (node.key, node)).collect();
        Snapshot {
            listen_port: Some(self.port),
            home_relay: status.home_relay.as_ref().map(ToString::to_string),
            relays: status.relays.iter().map(relay).collect(),
            nat: nat(&status.nat),
            peers: self
                .peers
                .iter()
                .map(|peer| self.peer(peer, &nodes))
                .collect(),
            probed: probed(&status.nodes),
            host: HostReport::default(),
        }
    }

    fn peer(&self, peer: &PeerConfig, nodes: &HashMap<NodeKey, &NodeStatus>) -> PeerReport {
        let report = |node: &PeerNode| {
            nodes
                .get(&node.public_key)
                .map(|status| path(node, status, self.mtu))
        };
        PeerReport {
            name: peer.name.clone(),
            nodes: peer.nodes.iter().filter_map(report).collect(),
        }
    }
}

fn probed(nodes: &[NodeStatus]) -> BTreeMap<NodeKey, Timestamp> {
    let answered = nodes.iter().filter_map(|node| {
        let at = timestamp(node.probed_at?)?;
        Some((node.key, at))
    });
    answered.collect()
}

fn path(node: &PeerNode, status: &NodeStatus, mtu: u16) -> PathReport {
    PathReport {
        name: node.name.clone(),
        public_key: node.public_key,
        path: kind(status.path),
        reason: status.reason.map(reason),
        endpoint: status.endpoint.as_ref().map(|endpoint| match endpoint {
            Endpoint::Socket(address) => address.to_string(),
            Endpoint::Relay(url) => url.to_string(),
        }),
        rtt_micros: status.rtt.map(micros),
        path_since: status.path_since.and_then(timestamp),
        last_handshake: status.handshake.and_then(timestamp),
        rx_bytes: status.rx_bytes,
        tx_bytes: status.tx_bytes,
        mtu,
    }
}

fn relay(status: &RelayStatus) -> RelayReport {
    RelayReport {
        url: status.url.to_string(),
        connected: status.connected,
        rtt_micros: status.rtt.map(micros),
        problem: status.problem.clone(),
    }
}

fn nat(profile: &traversal::NatProfile) -> NatReport {
    NatReport {
        mapping: match profile.mapping {
            traversal::Mapping::EndpointIndependent => Mapping::EndpointIndependent,
            traversal::Mapping::EndpointDependent => Mapping::EndpointDependent,
            traversal::Mapping::Unknown => Mapping::Unknown,
        },
        filtering: match profile.filtering {
            traversal::Filtering::EndpointIndependent => Filtering::EndpointIndependent,
            traversal::Filtering::AddressDependent => Filtering::AddressDependent,
            traversal::Filtering::AddressAndPortDependent => Filtering::AddressAndPortDependent,
            traversal::Filtering::Unknown => Filtering::Unknown,
        },
        reflexive: profile.reflexive.clone(),
    }
}

fn kind(path: PathState) -> PathKind {
    match path {
        PathState::Direct => PathKind::Direct,
        PathState::Relay => PathKind::Relay,
        PathState::Idle => PathKind::Idle,
        PathState::None => PathKind::None,
    }
}

fn reason(reason: traversal::Reason) -> Reason {
    match reason {
        traversal::Reason::Probing => Reason::Probing,
        traversal::Reason::BothNatsHard => Reason::BothNatsHard,
        traversal::Reason::HardNatAgainstPortRestricted => Reason::HardNatAgainstPortRestricted,
        traversal::Reason::UdpBlocked => Reason::UdpBlocked,
        traversal::Reason::NoReflexiveAddress => Reason::NoReflexiveAddress,
        traversal::Reason::PeerUnreachable => Reason::PeerUnreachable,
        traversal::Reason::RelayUnreachable => Reason::RelayUnreachable,
        traversal::Reason::NotAdmitted => Reason::NotAdmitted,
        traversal::Reason::GuessingDisabled => Reason::GuessingDisabled,
        traversal::Reason::BudgetSpent => Reason::BudgetSpent,
        traversal::Reason::Idle => Reason::Idle,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn timestamp(at: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(at).ok()
}
