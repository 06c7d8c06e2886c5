//! A socket for QUIC whose addresses stand for keys, and whose wires are relays.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use derp::client::{Frame, Inbox, Outbox};
use derp::{NodeKey, RelayUrl};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The longest datagram that is taken.
pub(super) const MAX_DATAGRAM: u16 = 16 << 10;
/// Datagrams of one peer that wait to be read.
const MAX_PER_PEER: usize = 256;
/// Bytes of all peers that wait to be read.
const MAX_BYTES: usize = 4 << 20;
/// Round trips to assume: at least, when nothing is known, at most (RFC 9002's own assumption).
const RTT_BOUNDS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(333),
];

/// Between keys and addresses, and between QUIC and the relays. Peers that are not pinned do not exist here: nothing that
/// they send goes any further.
///
/// A relay that is connected may deliver nothing all the same. So the relay through which a peer was heard is believed
/// only as long as the peer goes on being heard there; after that, packets go through all relays, like at the beginning.
#[derive(Debug)]
pub(crate) struct Switch {
    /// How long to believe in a relay through which nothing comes.
    silence: Duration,
    routes: RwLock<Routes>,
    queue: Mutex<Queue>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Routes {
    addresses: HashMap<NodeKey, SocketAddr>,
    peers: HashMap<SocketAddr, Peer>,
    relays: BTreeMap<u64, Relay>,
    /// Addresses are never used again.
    next_address: u64,
    next_relay: u64,
}

#[derive(Debug)]
struct Peer {
    key: NodeKey,
    heard: Option<Heard>,
}

/// The relay through which a peer speaks.
#[derive(Debug, Clone, Copy)]
struct Heard {
    relay: u64,
    /// When it did, to an eighth of the silence.
    at: Instant,
}

#[derive(Debug)]
struct Relay {
    url: Option<RelayUrl>,
    outbox: Arc<Outbox>,
    connected: bool,
    rtt: Option<Duration>,
}

/// What has arrived and is not read yet.
#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    bytes: usize,
    per_peer: HashMap<SocketAddr, usize>,
    waker: Option<Waker>,
}

impl Switch {
    /// Without relays and peers. `silence` is longer than peers are ever quiet.
    pub(crate) fn new(silence: Duration) -> Self {
        Self {
            silence,
            routes: RwLock::default(),
            queue: Mutex::default(),
            dropped: AtomicU64::default(),
        }
    }

    /// Gives a key an address, from which it is heard from now on.
    pub(crate) fn pin(&self, key: NodeKey) -> SocketAddr {
        let mut routes = self.write();
        routes.next_address += 1;
        let address = address(routes.next_address);
        routes.addresses.insert(key, address);
        routes.peers.insert(address, Peer { key, heard: None });
        address
    }

    /// The key is no longer heard. It can be told so until [`Self::forget`].
    pub(crate) fn unpin(&self, key: &NodeKey) {
        self.write().addresses.remove(key);
    }

    /// Nothing is sent to this address any more, nor heard from it.
    pub(crate) fn forget(&self, address: SocketAddr) {
        let mut routes = self.write();
        let Some(peer) = routes.peers.remove(&address) else {
            return;
        };
        // The key may have another address by now.
        if routes.addresses.get(&peer.key) == Some(&address) {
            routes.addresses.remove(&peer.key);
        }
    }

    /// Where this peer was heard does not count any more: the next packets go through all relays.
    pub(crate) fn doubt(&self, address: SocketAddr) {
        if let Some(peer) = self.write().peers.get_mut(&address) {
            peer.heard = None;
        }
    }

    /// The key behind an address.
    pub(crate) fn key_of(&self, address: SocketAddr) -> Option<NodeKey> {
        self.read().peers.get(&address).map(|peer| peer.key)
    }

    /// A number for a relay that is to be added.
    pub(crate) fn next_relay(&self) -> u64 {
        let mut routes = self.write();
        routes.next_relay += 1;
        routes.next_relay
    }

    /// Adds a relay, not connected yet.
    pub(crate) fn add_relay(&self, number: u64, outbox: Arc<Outbox>) {
        let relay = Relay {
            url: None,
            outbox,
            connected: false,
            rtt: None,
        };
        self.write().relays.insert(number, relay);
    }

    /// By what a relay is known.
    pub(crate) fn name_relay(&self, number: u64, url: RelayUrl) {
        if let Some(relay) = self.write().relays.get_mut(&number) {
            relay.url = Some(url);
        }
    }

    /// The relay through which a key speaks at present.
    pub(crate) fn relay_of(&self, key: &NodeKey, now: Instant) -> Option<RelayUrl> {
        let routes = self.read();
        let peer = routes.peers.get(routes.addresses.get(key)?)?;
        let relay = self.believed(&routes, peer, now)?;
        routes.relays.get(&relay)?.url.clone()
    }

    /// Removes a relay.
    pub(crate) fn remove_relay(&self, number: u64) {
        self.write().relays.remove(&number);
    }

    /// Whether packets can be sent through a relay.
    pub(crate) fn set_connected(&self, number: u64, connected: bool) {
        if let Some(relay) = self.write().relays.get_mut(&number) {
            relay.connected = connected;
        }
    }

    /// The round trip to a relay.
    pub(crate) fn set_rtt(&self, number: u64, rtt: Duration) {
        if let Some(relay) = self.write().relays.get_mut(&number) {
            relay.rtt = Some(rtt);
        }
    }

    /// A relay does not know the key any more.
    pub(crate) fn set_gone(&self, number: u64, key: &NodeKey) {
        let mut routes = self.write();
        let Some(address) = routes.addresses.get(key).copied() else {
            return;
        };
        if let Some(peer) = routes.peers.get_mut(&address) {
            peer.heard.take_if(|heard| heard.relay == number);
        }
    }

    /// Whether any relay is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.read().relays.values().any(|relay| relay.connected)
    }

    /// The round trip to assume with a peer: there and back through the slowest relay, whose other side is as far.
    pub(crate) fn rtt(&self) -> Duration {
        let [least, unknown, most] = RTT_BOUNDS;
        let routes = self.read();
        let relays = routes.relays.values().filter(|relay| relay.connected);
        let slowest = relays.filter_map(|relay| relay.rtt).max();
        slowest.map_or(unknown, |rtt| (rtt * 2).clamp(least, most))
    }

    /// Datagrams that were dropped here: from peers that fill the queue, too long, or to nobody.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn receive(&self, relay: u64, frames: &[Frame<'_>], now: Instant) {
        let mut waker = None;
        for frame in frames {
            let Some(address) = self.heard(relay, &frame.source, now) else {
                continue;
            };
            let mut queue = self.queue();
            if !queue.push(address, frame.bytes) {
                self.count_drop();
            }
            waker = waker.or_else(|| queue.waker.take());
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The address of a key that spoke through this relay.
    fn heard(&self, relay: u64, key: &NodeKey, now: Instant) -> Option<SocketAddr> {
        let routes = self.read();
        let address = *routes.addresses.get(key)?;
        if self.is_news(&routes, routes.peers.get(&address)?.heard, relay, now) {
            drop(routes);
            self.write().peers.get_mut(&address)?.heard = Some(Heard { relay, at: now });
        }
        Some(address)
    }

    /// Whether it matters that a peer spoke through this relay. A copy of what another relay delivers does not.
    fn is_news(&self, routes: &Routes, heard: Option<Heard>, relay: u64, now: Instant) -> bool {
        let Some(heard) = heard else {
            return true;
        };
        if heard.relay == relay {
            return now.saturating_duration_since(heard.at) >= self.silence / 8;
        }
        !routes.is_connected(heard.relay) || self.is_silent(heard, now)
    }

    fn is_silent(&self, heard: Heard, now: Instant) -> bool {
        now.saturating_duration_since(heard.at) >= self.silence
    }

    fn send(&self, transmit: &Transmit<'_>, now: Instant) {
        let routes = self.read();
        let Some(peer) = routes.peers.get(&transmit.destination) else {
            return self.count_drop();
        };
        let segment = transmit.segment_size.unwrap_or(0);
        for (_, relay) in routes.ways(self.believed(&routes, peer, now)) {
            relay.outbox.push(&peer.key, transmit.contents, segment);
        }
    }

    /// The relay where the peer is heard, if that counts.
    fn believed(&self, routes: &Routes, peer: &Peer, now: Instant) -> Option<u64> {
        let heard = peer.heard.filter(|heard| !self.is_silent(*heard, now))?;
        routes.is_connected(heard.relay).then_some(heard.relay)
    }

    fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    fn is_connected(&self, relay: u64) -> bool {
        self.relays.get(&relay).is_some_and(|relay| relay.connected)
    }

    /// The one relay, or all that are connected.
    fn ways(&self, only: Option<u64>) -> impl Iterator<Item = (&u64, &Relay)> {
        let relays = self.relays.iter().filter(|(_, relay)| relay.connected);
        relays.filter(move |(number, _)| only.is_none_or(|only| only == **number))
    }
}

impl Queue {
    /// Adds a datagram; says whether there was room.
    fn push(&mut self, from: SocketAddr, bytes: &[u8]) -> bool {
        let held = self.per_peer.get(&from).copied().unwrap_or(0);
        if bytes.len() > usize::from(MAX_DATAGRAM)
            || held >= MAX_PER_PEER
            || self.bytes + bytes.len() > MAX_BYTES
        {
            return false;
        }
        self.bytes += bytes.len();
        self.per_peer.insert(from, held + 1);
        self.datagrams.push_back((from, bytes.to_vec()));
        true
    }

    fn pop(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let (from, bytes) = self.datagrams.pop_front()?;
        self.bytes -= bytes.len();
        let held = self.per_peer.remove(&from).unwrap_or(0);
        if held > 1 {
            self.per_peer.insert(from, held - 1);
        }
        Some((from, bytes))
    }
}

/// Takes what one relay delivers.
#[derive(Debug)]
pub(crate) struct LinkInbox {
    switch: Arc<Switch>,
    relay: u64,
}

impl LinkInbox {
    pub(crate) fn new(switch: Arc<Switch>, relay: u64) -> Self {
        Self { switch, relay }
    }
}

impl Inbox for LinkInbox {
    fn receive(&self, frames: &[Frame<'_>]) {
        self.switch.receive(self.relay, frames, Instant::now());
    }
}

/// What QUIC takes for a socket. It never fails: an error would end the endpoint, and relays come back.
#[derive(Debug)]
pub(super) struct RelaySocket {
    switch: Arc<Switch>,
}

impl RelaySocket {
    pub(super) fn new(switch: Arc<Switch>) -> Self {
        Self { switch }
    }
}

impl AsyncUdpSocket for RelaySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.switch.send(transmit, Instant::now());
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.switch.queue();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((from, bytes)) = queue.pop() else {
                break;
            };
            // QUIC's buffers hold the longest datagram; one that did not would arrive cut, and be discarded.
            let length = bytes.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(&bytes) {
                *to = *from;
            }
            *meta = RecvMeta {
                addr: from,
                len: length,
                stride: length,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(0))
    }
}

/// A relay's outbox takes everything, and drops what is too much.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An address that no network has (RFC 6666: discard-only).
fn address(number: u64) -> SocketAddr {
    let bits = (0x0100_u128 << 112) | u128::from(number);
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(bits), 1, 0, 0))
}

#[cfg(test)]
mod tests;
