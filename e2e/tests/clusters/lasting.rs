//! What happens to linked clusters over time: parts that fail, nodes that come and go, an upgrade, a peer that is deleted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::product::{self, NAMESPACE};
use e2e::{Cluster, ClusterSpec, Profile, exec, wait_for};

use crate::scene::{A, B, Pinger, Scene, TEST, as_strs, pod, pod_on, pods_see_each_other, seconds};
use crate::turn;

/// How long nobody controls anything.
const OUTAGE: Duration = Duration::from_secs(300);
/// How long a change in a cluster may take to be right on both sides.
const CHANGE: Duration = Duration::from_secs(5);

fn linked(name: &str) -> Result<Scene> {
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted).nodes(2),
        ClusterSpec::new("b", Profile::PortRestricted),
    ];
    let scene = Scene::new(name, &specs)?;
    scene.link()?;
    let (pod, target) = (pod_on(scene.a(), 1)?.0, pod_on(scene.b(), 1)?.1);
    product::first_ping(scene.a(), (TEST, &pod), target, Duration::from_secs(20))?;
    Ok(scene)
}

/// Waits until a node of A is direct with B's first node.
fn await_direct(scene: &Scene, node: u8) -> Result<()> {
    let name = scene.a().node(node)?.name();
    wait_for(Duration::from_secs(20), "the pair is direct", || {
        let paths = product::paths(scene.a(), name, B)?;
        ensure!(
            paths.iter().any(|(_, path, _)| path == "direct"),
            "{paths:?}"
        );
        Ok(())
    })
}

#[test]
fn direct_paths_outlive_operator_api_servers_and_relay() -> Result<()> {
    let _turn = turn();
    let mut scene = linked("outage")?;
    let target = pod_on(scene.b(), 1)?.1;
    let length = OUTAGE.as_secs() + 60;
    let steady = Pinger::start(scene.a(), (1, "steady"), target, length)?;
    let restarted = Pinger::start(scene.a(), (2, "restarted"), target, length)?;
    await_direct(&scene, 1)?;
    await_direct(&scene, 2)?;
    let start = Instant::now();
    for name in ["a", "b"] {
        let cluster = scene.clusters.cluster(name)?;
        cluster.kubectl(&["-n", NAMESPACE, "scale", product::OPERATOR, "--replicas=0"])?;
        cluster.stop_api()?;
    }
    let mut kill = scene.a().node(2)?.command("pkill")?;
    kill.args(["-KILL", "-x", "culvert-agent"]);
    exec::output(kill)?;
    // The restarted agent finds its peer over the relay; once it has, the relay goes as well.
    wait_for(Duration::from_secs(60), "the agent has come back", || {
        let mut find = scene.a().node(2)?.command("pgrep")?;
        find.args(["-x", "culvert-agent"]);
        exec::output(find)
    })?;
    let relay_ends = start + Duration::from_secs(60);
    wait_until(relay_ends);
    scene.relay.kill()?;
    wait_until(start + OUTAGE);
    scene.relay.resume()?;
    for name in ["a", "b"] {
        scene.clusters.cluster(name)?.start_api()?;
    }
    let (lost, _) = steady.report(scene.a(), Duration::from_secs(120))?;
    ensure!(lost == 0, "{lost} pings of an undisturbed pair were lost");
    let (_, gap) = restarted.report(scene.a(), Duration::from_secs(120))?;
    ensure!(gap <= 10.0, "an agent that was killed took {gap:.1} s");
    for cluster in scene.clusters.all() {
        cluster.kubectl(&["-n", NAMESPACE, "scale", product::OPERATOR, "--replicas=2"])?;
    }
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        product::await_peer(cluster, peer, Duration::from_secs(60), |row| {
            row.ready == "True"
        })?;
    }
    scene.finish()
}

/// An outage has a length; nothing that could be waited for happens in it.
fn wait_until(end: Instant) {
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

#[test]
fn changes_are_right_on_both_sides_within_seconds() -> Result<()> {
    let _turn = turn();
    let mut scene = linked("changes")?;
    upgrade_is_hardly_noticed(&scene)?;
    pod_moves(&scene)?;
    node_comes(&mut scene)?;
    node_goes(&mut scene)?;
    node_reboots(&mut scene)?;
    peer_is_deleted(&scene)?;
    scene.finish()
}

fn upgrade_is_hardly_noticed(scene: &Scene) -> Result<()> {
    let target = pod_on(scene.b(), 1)?.1;
    let pingers = [
        Pinger::start(scene.a(), (1, "one"), target, 40)?,
        Pinger::start(scene.a(), (2, "two"), target, 40)?,
    ];
    await_direct(scene, 1)?;
    await_direct(scene, 2)?;
    let mut values = scene.values(A);
    values.push("agent.podAnnotations.round=second".to_owned());
    let start = Instant::now();
    product::upgrade(scene.a(), &as_strs(&values))?;
    scene.a().await_rollout(NAMESPACE, product::AGENTS)?;
    seconds("upgrade", start);
    for pinger in pingers {
        let (_, gap) = pinger.report(scene.a(), Duration::from_secs(90))?;
        ensure!(gap <= 5.0, "an upgrade interrupted a node for {gap:.1} s");
    }
    Ok(())
}

/// A pod that is made again on another node has another address; both directions work at once, with sources kept.
fn pod_moves(scene: &Scene) -> Result<()> {
    let (a, b) = (scene.a(), scene.b());
    let (other, target) = pod_on(b, 1)?;
    for node in [1, 2] {
        let name = a.node(node)?.name();
        let own = a.run(TEST, "mover", Some(name), &["echo"])?;
        let moved = Instant::now();
        product::first_ping(b, (TEST, &other), own.parse()?, CHANGE)?;
        let page = a.fetch(TEST, "mover", &format!("http://{target}:8080/"))?;
        ensure!(page.contains(&format!("from={own}:")), "{page}");
        ensure!(moved.elapsed() <= CHANGE, "{:?}", moved.elapsed());
        seconds(&format!("a pod on node {node}: both ways"), moved);
        a.kubectl(&["-n", TEST, "delete", "pod", "mover", "--grace-period=1"])?;
    }
    Ok(())
}

fn node_comes(scene: &mut Scene) -> Result<()> {
    let number = scene.clusters.cluster("b")?.add_node()?;
    let (a, b) = (scene.a(), scene.b());
    b.await_nodes()?;
    b.await_rollout(NAMESPACE, product::AGENTS)?;
    let ready = Instant::now();
    let name = b.node(number)?.name().to_owned();
    wait_for(CHANGE, "the other side knows the new node", || {
        let row = product::peer(a, B)?;
        ensure!(row.nodes == "2/2", "{row:?}");
        Ok(())
    })?;
    seconds("a node was added: the other side knows", ready);
    let address = b.run(TEST, &pod(&name), Some(&name), &["echo"])?;
    let (from, _) = pod_on(a, 1)?;
    let took = product::first_ping(a, (TEST, &from), address.parse()?, CHANGE)?;
    e2e::figure(
        "first ping to its pod",
        format!("{:.1} s", took.as_secs_f32()),
    );
    Ok(())
}

fn node_goes(scene: &mut Scene) -> Result<()> {
    let cluster = scene.clusters.cluster("b")?;
    let start = Instant::now();
    cluster.delete_node(2)?;
    let deleted = Instant::now();
    wait_for(CHANGE, "the other side has forgotten the node", || {
        let row = product::peer(scene.a(), B)?;
        ensure!(row.nodes == "1/1", "{row:?}");
        Ok(())
    })?;
    seconds("a node was deleted", start);
    seconds("the other side knew", deleted);
    Ok(())
}

fn node_reboots(scene: &mut Scene) -> Result<()> {
    let target = pod_on(scene.b(), 1)?.1;
    let other = Pinger::start(scene.a(), (2, "other"), target, 60)?;
    await_direct(scene, 2)?;
    let cluster = scene.clusters.cluster("a")?;
    let name = cluster.node(1)?.name().to_owned();
    cluster.restart_node(1)?;
    let a = scene.a();
    let node = format!("node/{name}");
    wait_for(
        Duration::from_secs(90),
        "the agent's pod is ready again",
        || {
            a.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=1s"])?;
            let field = format!("--field-selector=spec.nodeName={name}");
            let agent = "--selector=app.kubernetes.io/component=agent";
            let words = [
                "-n",
                NAMESPACE,
                "wait",
                "pod",
                agent,
                &field,
                "--for=condition=Ready",
                "--timeout=1s",
            ];
            a.kubectl(&words)
        },
    )?;
    let ready = Instant::now();
    let (from, _) = wait_for(Duration::from_secs(60), "its pod runs", || {
        let found = pod_on(a, 1)?;
        a.exec(TEST, &found.0, &["/podtool", "resolve", "localhost"])?;
        Ok::<_, anyhow::Error>(found)
    })?;
    product::first_ping(a, (TEST, &from), target, CHANGE)?;
    seconds("reboot: pods reachable after Ready", ready);
    let (lost, _) = other.report(a, Duration::from_secs(120))?;
    ensure!(lost == 0, "{lost} pings of another node were lost");
    pods_see_each_other(scene)
}

fn peer_is_deleted(scene: &Scene) -> Result<()> {
    let (a, b) = (scene.a(), scene.b());
    let start = Instant::now();
    a.kubectl(&["delete", "peer", B, "--timeout=10s"])?;
    for node in [1, 2] {
        out_of_reach((a, node), (b, 1), start + CHANGE)?;
    }
    seconds("a deleted peer is out of reach", start);
    out_of_reach((b, 1), (a, 1), start + CHANGE)?;
    let left = Duration::from_secs(15).saturating_sub(start.elapsed());
    let row = product::await_peer(b, A, left, |row| row.ready == "False")?;
    seconds("the other side shows it", start);
    e2e::figure("why", row.message);
    Ok(())
}

/// Waits until a node's pod gets no answer from another's any more.
fn out_of_reach(from: (&Cluster, u8), to: (&Cluster, u8), until: Instant) -> Result<()> {
    let ((pod, _), (_, target)) = (pod_on(from.0, from.1)?, pod_on(to.0, to.1)?);
    let target = format!("{target}:8080");
    let left = until.saturating_duration_since(Instant::now());
    wait_for(left, &format!("{pod} does not reach {target}"), || {
        let words = ["/podtool", "udp", "-t", "1", "-n", "1", &target];
        match from.0.exec(TEST, &pod, &words) {
            Ok(answer) => Err(answer),
            // Its own word, and not that it could not be asked.
            Err(error) => {
                let error = format!("{error:#}");
                error.contains("podtool:").then_some(()).ok_or(error)
            }
        }
    })
    .map_err(|error| error.context("a deleted peer answers"))
}
