//! Relays that a cluster runs itself, and links that need no token.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product;
use e2e::{Cluster, ClusterSpec, Firewall, Masquerade, Profile, Proxy, figure, wait_for};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::scene::{A, B, Scene, TEST, as_strs, pod_on, pods_see_each_other, seconds};
use crate::turn;

const PATIENCE: Duration = Duration::from_secs(90);

/// The router of A forwards one TCP port, so nobody can ask the relay for the own public address. Nobody says which range of
/// pods a node of B has.
#[test]
fn one_forwarded_port_is_enough_for_a_relayed_link() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted),
        ClusterSpec::new("b", Profile::PortRestricted)
            .nodes(2)
            .without_node_ranges(),
    ];
    let scene = Scene::new("nodeport", &specs)?;
    scene.a().forward_tcp(443, 1, 30443)?;
    let values = [
        format!("mesh.clusterName={A}"),
        "relays[0].name=main".to_owned(),
        "relays[0].exposure.type=NodePort".to_owned(),
        format!("relays[0].exposure.host={}", scene.a().wan()),
        "relays[0].exposure.port=443".to_owned(),
        "relays[0].exposure.nodePort=30443".to_owned(),
    ];
    product::install(scene.a(), &as_strs(&values), None)?;
    product::await_ready(scene.a(), &["mesh", "default"], PATIENCE)?;
    let token = product::plugin(scene.a(), &["invite"])?;
    product::install(scene.b(), &as_strs(&scene.values(B)), Some(&token))?;
    let (pod, target) = (pod_on(scene.a(), 1)?.0, pod_on(scene.b(), 1)?.1);
    product::first_ping(scene.a(), (TEST, &pod), target, PATIENCE)?;
    pods_see_each_other(&scene)?;
    pods_are_linked_one_by_one(&scene)?;
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        let row = product::await_peer(cluster, peer, PATIENCE, |row| {
            row.ready == "True" && row.path == "relay"
        })?;
        figure("peer", format!("{row:?}"));
        let node = cluster.node(1)?.name();
        wait_for(PATIENCE, "the reason is told", || {
            let paths = product::paths(cluster, node, peer)?;
            let told = paths
                .iter()
                .any(|(_, path, reason)| path == "relay" && reason == "NoReflexiveAddress");
            ensure!(told, "{paths:?}");
            Ok(())
        })?;
    }
    let mesh = scene.a().get(&["mesh", "default"])?;
    figure("relays", &mesh["status"]["relays"]);
    wait_for(
        PATIENCE,
        "A knows that its relay works from outside",
        || {
            let mesh = scene.a().get(&["mesh", "default"])?;
            let relay = &mesh["status"]["relays"][0];
            ensure!(
                relay["inside"] == true && relay["outside"] == true,
                "{relay}"
            );
            Ok(())
        },
    )?;
    scene.finish()
}

/// Pods of every node of B, one that comes among them, and A's see each other's own addresses; so it stays with a gateway.
fn pods_are_linked_one_by_one(scene: &Scene) -> Result<()> {
    const NEW: &str = "new";
    let (a, b) = (scene.a(), scene.b());
    let (asking, own) = pod_on(a, 1)?;
    let node = b.node(2)?.name();
    let (old, target) = pod_on(b, 2)?;
    product::first_ping(a, (TEST, &asking), target, PATIENCE)?;
    let new: IpAddr = b.run(TEST, NEW, Some(node), &["echo"])?.parse()?;
    let start = Instant::now();
    let (there, back) = thread::scope(|scope| {
        let back = scope.spawn(|| product::first_ping(b, (TEST, NEW), own, PATIENCE));
        let there = product::first_ping(a, (TEST, &asking), new, PATIENCE);
        (there, back.join().expect("no panic"))
    });
    let took = there?.max(back?);
    seconds("a new pod is linked", start);
    ensure!(took <= Duration::from_secs(5), "linked after {took:?}");
    let linked = [(old.as_str(), target.to_string()), (NEW, new.to_string())];
    each_sees_the_other(a, (&asking, &own.to_string()), b, &linked)?;

    let gateway = b.node(1)?.name();
    b.kubectl(&["label", "node", gateway, "culvert.dev/gateway=true"])?;
    let range = IpNet::from(b.pods());
    wait_for(PATIENCE, "the gateway serves the range", || {
        let served = prefixes(b, gateway)?;
        ensure!(served == [range], "{served:?}");
        Ok(())
    })?;
    each_sees_the_other(a, (&asking, &own.to_string()), b, &linked)?;
    b.kubectl(&["-n", TEST, "delete", "pod", NEW, "--wait=true"])?;
    wait_for(PATIENCE, "what is gone is not served", || {
        let served = prefixes(b, node)?;
        let serves = |address: IpAddr| served.iter().any(|prefix| prefix.contains(&address));
        ensure!(serves(target) && !serves(new), "{served:?}");
        Ok(())
    })?;
    let ranges = b.condition(&["mesh", "default"], "CIDRsResolved")?;
    figure("ranges", format!("{ranges:?}"));
    ensure!(ranges.0 == "True", "{ranges:?}");
    Ok(())
}

/// What a node serves.
fn prefixes(cluster: &Cluster, node: &str) -> Result<Vec<IpNet>> {
    let node = cluster.get(&["meshnode", node])?;
    Ok(serde_json::from_value(node["spec"]["prefixes"].clone())?)
}

/// A pod of `a` and pods of `b`, each given with its address, get each other's pages.
fn each_sees_the_other(
    a: &Cluster,
    (asking, own): (&str, &str),
    b: &Cluster,
    others: &[(&str, String)],
) -> Result<()> {
    for (other, address) in others {
        let page = a.fetch(TEST, asking, &format!("http://{address}:8080/"))?;
        ensure!(page.contains(&format!("from={own}:")), "{page}");
        let page = b.fetch(TEST, other, &format!("http://{own}:8080/"))?;
        ensure!(page.contains(&format!("from={address}:")), "{page}");
    }
    Ok(())
}

/// Two Peers with public keys only, as they lie in a repository. A's node has a public address, and the only relay at it.
#[test]
fn two_manifests_link_without_a_token() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::Public)
            .masquerade(Masquerade::IptablesNft)
            .proxy(Proxy::Iptables),
        ClusterSpec::new("b", Profile::Symmetric)
            .masquerade(Masquerade::IptablesLegacy)
            .forward_drop(Firewall::IptablesNft),
    ];
    let scene = Scene::new("gitops", &specs)?;
    let (a, b) = (scene.a(), scene.b());
    let values = [
        format!("mesh.clusterName={A}"),
        "relays[0].name=main".to_owned(),
        "relays[0].exposure.type=HostPort".to_owned(),
        format!("relays[0].exposure.host={}", a.node(1)?.address()),
    ];
    product::install(a, &as_strs(&values), None)?;
    product::install(b, &[&format!("mesh.clusterName={B}")], None)?;
    product::await_ready(a, &["mesh", "default"], PATIENCE)?;
    put_peer(a, (B, b), &json!([]))?;
    put_peer(b, (A, a), &json!([relay_of(a)?]))?;
    let (pod, target) = (pod_on(a, 1)?.0, pod_on(b, 1)?.1);
    product::first_ping(a, (TEST, &pod), target, PATIENCE)?;
    pods_see_each_other(&scene)?;
    for (cluster, peer) in [(a, B), (b, A)] {
        let row = product::await_peer(cluster, peer, PATIENCE, |row| {
            row.ready == "True" && row.path == "direct"
        })?;
        figure("peer", format!("{row:?}"));
    }
    stun_sees_who_asks(b)?;
    scene.finish()
}

/// Writes the Peer for another cluster into this one.
fn put_peer(here: &Cluster, (name, other): (&str, &Cluster), relays: &Value) -> Result<()> {
    let peer = json!({
        "apiVersion": "culvert.dev/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": name},
        "spec": {
            "identity": product::identity(other)?,
            "allowedCIDRs": [other.pods()],
            "relays": relays,
        },
    });
    here.validate(&peer.to_string())?;
    here.apply(&peer.to_string()).map(drop)
}

/// What another cluster's Peer says about the relay that this one runs.
fn relay_of(cluster: &Cluster) -> Result<Value> {
    let mesh = cluster.get(&["mesh", "default"])?;
    let relay = &mesh["status"]["relays"][0];
    figure("relay", relay);
    ensure!(relay["stunPort"] == 3478, "{relay}");
    Ok(json!({
        "url": relay["url"],
        "stunPort": relay["stunPort"],
        "caBundle": relay["caBundle"],
        "owner": product::identity(cluster)?,
    }))
}

/// The relay on a node's own port has told a node behind a router its public address.
fn stun_sees_who_asks(cluster: &Cluster) -> Result<()> {
    let node = cluster.get(&["meshnode", cluster.node(1)?.name()])?;
    let nat = &node["status"]["nat"];
    let seen = nat["reflexive"].as_array().context("no addresses")?;
    let wan = format!("{}:", cluster.wan());
    let is_public = |one: &Value| one.as_str().is_some_and(|one| one.starts_with(&wan));
    ensure!(seen.iter().any(is_public), "{wan} is not in {nat}");
    figure("NAT", nat);
    Ok(())
}
