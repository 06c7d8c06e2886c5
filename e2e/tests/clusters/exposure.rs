//! Relays that a cluster runs itself, and links that need no token.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::product;
use e2e::{ClusterSpec, Profile, figure, wait_for};

use crate::scene::{A, B, Scene, TEST, as_strs, pod_on, pods_see_each_other};
use crate::turn;

const PATIENCE: Duration = Duration::from_secs(90);

fn scene(name: &str) -> Result<Scene> {
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted),
        ClusterSpec::new("b", Profile::PortRestricted),
    ];
    Scene::new(name, &specs)
}

/// The router of A forwards one TCP port, so nobody can ask the relay for the own public address.
#[test]
fn one_forwarded_port_is_enough_for_a_relayed_link() -> Result<()> {
    let _turn = turn();
    let scene = scene("nodeport")?;
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
    let name = format!("mesh.clusterName={B}");
    product::install(scene.b(), &[&name], Some(&token))?;
    let (pod, target) = (pod_on(scene.a(), 1)?.0, pod_on(scene.b(), 1)?.1);
    product::first_ping(scene.a(), (TEST, &pod), target, PATIENCE)?;
    pods_see_each_other(&scene)?;
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

/// Two Peers with public keys only, as they lie in a repository.
#[test]
fn two_manifests_link_without_a_token() -> Result<()> {
    let _turn = turn();
    let scene = scene("gitops")?;
    let relay = format!("externalRelays[0].url={}", scene.relay.url());
    for (cluster, name) in [(scene.a(), A), (scene.b(), B)] {
        let name = format!("mesh.clusterName={name}");
        product::install(cluster, &[&name, &relay], None)?;
    }
    for (cluster, other, name) in [(scene.a(), scene.b(), B), (scene.b(), scene.a(), A)] {
        let peer = serde_json::json!({
            "apiVersion": "culvert.dev/v1alpha1",
            "kind": "Peer",
            "metadata": {"name": name},
            "spec": {
                "identity": product::identity(other)?,
                "allowedCIDRs": [other.pods()],
            },
        });
        cluster.validate(&peer.to_string())?;
        cluster.apply(&peer.to_string())?;
    }
    let (pod, target) = (pod_on(scene.a(), 1)?.0, pod_on(scene.b(), 1)?.1);
    product::first_ping(scene.a(), (TEST, &pod), target, PATIENCE)?;
    pods_see_each_other(&scene)?;
    product::await_peer(scene.a(), B, PATIENCE, |row| row.ready == "True")?;
    scene.finish()
}
