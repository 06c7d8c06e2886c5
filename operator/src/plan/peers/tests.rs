use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Value, json};
use sync::{DownReason, NodeRecord};

use crate::plan::fixture::{Fixture, condition, down, key, secret, up};
use crate::plan::plan;
use crate::plan::tests::{linked, probed};

fn spec(identity: u8, cidrs: &[&str]) -> Value {
    json!({"identity": secret(identity).identity().to_string(), "allowedCIDRs": cidrs})
}

/// Reason and message of the condition that is `False`.
fn problem(fixture: &Fixture, peer: &str, kind: &str) -> (String, String) {
    let conditions = fixture.peer_status(peer).conditions;
    let found = api::find_condition(&conditions, kind).expect(kind);
    assert_eq!(found.status, "False", "{peer}: {found:?}");
    assert_eq!(
        condition(&conditions, "Ready"),
        ("False", found.reason.as_str())
    );
    (found.reason.clone(), found.message.clone())
}

#[test]
fn ranges_that_are_not_free_are_refused_and_named() {
    let mut fixture = Fixture::new();
    let services = json!({"spec": {"cidrs": ["10.96.0.0/12"]}});
    fixture.world.networks.push(crate::world::NetworkObject {
        kind: crate::world::NetworkKind::ServiceCidr,
        object: services,
    });
    fixture.world.networks.push(crate::world::NetworkObject {
        kind: crate::world::NetworkKind::ApiEndpoints,
        object: json!({"endpoints": [{"addresses": ["198.51.100.7"]}]}),
    });
    fixture.peer("older", spec(2, &["10.2.0.0/16"]));
    fixture.pass_seconds(1);
    let mut relay = spec(3, &["203.0.113.0/24"]);
    relay["relays"] = json!([{"url": "https://203.0.113.9"}]);
    for (name, number, cidrs) in [
        ("pods", 4, "10.0.0.0/15"),
        ("services", 5, "10.100.0.0/16"),
        ("nodes", 6, "192.0.2.0/24"),
        ("younger", 7, "10.2.128.0/17"),
        ("server", 8, "198.51.100.0/24"),
    ] {
        fixture.peer(name, spec(number, &[cidrs]));
    }
    fixture.peer("relay", relay);
    fixture.settle();
    for (peer, reason, rival) in [
        ("pods", "OverlapsOwn", "10.1.0.0/16"),
        ("services", "OverlapsOwn", "10.96.0.0/12"),
        ("nodes", "OverlapsConnected", "node n1"),
        ("younger", "OverlapsPeer", "Peer older"),
        ("server", "OverlapsConnected", "198.51.100.7"),
        ("relay", "HoldsRelay", "203.0.113.9"),
    ] {
        let (found, message) = problem(&fixture, peer, "NoOverlap");
        assert_eq!(found, reason, "{peer}");
        assert!(message.contains(rival), "{message}");
    }
    let older = fixture.peer_status("older").conditions;
    assert_eq!(condition(&older, "NoOverlap"), ("True", "NoOverlap"));
    let sync = plan(&fixture.world).sync.expect("conversations");
    assert_eq!(sync.peers.len(), 7, "who is known is spoken to");
    let admitted = fixture.world.mesh_nodes[1].spec.admitted.clone();
    let admitted = admitted.expect("decided");
    let [older] = admitted.as_slice() else {
        panic!("what agents may put into force: {admitted:?}");
    };
    assert_eq!(
        (older.name.as_str(), older.allowed_cidrs.as_slice()),
        ("older", &["10.2.0.0/16".to_owned()][..])
    );
    assert_eq!(
        Some(&older.uid),
        fixture.world.peers[0].metadata.uid.as_ref()
    );
}

#[test]
fn objects_that_make_no_sense_are_refused() {
    let mut fixture = Fixture::new();
    fixture.peer("first", spec(2, &["10.2.0.0/16"]));
    fixture.pass_seconds(1);
    fixture.peer("again", spec(2, &["10.3.0.0/16"]));
    fixture.peer("own", spec(1, &["10.4.0.0/16"]));
    fixture.peer("bad", json!({"identity": "cluster:x", "allowedCIDRs": []}));
    fixture.peer("bits", spec(5, &["10.5.0.1/16"]));
    fixture.peer("all", spec(6, &["0.0.0.0/0"]));
    fixture.peer("other", json!({"meshRef": "other", "allowedCIDRs": []}));
    fixture.settle();
    for (peer, reason) in [
        ("again", "DuplicateIdentity"),
        ("own", "OwnIdentity"),
        ("bad", "BadIdentity"),
        ("bits", "HostBitsSet"),
        ("all", "DefaultRoute"),
        ("other", "UnknownMesh"),
    ] {
        assert_eq!(problem(&fixture, peer, "Accepted").0, reason);
    }
    let sync = plan(&fixture.world).sync.expect("conversations");
    assert_eq!(sync.peers, [secret(2).identity()].into());
}

#[test]
fn what_a_peer_proposes_beyond_its_ranges_is_never_programmed() {
    let mut fixture = Fixture::new();
    fixture.peer("tokyo", spec(2, &["10.2.0.0/16"]));
    fixture.settle();
    fixture.agents_ready();
    let nodes: &[(&str, u8, &[&str])] = &[
        ("a", 20, &["10.2.1.0/24", "10.9.0.0/24"]),
        ("b", 20, &["10.2.2.0/24"]),
        ("c", 100, &["10.2.3.0/24"]),
        ("d", 21, &["10.2.1.0/24"]),
        ("e", 22, &["10.1.1.0/24"]),
        ("f", 23, &["10.2.0.0/16"]),
        ("idle", 24, &[]),
    ];
    fixture.view(secret(2).identity(), up("tokyo", nodes));
    fixture.settle();
    let slice = &fixture.world.slices[0];
    let programmed: Vec<_> = slice
        .spec
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.prefixes.join(" ")))
        .collect();
    let expected = [
        ("a", "10.2.1.0/24".to_owned()),
        ("f", "10.2.0.0/16".to_owned()),
    ];
    assert_eq!(programmed, expected);
    let status = fixture.peer_status("tokyo");
    assert_eq!(status.nodes.as_deref(), Some("2/6"));
    let refused: Vec<_> = status
        .refused
        .iter()
        .map(|claim| (claim.node.as_str(), claim.code.as_str()))
        .collect();
    assert_eq!(
        refused,
        [
            ("a", "PrefixOutsideAllowed"),
            ("b", "DuplicateKey"),
            ("c", "DuplicateKey"),
            ("d", "DuplicatePrefix"),
            ("e", "PrefixOutsideAllowed"),
        ]
    );
    assert!(status.refused[1].message.contains("node a of Peer tokyo"));
    assert!(
        status.refused[2]
            .message
            .contains("node n1 of this cluster")
    );
}

#[test]
fn nodes_given_by_hand_come_first() {
    let mut fixture = Fixture::new();
    let mut spec = spec(2, &["10.2.0.0/16"]);
    spec["nodes"] =
        json!([{"name": "a", "publicKey": key(30).to_string(), "prefixes": ["10.2.1.0/24"]}]);
    fixture.peer("tokyo", spec);
    fixture.settle();
    let nodes: &[(&str, u8, &[&str])] = &[
        ("a", 31, &["10.2.2.0/24"]),
        ("b", 30, &["10.2.3.0/24"]),
        ("c", 32, &["10.2.1.0/24"]),
        ("d", 33, &["10.2.4.0/24"]),
    ];
    fixture.view(secret(2).identity(), up("tokyo", nodes));
    fixture.settle();
    let status = fixture.peer_status("tokyo");
    let refused: Vec<_> = status
        .refused
        .iter()
        .map(|claim| claim.code.as_str())
        .collect();
    assert_eq!(
        refused,
        ["DuplicateName", "DuplicateKey", "DuplicatePrefix"]
    );
    assert_eq!(status.nodes.as_deref(), Some("2/5"));
}

#[test]
fn a_home_relay_counts_only_if_it_is_known_here() {
    let mut fixture = Fixture::new();
    let mut tokyo = spec(2, &["10.2.0.0/16"]);
    tokyo["relays"] = json!([{"url": "https://r.example"}]);
    fixture.peer("tokyo", tokyo);
    fixture.settle();
    let mut view = up("tokyo", &[]);
    let mut records = sync::Records::default();
    for (name, number, url) in [
        ("a", 20, "https://r.example"),
        ("b", 21, "https://evil.example"),
    ] {
        let prefix = format!("10.2.{number}.0/24").parse().expect("a prefix");
        let record =
            NodeRecord::new(key(number), url.parse().ok(), vec![prefix], 1).expect("a record");
        records
            .insert(name.parse().expect("a name"), Arc::new(record))
            .expect("room");
    }
    view.records = Some(Arc::new(records));
    fixture.view(secret(2).identity(), view);
    fixture.settle();
    let homes: Vec<_> = fixture.world.slices[0]
        .spec
        .nodes
        .iter()
        .map(|node| node.home_relay.as_deref())
        .collect();
    assert_eq!(homes, [Some("https://r.example"), None]);
}

#[test]
fn addresses_of_pods_may_lie_in_the_range_of_another_node() {
    let mut fixture = linked();
    let nodes: &[(&str, u8, &[&str])] = &[
        ("a", 20, &["10.2.3.4/32", "10.2.3.6/31"]),
        ("b", 21, &["10.2.3.4/32", "10.2.3.9/32"]),
        ("gateway", 22, &["10.2.0.0/16"]),
    ];
    fixture.view(secret(2).identity(), up("tokyo", nodes));
    fixture.settle();
    let slices = fixture.world.slices.iter();
    let nodes: Vec<_> = slices.flat_map(|slice| &slice.spec.nodes).collect();
    let served: Vec<_> = nodes.iter().map(|node| node.prefixes.as_slice()).collect();
    assert_eq!(
        served,
        [
            &["10.2.3.4/32".to_owned(), "10.2.3.6/31".to_owned()][..],
            &["10.2.3.9/32".to_owned()],
            &["10.2.0.0/16".to_owned()],
        ]
    );
}

/// The API server's store takes 1.5 MiB at a time, and keeps who owns which field with the object.
#[test]
fn a_full_slice_has_room() {
    let prefix = "fd00:1234:5678:9abc:def0:1234:5678:9abc/128".to_owned();
    let node = |number: usize| api::NodeSpec {
        name: format!("{number:0>253}"),
        public_key: key(1).to_string(),
        home_relay: Some("h".repeat(300)),
        prefixes: vec![prefix.clone(); api::MAX_NODE_PREFIXES],
    };
    let spec = api::PeerSliceSpec {
        peer: "p".repeat(253),
        nodes: (0..api::MAX_SLICE_NODES).map(node).collect(),
    };
    let bytes = serde_json::to_vec(&spec).expect("JSON").len();
    assert!(bytes < (3 << 19) - (64 << 10), "{bytes}");
}

fn many(count: usize) -> sync::PeerView {
    let mut view = up("tokyo", &[]);
    let mut records = sync::Records::default();
    for number in 0..count {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let key = derp::NodeKey::from_bytes(bytes).expect("a key");
        let prefix = format!("10.2.{}.{}/32", number / 250, number % 250)
            .parse()
            .expect("a prefix");
        let record = NodeRecord::new(key, None, vec![prefix], 1).expect("a record");
        let name = format!("n{number:04}").parse().expect("a name");
        records.insert(name, Arc::new(record)).expect("room");
    }
    view.records = Some(Arc::new(records));
    view
}

#[test]
fn a_change_of_one_node_touches_one_slice() {
    let mut fixture = Fixture::new();
    fixture.peer("tokyo", spec(2, &["10.2.0.0/16"]));
    fixture.view(secret(2).identity(), many(250));
    fixture.settle();
    let sizes = |fixture: &Fixture| {
        let mut sizes: Vec<_> = fixture
            .world
            .slices
            .iter()
            .map(|slice| (slice.name_any(), slice.spec.nodes.len()))
            .collect();
        sizes.sort();
        sizes
    };
    let expected = [("tokyo-0", 100), ("tokyo-1", 100), ("tokyo-2", 50)];
    let expected = expected.map(|(name, size)| (name.to_owned(), size));
    assert_eq!(sizes(&fixture), expected);
    let owner = fixture.world.slices[0].owner_references()[0].clone();
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str()),
        ("Peer", "tokyo")
    );

    let mut fewer = many(250);
    let mut records = (*fewer.records.take().expect("records")).clone();
    records.remove("n0050");
    fewer.records = Some(Arc::new(records));
    fixture.view(secret(2).identity(), fewer);
    let writes = plan(&fixture.world).actions;
    let slices = writes.iter().filter(|action| {
        matches!(
            action,
            crate::action::Action::Apply(crate::action::Object::PeerSlice(_))
        )
    });
    assert_eq!(slices.count(), 1);
    fixture.settle();
    fixture.view(secret(2).identity(), many(250));
    fixture.settle();
    assert_eq!(sizes(&fixture), expected, "the hole is filled");

    fixture.view(secret(2).identity(), many(10));
    fixture.settle();
    assert_eq!(sizes(&fixture), [("tokyo-0".to_owned(), 10)]);
}

#[test]
fn what_a_peer_said_stays_while_it_is_silent_and_what_it_may_is_looked_at_again() {
    let mut fixture = Fixture::new();
    fixture.peer("tokyo", spec(2, &["10.2.0.0/16"]));
    let nodes: &[(&str, u8, &[&str])] =
        &[("a", 20, &["10.2.1.0/24"]), ("b", 21, &["10.2.200.0/24"])];
    fixture.view(secret(2).identity(), up("tokyo", nodes));
    fixture.settle();
    for view in [Some(down(DownReason::New)), None] {
        fixture.world.sync.peers.clear();
        fixture
            .world
            .sync
            .peers
            .extend(view.map(|view| (secret(2).identity(), view)));
        fixture.settle();
        assert_eq!(fixture.world.slices[0].spec.nodes.len(), 2);
    }
    let peer = Arc::make_mut(&mut fixture.world.peers[0]);
    peer.spec.allowed_cidrs = vec!["10.2.0.0/17".to_owned()];
    fixture.settle();
    let left: Vec<_> = fixture.world.slices[0]
        .spec
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(left, ["a"]);
    let peer = Arc::make_mut(&mut fixture.world.peers[0]);
    peer.spec.allowed_cidrs = vec!["10.1.0.0/17".to_owned()];
    fixture.settle();
    assert!(
        fixture.world.slices.is_empty(),
        "a Peer that overlaps has no nodes"
    );
}

#[test]
fn a_key_given_by_hand_twice_is_that_of_the_older_peer() {
    let mut fixture = Fixture::new();
    let host = |number: u8, range: &str| json!({"allowedCIDRs": [range], "nodes": [{"name": "h", "publicKey": key(number).to_string(), "prefixes": [range]}]});
    fixture.peer("older", host(60, "10.60.0.0/24"));
    fixture.pass_seconds(1);
    fixture.peer("younger", host(60, "10.61.0.0/24"));
    fixture.settle();
    let (reason, message) = problem(&fixture, "younger", "Accepted");
    assert_eq!(reason, "DuplicateKey");
    assert!(message.contains("node h of Peer older"), "{message}");
    let older = fixture.peer_status("older").conditions;
    assert_eq!(condition(&older, "Accepted"), ("True", "Accepted"));
}

#[test]
fn an_agent_that_says_it_has_a_key_of_a_peer_takes_nothing_from_it() {
    let mut fixture = linked();
    let mut tokyo = spec(2, &["10.2.0.0/16"]);
    tokyo["nodes"] =
        json!([{"name": "h", "publicKey": key(60).to_string(), "prefixes": ["10.2.9.0/24"]}]);
    fixture.world.peers.clear();
    fixture.peer("tokyo", tokyo);
    fixture.settle();
    let admitted = |fixture: &Fixture| fixture.world.mesh_nodes[0].spec.admitted.clone();
    let (in_force, before) = (admitted(&fixture), plan(&fixture.world));
    assert!(fixture.peer_status("tokyo").refused.is_empty());

    fixture.report("n2", json!({"publicKey": key(60).to_string()}));
    fixture.settle();
    let after = plan(&fixture.world);
    assert_eq!(admitted(&fixture), in_force);
    assert_eq!(
        after.sync.map(|sync| sync.peers),
        before.sync.map(|sync| sync.peers)
    );
    let status = fixture.peer_status("tokyo");
    assert_eq!(condition(&status.conditions, "Accepted").0, "True");
    let [claim] = status.refused.as_slice() else {
        panic!("{:?}", status.refused);
    };
    assert_eq!(
        (claim.node.as_str(), claim.code.as_str()),
        ("h", "DuplicateKey")
    );
    assert!(claim.message.contains("node n2"), "{}", claim.message);

    // Nor is the key denied when the agent takes that back.
    fixture.report("n2", json!({"publicKey": key(101).to_string()}));
    let pushes = fixture.settle().denylists;
    assert!(!pushes.is_empty(), "the keys that n2 had are let go");
    for push in pushes {
        let list = derp::pass::DenyList::parse(push.json.as_bytes()).expect("a list");
        assert!(!list.nodes().contains(&key(60)), "{list:?}");
    }
}

#[test]
fn who_has_a_key_keeps_it_and_an_older_peer_is_told() {
    let mut fixture = Fixture::new();
    fixture.peer("older", spec(2, &["10.2.0.0/16"]));
    fixture.pass_seconds(1);
    fixture.peer("younger", spec(3, &["10.3.0.0/16"]));
    let own: &[(&str, u8, &[&str])] = &[("a", 20, &["10.3.1.0/24"])];
    fixture.view(secret(3).identity(), up("younger", own));
    fixture.settle();
    let thief: &[(&str, u8, &[&str])] = &[("t", 20, &["10.2.1.0/24"]), ("u", 21, &["10.2.2.0/24"])];
    fixture.view(secret(2).identity(), up("older", thief));
    fixture.settle();
    let refused = fixture.peer_status("older").refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (refused[0].node.as_str(), refused[0].code.as_str()),
        ("t", "DuplicateKey")
    );
    assert!(
        refused[0].message.contains("Peer younger"),
        "{}",
        refused[0].message
    );
    assert!(fixture.peer_status("younger").refused.is_empty());
    // Once it is given up it is free.
    let other: &[(&str, u8, &[&str])] = &[("a", 22, &["10.3.1.0/24"])];
    fixture.view(secret(3).identity(), up("younger", other));
    fixture.settle();
    assert!(fixture.peer_status("older").refused.is_empty());
}

#[test]
fn prefixes_given_by_hand_outside_the_ranges_are_refused_and_named() {
    let mut fixture = Fixture::new();
    let nodes = json!([{"name": "h", "publicKey": key(60).to_string(), "prefixes": ["10.60.0.0/24", "10.61.0.0/24"]}]);
    fixture.peer(
        "host",
        json!({"allowedCIDRs": ["10.60.0.0/16"], "nodes": nodes}),
    );
    fixture.settle();
    let status = fixture.peer_status("host");
    assert_eq!(status.nodes.as_deref(), Some("1/1"));
    let [claim] = status.refused.as_slice() else {
        panic!("{:?}", status.refused);
    };
    assert_eq!(
        (claim.node.as_str(), claim.code.as_str()),
        ("h", "PrefixOutsideAllowed")
    );
    assert!(claim.message.contains("10.61.0.0/24"), "{}", claim.message);
}

#[test]
fn peers_for_whom_there_is_no_room_are_told() {
    let mut fixture = Fixture::new();
    for number in 0..257_u32 {
        let range = format!("10.{}.{}.0/24", 100 + number / 256, number % 256);
        fixture.peer(&format!("p{number:03}"), json!({"allowedCIDRs": [range]}));
    }
    fixture.settle();
    let (reason, _) = problem(&fixture, "p256", "Accepted");
    assert_eq!(reason, "TooManyPeers");
    let node = &fixture.world.mesh_nodes[0].spec;
    assert_eq!(node.admitted.as_ref().map(Vec::len), Some(256));
    let probed: usize = fixture
        .world
        .mesh_nodes
        .iter()
        .map(|node| node.spec.probes.len())
        .sum();
    assert_eq!(probed, 256, "every Peer in force is probed");
}

/// Begins to listen anew, as an operator that has just started.
fn begin_anew(fixture: &mut Fixture) {
    let mut heard = crate::heard::Heard::default();
    for node in &fixture.world.mesh_nodes {
        heard.note(node, fixture.world.now);
    }
    heard.begin(&fixture.world.mesh_nodes);
    fixture.world.heard = heard;
}

fn ready(fixture: &mut Fixture) -> (String, String) {
    fixture.settle();
    let conditions = fixture.peer_status("tokyo").conditions;
    let (status, reason) = condition(&conditions, "Ready");
    (status.to_owned(), reason.to_owned())
}

#[test]
fn what_a_new_operator_finds_counts_for_a_while_if_it_counted_before() {
    let is = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    let mut fixture = linked();
    probed(&mut fixture, "direct", 1000);
    assert_eq!(
        ready(&mut fixture),
        is("True", "Probed"),
        "a clock that is behind"
    );
    begin_anew(&mut fixture);
    assert_eq!(ready(&mut fixture), is("True", "Probed"));
    fixture.pass_seconds(30);
    assert_eq!(ready(&mut fixture), is("True", "Probed"));
    fixture.pass_seconds(1);
    assert_eq!(ready(&mut fixture), is("Unknown", "StaleProbe"));
    begin_anew(&mut fixture);
    assert_eq!(
        ready(&mut fixture),
        is("Unknown", "StaleProbe"),
        "of any age"
    );
    probed(&mut fixture, "direct", -1000);
    assert_eq!(
        ready(&mut fixture),
        is("True", "Probed"),
        "a clock that is ahead"
    );
    fixture.pass_seconds(31);
    assert_eq!(ready(&mut fixture), is("Unknown", "StaleProbe"));
}

#[test]
fn an_agent_that_has_yet_to_take_up_a_peer_does_not_refuse_it() {
    let mut fixture = linked();
    let report = |problem: &str| {
        let peers = json!([{"name": "tokyo", "accepted": false, "problem": problem}]);
        json!({"publicKey": key(100).to_string(), "peers": peers})
    };
    for node in ["n1", "n2"] {
        fixture.report(node, report("NotAdmitted: not yet"));
    }
    assert_eq!(ready(&mut fixture).1, "NoProbe");
    for node in ["n1", "n2"] {
        fixture.report(node, report("OverlapsConnected: 10.2.0.0/16 is eth1's"));
    }
    assert_eq!(ready(&mut fixture).1, "NotProgrammed");
}
