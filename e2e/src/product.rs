//! The product in a cluster of the lab: installed by its chart from its images, and driven by its plugin, as a user does.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Clusters, Kubectl};
use crate::exec;
use crate::image::{self, PRODUCTS};
use crate::process::binary;
use crate::wait::wait_for;

/// The namespace that it is installed in, and the release's name.
pub const NAMESPACE: &str = "culvert";
/// The agents' DaemonSet.
pub const AGENTS: &str = "daemonset/culvert-agent";
/// The operator's Deployment.
pub const OPERATOR: &str = "deployment/culvert-operator";

/// A Peer as `kubectl get peers` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    /// Status of the condition `Ready`.
    pub ready: String,
    /// What data uses.
    pub path: String,
    /// Its nodes, as `2/2`.
    pub nodes: String,
    /// Why it is as it is.
    pub message: String,
}

/// The product's chart.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert")
}

/// Loads the product's images on every node, also on those that are added later.
pub fn load(clusters: &mut Clusters) -> Result<()> {
    let folder = image::made()?;
    PRODUCTS
        .iter()
        .try_for_each(|product| clusters.load(&product.archive(&folder)))
}

/// Installs the chart with these values, each `key=value`, and a token if there is one.
pub fn install(cluster: &Cluster, values: &[&str], token: Option<&str>) -> Result<()> {
    run_helm(cluster, "install", values, token)
}

/// Upgrades the release to these values.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
    run_helm(cluster, "upgrade", values, None)
}

/// Upgrades the release to these values, with a token to join by.
pub fn upgrade_with_token(cluster: &Cluster, values: &[&str], token: &str) -> Result<()> {
    run_helm(cluster, "upgrade", values, Some(token))
}

/// Removes the release.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let words = ["uninstall", "culvert", "-n", NAMESPACE, "--timeout=3m"];
    cluster.helm(&words).map(drop)
}

fn run_helm(cluster: &Cluster, verb: &str, values: &[&str], token: Option<&str>) -> Result<()> {
    let chart = chart();
    let chart = chart.to_str().context("the chart's path")?;
    let mut words = vec![verb, "culvert", chart, "-n", NAMESPACE];
    if verb == "install" {
        words.push("--create-namespace");
    }
    for value in values {
        words.extend(["--set", value]);
    }
    let file = cluster.home().join("token");
    let set_file = format!("join.token={}", file.display());
    if let Some(token) = token {
        fs::write(&file, token)?;
        words.extend(["--set-file", &set_file]);
    }
    cluster.helm(&words).map(drop)
}

/// Runs `kubectl culvert`, and returns what it printed.
pub fn plugin(cluster: &Kubectl, words: &[&str]) -> Result<String> {
    let program = binary("kubectl-culvert")?;
    let program = program.to_str().context("the plugin's path")?;
    exec::output(cluster.command(program, words))
}

/// Waits for a condition `Ready` that is True.
pub fn await_ready(cluster: &Kubectl, what: &[&str], patience: Duration) -> Result<()> {
    wait_for(patience, &format!("{what:?} is Ready"), || {
        let (status, reason, message) = cluster.condition(what, "Ready")?;
        ensure!(status == "True", "{reason}: {message}");
        Ok(())
    })
}

/// The identity of a cluster.
pub fn identity(cluster: &Kubectl) -> Result<String> {
    wait_for(Duration::from_secs(30), "the Mesh has an identity", || {
        let mesh = cluster.get(&["mesh", "default"])?;
        text(&mesh, "/status/identity").context("none yet")
    })
}

/// A Peer as it is now.
pub fn peer(cluster: &Kubectl, name: &str) -> Result<PeerRow> {
    let peer = cluster.get(&["peer", name])?;
    let (ready, reason, message) = cluster.condition(&["peer", name], "Ready")?;
    Ok(PeerRow {
        ready,
        path: text(&peer, "/status/path").unwrap_or_default(),
        nodes: text(&peer, "/status/nodes").unwrap_or_default(),
        message: format!("{reason}: {message}"),
    })
}

/// Waits until a Peer is as it should be.
pub fn await_peer(
    cluster: &Kubectl,
    name: &str,
    patience: Duration,
    holds: impl Fn(&PeerRow) -> bool,
) -> Result<PeerRow> {
    wait_for(patience, &format!("Peer {name} is as it should be"), || {
        let row = peer(cluster, name)?;
        ensure!(holds(&row), "{row:?}");
        Ok(row)
    })
}

/// The paths from a node to the nodes of a peer, by the node's own report: name, path, reason.
pub fn paths(cluster: &Kubectl, node: &str, peer: &str) -> Result<Vec<(String, String, String)>> {
    let object = cluster.get(&["meshnode", node])?;
    let peers = object.pointer("/status/peers").and_then(Value::as_array);
    let found = peers.into_iter().flatten();
    let found = found.filter(|one| one.get("name").and_then(Value::as_str) == Some(peer));
    let nodes = found
        .filter_map(|one| one.get("nodes").and_then(Value::as_array))
        .flatten();
    let field = |node: &Value, key: &str| text(node, &format!("/{key}")).unwrap_or_default();
    Ok(nodes
        .map(|node| {
            (
                field(node, "name"),
                field(node, "path"),
                field(node, "reason"),
            )
        })
        .collect())
}

/// Waits until a pod's ping is answered, asking anew without pause, and returns how long that took.
pub fn first_ping(
    cluster: &Kubectl,
    (namespace, pod): (&str, &str),
    to: IpAddr,
    patience: Duration,
) -> Result<Duration> {
    let start = Instant::now();
    let target = format!("{to}:8080");
    wait_for(patience, &format!("{pod} reaches {to}"), || {
        let words = ["/podtool", "udp", "-t", "1", &target];
        cluster.exec(namespace, pod, &words)
    })?;
    Ok(start.elapsed())
}

/// The text at a place of an object.
pub fn text(object: &Value, pointer: &str) -> Option<String> {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned)
}
