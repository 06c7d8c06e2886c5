//! Network namespaces of this process, gone when their handle is.

use std::fs::File;
use std::future::Future;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netconf::{Desired, Names, Netconf};
use nix::sched::{CloneFlags, setns};

/// A network namespace.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nc{}x{count}", std::process::id());
        shell(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a shell line inside and returns its output; panics if it fails.
    pub(crate) fn sh(&self, line: &str) -> String {
        let line = line.replace('\'', "'\\''");
        shell(&format!("ip netns exec {} sh -ec '{line}'", self.name))
    }

    /// Joins two namespaces by a pair of veth devices that are up.
    pub(crate) fn join(&self, here: &str, other: &Self, there: &str) {
        let (a, b) = (&self.name, &other.name);
        shell(&format!(
            "ip link add {here} netns {a} type veth peer name {there} netns {b}"
        ));
        self.sh(&format!("ip link set {here} up"));
        other.sh(&format!("ip link set {there} up"));
    }

    /// Runs `test` inside, on a thread and a runtime of its own.
    pub(crate) fn run<F, T>(&self, test: impl FnOnce() -> F + Send) -> T
    where
        F: Future<Output = T>,
        T: Send,
    {
        let path = format!("/run/netns/{}", self.name);
        let inside = move || {
            let file = File::open(path).expect("namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("enters");
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("runtime");
            runtime.block_on(test())
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A datagram socket inside. A program just being started may hold a closed one for a moment.
    pub(crate) fn bind(&self, address: &'static str) -> UdpSocket {
        let mut socket = None;
        eventually("the address is free", || {
            socket = self.run(|| async { UdpSocket::bind(address).ok() });
            socket.is_some()
        });
        socket.expect("bound")
    }

    /// Everything a host must have again after cleanup.
    pub(crate) fn dump(&self) -> String {
        let mut lines = vec![
            "nft -s list ruleset".to_owned(),
            "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true".to_owned(),
            "ip -j link; ip -j addr".to_owned(),
            "find /proc/sys/net -type f | grep -vE 'conntrack|stable_secret' | sort | xargs grep -H '' 2>/dev/null || true".to_owned(),
        ];
        for family in ["-4", "-6"] {
            lines.push(format!(
                "ip {family} -j route show table all | tr '{{' '\\n' | sort"
            ));
            lines.push(format!("ip {family} -j rule"));
        }
        for legacy in ["iptables", "ip6tables"] {
            let names = legacy.replace("tables", "_tables_names");
            lines.push(format!(
                "if [ -s /proc/net/{names} ]; then {legacy}-legacy-save | grep -v '^#' | sed 's/\\[.*\\]//'; fi"
            ));
        }
        lines.iter().map(|line| self.sh(line)).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh");
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder for the journal, and the path in it.
pub(crate) struct State {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl State {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().expect("temporary folder");
        Self {
            folder: temporary.path().to_owned(),
            _temporary: Some(temporary),
        }
    }

    /// A folder that somebody else made and removes.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self {
            folder,
            _temporary: None,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join("journal.json")
    }

    pub(crate) async fn open(&self) -> Netconf {
        Netconf::open(Names::default(), self.journal())
            .await
            .expect("opens")
    }
}

/// A node that serves 10.1.0.0/16 and fd00:1::/64 on a bridge, with one remote prefix per family.
pub(crate) fn desired() -> Desired {
    let net = |text: &str| text.parse().expect("prefix");
    Desired {
        mtu: 1280,
        listen_port: 20443,
        addresses: vec![],
        local: vec![net("10.1.0.0/16"), net("fd00:1::/64")],
        remote: vec![net("10.2.0.0/16"), net("fd00:2::/64")],
        held: vec![net("10.2.0.0/16"), net("10.3.0.0/16"), net("fd00:2::/64")],
        device: true,
    }
}

/// A node with a pod behind it, joined to an outside namespace; forwarding off.
pub(crate) struct Site {
    pub(crate) pod: Namespace,
    pub(crate) node: Namespace,
    pub(crate) outside: Namespace,
}

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self {
            pod: Namespace::new(),
            node: Namespace::new(),
            outside: Namespace::new(),
        };
        site.node.join("cni0", &site.pod, "eth0");
        site.node.join("wan0", &site.outside, "eth0");
        site.node
            .sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
        site.node
            .sh("ip addr add 10.1.0.1/24 dev cni0; ip addr add 192.0.2.1/24 dev wan0");
        site.node
            .sh("ip addr add fd00:1::1/64 dev cni0 nodad; ip route add default via 192.0.2.2");
        site.pod
            .sh("ip addr add 10.1.0.2/24 dev eth0; ip route add default via 10.1.0.1");
        site.pod
            .sh("ip addr add fd00:1::2/64 dev eth0 nodad; ip -6 route add default via fd00:1::1");
        site.outside.sh("ip addr add 192.0.2.2/24 dev eth0");
        site.settle();
        site
    }

    /// Waits until the kernel has finished with addresses of its own.
    fn settle(&self) {
        eventually("addresses settle", || {
            !self.node.sh("ip -6 addr").contains("tentative")
        });
    }

    /// What the tunnel does.
    pub(crate) fn add_device(&self) {
        self.node.sh("ip tuntap add culvert0 mode tun");
    }

    /// Sends one datagram from the pod.
    pub(crate) fn send(&self, to: &str) {
        let socket = self.pod.bind("10.1.0.2:5000");
        assert_eq!(socket.send_to(b"x", (to, 6000)).expect("sends"), 1);
    }

    /// The same over IPv6.
    pub(crate) fn send_v6(&self, to: &str) {
        let socket = self.pod.bind("[fd00:1::2]:5000");
        assert_eq!(socket.send_to(b"x", (to, 6000)).expect("sends"), 1);
    }

    /// The tracked flow from the pod to `to`, if there is one.
    pub(crate) fn flow(&self, to: &str) -> Option<String> {
        let family = if to.contains(':') { "ipv6" } else { "ipv4" };
        let line = format!("conntrack -L -f {family} -p udp -d {to} 2>/dev/null || true");
        self.node.sh(&line).lines().next().map(str::to_owned)
    }
}

/// Polls until it is so, for ten seconds.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Applies until nothing changes; panics if that does not come about.
pub(crate) async fn converge(netconf: &mut Netconf, desired: &Desired) -> netconf::Report {
    for _ in 0..3 {
        let report = netconf.apply(desired).await.expect("applies");
        if report.changed == 0 {
            return report;
        }
    }
    panic!("no rest after three rounds");
}
