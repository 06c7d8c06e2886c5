use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use api::MeshNode;
use derp::pass::{LIFETIME, Membership, Scope};
use serde_json::json;

use crate::plan::draft::find;
use crate::plan::fixture::{Fixture, key, secret, up};
use crate::plan::plan;
use crate::plan::tests::linked;
use crate::world::Pods;

fn node<'a>(fixture: &'a Fixture, name: &str) -> &'a MeshNode {
    find(&fixture.world.mesh_nodes, name).expect("a MeshNode")
}

fn prober(fixture: &Fixture) -> Option<String> {
    let nodes = fixture.world.mesh_nodes.iter();
    let mut probing = nodes.filter(|node| node.spec.probes == ["tokyo"]);
    probing.next().and_then(|node| node.metadata.name.clone())
}

#[test]
fn every_node_has_one_and_goes_with_it() {
    let mut fixture = linked();
    let n1 = node(&fixture, "n1");
    assert_eq!(n1.spec.prefixes, ["10.1.1.0/24"]);
    assert_eq!(n1.spec.reserved, ["10.1.0.0/16"]);
    let owner = &n1.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!(
        (owner.kind.as_str(), owner.api_version.as_str()),
        ("Node", "v1")
    );
    fixture.world.nodes.remove(0);
    fixture.settle();
    assert!(find::<MeshNode>(&fixture.world.mesh_nodes, "n1").is_none());
    let records = plan(&fixture.world).sync.expect("conversations").records;
    assert_eq!(records.len(), 1);
}

#[test]
fn a_node_gets_a_pass_as_soon_as_it_has_a_key() {
    let mut fixture = Fixture::new();
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"],
        "relays": {
            "managed": [{"name": "main", "exposure": {"type": "HostPort", "host": "203.0.113.1"}}],
            "external": [
                {"url": "http://203.0.113.20:8080"},
                {"url": "http://203.0.113.21:8080", "owner": secret(42).identity().to_string()},
            ],
        },
    }));
    fixture.settle();
    let relays = &node(&fixture, "n1").spec.relays;
    assert_eq!(relays.len(), 3);
    assert!(relays.iter().all(|relay| relay.pass.is_none()));
    fixture.agents_ready();
    fixture.settle();
    let relays = node(&fixture, "n1").spec.relays.clone();
    assert_eq!(relays[0].dial.as_deref(), Some("https://10.96.0.7"));
    assert!(relays[1].pass.is_some(), "without an owner it is ours");
    assert!(relays[2].pass.is_none(), "its owner has not let us in");
    let pass = relays[0].pass.clone().expect("a pass");
    let now = SystemTime::from(fixture.now());
    let owners = HashSet::from([secret(1).identity()]);
    let admitted = derp::pass::verify(&pass, &owners, &key(100), now).expect("admitted");
    assert!(admitted.expires >= now + LIFETIME / 2);
    fixture.pass_seconds(3600);
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.relays, relays);
    fixture.pass_seconds(4 * 24 * 3600);
    fixture.settle();
    assert_ne!(node(&fixture, "n1").spec.relays[0].pass, relays[0].pass);
}

#[test]
fn relays_of_peers_are_used_with_what_they_sent() {
    let mut fixture = linked();
    let peer = Arc::make_mut(&mut fixture.world.peers[0]);
    let tokyo = secret(2).identity().to_string();
    let relays = json!([{"url": "https://relay.tokyo.example", "owner": tokyo}]);
    peer.spec.relays = serde_json::from_value(relays).expect("relays");
    fixture.settle();
    assert!(node(&fixture, "n1").spec.relays[1].pass.is_none());
    let end = SystemTime::from(fixture.now()) + LIFETIME;
    let membership = Membership::issue(&secret(2), secret(1).identity(), Scope::Mesh, end);
    let mut view = up("tokyo", &[("t1", 20, &["10.2.1.0/24"])]);
    view.membership = Some(membership.to_string());
    fixture.view(secret(2).identity(), view);
    let sync = fixture.settle().sync.expect("conversations");
    assert!(sync.relays[1].pass.is_some());
    let pass = node(&fixture, "n1").spec.relays[1]
        .pass
        .clone()
        .expect("a pass");
    let owners = HashSet::from([secret(2).identity()]);
    let now = SystemTime::from(fixture.now());
    assert!(derp::pass::verify(&pass, &owners, &key(100), now).is_ok());

    fixture.world.sync.peers.clear();
    fixture.settle();
    assert_eq!(
        node(&fixture, "n1").spec.relays[1].pass.as_ref(),
        Some(&pass),
        "it is kept"
    );
}

#[test]
fn one_ready_node_probes_and_goes_on_doing_so() {
    let mut fixture = linked();
    let first = prober(&fixture).expect("somebody probes");
    let other = if first == "n1" { "n2" } else { "n1" };
    let status = node(&fixture, &first).status.clone().expect("a status");
    let mut unready = serde_json::to_value(&status).expect("JSON");
    unready["conditions"][0]["status"] = json!("False");
    fixture.report(&first, unready);
    fixture.settle();
    assert_eq!(prober(&fixture).as_deref(), Some(other));
    fixture.report(&first, serde_json::to_value(&status).expect("JSON"));
    fixture.settle();
    assert_eq!(
        prober(&fixture).as_deref(),
        Some(other),
        "no need to change back"
    );
    let index = usize::from(other == "n2");
    let dead = Arc::make_mut(&mut fixture.world.nodes[index]);
    dead.status = None;
    fixture.settle();
    assert_eq!(
        prober(&fixture),
        Some(first),
        "a dead node's word does not count"
    );
}

#[test]
fn a_node_that_serves_nothing_does_not_probe() {
    let mut fixture = linked();
    let first = prober(&fixture).expect("somebody probes");
    let other = if first == "n1" { "n2" } else { "n1" };
    for node in &mut fixture.world.nodes {
        Arc::make_mut(node).spec = None;
    }
    for at in [other, &first] {
        pods(&mut fixture, &[("10.1.7.9", at)]);
        fixture.settle();
        assert_eq!(
            prober(&fixture).as_deref(),
            Some(at),
            "nobody knows the other"
        );
    }
}

#[test]
fn one_gateway_serves_for_nodes_without_prefixes() {
    let mut fixture = Fixture::new();
    for node in &mut fixture.world.nodes {
        let node = Arc::make_mut(node);
        node.spec = None;
        node.metadata.labels = Some([("culvert.dev/gateway".to_owned(), "true".to_owned())].into());
    }
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.prefixes, ["10.1.0.0/16"]);
    assert!(node(&fixture, "n2").spec.prefixes.is_empty());
    fixture.agents_ready();
    let status = node(&fixture, "n2").status.clone();
    fixture.report("n1", json!({"peers": []}));
    fixture.settle();
    assert_eq!(node(&fixture, "n2").spec.prefixes, ["10.1.0.0/16"]);
    assert!(status.is_some() && node(&fixture, "n1").spec.prefixes.is_empty());
    fixture.agents_ready();
    fixture.settle();
    assert_eq!(
        node(&fixture, "n2").spec.prefixes,
        ["10.1.0.0/16"],
        "it stays"
    );
}

#[test]
fn whose_pods_are_not_linked_is_told() {
    let found = |fixture: &Fixture| {
        let conditions = fixture.mesh_status().conditions;
        let found = api::find_condition(&conditions, "CIDRsResolved").expect("there");
        (
            found.status == "True",
            found.reason.clone(),
            found.message.clone(),
        )
    };
    let mut fixture = Fixture::new();
    fixture.settle();
    let (resolved, _, message) = found(&fixture);
    assert!(resolved && !message.contains("not linked"), "{message}");
    fixture.node("bare", &[]);
    fixture.settle();
    let (resolved, _, message) = found(&fixture);
    assert!(resolved && message.contains("belong to bare:"), "{message}");
    for node in &mut fixture.world.nodes {
        Arc::make_mut(node).spec = None;
    }
    fixture.settle();
    let nothing = |fixture: &Fixture, why: &str| {
        let (resolved, reason, message) = found(fixture);
        assert!(
            !resolved && reason == "NothingServed",
            "{reason}: {message}"
        );
        assert!(message.contains(why), "{message}");
    };
    let (resolved, _, message) = found(&fixture);
    assert!(
        resolved && message.contains("not seen the pods yet"),
        "{message}"
    );
    fixture.world.pods = Pods::Known(Arc::default());
    fixture.settle();
    assert!(found(&fixture).0, "there are none");
    fixture.world.pods = Pods::Unknown;
    fixture.settle();
    nothing(&fixture, "not seen the pods yet");
    fixture.world.pods = Pods::Forbidden;
    fixture.settle();
    nothing(&fixture, "operator.watchPods");
    gateway(&mut fixture, 0);
    fixture.settle();
    let (resolved, _, message) = found(&fixture);
    assert!(
        resolved && message.contains("only pods on n1 are linked"),
        "{message}"
    );
    pods(&mut fixture, &[("10.1.0.5", "n2")]);
    fixture.settle();
    let (resolved, _, message) = found(&fixture);
    assert!(resolved && !message.contains("not linked"), "{message}");
    pods(
        &mut fixture,
        &[("10.1.0.5", "n2"), ("10.9.0.5", "bare"), ("fd01::5", "n1")],
    );
    fixture.settle();
    let (resolved, _, message) = found(&fixture);
    assert!(
        resolved && message.contains("such as 10.9.0.5 on bare"),
        "{message}"
    );
}

#[test]
fn nodes_without_ranges_serve_the_addresses_of_their_pods() {
    let mut fixture = linked();
    assert!(!plan(&fixture.world).watch_pods, "they have ranges");
    for node in &mut fixture.world.nodes {
        Arc::make_mut(node).spec = None;
    }
    fixture.settle();
    assert!(plan(&fixture.world).watch_pods);
    pods(
        &mut fixture,
        &[
            ("10.1.0.9", "n2"),
            ("10.1.0.4", "n1"),
            ("10.1.0.5", "n1"),
            ("10.9.0.1", "n1"),
            ("10.1.0.7", "gone"),
        ],
    );
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.prefixes, ["10.1.0.4/31"]);
    assert_eq!(node(&fixture, "n2").spec.prefixes, ["10.1.0.9/32"]);
    let records = plan(&fixture.world).sync.expect("conversations").records;
    let told = records.find("n1").expect("told").prefixes();
    assert_eq!(crate::plan::discovery::texts(told), ["10.1.0.4/31"]);

    let before = node(&fixture, "n1").metadata.resource_version.clone();
    fixture.world.pods = Pods::Unknown;
    fixture.settle();
    let after = &node(&fixture, "n1").metadata.resource_version;
    assert_eq!(
        after, &before,
        "a new operator takes nothing back before it has seen the pods"
    );

    pods(&mut fixture, &[("10.1.0.5", "n2"), ("10.1.0.9", "n2")]);
    fixture.settle();
    assert!(node(&fixture, "n1").spec.prefixes.is_empty());
    let moved = &node(&fixture, "n2").spec.prefixes;
    assert_eq!(moved, &["10.1.0.5/32", "10.1.0.9/32"]);
}

#[test]
fn a_gateway_serves_the_ranges_besides_the_addresses_of_the_others() {
    let mut fixture = linked();
    for node in &mut fixture.world.nodes {
        Arc::make_mut(node).spec = None;
    }
    gateway(&mut fixture, 0);
    pods(&mut fixture, &[("10.1.0.4", "n1"), ("10.1.0.9", "n2")]);
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.prefixes, ["10.1.0.0/16"]);
    assert_eq!(node(&fixture, "n2").spec.prefixes, ["10.1.0.9/32"]);
    fixture.world.pods = Pods::Unknown;
    Arc::make_mut(&mut fixture.world.nodes[0]).metadata.labels = None;
    gateway(&mut fixture, 1);
    fixture.settle();
    assert!(node(&fixture, "n1").spec.prefixes.is_empty(), "not two");
    assert_eq!(node(&fixture, "n2").spec.prefixes, ["10.1.0.0/16"]);
}

fn pods(fixture: &mut Fixture, at: &[(&str, &str)]) {
    let pair = |(address, node): &(&str, &str)| {
        let address = address.parse().expect("an address");
        (address, Arc::from(*node))
    };
    fixture.world.pods = Pods::Known(Arc::new(at.iter().map(pair).collect()));
}

fn gateway(fixture: &mut Fixture, index: usize) {
    let node = Arc::make_mut(&mut fixture.world.nodes[index]);
    node.metadata.labels = Some([("culvert.dev/gateway".to_owned(), "true".to_owned())].into());
}

/// Lets an agent say that it is there, at a time of its own.
fn heartbeat(fixture: &mut Fixture, name: &str, second: i64) {
    let mut status = serde_json::to_value(node(fixture, name).status.clone()).expect("JSON");
    let at = jiff::Timestamp::from_second(second).expect("a time");
    status["heartbeatAt"] = json!(at.to_string());
    fixture.report(name, status);
}

fn agents(fixture: &Fixture) -> (String, String, String) {
    let conditions = fixture.mesh_status().conditions;
    let found = api::find_condition(&conditions, "AgentsReady").expect("there");
    (
        found.status.clone(),
        found.reason.clone(),
        found.message.clone(),
    )
}

#[test]
fn a_silent_agent_is_not_ready_and_others_take_over() {
    let mut fixture = linked();
    let silent = prober(&fixture).expect("somebody probes");
    let other = if silent == "n1" { "n2" } else { "n1" };
    crate::plan::tests::probed(&mut fixture, "direct", 0);
    heartbeat(&mut fixture, &silent, 7);
    heartbeat(&mut fixture, other, 9);
    fixture.settle();
    let records = plan(&fixture.world).sync.expect("conversations").records;
    for second in 1..=4 {
        fixture.pass_seconds(11);
        heartbeat(&mut fixture, other, 9 + 11 * second);
        let plan = plan(&fixture.world);
        assert_eq!(plan.sync.expect("conversations").records, records);
        fixture.settle();
        assert_eq!(prober(&fixture).as_ref(), Some(&silent), "after {second}");
    }
    let wake = fixture.settle().wake_after.expect("another look");
    assert_eq!(wake.as_secs(), 1);
    fixture.pass_seconds(1);
    fixture.settle();
    let (status, reason, message) = agents(&fixture);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "AgentsNotReady")
    );
    assert!(message.contains(&format!("{silent} (silent)")), "{message}");
    assert!(!message.contains(other), "{message}");
    assert_eq!(fixture.mesh_status().nodes.as_deref(), Some("1/2"));
    assert_eq!(prober(&fixture).as_deref(), Some(other));
    let peer = fixture.peer_status("tokyo");
    let ready = api::find_condition(&peer.conditions, "Ready").expect("there");
    assert_eq!((ready.status.as_str(), peer.path), ("Unknown", None));
    heartbeat(&mut fixture, &silent, 8);
    fixture.settle();
    assert_eq!(agents(&fixture).0, "True");
}

#[test]
fn a_gateway_whose_agent_is_silent_is_replaced() {
    let mut fixture = Fixture::new();
    for node in &mut fixture.world.nodes {
        let node = Arc::make_mut(node);
        node.spec = None;
        node.metadata.labels = Some([("culvert.dev/gateway".to_owned(), "true".to_owned())].into());
    }
    fixture.settle();
    fixture.agents_ready();
    heartbeat(&mut fixture, "n1", 1);
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.prefixes, ["10.1.0.0/16"]);
    fixture.pass_seconds(44);
    heartbeat(&mut fixture, "n2", 1);
    fixture.settle();
    assert_eq!(node(&fixture, "n1").spec.prefixes, ["10.1.0.0/16"]);
    fixture.pass_seconds(1);
    fixture.settle();
    assert_eq!(node(&fixture, "n2").spec.prefixes, ["10.1.0.0/16"]);
    assert!(node(&fixture, "n1").spec.prefixes.is_empty());
}

fn agent_on(fixture: &mut Fixture, node: &str) {
    let pod = json!({"metadata": {"name": node}, "spec": {"nodeName": node, "containers": []}});
    let pod = serde_json::from_value(pod).expect("a Pod");
    fixture.world.owned.agents.push(Arc::new(pod));
}

#[test]
fn nodes_without_an_agent_do_not_count_and_are_named() {
    let mut fixture = Fixture::new();
    fixture.settle();
    assert_eq!(agents(&fixture).1, "NoAgents");
    fixture.node("windows", &["10.1.3.0/24"]);
    fixture.settle();
    fixture.agents_ready();
    fixture.settle();
    let (status, _, message) = agents(&fixture);
    assert_eq!(status, "True");
    assert!(message.ends_with("without one are windows"), "{message}");
    assert_eq!(fixture.mesh_status().nodes.as_deref(), Some("2/2"));
    agent_on(&mut fixture, "windows");
    fixture.settle();
    let (_, reason, message) = agents(&fixture);
    assert_eq!(reason, "AgentsNotReady");
    assert!(
        message.contains("1 of 3 nodes are not ready: windows"),
        "{message}"
    );
}

#[test]
fn two_nodes_with_one_key_are_named() {
    let mut fixture = linked();
    let status = serde_json::to_value(node(&fixture, "n1").status.clone()).expect("JSON");
    fixture.report("n2", status);
    fixture.settle();
    let (_, reason, message) = agents(&fixture);
    assert_eq!(reason, "DuplicateKey");
    assert!(message.contains("n1, n2"), "{message}");
}

#[test]
fn what_a_node_cannot_serve_is_told() {
    let mut fixture = Fixture::new();
    let many: Vec<String> = (0..257)
        .map(|number| format!("10.1.{}.{}/32", number / 100, 2 * (number % 100)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    fixture.node("n3", &many);
    fixture.settle();
    assert_eq!(node(&fixture, "n3").spec.prefixes.len(), 256);
    let conditions = fixture.mesh_status().conditions;
    let found = api::find_condition(&conditions, "CIDRsResolved").expect("there");
    assert_eq!(found.reason, "TooManyPrefixes");
    assert!(
        found.message.contains("n3 should serve 257"),
        "{}",
        found.message
    );
}

#[test]
fn peers_are_told_of_a_node_again_only_if_something_of_it_is_new_to_them() {
    let mut fixture = linked();
    let records = |fixture: &Fixture| {
        let sync = plan(&fixture.world).sync;
        sync.expect("conversations").records
    };
    let (before, passes) = (records(&fixture), node(&fixture, "n1").spec.relays.clone());
    fixture.pass_seconds(4 * 24 * 3600);
    fixture.settle();
    for node in &mut fixture.world.mesh_nodes {
        Arc::make_mut(node).metadata.generation = Some(7);
    }
    assert_ne!(node(&fixture, "n1").spec.relays, passes, "renewed");
    assert_eq!(records(&fixture), before);
    fixture.report("n1", json!({"publicKey": key(110).to_string()}));
    let after = records(&fixture);
    assert_ne!(after.find("n1"), before.find("n1"));
    assert_eq!(after.find("n2"), before.find("n2"));
}
