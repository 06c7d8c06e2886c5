//! Joins that cannot be, each told on both sides, and links that end without the other side.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::{self, NAMESPACE};
use e2e::{Cluster, ClusterSpec, HostDump, Profile, exec, figure, wait_for};
use ipnet::IpNet;
use serde_json::Value;

use crate::scene::{A, B, Pinger, Scene, TEST, as_strs, pod_on, pods_see_each_other, seconds};
use crate::turn;

const PATIENCE: Duration = Duration::from_secs(90);
/// How long until a failure is told. An attempt that finds no relay goes on for 20 s.
const TOLD: Duration = Duration::from_secs(45);
/// A Lease lasts 15 s from when the other replica has seen it renewed, which looks every 2 s, as it does when that is over.
const TAKEOVER: Duration = Duration::from_secs(25);
/// An answer through the tunnel counts for 31 s from when the operator hears of it, and agents tell of one every 10 s at most,
/// a second late.
const STALE: Duration = Duration::from_secs(50);
/// How long a change in a cluster takes there.
const CHANGE: Duration = Duration::from_secs(5);
/// `cleanup.deadlineSeconds` of the chart.
const REMOVAL: Duration = Duration::from_secs(120);
const MESH: [&str; 2] = ["mesh", "default"];

fn scene(name: &str) -> Result<Scene> {
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted),
        ClusterSpec::new("b", Profile::PortRestricted),
    ];
    Scene::new(name, &specs)
}

#[test]
fn a_join_that_cannot_be_says_why_on_both_sides() -> Result<()> {
    let _turn = turn();
    let mut scene = scene("joining")?;
    product::install(scene.a(), &as_strs(&scene.values(A)), None)?;
    product::await_ready(scene.a(), &MESH, PATIENCE)?;
    let late = invite(&scene, "late", "5s")?;
    let good = invite(&scene, "good", "15m")?;
    name_is_taken(&scene, &good)?;
    ranges_overlap(&scene, &good)?;
    time_is_over(&scene, &late)?;
    relay_is_down(&mut scene, &good)?;
    token_is_used(&scene, &good)?;
    let last = invite(&scene, "last", "15m")?;
    put_in(scene.b(), &last)?;
    is_linked(&scene)?;
    scene.finish()
}

/// B calls itself as A does.
fn name_is_taken(scene: &Scene, token: &str) -> Result<()> {
    let values = values(A, scene.b().pods().into());
    product::install(scene.b(), &as_strs(&values), Some(token))?;
    joiner_says(scene, "NameTaken", "another clusterName")?;
    inviter_hears(scene, "good", "NameTaken")
}

/// B has another name, which takes another Mesh, and says that its pods have the addresses of A's.
fn ranges_overlap(scene: &Scene, token: &str) -> Result<()> {
    let (a, b) = (scene.a(), scene.b());
    b.kubectl(&["delete", "mesh", "default", "--timeout=10s"])?;
    let values = values(B, a.pods().into());
    product::upgrade_with_token(b, &as_strs(&values), token)?;
    joiner_says(scene, "Overlap", &a.pods().to_string())?;
    inviter_hears(scene, "good", "Overlap")
}

/// The right ranges, and a token that was good for seconds.
fn time_is_over(scene: &Scene, token: &str) -> Result<()> {
    inviter_hears(scene, "late", "Expired")?;
    product::upgrade_with_token(scene.b(), &as_strs(&scene.values(B)), token)?;
    joiner_says(scene, "Expired", "ask for a new one")
}

/// None of the failures so far has used the token up: it links once its relay is there.
fn relay_is_down(scene: &mut Scene, token: &str) -> Result<()> {
    scene.relay.kill()?;
    product::upgrade_with_token(scene.b(), &as_strs(&scene.values(B)), token)?;
    joiner_says(scene, "RelayUnreachable", "outbound TCP")?;
    scene.relay.resume()?;
    let start = Instant::now();
    wait_for(PATIENCE, "it is tried again", || joined(scene.b()))?;
    seconds("joined after the relay was back", start);
    inviter_hears(scene, "good", "Joined")
}

/// Both sides have ended the link, and somebody tries the token once more.
fn token_is_used(scene: &Scene, token: &str) -> Result<()> {
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        cluster.kubectl(&["delete", "peer", peer, "--timeout=10s"])?;
    }
    put_in(scene.b(), token)?;
    joiner_says(scene, "Used", "ask for a new token")?;
    inviter_hears(scene, "good", "Used")?;
    for cluster in [scene.a(), scene.b()] {
        let peers = names(cluster, "peers")?;
        ensure!(peers.is_empty(), "{}: {peers:?}", cluster.name());
    }
    Ok(())
}

/// Nothing is left of what failed before.
fn is_linked(scene: &Scene) -> Result<()> {
    wait_for(TOLD, "joined", || joined(scene.b()))?;
    let ((pod, _), (_, target)) = (pod_on(scene.a(), 1)?, pod_on(scene.b(), 1)?);
    product::first_ping(scene.a(), (TEST, &pod), target, TOLD)?;
    pods_see_each_other(scene)?;
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        product::await_peer(cluster, peer, PATIENCE, |row| row.ready == "True")?;
        product::await_ready(cluster, &MESH, PATIENCE)?;
        ensure!(names(cluster, "peers")? == [peer]);
        wait_for(PATIENCE, "the operators speak", || {
            let (status, reason, message) = cluster.condition(&["peer", peer], "Synced")?;
            ensure!(status == "True", "{reason}: {message}");
            Ok(())
        })?;
    }
    for (name, reason) in [("late", "Expired"), ("good", "Used"), ("last", "Used")] {
        let (status, found, message) = scene.a().condition(&["invite", name], "Ready")?;
        ensure!(
            (status.as_str(), found.as_str()) == ("False", reason),
            "{name}: {found}: {message}"
        );
    }
    Ok(())
}

fn invite(scene: &Scene, name: &str, ttl: &str) -> Result<String> {
    product::plugin(scene.a(), &["invite", "--name", name, "--ttl", ttl])
}

fn values(name: &str, pods: IpNet) -> [String; 2] {
    [
        format!("mesh.clusterName={name}"),
        format!("mesh.podCIDRs[0]={pods}"),
    ]
}

/// A token in a Secret of one's own, in place of the one that is there.
fn put_in(cluster: &Cluster, token: &str) -> Result<()> {
    cluster.kubectl(&["-n", NAMESPACE, "delete", "secret", "culvert-join"])?;
    let file = cluster.home().join("token");
    std::fs::write(&file, token)?;
    let file = format!("--from-file=token={}", file.display());
    let words = ["create", "secret", "generic", "culvert-join", &file];
    cluster
        .kubectl(&[&["-n", NAMESPACE], &words[..]].concat())
        .map(drop)
}

fn joined(cluster: &Cluster) -> Result<()> {
    let (status, reason, message) = cluster.condition(&MESH, "Joined")?;
    ensure!(status == "True", "{reason}: {message}");
    Ok(())
}

/// The joiner's Mesh says why, and what to do.
fn joiner_says(scene: &Scene, reason: &str, advice: &str) -> Result<()> {
    let message = wait_for(TOLD, &format!("the joiner says {reason}"), || {
        let (status, found, message) = scene.b().condition(&MESH, "Joined")?;
        ensure!(
            status == "False" && found == reason,
            "{status}, {found}: {message}"
        );
        Ok(message)
    })?;
    figure(reason, &message);
    ensure!(message.contains(advice), "no {advice:?} in: {message}");
    Ok(())
}

/// An Event of the invite says it, too.
fn inviter_hears(scene: &Scene, invite: &str, reason: &str) -> Result<()> {
    let select = format!(
        "--field-selector=involvedObject.kind=Invite,involvedObject.name={invite},reason={reason}"
    );
    let heard = wait_for(TOLD, &format!("the inviter hears {reason}"), || {
        let events = scene.a().get(&["events", "-A", &select])?;
        product::text(&events, "/items/0/message").context("no Event")
    })?;
    figure(&format!("{reason}, as the inviter hears it"), heard);
    Ok(())
}

fn names(cluster: &Cluster, kind: &str) -> Result<Vec<String>> {
    let list = cluster.get(&[kind])?;
    let items = list.pointer("/items").and_then(Value::as_array);
    let names = items.into_iter().flatten();
    Ok(names
        .filter_map(|item| product::text(item, "/metadata/name"))
        .collect())
}

#[test]
fn deletion_never_waits_for_the_other_side() -> Result<()> {
    let _turn = turn();
    let mut scene = scene("alone")?;
    scene.link()?;
    let ((pod, _), (_, target)) = (pod_on(scene.a(), 1)?, pod_on(scene.b(), 1)?);
    product::first_ping(scene.a(), (TEST, &pod), target, TOLD)?;
    leader_is_killed(&scene, target)?;
    other_side_vanishes(&mut scene)?;
    peer_is_deleted(scene.a(), scene.b().pods().into())?;
    mesh_is_deleted(scene.a())?;
    all_is_removed(&scene)?;
    scene.finish()
}

/// A killed leader is no loss: data flows, the peer stays Ready, and another replica acts.
fn leader_is_killed(scene: &Scene, target: IpAddr) -> Result<()> {
    let (a, b) = (scene.a(), scene.b());
    a.await_rollout(NAMESPACE, product::OPERATOR)?;
    is_direct(a)?;
    product::await_peer(b, A, PATIENCE, |row| row.ready == "True")?;
    let steady = Pinger::start(a, (1, "steady"), target, 30)?;
    let (before, start) = (leader(a)?, Instant::now());
    kill(a, &before)?;
    let mut complaints = Vec::new();
    let after = wait_for(TAKEOVER, "another replica leads", || {
        let row = product::peer(b, A)?;
        complaints.extend(Some(row).filter(|row| row.ready != "True"));
        let holder = leader(a)?;
        ensure!(!holder.is_empty() && holder != before, "{holder}");
        Ok(holder)
    })?;
    seconds("a killed leader is replaced", start);
    ensure!(complaints.is_empty(), "{complaints:?}");
    figure("leaders", format!("{before}, then {after}"));
    edit_is_seen(a)?;
    let (lost, _) = steady.report(a, PATIENCE)?;
    ensure!(lost == 0, "{lost} pings were lost");
    let row = product::peer(b, A)?;
    ensure!(row.ready == "True", "{row:?}");
    Ok(())
}

fn is_direct(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(1)?.name();
    wait_for(Duration::from_secs(20), "the pair is direct", || {
        let paths = product::paths(cluster, node, B)?;
        let direct = paths.iter().any(|(_, path, _)| path == "direct");
        ensure!(direct, "{paths:?}");
        Ok(())
    })
}

/// The pod whose process holds the Lease.
fn leader(cluster: &Cluster) -> Result<String> {
    let lease = cluster.get(&["lease", "culvert-operator", "-n", NAMESPACE])?;
    let holder = product::text(&lease, "/spec/holderIdentity").unwrap_or_default();
    Ok(holder.split('_').next().unwrap_or_default().to_owned())
}

/// The process dies without a word; then its pod goes, so that it does not come back in it.
fn kill(cluster: &Cluster, pod: &str) -> Result<()> {
    const SCRIPT: &str = r#"for pid in $(pgrep -x culvert-operato); do
        grep -qz "^POD_NAME=$1$" "/proc/$pid/environ" && exec kill -KILL "$pid"
    done; exit 1"#;
    let mut command = cluster.node(1)?.command("sh")?;
    command.args(["-c", SCRIPT, "sh", pod]);
    exec::output(command)?;
    let words = ["delete", "pod", pod, "--grace-period=0", "--force"];
    cluster
        .kubectl(&[&["-n", NAMESPACE], &words[..]].concat())
        .map(drop)
}

/// Whoever leads now looks at what is changed.
fn edit_is_seen(cluster: &Cluster) -> Result<()> {
    let patch = r#"[{"op":"add","path":"/spec/allowedCIDRs/-","value":"10.250.0.0/16"}]"#;
    let start = Instant::now();
    cluster.kubectl(&["patch", "peer", B, "--type=json", "-p", patch])?;
    wait_for(CHANGE, "a change of a Peer is acted upon", || {
        let peer = cluster.get(&["peer", B])?;
        let generation = peer.pointer("/metadata/generation").cloned();
        let seen = peer.pointer("/status/conditions/0/observedGeneration");
        ensure!(seen == generation.as_ref(), "{seen:?}");
        Ok(())
    })?;
    seconds("a change was acted upon", start);
    Ok(())
}

/// Without a goodbye, for good.
fn other_side_vanishes(scene: &mut Scene) -> Result<()> {
    let b = scene.clusters.cluster("b")?;
    b.stop_api()?;
    b.stop_node(1)?;
    let start = Instant::now();
    let row = product::await_peer(scene.a(), B, STALE, |row| row.ready != "True")?;
    seconds("a peer that is gone is shown not Ready", start);
    figure("why", row.message);
    Ok(())
}

fn peer_is_deleted(cluster: &Cluster, range: IpNet) -> Result<()> {
    let reached = |line: &String| {
        let mut words = line.split_whitespace();
        let prefix = words.find_map(|word| word.parse::<IpNet>().ok());
        prefix.is_some_and(|prefix| range.contains(&prefix))
    };
    let left = || Ok::<_, anyhow::Error>(routes(cluster)?.into_iter().find(reached));
    ensure!(left()?.is_some(), "no route to the peer to begin with");
    let start = Instant::now();
    cluster.kubectl(&["delete", "peer", B, "--timeout=10s"])?;
    seconds("the Peer was deleted", start);
    wait_for(CHANGE, "no route is left to the peer", || {
        left()?.map_or(Ok(()), |route| Err(anyhow::anyhow!(route)))
    })?;
    seconds("no route was left", start);
    Ok(())
}

/// The operator has ended its conversations, too, and goes on.
fn mesh_is_deleted(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    cluster.kubectl(&["delete", "mesh", "default", "--timeout=10s"])?;
    seconds("the Mesh was deleted", start);
    let invite = r#"{"apiVersion": "culvert.dev/v1alpha1", "kind": "Invite", "metadata": {"name": "vain"}, "spec": {}}"#;
    cluster.apply(invite)?;
    wait_for(CHANGE, "the operator sees that there is no Mesh", || {
        let (status, reason, _) = cluster.condition(&["invite", "vain"], "Ready")?;
        ensure!(reason == "UnknownMesh", "{status}, {reason}");
        Ok(())
    })?;
    wait_for(CHANGE, "no route is left into the mesh", || {
        let mut routes = routes(cluster)?.into_iter();
        let ours = routes.find(|line| line.contains("dev culvert0"));
        ours.map_or(Ok(()), |route| Err(anyhow::anyhow!(route)))
    })
}

/// Where the first node sends packets, a line each. An `unreachable` route sends them nowhere; it stays, so that nothing
/// leaves in the clear.
fn routes(cluster: &Cluster) -> Result<Vec<String>> {
    let words = ["-4", "route", "show", "table", "all"];
    let text = cluster.node(1)?.netns().exec("ip", &words)?;
    let lines = text.lines().filter(|line| !line.starts_with("unreachable"));
    Ok(lines.map(str::to_owned).collect())
}

fn all_is_removed(scene: &Scene) -> Result<()> {
    let start = Instant::now();
    product::uninstall(scene.a())?;
    seconds("removed", start);
    ensure!(start.elapsed() < REMOVAL, "after its deadline");
    for node in scene.a().nodes() {
        let before = scene.dumps.iter().find(|(name, _)| name == node.name());
        let (_, before) = before.context("no dump")?;
        let changes = HostDump::take(Some(node.netns()), &[])?.diff(before);
        ensure!(
            changes.is_empty(),
            "{} is not as it was:\n{changes}",
            node.name()
        );
        let gone = !node.state("culvert").exists();
        ensure!(gone, "{}: files are left", node.name());
    }
    Ok(())
}
