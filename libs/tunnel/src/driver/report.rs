//! What the driver knows, as a status.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use traversal::{PathState, Reason};

use super::Driver;
use super::live::Live;
use crate::peer::Peer;
use crate::tunnel::{Endpoint, NodeStatus, Status};

impl Driver {
    pub(super) fn report(&self, now: Instant) -> Status {
        let directory = self.shared.directory.load();
        let mut nodes: Vec<_> = directory
            .by_key
            .values()
            .map(|peer| node(peer, self.live.get(&peer.key), now))
            .collect();
        nodes.sort_by_key(|node| node.key);
        Status {
            nat: self.stun.profile().clone(),
            home_relay: self.relays.connected().first().map(|url| (*url).clone()),
            relays: self.relays.report(),
            nodes,
        }
    }
}

fn node(peer: &Arc<Peer>, live: Option<&Live>, now: Instant) -> NodeStatus {
    let status = live.map(|live| live.pair.status(now));
    let (path, reason) = status
        .as_ref()
        .map_or((PathState::Idle, Some(Reason::Idle)), |status| {
            (status.state, status.reason)
        });
    let state = peer.lock();
    let relay = state
        .relay
        .as_ref()
        .map(|link| Endpoint::Relay(link.url.clone()));
    let (handshake, probed_at) = (state.handshake, state.probed_at);
    drop(state);
    let counters = &peer.counters;
    NodeStatus {
        key: peer.key,
        path,
        reason,
        endpoint: match path {
            PathState::Direct => status
                .as_ref()
                .and_then(|status| status.endpoint)
                .map(Endpoint::Socket),
            PathState::Relay => relay,
            PathState::Idle | PathState::None => None,
        },
        rtt: status.as_ref().and_then(|status| status.rtt),
        probed_at,
        path_since: live.map(Live::path_since),
        handshake,
        rx_bytes: counters.rx_bytes.load(Ordering::Relaxed),
        tx_bytes: counters.tx_bytes.load(Ordering::Relaxed),
        rx_direct_bytes: counters.rx_direct_bytes.load(Ordering::Relaxed),
        tx_direct_bytes: counters.tx_direct_bytes.load(Ordering::Relaxed),
    }
}
