//! Two clusters linked by the commands of the README, and what must hold from then on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::{self, NAMESPACE};
use e2e::{Capture, Cluster, ClusterSpec, Profile, figure, wait_for};

use crate::scene::{A, B, Scene, TEST, pod_on, pods_see_each_other, seconds};
use crate::turn;

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
    let (pod, _) = pod_on(scene.a(), 1)?;
    let (_, target) = pod_on(scene.b(), 1)?;
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
    let (own, other) = (a.node(1)?.name(), a.node(2)?.name());
    let token = agents_token(a, own)?;
    let may = |words: &[&str]| as_agent(a, &token, &[&["auth", "can-i"], words].concat());
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
    for (node, allowed) in [(own, true), (other, false)] {
        let patch = r#"{"status":{"agentVersion":"probe"}}"#;
        let words = [
            "patch",
            "meshnode",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ];
        let done = as_agent(a, &token, &words);
        ensure!(done.is_ok() == allowed, "{node}: {done:?}");
    }
    let read = as_agent(
        a,
        &token,
        &["-n", NAMESPACE, "get", "secret", "culvert-identity"],
    );
    ensure!(read.is_err(), "an agent reads the identity");
    Ok(())
}

/// A token like the one that the agent's pod on a node has.
fn agents_token(cluster: &Cluster, node: &str) -> Result<String> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let select = "--selector=app.kubernetes.io/component=agent";
    let pods = cluster.get(&["pods", "-n", NAMESPACE, select, &field])?;
    let pod = product::text(&pods, "/items/0/metadata/name").context("no agent's pod")?;
    let name = format!("--bound-object-name={pod}");
    let account = product::text(&pods, "/items/0/spec/serviceAccountName").context("no account")?;
    let words = [
        "-n",
        NAMESPACE,
        "create",
        "token",
        &account,
        "--bound-object-kind=Pod",
        &name,
    ];
    Ok(cluster.kubectl(&words)?.trim().to_owned())
}

/// Runs `kubectl` with nothing but a token.
fn as_agent(cluster: &Cluster, token: &str, words: &[&str]) -> Result<String> {
    let path = "jsonpath={.clusters[0].cluster.server}";
    let server = cluster.kubectl(&["config", "view", "--minify", "-o", path])?;
    let token = format!("--token={token}");
    let server = format!("--server={server}");
    let bare = [
        "--kubeconfig=/dev/null",
        "--insecure-skip-tls-verify",
        &server,
        &token,
    ];
    cluster.kubectl(&[&bare, words].concat())
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
    let (pod, _) = pod_on(scene.a(), 1)?;
    let (_, target) = pod_on(scene.b(), 1)?;
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
