//! The public face: start, tell what is wanted, ask how it is.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use derp::{NodeKey, NodeSecret, Refusal, RelayUrl};
use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use traversal::{NatProfile, PathState, Reason};

use crate::device::Tun;
use crate::driver::{Command, Driver};
use crate::relay_link::RelayQueue;
use crate::shared::{Senders, Shared};
use crate::sockets::Sockets;
use crate::vital::{VitalTask, spawn_thread};
use crate::wireguard::Identity;
use crate::{inbound, outbound};

const COMMANDS: usize = 64;
const EVENTS: usize = 4_096;
/// What looks like STUN and waits; a handful of answers is due at any time.
const STUN_DATAGRAMS: usize = 256;
/// How often and how long a new tunnel waits for the device of its predecessor.
const OPEN_ATTEMPTS: u32 = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// What does not change while a tunnel runs.
#[derive(Debug)]
pub struct Config {
    /// Name of the TUN device; made if there is none.
    pub device: String,
    /// This node's key, for WireGuard and on relays.
    pub secret: NodeSecret,
    /// UDP port of both sockets.
    pub listen_port: u16,
    /// Send and receive several datagrams per system call.
    pub offload: bool,
    /// Inner MTU in bytes.
    pub mtu: u16,
}

/// What should be: replaces what was wanted before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Relays of the mesh, the preferred one first. All of them are connected.
    pub relays: Vec<RelaySpec>,
    /// Remote nodes that are admitted.
    pub nodes: Vec<NodeSpec>,
    /// Those of `nodes` whose tunnel is kept up without data too and whose path is probed every ten seconds; see
    /// [`NodeStatus::probed_at`]. All others sleep while they are idle.
    pub probed: BTreeSet<NodeKey>,
    /// Inner addresses this node may send from and serves.
    pub local: Vec<IpNet>,
    /// Addresses of this host's links, as candidates.
    pub host_addresses: Vec<IpAddr>,
    /// Directly connected networks, where private candidates are worth a probe.
    pub connected: Vec<IpNet>,
}

/// A relay of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySpec {
    /// Its public address, and the name by which it is known: in home relays, endpoints and status.
    pub url: RelayUrl,
    /// Where to connect instead, for nodes on the same side of a NAT that does not hairpin. A TLS certificate has to be
    /// valid for its host.
    pub dial: Option<RelayUrl>,
    /// UDP port of its STUN server, on the host of `url`: what it sees there is what others see.
    pub stun_port: Option<u16>,
    /// PEM certificates to trust instead of the public ones.
    pub ca_bundle: Option<String>,
    /// The pass to show. Another one is for the next connection; one that stands goes on.
    pub pass: Option<String>,
}

impl RelaySpec {
    /// Whether a connection to `self` does as one to `other`.
    pub(crate) fn connects_like(&self, other: &Self) -> bool {
        let how = |spec: &Self| (spec.url.clone(), spec.dial.clone(), spec.ca_bundle.clone());
        how(self) == how(other)
    }
}

/// A remote node that this node admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// WireGuard public key.
    pub key: NodeKey,
    /// Relay where it listens; without it the mesh's relays are tried in order.
    pub home_relay: Option<RelayUrl>,
    /// Inner prefixes it serves and may send from.
    pub prefixes: Vec<IpNet>,
}

/// How a tunnel is doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// What is known of the NAT in front of this node.
    pub nat: NatProfile,
    /// The preferred relay that is connected.
    pub home_relay: Option<RelayUrl>,
    /// Every relay of the mesh.
    pub relays: Vec<RelayStatus>,
    /// Every admitted node.
    pub nodes: Vec<NodeStatus>,
}

/// One relay connection.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// Where it is.
    pub url: RelayUrl,
    /// Whether it is connected now.
    pub connected: bool,
    /// Round trip on that connection.
    pub rtt: Option<Duration>,
    /// Why it is not connected, or what the relay complains about.
    pub problem: Option<String>,
    /// Why it does not let this node in, if that is why it is not connected.
    pub refusal: Option<Refusal>,
}

/// One remote node.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its key.
    pub key: NodeKey,
    /// What data uses now.
    pub path: PathState,
    /// Why it is not direct.
    pub reason: Option<Reason>,
    /// The far end of the path.
    pub endpoint: Option<Endpoint>,
    /// Round trip of the path.
    pub rtt: Option<Duration>,
    /// When a probe inside the session was answered last, which proves a path there and back. Renewed every ten
    /// seconds for nodes in [`Wanted::probed`]; kept while a tunnel sleeps.
    pub probed_at: Option<SystemTime>,
    /// Since when data has been on this path.
    pub path_since: Option<SystemTime>,
    /// When keys were last agreed.
    pub handshake: Option<SystemTime>,
    /// Sealed bytes of pod packets received and sent.
    pub rx_bytes: u64,
    /// See `rx_bytes`.
    pub tx_bytes: u64,
    /// The part of `rx_bytes` that came directly.
    pub rx_direct_bytes: u64,
    /// The part of `tx_bytes` that went directly.
    pub tx_direct_bytes: u64,
}

/// The far end of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket of the remote node.
    Socket(SocketAddr),
    /// A relay.
    Relay(RelayUrl),
}

/// Why a tunnel did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The TUN device cannot be opened.
    #[error("cannot open the device {device}{hint}", hint = device_hint(source))]
    Device {
        /// Its name.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The UDP port cannot be bound.
    #[error("cannot bind UDP port {port}; end what uses it, or set spec.listenPort of the Mesh")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or a descriptor was not to be had.
    #[error("cannot start the data path: {0}")]
    Resources(#[from] io::Error),
}

/// The driver has ended, so the tunnel is no more.
#[derive(Debug, Error)]
#[error("the tunnel has stopped")]
pub struct Stopped;

/// A running tunnel. Stopping it leaves the device in place, so that no pod packet leaves unsealed.
pub struct Tunnel {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    driver: Mutex<Option<VitalTask>>,
}

impl Tunnel {
    /// Opens the device, binds the port, and starts the threads and the driver. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the device or the port cannot be had; see [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        let tun = open_device(&config.device).map_err(|source| StartError::Device {
            device: config.device.clone(),
            source,
        })?;
        let sockets = Sockets::bind(config.listen_port, config.offload).map_err(|source| {
            StartError::Port {
                port: config.listen_port,
                source,
            }
        })?;
        let (events_in, events) = mpsc::channel(EVENTS);
        let (stun_in, stun) = mpsc::channel(STUN_DATAGRAMS);
        let (commands, commands_out) = mpsc::channel(COMMANDS);
        let shared = Arc::new(Shared::new(
            config.secret.public(),
            Identity::new(&config.secret),
            sockets,
            tun,
            RelayQueue::new()?,
            config.mtu,
            Senders {
                events: events_in,
                stun: stun_in,
            },
            Instant::now(),
        ));
        let threads = spawn_threads(&shared, config.device)?;
        let driver = Driver::new(Arc::clone(&shared), config.secret, config.listen_port);
        let driver = VitalTask::spawn("driver", driver.run(commands_out, events, stun));
        Ok(Self {
            shared,
            commands,
            threads: Mutex::new(threads),
            driver: Mutex::new(Some(driver)),
        })
    }

    /// Changes what is wanted.
    ///
    /// # Errors
    /// When the tunnel has stopped.
    pub async fn apply(&self, wanted: Wanted) -> Result<(), Stopped> {
        self.send(|done| Command::Apply(wanted, done)).await
    }

    /// The network under us has changed: routes, addresses or links. Paths and NAT are looked at again.
    ///
    /// # Errors
    /// When the tunnel has stopped.
    pub async fn network_changed(&self) -> Result<(), Stopped> {
        self.send(Command::NetworkChanged).await
    }

    /// How it is doing now.
    ///
    /// # Errors
    /// When the tunnel has stopped.
    pub async fn status(&self) -> Result<Status, Stopped> {
        self.send(Command::Status).await
    }

    /// Packets and datagrams that went nowhere since the start, by cause.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        self.shared.drops()
    }

    /// Ends the threads and closes the relay connections. The device and its routes stay. Once the last handle is
    /// dropped too, another tunnel may use the device and the port.
    pub async fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.relayed.ring();
        if let Some(driver) = take(&self.driver) {
            driver.stop().await;
        }
        for thread in take(&self.threads) {
            // One that panics ends the process, so this can only be the end it was asked for.
            let _ = thread.join();
        }
    }

    async fn send<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(command(done))
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

fn take<T: Default>(from: &Mutex<T>) -> T {
    std::mem::take(&mut *from.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A process that was killed a moment ago may still hold the device.
fn open_device(name: &str) -> io::Result<Tun> {
    let mut attempt = 0;
    loop {
        match Tun::open(name) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && attempt < OPEN_ATTEMPTS =>
            {
                attempt += 1;
                std::thread::sleep(OPEN_PAUSE);
            }
            opened => return opened,
        }
    }
}

fn spawn_threads(shared: &Arc<Shared>, device: String) -> io::Result<Vec<JoinHandle<()>>> {
    let (out, into) = (Arc::clone(shared), Arc::clone(shared));
    Ok(vec![
        spawn_thread("outbound", move || outbound::run(&out, &device))?,
        spawn_thread("inbound", move || inbound::run(&into))?,
    ])
}

fn device_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EBUSY) => {
            "; another process holds it, perhaps a second agent on this host: stop one"
        }
        Some(nix::libc::ENOENT) => "; load the tun module and make /dev/net/tun available",
        Some(nix::libc::EPERM | nix::libc::EACCES) => {
            "; run as root or with CAP_NET_ADMIN, and let a container use the device /dev/net/tun"
        }
        _ => "",
    }
}
