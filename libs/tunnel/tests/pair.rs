//! Two tunnels and a relay in a network namespace of their own, without any pod data. Needs root and `/dev/net/tun`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use culvert_relay::{AdmitRule, Server};
use derp::{NodeKey, NodeSecret, Refusal, RelayUrl};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use traversal::{PathState, Reason};
use tunnel::{Config, Endpoint, NodeSpec, NodeStatus, RelaySpec, Tunnel, Wanted};

const SECOND: Duration = Duration::from_secs(1);
/// A public address that nobody dials: there is only the other way in.
const PUBLIC: &str = "http://203.0.113.20:8080";

/// Runs a test in a fresh namespace, on a thread and a runtime of its own.
fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        for line in ["link set lo up", "addr add 192.0.2.1/32 dev lo"] {
            let mut ip = std::process::Command::new("ip");
            let done = ip.args(line.split(' ')).status();
            assert!(done.expect("ip").success(), "{line}");
        }
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        runtime.block_on(test());
    };
    if let Err(panic) = std::thread::spawn(inside).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Forwards connections to the relay, counts them, and can fall silent without closing any.
struct Door {
    address: SocketAddr,
    opened: Arc<AtomicUsize>,
    silence: Arc<Silence>,
}

#[derive(Default)]
struct Silence {
    lasts: AtomicBool,
    /// Connections of which it has swallowed the very beginning.
    dials: AtomicUsize,
}

impl Door {
    async fn open(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let door = Self {
            address: listener.local_addr().expect("bound"),
            opened: Arc::default(),
            silence: Arc::default(),
        };
        let (opened, silence) = (Arc::clone(&door.opened), Arc::clone(&door.silence));
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::Relaxed);
                let to = TcpStream::connect(to).await.expect("the relay listens");
                tokio::spawn(pass_on(from, to, Arc::clone(&silence)));
            }
        });
        door
    }
}

async fn pass_on(one: TcpStream, other: TcpStream, silence: Arc<Silence>) {
    let (one_in, one_out) = one.into_split();
    let (other_in, other_out) = other.into_split();
    let there = copy(one_in, other_out, &silence);
    let back = copy(other_in, one_out, &silence);
    tokio::join!(there, back);
}

/// What arrives while the door is silent is lost.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silence: &Silence) {
    let mut buffer = vec![0; 65_536];
    let mut began = false;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        if silence.lasts.load(Ordering::Relaxed) {
            let dials = usize::from(!began);
            silence.dials.fetch_add(dials, Ordering::Relaxed);
        } else if to.write_all(bytes).await.is_err() {
            return;
        }
        began = true;
    }
}

/// One end.
struct Node {
    tunnel: Tunnel,
    key: NodeKey,
    wanted: Wanted,
}

impl Node {
    fn start(number: u8, relay: RelaySpec) -> Self {
        let secret = NodeSecret::from_bytes([number; 32]);
        let wanted = Wanted {
            relays: vec![relay],
            local: vec![format!("10.{number}.0.0/16").parse().expect("prefix")],
            ..Wanted::default()
        };
        let key = secret.public();
        let config = Config {
            device: format!("pair{number}"),
            secret,
            listen_port: 20_000 + u16::from(number),
            offload: true,
            mtu: 1_280,
        };
        Self {
            tunnel: Tunnel::start(config).expect("starts"),
            key,
            wanted,
        }
    }

    fn admit(&mut self, other: &Self) {
        self.wanted.nodes = vec![NodeSpec {
            key: other.key,
            home_relay: None,
            prefixes: other.wanted.local.clone(),
        }];
    }

    /// Applies what is wanted, which is to be done at once.
    async fn apply(&self) {
        let began = Instant::now();
        let applied = self.tunnel.apply(self.wanted.clone()).await;
        applied.expect("runs");
        assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    }

    async fn peer(&self) -> Option<NodeStatus> {
        let status = self.tunnel.status().await.expect("runs");
        status.nodes.first().cloned()
    }

    /// Waits until the peer's status is so.
    async fn until(
        &self,
        what: &str,
        limit: Duration,
        so: impl Fn(&NodeStatus) -> bool,
    ) -> Duration {
        let began = Instant::now();
        while !self.peer().await.is_some_and(|peer| so(&peer)) {
            assert!(began.elapsed() < limit, "{what}: {:?}", self.peer().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }

    async fn is_connected(&self) -> bool {
        let status = self.tunnel.status().await.expect("runs");
        status.relays.iter().all(|relay| relay.connected)
    }
}

async fn relay(admit: AdmitRule) -> (Server, Door) {
    let any = "127.0.0.1:0".parse().expect("address");
    let config = culvert_relay::Config::new(any, admit);
    let server = Server::start(config).await.expect("starts");
    let door = Door::open(server.address()).await;
    (server, door)
}

fn through(door: &Door) -> RelaySpec {
    let dial = format!("http://{}", door.address);
    RelaySpec {
        url: public(),
        dial: Some(dial.parse().expect("url")),
        stun_port: None,
        ca_bundle: None,
        pass: None,
    }
}

fn public() -> RelayUrl {
    PUBLIC.parse().expect("url")
}

/// Two nodes that admit each other; the first probes the second.
async fn pair(door: &Door) -> (Node, Node) {
    let (mut one, mut other) = (Node::start(1, through(door)), Node::start(2, through(door)));
    one.admit(&other);
    other.admit(&one);
    one.wanted.probed = BTreeSet::from([other.key]);
    other.apply().await;
    one.apply().await;
    (one, other)
}

fn is_proven_after(peer: &NodeStatus, before: Option<SystemTime>) -> bool {
    peer.probed_at > before
}

#[test]
fn an_idle_pair_that_is_probed_proves_itself_on_every_path() {
    alone(|| async {
        let (_server, door) = relay(AdmitRule::Any).await;
        let (mut one, mut other) = pair(&door).await;
        let proven = |peer: &NodeStatus| is_proven_after(peer, None);
        one.until("proven", 5 * SECOND, proven).await;
        let first = one.peer().await.expect("known");
        assert_eq!(first.path, PathState::Relay, "{first:?}");
        assert_eq!(first.endpoint, Some(Endpoint::Relay(public())));
        assert!(first.rtt.is_some());
        let again = |peer: &NodeStatus| is_proven_after(peer, first.probed_at);
        let took = one.until("proven again", 12 * SECOND, again).await;
        assert!(took > 5 * SECOND, "probed too often");
        let idle = one.peer().await.expect("known");
        assert_eq!((idle.tx_bytes, idle.rx_bytes), (0, 0));
        // Another pass and STUN port leave the connection and the tunnel alone.
        for node in [&mut one, &mut other] {
            node.wanted.host_addresses = vec!["192.0.2.1".parse().expect("address")];
            for relay in &mut node.wanted.relays {
                (relay.pass, relay.stun_port) = (Some("another".to_owned()), Some(9));
            }
            node.apply().await;
        }
        let is_direct = |peer: &NodeStatus| peer.path == PathState::Direct;
        one.until("direct", 10 * SECOND, is_direct).await;
        let direct = one.peer().await.expect("known").probed_at;
        let again = |peer: &NodeStatus| is_proven_after(peer, direct) && is_direct(peer);
        one.until("proven directly", 12 * SECOND, again).await;
        assert_eq!(door.opened.load(Ordering::Relaxed), 2, "connected anew");
        assert!(one.is_connected().await && other.is_connected().await);
        one.wanted.probed.clear();
        one.apply().await;
        let kept = one.peer().await.expect("known");
        assert!(kept.probed_at > direct, "what was proven is forgotten");
        one.tunnel.stop().await;
        other.tunnel.stop().await;
    });
}

#[test]
fn a_removed_node_is_told_and_a_changed_one_stays() {
    alone(|| async {
        let (_server, door) = relay(AdmitRule::Any).await;
        let (one, mut other) = pair(&door).await;
        let proven = |peer: &NodeStatus| is_proven_after(peer, None);
        one.until("proven", 5 * SECOND, proven).await;
        let before = other.peer().await.expect("known").handshake;
        assert!(before.is_some());
        // Its pods have moved: another prefix, the same session.
        for node in &mut other.wanted.nodes {
            node.prefixes = vec!["10.7.0.0/16".parse().expect("prefix")];
        }
        other.apply().await;
        assert_eq!(other.peer().await.expect("known").handshake, before);
        let nodes = std::mem::take(&mut other.wanted.nodes);
        other.apply().await;
        assert!(other.peer().await.is_none());
        let gone = |peer: &NodeStatus| {
            (peer.path, peer.reason) == (PathState::None, Some(Reason::PeerUnreachable))
        };
        one.until("unreachable", SECOND, gone).await;
        let refused = one.peer().await.expect("known").probed_at;
        // It goes on asking for a session, and gets none.
        let asked = Instant::now();
        while asked.elapsed() < 3 * SECOND {
            let later = one.peer().await.expect("known");
            assert!(gone(&later) && later.probed_at == refused, "{later:?}");
            tokio::time::sleep(SECOND / 10).await;
        }
        other.wanted.nodes = nodes;
        other.apply().await;
        let back = |peer: &NodeStatus| is_proven_after(peer, refused);
        one.until("proven after the return", 3 * SECOND, back).await;
        one.tunnel.stop().await;
        other.tunnel.stop().await;
    });
}

#[test]
fn a_relay_that_dies_without_a_word_is_noticed_by_the_probes() {
    alone(|| async {
        let (_server, door) = relay(AdmitRule::Any).await;
        let (one, other) = pair(&door).await;
        let proven = |peer: &NodeStatus| is_proven_after(peer, None);
        one.until("proven", 5 * SECOND, proven).await;
        door.silence.lasts.store(true, Ordering::Relaxed);
        let began = Instant::now();
        while one.is_connected().await {
            assert!(began.elapsed() < 16 * SECOND, "not noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("noticed after {:?}", began.elapsed());
        // The next dial falls into the silence too, and is given up after three seconds.
        while door.silence.dials.load(Ordering::Relaxed) == 0 {
            assert!(began.elapsed() < 20 * SECOND, "not dialled again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        door.silence.lasts.store(false, Ordering::Relaxed);
        let last = one.peer().await.expect("known").probed_at;
        let again = |peer: &NodeStatus| is_proven_after(peer, last);
        let took = one.until("proven again", 10 * SECOND, again).await;
        println!("proven again after {took:?}");
        one.tunnel.stop().await;
        other.tunnel.stop().await;
    });
}

#[test]
fn a_refusal_is_named_and_ends_with_the_admission() {
    alone(|| async {
        let mut list = tempfile::NamedTempFile::new().expect("a file");
        let (_server, door) = relay(AdmitRule::File(list.path().to_owned())).await;
        let (mut one, other) = pair(&door).await;
        let refused = |peer: &NodeStatus| peer.reason == Some(Reason::NotAdmitted);
        one.until("refused", 5 * SECOND, refused).await;
        let status = one.tunnel.status().await.expect("runs");
        let relay = status.relays.first().expect("one relay");
        assert_eq!(relay.refusal, Some(Refusal::NotAdmitted));
        assert_eq!((&relay.url, relay.connected), (&public(), false));
        writeln!(list, "{}\n{}", one.key, other.key).expect("writes");
        for relay in &mut one.wanted.relays {
            relay.pass = Some("another".to_owned());
        }
        one.apply().await;
        let proven = |peer: &NodeStatus| is_proven_after(peer, None);
        one.until("proven", 20 * SECOND, proven).await;
        let status = one.tunnel.status().await.expect("runs");
        assert!(status.relays.iter().all(|relay| relay.refusal.is_none()));
        one.tunnel.stop().await;
        other.tunnel.stop().await;
    });
}
