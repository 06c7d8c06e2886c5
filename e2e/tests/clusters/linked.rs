//! Two clusters linked by the commands of the README, and what must hold from then on.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::{self, NAMESPACE};
use e2e::{
    Capture, Cluster, ClusterSpec, Clusters, Host, HostDump, Lab, Profile, Relay, RelayOptions,
    figure, wait_for,
};

use crate::{tell, turn};

const TEST: &str = "test";
const A: &str = "berlin";
const B: &str = "tokyo";

/// A relay on a public host, and two clusters behind routers with the product's images on every node.
struct Scene {
    lab: Lab,
    relay: Relay,
    clusters: Clusters,
    dumps: Vec<(String, HostDump)>,
}

impl Scene {
    fn new(name: &str, specs: &[ClusterSpec]) -> Result<Self> {
        let mut lab = Lab::new(name)?;
        let host: Host = lab.relay_host()?;
        let relay = Relay::start(&lab, &host, RelayOptions::default())?;
        let mut clusters = Clusters::up(&mut lab, specs)?;
        tell(&clusters);
        product::load(&mut clusters)?;
        for cluster in clusters.all() {
            cluster.namespace(TEST)?;
            for node in cluster.nodes() {
                cluster.run(TEST, &pod(node.name()), Some(node.name()), &["echo"])?;
            }
        }
        let mut scene = Self {
            lab,
            relay,
            clusters,
            dumps: Vec::new(),
        };
        scene.dumps = scene.dump()?;
        Ok(scene)
    }

    fn a(&self) -> &Cluster {
        &self.clusters.all()[0]
    }

    fn b(&self) -> &Cluster {
        &self.clusters.all()[1]
    }

    /// What there is on every node of what the product must not leave behind.
    fn dump(&self) -> Result<Vec<(String, HostDump)>> {
        let nodes = self.clusters.all().iter().flat_map(Cluster::nodes);
        nodes
            .map(|node| {
                let dump = HostDump::take(Some(node.netns()), &[])?;
                Ok((node.name().to_owned(), dump))
            })
            .collect()
    }

    /// `helm install` on A, an invite, `helm install` on B. Returns when the token and all of B's agents were there.
    fn link(&self) -> Result<Instant> {
        let relay = format!("externalRelays[0].url={}", self.relay.url());
        let name = format!("mesh.clusterName={A}");
        product::install(self.a(), &[&name, &relay], None)?;
        product::await_ready(self.a(), &["mesh", "default"], Duration::from_secs(90))?;
        let token = product::plugin(self.a(), &["invite"])?;
        let name = format!("mesh.clusterName={B}");
        product::install(self.b(), &[&name], Some(&token))?;
        let ready = [
            "-n",
            NAMESPACE,
            "rollout",
            "status",
            product::AGENTS,
            "--timeout=90s",
        ];
        self.b().kubectl(&ready)?;
        Ok(Instant::now())
    }

    fn finish(self) -> Result<()> {
        for cluster in self.clusters.all() {
            let complaints = cluster.complaints()?;
            ensure!(complaints.is_empty(), "{complaints:#?}");
        }
        drop(self.clusters);
        drop(self.relay);
        self.lab.finish()
    }
}

/// The name of the test's pod on a node.
fn pod(node: &str) -> String {
    format!("echo-{node}")
}

fn first(cluster: &Cluster) -> Result<(String, IpAddr)> {
    let pod = pod(cluster.node(1)?.name());
    let address = cluster.pod_ip(TEST, &pod)?;
    Ok((pod, address.parse()?))
}

/// Each side's pod gets a page of the other's, which has seen the pod's own address.
fn pods_see_each_other(scene: &Scene) -> Result<()> {
    for (from, to) in [(scene.a(), scene.b()), (scene.b(), scene.a())] {
        let ((pod, own), (_, target)) = (first(from)?, first(to)?);
        let page = from.fetch(TEST, &pod, &format!("http://{target}:8080/"))?;
        ensure!(page.contains(&format!("from={own}:")), "{page}");
    }
    Ok(())
}

fn seconds(what: &str, since: Instant) {
    figure(what, format!("{:.1} s", since.elapsed().as_secs_f32()));
}

#[test]
fn three_commands_link_two_clusters() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted).nodes(2),
        ClusterSpec::new("b", Profile::PortRestricted),
    ];
    let scene = Scene::new("linked", &specs)?;
    let relays = [scene.relay.address()];
    let captures =
        [scene.a(), scene.b()].map(|cluster| Capture::start(cluster.router(), "wan", &relays));
    let ready = scene.link()?;
    let (pod, _) = first(scene.a())?;
    let (_, target) = first(scene.b())?;
    product::first_ping(scene.a(), (TEST, &pod), target, Duration::from_secs(10))?;
    seconds("first pod ping after token and DaemonSet", ready);
    ensure!(ready.elapsed() <= Duration::from_secs(10), "too late");
    let linked = Instant::now();
    let node = scene.a().node(1)?.name();
    wait_for(Duration::from_secs(10), "the pair is direct", || {
        let paths = product::paths(scene.a(), node, B)?;
        ensure!(
            paths.iter().any(|(_, path, _)| path == "direct"),
            "{paths:?}"
        );
        Ok(())
    })?;
    seconds("direct, as the node's status tells", linked);
    pods_see_each_other(&scene)?;
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        let row = product::await_peer(cluster, peer, Duration::from_secs(30), |row| {
            row.ready == "True" && row.path == "direct"
        })?;
        figure("peer", format!("{row:?}"));
    }
    figure(
        "kubectl get culvert",
        scene.a().kubectl(&["get", "culvert"])?,
    );
    figure(
        "kubectl culvert status",
        product::plugin(scene.a(), &["status"])?,
    );
    for capture in captures {
        capture?.stop().assert_sealed()?;
    }
    agents_may_little(&scene)?;
    clean_removal(&scene)?;
    scene.finish()
}

/// An agent's own token reads no Secret and writes no other node's status.
fn agents_may_little(scene: &Scene) -> Result<()> {
    let a = scene.a();
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:culvert-agent");
    let may = |words: &[&str]| {
        let words: Vec<_> = ["auth", "can-i", &account]
            .iter()
            .chain(words)
            .copied()
            .collect();
        a.kubectl(&words)
    };
    for words in [
        &["get", "secrets", "-n", NAMESPACE][..],
        &["list", "secrets", "-A"],
        &["patch", "meshnodes"],
        &["create", "pods", "-n", NAMESPACE],
        &["patch", "peers"],
    ] {
        let answer = may(words);
        ensure!(answer.is_err(), "an agent may {words:?}: {answer:?}");
    }
    may(&["patch", "meshnodes", "--subresource=status"])?;
    let own = a.node(1)?.name();
    let extra = format!("--as-extra=authentication.kubernetes.io/node-name={own}");
    for (node, allowed) in [(own, true), (a.node(2)?.name(), false)] {
        let patch = r#"{"status":{"agentVersion":"probe"}}"#;
        let words = [
            "patch",
            "meshnode",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
            &account,
            &extra,
        ];
        let done = a.kubectl(&words);
        ensure!(done.is_ok() == allowed, "{node}: {done:?}");
    }
    Ok(())
}

fn clean_removal(scene: &Scene) -> Result<()> {
    for cluster in scene.clusters.all() {
        let start = Instant::now();
        product::uninstall(cluster)?;
        seconds(&format!("{}: removed", cluster.name()), start);
    }
    let after = scene.dump()?;
    for ((node, before), (_, after)) in scene.dumps.iter().zip(&after) {
        let changes = after.diff(before);
        ensure!(changes.is_empty(), "{node} is not as it was:\n{changes}");
    }
    for node in scene.clusters.all().iter().flat_map(Cluster::nodes) {
        let state = node.command("sh")?;
        let mut state = state;
        state.args(["-c", "test ! -e /var/lib/culvert"]);
        e2e::exec::output(state).with_context(|| format!("{}: files are left", node.name()))?;
    }
    Ok(())
}

#[test]
fn two_hard_nats_stay_on_the_relay_and_say_why() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::Symmetric),
        ClusterSpec::new("b", Profile::Symmetric),
    ];
    let scene = Scene::new("hard", &specs)?;
    scene.link()?;
    let (pod, _) = first(scene.a())?;
    let (_, target) = first(scene.b())?;
    product::first_ping(scene.a(), (TEST, &pod), target, Duration::from_secs(10))?;
    pods_see_each_other(&scene)?;
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        let node = cluster.node(1)?.name();
        wait_for(Duration::from_secs(20), "the reason is told", || {
            let paths = product::paths(cluster, node, peer)?;
            let hard = |(_, path, reason): &(String, String, String)| {
                path == "relay" && reason == "BothNatsHard"
            };
            ensure!(paths.iter().any(hard), "{paths:?}");
            Ok(())
        })?;
        let row = product::await_peer(cluster, peer, Duration::from_secs(30), |row| {
            row.ready == "True" && row.path == "relay"
        })?;
        figure("peer", format!("{row:?}"));
    }
    scene.finish()
}
