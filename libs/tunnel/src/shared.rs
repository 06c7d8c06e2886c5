//! What the data threads and the driver share: snapshots that are swapped whole, never per packet.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use derp::NodeKey;
use tokio::sync::mpsc;
use traversal::Path;
use traversal::control::Control;

use crate::device::Tun;
use crate::peer::Peer;
use crate::relay_link::{RelayLink, RelayQueue};
use crate::sockets::Sockets;
use crate::table::PrefixTable;
use crate::wireguard::Identity;

/// Shared state of one tunnel.
pub(crate) struct Shared {
    pub(crate) key: NodeKey,
    pub(crate) identity: Identity,
    pub(crate) sockets: Sockets,
    pub(crate) tun: ArcSwap<Tun>,
    pub(crate) directory: ArcSwap<Directory>,
    pub(crate) relays: ArcSwap<Vec<Arc<RelayLink>>>,
    pub(crate) relayed: Arc<RelayQueue>,
    pub(crate) mtu: AtomicUsize,
    pub(crate) stopping: AtomicBool,
    pub(crate) drops: Drops,
    events: mpsc::Sender<DataEvent>,
    /// Apart from `events`: anybody can send what looks like STUN.
    stun: mpsc::Sender<StunDatagram>,
    started: Instant,
}

/// What looks like STUN, from the data socket.
#[derive(Debug)]
pub(crate) struct StunDatagram {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// The ends of the channels to the driver that the data threads hold.
pub(crate) struct Senders {
    pub(crate) events: mpsc::Sender<DataEvent>,
    pub(crate) stun: mpsc::Sender<StunDatagram>,
}

/// The remote nodes in force and what this node serves.
#[derive(Default)]
pub(crate) struct Directory {
    pub(crate) by_key: HashMap<NodeKey, Arc<Peer>>,
    pub(crate) by_index: HashMap<u32, Arc<Peer>>,
    pub(crate) table: PrefixTable<Arc<Peer>>,
    pub(crate) local: PrefixTable<()>,
}

impl Directory {
    /// The remote node that serves `address`, and alone may send from it: where the prefixes of several hold it, the one
    /// with the most specific.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.table.lookup(address)
    }

    /// Whether `address` lies in what this node serves.
    pub(crate) fn serves(&self, address: IpAddr) -> bool {
        self.local.lookup(address).is_some()
    }
}

/// Packets and datagrams that went nowhere, by cause.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    pub(crate) malformed: AtomicU64,
    pub(crate) no_route: AtomicU64,
    pub(crate) foreign_source: AtomicU64,
    pub(crate) foreign_destination: AtomicU64,
    pub(crate) unknown_session: AtomicU64,
    pub(crate) handshakes_refused: AtomicU64,
    pub(crate) too_big: AtomicU64,
    pub(crate) device: AtomicU64,
    /// Outer congestion mark on an inner packet that cannot carry one (RFC 6040 section 4.2).
    pub(crate) congestion: AtomicU64,
    pub(crate) stun: AtomicU64,
}

/// What the data threads tell the driver.
#[derive(Debug)]
pub(crate) enum DataEvent {
    /// Packets wait for a session with this node, or its traffic is for a session we do not have.
    Wanted(NodeKey),
    /// A session came up.
    Established(NodeKey),
    /// Pod traffic began after a silence.
    Awake(NodeKey),
    Control {
        key: NodeKey,
        via: Path,
        message: Control,
    },
    Unreachable {
        key: NodeKey,
        address: SocketAddr,
    },
}

impl Shared {
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one struct, made in one place"
    )]
    pub(crate) fn new(
        key: NodeKey,
        identity: Identity,
        sockets: Sockets,
        tun: Tun,
        relayed: RelayQueue,
        mtu: u16,
        senders: Senders,
        now: Instant,
    ) -> Self {
        Self {
            key,
            identity,
            sockets,
            tun: ArcSwap::from_pointee(tun),
            directory: ArcSwap::default(),
            relays: ArcSwap::default(),
            relayed: Arc::new(relayed),
            mtu: AtomicUsize::new(usize::from(mtu)),
            stopping: AtomicBool::new(false),
            drops: Drops::default(),
            events: senders.events,
            stun: senders.stun,
            started: now,
        }
    }

    /// Tells the driver; never waits. When it is far behind the event is lost.
    pub(crate) fn tell(&self, event: DataEvent) {
        let _ = self.try_tell(event);
    }

    /// Tells the driver; `false` when it is far behind and the event is lost.
    fn try_tell(&self, event: DataEvent) -> bool {
        let told = self.events.try_send(event).is_ok();
        if !told {
            tracing::debug!("the driver is behind, event dropped");
        }
        told
    }

    /// Hands over what looks like STUN; never waits, and longer than any answer is none.
    pub(crate) fn tell_stun(&self, from: SocketAddr, datagram: &[u8]) {
        const LONGEST: usize = 1_500;
        let Ok(room) = self.stun.try_reserve() else {
            return count(&self.drops.stun);
        };
        if datagram.len() <= LONGEST {
            room.send(StunDatagram {
                from,
                bytes: datagram.to_vec(),
            });
        }
    }

    /// Milliseconds since the start, at least 1, so that 0 can mean never.
    pub(crate) fn milliseconds(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_add(1)
    }

    pub(crate) fn relay(&self, id: u64) -> Option<Arc<RelayLink>> {
        self.relays
            .load()
            .iter()
            .find(|link| link.id == id)
            .map(Arc::clone)
    }

    /// Notes that packets wait for a session; the driver hears of it once.
    pub(crate) fn want(&self, peer: &Peer) {
        if !peer.wanted.swap(true, Ordering::AcqRel) && !self.try_tell(DataEvent::Wanted(peer.key))
        {
            // The next packet tries again.
            peer.wanted.store(false, Ordering::Release);
        }
    }

    /// Notes pod traffic with a peer; `last` is the counter of its direction.
    pub(crate) fn note_traffic(&self, peer: &Peer, last: &AtomicU64, now: Instant) {
        const SILENCE_MS: u64 = 1_000;
        let now = self.milliseconds(now);
        if now.saturating_sub(last.swap(now, Ordering::Relaxed)) > SILENCE_MS {
            self.tell(DataEvent::Awake(peer.key));
        }
    }

    /// Packets and datagrams that went nowhere, by cause.
    pub(crate) fn drops(&self) -> Vec<(&'static str, u64)> {
        let drops = &self.drops;
        let directory = self.directory.load();
        let of_peers = directory
            .by_key
            .values()
            .map(|peer| peer.counters.dropped.load(Ordering::Relaxed));
        let not_sent = AtomicU64::new(of_peers.sum());
        [
            ("malformed", &drops.malformed),
            ("no_route", &drops.no_route),
            ("foreign_source", &drops.foreign_source),
            ("foreign_destination", &drops.foreign_destination),
            ("unknown_session", &drops.unknown_session),
            ("handshakes_refused", &drops.handshakes_refused),
            ("too_big", &drops.too_big),
            ("device", &drops.device),
            ("congestion", &drops.congestion),
            ("stun", &drops.stun),
            ("not_sent", &not_sent),
            ("relay_queue", &self.relayed.dropped),
        ]
        .map(|(cause, counter)| (cause, counter.load(Ordering::Relaxed)))
        .to_vec()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(index: u8) -> Arc<Peer> {
        let key = derp::NodeSecret::from_bytes([index; 32]).public();
        Arc::new(Peer::new(key, u32::from(index)))
    }

    #[test]
    fn an_address_of_a_node_is_not_the_gateways() {
        let (gateway, node) = (peer(1), peer(2));
        let mut directory = Directory::default();
        let prefixes = [("10.2.0.0/16", &gateway), ("10.2.7.9/32", &node)];
        for (prefix, peer) in prefixes {
            let prefix = prefix.parse().expect("prefix");
            directory.table.insert(prefix, Arc::clone(peer));
        }
        directory
            .local
            .insert("10.1.0.7/32".parse().expect("prefix"), ());
        let owner = |address: &str| {
            let owner = directory.owner(address.parse().expect("address"));
            owner.map(|peer| peer.index)
        };
        assert_eq!(owner("10.2.7.9"), Some(2));
        assert_eq!(owner("10.2.7.8"), Some(1));
        assert_eq!(owner("10.3.0.1"), None);
        assert!(directory.serves([10, 1, 0, 7].into()));
        assert!(!directory.serves([10, 1, 0, 8].into()));
    }
}
