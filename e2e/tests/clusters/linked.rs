//! Two clusters linked by the commands of the README, and what must hold from then on.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::process::binary;
use e2e::product::{self, NAMESPACE};
use e2e::{
    Capture, Cluster, ClusterSpec, Firewall, Masquerade, Profile, Proxy, exec, figure, wait_for,
};
use serde_json::Value;

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
    let (pod, _) = pod_on(scene.a(), 1)?;
    let (_, target) = pod_on(scene.b(), 1)?;
    let ready = scene.link_with(&[format!("test.target={target}")])?;
    product::first_ping(scene.a(), (TEST, &pod), target, Duration::from_secs(10))?;
    seconds("first pod ping after token and DaemonSet", ready);
    ensure!(ready.elapsed() <= Duration::from_secs(10), "too late");
    let linked = Instant::now();
    let node = scene.a().node(1)?.name();
    wait_for(Duration::from_secs(5), "the pair is direct", || {
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
    scene.in_each(helm_test)?;
    pings_are_answered(&scene)?;
    programs_can_read(&scene)?;
    agents_may_little(&scene)?;
    scene.remove_without_a_trace()?;
    scene.finish()
}

/// It pings where the release has a target, as in A, and else checks that everything is Ready.
fn helm_test(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    let said = cluster.helm(&["test", "culvert", "-n", NAMESPACE, "--timeout=2m"])?;
    ensure!(said.contains("Succeeded"), "{said}");
    seconds(&format!("{}: helm test", cluster.name()), start);
    Ok(())
}

/// `kubectl culvert ping`, as a user types it: an address from any node, and a pod of the other cluster from an own pod.
fn pings_are_answered(scene: &Scene) -> Result<()> {
    let ((own, _), (other, target)) = (pod_on(scene.a(), 1)?, pod_on(scene.b(), 1)?);
    let (from, to) = (format!("{TEST}/{own}"), format!("{TEST}/{other}"));
    let address = target.to_string();
    for words in [
        &[&address, "--count=1"][..],
        &[&to, "--to-context=b", "--from", &from, "--count=2"],
    ] {
        let said = kubectl_culvert(scene, &[&["ping"], words].concat())?;
        figure("kubectl culvert ping", &said);
        let answer = format!("answer from {target}");
        ensure!(said.starts_with(&answer), "{said}");
    }
    Ok(())
}

/// The plugin as `kubectl` finds it, with a kubeconfig that knows both clusters and means A.
fn kubectl_culvert(scene: &Scene, words: &[&str]) -> Result<String> {
    let plugin = binary("kubectl-culvert")?;
    let folder = plugin.parent().context("the plugin's folder")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = [folder.to_owned()]
        .into_iter()
        .chain(env::split_paths(&path));
    let configs = [scene.a(), scene.b()].map(|cluster| cluster.kubeconfig().to_owned());
    let mut command = scene
        .a()
        .command("kubectl", &[&["culvert"], words].concat());
    command
        .env("PATH", env::join_paths(path)?)
        .env("KUBECONFIG", env::join_paths(configs)?);
    exec::output(command)
}

/// The documents for programs: a pair's path, round trip and NAT.
fn programs_can_read(scene: &Scene) -> Result<()> {
    let a = scene.a();
    let read = |words: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&product::plugin(a, words)?)?)
    };
    let status = read(&["status", "-o", "json"])?;
    let paths = status["paths"].as_array().context("no paths")?;
    let node = a.node(1)?.name();
    let of_node = |path: &&Value| path["node"] == node && path["peer"] == B;
    let path = paths.iter().find(of_node).context("no path of the node")?;
    ensure!(path["path"] == "direct", "{path}");
    ensure!(path["rttMicros"].as_u64().is_some(), "{path}");
    ensure!(path["nat"] == "EIM/APDF", "{path}");
    let peers = read(&["peers", "-o", "json"])?;
    let peer = &peers[0];
    ensure!(
        peer["name"] == B && peer["ready"]["status"] == "True",
        "{peer}"
    );
    ensure!(peer["path"] == "direct", "{peer}");
    ensure!(peer["rttMicros"].as_u64().is_some(), "{peer}");
    Ok(())
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

/// On nodes whose firewalls and masquerades are written with iptables of either kind.
#[test]
fn two_hard_nats_stay_on_the_relay_and_say_why() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::Symmetric)
            .masquerade(Masquerade::IptablesLegacy)
            .forward_drop(Firewall::IptablesLegacy),
        ClusterSpec::new("b", Profile::Symmetric)
            .masquerade(Masquerade::IptablesNft)
            .forward_drop(Firewall::IptablesNft)
            .proxy(Proxy::Iptables),
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
    scene.remove_without_a_trace()?;
    scene.finish()
}
