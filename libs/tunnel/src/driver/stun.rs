//! Sockets and names for the NAT prober.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use traversal::{Entropy, NatEvent, NatProber, NatProfile, StunSocket, StunTransmit};

use crate::sockets::Sockets;
use crate::tunnel::RelaySpec;

const EVENTS: usize = 256;
/// A relay's name is looked up again this often, and soon after a failure.
const LOOKUP: Duration = Duration::from_secs(300);
const LOOKUP_AGAIN: Duration = Duration::from_secs(5);

/// What comes back from lookups and fresh sockets.
pub(super) enum StunEvent {
    Resolved {
        generation: u64,
        relay: usize,
        servers: Vec<SocketAddr>,
    },
    Fresh {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
}

/// The NAT prober with its sockets.
pub(super) struct Stun {
    prober: NatProber,
    /// Hosts and ports that are looked up, by number.
    names: Vec<(String, u16)>,
    /// Their addresses.
    servers: HashMap<usize, Vec<SocketAddr>>,
    generation: u64,
    lookups: Vec<AbortHandle>,
    fresh: HashMap<bool, Fresh>,
    events: mpsc::Receiver<StunEvent>,
    events_in: mpsc::Sender<StunEvent>,
}

/// A socket that talked to nobody before.
struct Fresh {
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Stun {
    pub(super) fn new(entropy: Box<dyn Entropy>) -> Self {
        let (events_in, events) = mpsc::channel(EVENTS);
        Self {
            prober: NatProber::new(entropy),
            names: Vec::new(),
            servers: HashMap::new(),
            generation: 0,
            lookups: Vec::new(),
            fresh: HashMap::new(),
            events,
            events_in,
        }
    }

    /// The next event; never ends.
    pub(super) async fn next(&mut self) -> StunEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Looks the relays' STUN servers up, and keeps doing so. The same ones again change nothing.
    pub(super) fn set_relays(&mut self, relays: &[RelaySpec]) {
        let names = names(relays);
        if names == self.names {
            return;
        }
        self.names = names;
        self.lookups.drain(..).for_each(|lookup| lookup.abort());
        self.generation += 1;
        self.servers.clear();
        for (number, (host, port)) in self.names.iter().enumerate() {
            let lookup = lookup(
                host.clone(),
                *port,
                self.generation,
                number,
                self.events_in.clone(),
            );
            self.lookups.push(tokio::spawn(lookup).abort_handle());
        }
        self.prober.set_servers(Instant::now(), Vec::new());
    }

    pub(super) fn handle(&mut self, now: Instant, event: StunEvent) {
        match event {
            StunEvent::Resolved {
                generation,
                relay,
                servers,
            } if generation == self.generation => {
                if self.servers.get(&relay) != Some(&servers) {
                    self.servers.insert(relay, servers);
                    let mut all: Vec<_> = self.servers.values().flatten().copied().collect();
                    all.sort_unstable();
                    self.prober.set_servers(now, all);
                }
            }
            StunEvent::Resolved { .. } => {}
            StunEvent::Fresh { from, bytes } => {
                self.prober
                    .handle_packet(now, StunSocket::Fresh, from, &bytes);
            }
        }
    }

    pub(super) fn handle_data_socket(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if !self
            .prober
            .handle_packet(now, StunSocket::Data, from, bytes)
        {
            tracing::trace!("STUN answer that nobody asked for");
        }
    }

    pub(super) fn set_local(&mut self, now: Instant, hosts: &[SocketAddr]) {
        self.prober.set_local(now, hosts);
    }

    pub(super) fn set_active(&mut self, active: bool) {
        self.prober.set_active(active);
    }

    pub(super) fn refresh(&mut self, now: Instant) {
        self.prober.refresh(now);
    }

    pub(super) fn profile(&self) -> &NatProfile {
        self.prober.profile()
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.prober.poll_timeout()
    }

    /// Runs timers and sends what is due; `true` when the profile has changed.
    pub(super) fn advance(&mut self, now: Instant, sockets: &Sockets) -> bool {
        if self.prober.poll_timeout().is_some_and(|due| due <= now) {
            self.prober.handle_timeout(now);
        }
        while let Some(transmit) = self.prober.poll_transmit() {
            self.transmit(&transmit, sockets);
        }
        let mut changed = false;
        while let Some(event) = self.prober.poll_event() {
            match event {
                NatEvent::ProfileChanged(profile) => {
                    tracing::info!(mapping = %profile.mapping, filtering = %profile.filtering, "NAT");
                    changed = true;
                }
                NatEvent::FreshSocketDone => self.fresh.clear(),
            }
        }
        changed
    }

    fn transmit(&mut self, transmit: &StunTransmit, sockets: &Sockets) {
        let sent = match transmit.socket {
            StunSocket::Data => sockets.send_one(transmit.to, &transmit.bytes, None),
            StunSocket::Fresh => self.send_fresh(transmit),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "STUN request not sent");
        }
    }

    fn send_fresh(&mut self, transmit: &StunTransmit) -> std::io::Result<()> {
        let v6 = transmit.to.is_ipv6();
        if !self.fresh.contains_key(&v6) {
            self.fresh
                .insert(v6, Fresh::open(v6, self.events_in.clone())?);
        }
        let Some(fresh) = self.fresh.get(&v6) else {
            return Ok(());
        };
        fresh
            .socket
            .try_send_to(&transmit.bytes, transmit.to)
            .map(|_| ())
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        self.lookups.drain(..).for_each(|lookup| lookup.abort());
    }
}

impl Fresh {
    fn open(v6: bool, to: mpsc::Sender<StunEvent>) -> std::io::Result<Self> {
        let any: IpAddr = if v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let reader = tokio::spawn(read_fresh(Arc::clone(&socket), to)).abort_handle();
        Ok(Self { socket, reader })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_fresh(socket: Arc<UdpSocket>, to: mpsc::Sender<StunEvent>) {
    let mut buffer = [0; 1_500];
    while let Ok((read, from)) = socket.recv_from(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default().to_vec();
        if to.send(StunEvent::Fresh { from, bytes }).await.is_err() {
            return;
        }
    }
}

/// Of every relay that answers STUN, at its public address: what is seen from inside is of no use to others.
fn names(relays: &[RelaySpec]) -> Vec<(String, u16)> {
    let name = |relay: &RelaySpec| Some((relay.url.host().to_string(), relay.stun_port?));
    relays.iter().filter_map(name).collect()
}

async fn lookup(
    host: String,
    port: u16,
    generation: u64,
    relay: usize,
    to: mpsc::Sender<StunEvent>,
) {
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    loop {
        let pause = match tokio::net::lookup_host((host.as_str(), port)).await {
            Ok(found) => {
                let servers = first_of_each_family(found);
                if to
                    .send(StunEvent::Resolved {
                        generation,
                        relay,
                        servers,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
                LOOKUP
            }
            Err(error) => {
                tracing::debug!(%error, "name of a relay");
                LOOKUP_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn first_of_each_family(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv4);
    v4.into_iter()
        .take(1)
        .chain(v6.into_iter().take(1))
        .collect()
}
