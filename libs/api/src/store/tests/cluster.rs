//! Objects of the API server instead of files, and nodes that a Peer tells.

use serde_json::{Value, json};

use super::super::*;
use super::key;
use crate::{ClusterObjects, Code, StoredObject};

/// A store and the API server it is told about.
struct Bench {
    store: Store,
    objects: ClusterObjects,
    /// Whether the operator admits every Peer as it is.
    admits: bool,
}

impl Bench {
    fn new() -> Self {
        let objects = ClusterObjects {
            node: "n1".to_owned(),
            meshes: vec![stored(
                "default",
                json!({"clusterName": "a", "relays": {"managed": [{"name": "one", "exposure": {"type": "LoadBalancer"}}]}}),
            )],
            mesh_node: Some(stored("n1", mesh_node())),
            peers: vec![stored("p", json!({"allowedCIDRs": ["10.2.0.0/16"]}))],
            slices: vec![slice("p-0", "p", &[node("t1", 1, "10.2.1.0/24")])],
        };
        Self {
            store: Store::new(key(0), None),
            objects,
            admits: true,
        }
    }

    /// What the operator has decided: name, uid and ranges.
    fn admit(&mut self, peers: &[(&str, &str, &[&str])]) {
        self.admits = false;
        let admitted: Vec<Value> = peers
            .iter()
            .map(|(name, uid, ranges)| json!({"name": name, "uid": uid, "allowedCIDRs": ranges}))
            .collect();
        self.objects.mesh_node.as_mut().expect("there").spec["admitted"] = json!(admitted);
    }

    fn update(&mut self) -> Accepted {
        if let Some(node) = self.objects.mesh_node.as_mut().filter(|_| self.admits) {
            let peers = self.objects.peers.iter();
            let admitted: Vec<Value> = peers
                .map(|peer| json!({"name": peer.name, "allowedCIDRs": peer.spec["allowedCIDRs"]}))
                .collect();
            node.spec["admitted"] = json!(admitted);
        }
        let read = FolderRead::Objects(self.objects.clone());
        let surroundings = Surroundings {
            reserved: self.objects.reserved(),
            ..Surroundings::default()
        };
        self.store.update(&read, &surroundings).clone()
    }

    fn wait(&mut self) -> Accepted {
        let what = "the API server".to_owned();
        let read = FolderRead::Waiting { what };
        self.store.update(&read, &Surroundings::default()).clone()
    }

    fn restart(&mut self) {
        let text = serde_json::to_string(&self.store.saved()).expect("serialises");
        let saved = serde_json::from_str(&text).expect("reads back");
        self.store = Store::new(key(0), Some(saved));
    }

    fn codes(&self) -> Vec<Code> {
        let errors = self.store.statuses().iter().flat_map(|one| &one.errors);
        errors.map(|error| error.code).collect()
    }
}

fn stored(name: &str, spec: Value) -> StoredObject {
    StoredObject {
        name: name.to_owned(),
        uid: String::new(),
        spec,
    }
}

fn mesh_node() -> Value {
    json!({
        "prefixes": ["10.1.1.0/24"], "reserved": ["10.1.0.0/16", "10.96.0.0/16"], "probes": ["p"],
        "relays": [{"url": "https://r.example", "dial": "https://10.96.0.9:8443", "pass": "abc"}]
    })
}

fn slice(name: &str, peer: &str, nodes: &[Value]) -> StoredObject {
    stored(name, json!({"peer": peer, "nodes": nodes}))
}

fn node(name: &str, key: u8, prefix: &str) -> Value {
    json!({"name": name, "publicKey": self::key(key).to_string(), "homeRelay": "https://r.example", "prefixes": [prefix]})
}

/// Names of a Peer's nodes in force, with the first of their prefixes.
fn nodes(accepted: &Accepted, peer: &str) -> Vec<String> {
    let peer = accepted.peers.iter().find(|one| one.name == peer);
    let shown = peer.iter().flat_map(|peer| &peer.nodes).map(|node| {
        let prefix = node.prefixes.first().map(ToString::to_string);
        format!("{} {}", node.name, prefix.unwrap_or_default())
    });
    shown.collect()
}

#[test]
fn a_mesh_is_put_together_from_the_cluster_and_the_node() {
    let mut bench = Bench::new();
    let accepted = bench.update();
    let mesh = accepted.mesh.as_ref().expect("in force");
    assert_eq!(
        (mesh.name.as_str(), mesh.cluster_name.as_str()),
        ("default", "a")
    );
    assert_eq!(mesh.pod_cidrs, ["10.1.1.0/24".parse().expect("prefix")]);
    let relay = &mesh.relays[0];
    assert_eq!(relay.pass.as_deref(), Some("abc"));
    assert_eq!(
        relay.dial.as_ref().map(ToString::to_string).as_deref(),
        Some("https://10.96.0.9:8443")
    );
    assert_eq!(nodes(&accepted, "p"), ["t1 10.2.1.0/24"]);
    assert_eq!(bench.objects.probes(), ["p"]);
    assert!(bench.codes().is_empty());
}

#[test]
fn a_node_may_serve_nothing_and_see_fields_of_a_newer_version() {
    let mut bench = Bench::new();
    bench.objects.mesh_node = Some(stored("n1", json!({"relays": [], "later": true})));
    bench.objects.peers = vec![stored(
        "p",
        json!({"allowedCIDRs": ["10.2.0.0/16"], "later": 1}),
    )];
    for _ in 0..2 {
        let accepted = bench.update();
        assert!(accepted.mesh.expect("in force").pod_cidrs.is_empty());
        assert_eq!(accepted.peers.len(), 1);
        bench.restart();
    }
    assert!(bench.wait().mesh.is_some());
}

#[test]
fn it_comes_back_from_the_saved_state_without_the_api_server() {
    let mut bench = Bench::new();
    assert_eq!(bench.wait(), Accepted::default());
    assert_eq!(bench.codes(), [Code::NotReadYet]);
    let before = bench.update();
    for _ in 0..2 {
        bench.restart();
        assert!(!bench.store.is_empty());
        assert_eq!(bench.wait(), before);
    }
    assert_eq!(bench.update(), before);
}

#[test]
fn what_is_deleted_goes_at_once() {
    let mut bench = Bench::new();
    bench.update();
    let peers = std::mem::take(&mut bench.objects.peers);
    assert!(bench.update().peers.is_empty());
    bench.objects.peers = peers;
    assert_eq!(bench.update().peers.len(), 1);
    bench.objects.slices.clear();
    assert!(nodes(&bench.update(), "p").is_empty());
    bench.objects.meshes.clear();
    assert_eq!(bench.update(), Accepted::default());
    assert!(bench.store.is_empty() || bench.store.accepted().peers.is_empty());
}

#[test]
fn without_the_mesh_node_nothing_new_comes_and_what_is_deleted_goes() {
    let mut bench = Bench::new();
    let before = bench.update();
    bench.objects.mesh_node = None;
    bench
        .objects
        .peers
        .push(stored("q", json!({"allowedCIDRs": ["10.96.0.0/24"]})));
    assert!(bench.objects.missing().expect("missing").contains("n1"));
    assert_eq!(bench.update(), before);
    assert!(bench.codes().contains(&Code::NotReadYet));
    bench.objects.peers.clear();
    assert!(bench.update().peers.is_empty());
    bench.objects.meshes.clear();
    assert_eq!((bench.update().mesh, bench.objects.missing()), (None, None));
}

#[test]
fn ranges_of_the_cluster_are_nobody_elses() {
    let mut bench = Bench::new();
    bench
        .objects
        .peers
        .push(stored("q", json!({"allowedCIDRs": ["10.96.4.0/24"]})));
    let accepted = bench.update();
    assert_eq!(accepted.peers.len(), 1);
    assert_eq!(bench.codes(), [Code::OverlapsOwn]);
    // Also when the range is reserved only later.
    bench.objects.mesh_node.as_mut().expect("there").spec["reserved"] = json!(["10.2.0.0/15"]);
    assert!(bench.update().peers.iter().all(|peer| peer.name == "q"));
}

#[test]
fn a_told_node_is_taken_or_refused_by_itself() {
    let mut bench = Bench::new();
    bench.objects.slices = vec![
        slice(
            "p-1",
            "p",
            &[
                node("t9", 1, "10.2.9.0/24"),
                node("t3", 3, "10.3.0.0/24"),
                node("T", 4, "10.2.4.0/24"),
            ],
        ),
        slice(
            "p-0",
            "p",
            &[
                node("t1", 1, "10.2.1.0/24"),
                json!({"name": 7}),
                node("t5", 0, "10.2.5.0/24"),
            ],
        ),
    ];
    let accepted = bench.update();
    assert_eq!(nodes(&accepted, "p"), ["t1 10.2.1.0/24", "t3 "]);
    let refused: Vec<_> = bench
        .store
        .refused()
        .iter()
        .map(|one| (one.node.as_str(), one.problem.code))
        .collect();
    assert_eq!(
        refused,
        [
            ("t5", Code::OwnKey),
            ("t9", Code::DuplicateKey),
            ("t3", Code::PrefixOutsideAllowed),
            ("T", Code::BadName)
        ]
    );
    // Narrowed by its owner, before whoever writes the slices has noticed.
    bench.objects.peers[0].spec = json!({"allowedCIDRs": ["10.3.0.0/16"]});
    assert_eq!(nodes(&bench.update(), "p"), ["t1 ", "t3 10.3.0.0/24"]);
}

#[test]
fn a_key_belongs_to_who_had_it_first_also_over_a_restart() {
    let mut bench = Bench::new();
    bench.update();
    bench
        .objects
        .peers
        .insert(0, stored("a", json!({"allowedCIDRs": ["10.5.0.0/16"]})));
    bench.objects.slices.insert(
        0,
        slice(
            "a-0",
            "a",
            &[
                node("thief", 1, "10.5.0.0/16"),
                node("own", 5, "10.5.0.0/16"),
            ],
        ),
    );
    for _ in 0..2 {
        let accepted = bench.update();
        assert_eq!(nodes(&accepted, "p"), ["t1 10.2.1.0/24"]);
        assert_eq!(nodes(&accepted, "a"), ["own 10.5.0.0/16"]);
        bench.restart();
        assert_eq!(bench.wait(), accepted);
    }
}

#[test]
fn a_home_relay_that_is_not_ours_is_no_home() {
    let mut bench = Bench::new();
    bench.objects.slices[0].spec["nodes"][0]["homeRelay"] = json!("https://evil.example");
    let accepted = bench.update();
    assert_eq!(accepted.peers[0].nodes[0].home_relay, None);
    assert!(bench.codes().is_empty() && bench.store.refused().is_empty());
}

#[test]
fn told_nodes_count_for_the_identity_that_told_them() {
    let mut store = Store::new(key(0), None);
    let (a, b) = (identity(1), identity(2));
    let spec = |identity: ClusterIdentity| {
        let text = format!(
            "{}\n---\n{{apiVersion: culvert.dev/v1alpha1, kind: Peer, metadata: {{name: p}}, spec: {{identity: '{identity}', allowedCIDRs: [10.2.0.0/16]}}}}",
            super::MESH
        );
        FolderRead::Files(vec![crate::FileRead {
            name: "a.yaml".to_owned(),
            content: Ok(text.into_bytes()),
        }])
    };
    let told: Vec<NodeSpec> =
        serde_json::from_value(json!([node("t1", 1, "10.2.1.0/24")])).expect("nodes");
    assert!(store.learn("p", Some(a), told.clone()));
    assert!(!store.learn("p", Some(a), told));
    let none = Surroundings::default();
    assert_eq!(
        nodes(store.update(&spec(a), &none), "p"),
        ["t1 10.2.1.0/24"]
    );
    store = Store::new(key(0), Some(store.saved()));
    assert_eq!(
        nodes(store.update(&spec(a), &none), "p"),
        ["t1 10.2.1.0/24"]
    );
    assert!(nodes(store.update(&spec(b), &none), "p").is_empty());
}

fn identity(seed: u8) -> ClusterIdentity {
    derp::ClusterSecret::from_seed([seed; 32])
        .expect("a seed")
        .identity()
}

#[test]
fn relays_that_a_peer_brings_are_used_and_reachable() {
    let mut store = Store::new(key(0), None);
    let read = |cidr: &str| {
        let text = format!(
            "{}\n---\n{{apiVersion: culvert.dev/v1alpha1, kind: Peer, metadata: {{name: p}}, spec: {{allowedCIDRs: ['{cidr}'], relays: [{{url: 'http://192.0.2.9:80'}}], nodes: [{{name: n, publicKey: '{}', homeRelay: 'http://192.0.2.9:80', prefixes: []}}]}}}}",
            super::MESH,
            key(1)
        );
        FolderRead::Files(vec![crate::FileRead {
            name: "a.yaml".to_owned(),
            content: Ok(text.into_bytes()),
        }])
    };
    let none = Surroundings::default();
    let accepted = store.update(&read("10.2.0.0/16"), &none);
    assert_eq!(accepted.mesh.as_ref().expect("in force").relays.len(), 3);
    assert!(accepted.peers[0].nodes[0].home_relay.is_some());
    let accepted = store.update(&read("192.0.2.0/24"), &none);
    assert_eq!(
        accepted.peers[0].allowed_cidrs,
        ["10.2.0.0/16".parse().expect("prefix")]
    );
    let codes: Vec<Code> = store
        .statuses()
        .iter()
        .flat_map(|one| &one.errors)
        .map(|error| error.code)
        .collect();
    assert_eq!(codes, [Code::HoldsRelay]);
}

/// The ranges of every Peer in force.
fn ranges(accepted: &Accepted) -> Vec<String> {
    let peers = accepted.peers.iter();
    let of = |peer: &PeerConfig| {
        let ranges = peer.allowed_cidrs.iter().map(ToString::to_string);
        format!("{} {}", peer.name, ranges.collect::<Vec<_>>().join(" "))
    };
    peers.map(of).collect()
}

#[test]
fn nothing_is_in_force_that_the_operator_has_not_admitted() {
    let mut bench = Bench::new();
    bench.admits = false;
    assert!(bench.update().peers.is_empty(), "not decided yet");
    assert_eq!(bench.codes(), [Code::NotReadYet]);
    bench.admit(&[]);
    assert!(bench.update().peers.is_empty());
    assert_eq!(bench.codes(), [Code::NotAdmitted]);
    bench.admit(&[("p", "", &["10.2.0.0/16"])]);
    let before = bench.update();
    assert_eq!(nodes(&before, "p"), ["t1 10.2.1.0/24"]);
    // The operator, and then the API server, are away.
    for _ in 0..2 {
        assert_eq!(bench.update(), before);
        assert_eq!(bench.wait(), before);
        bench.restart();
    }
    bench.admit(&[]);
    assert!(bench.update().peers.is_empty(), "no longer admitted");
    bench.restart();
    assert!(bench.wait().peers.is_empty());
}

#[test]
fn a_peer_has_what_it_asks_for_and_what_is_admitted() {
    let mut bench = Bench::new();
    bench.admit(&[("p", "", &["10.2.0.0/16"])]);
    bench.update();
    let mut ask = |ranges: &[&str]| {
        bench.objects.peers[0].spec = json!({"allowedCIDRs": ranges});
        self::ranges(&bench.update())
    };
    // The operator has not seen any of it.
    assert_eq!(ask(&["10.2.0.0/16", "10.3.0.0/16"]), ["p 10.2.0.0/16"]);
    assert_eq!(ask(&["10.2.0.0/15"]), ["p 10.2.0.0/16"]);
    assert_eq!(ask(&["10.2.0.0/17"]), ["p 10.2.0.0/17"]);
    assert_eq!(ask(&["10.4.0.0/16"]), ["p "]);
}

#[test]
fn of_two_that_overlap_the_admitted_one_is_in_force_whoever_came_first() {
    let mut bench = Bench::new();
    bench.admit(&[("p", "", &["10.2.0.0/16"])]);
    let q = stored("q", json!({"allowedCIDRs": ["10.2.128.0/17"]}));
    bench.objects.peers.push(q);
    assert_eq!(ranges(&bench.update()), ["p 10.2.0.0/16"]);
    bench.admit(&[("q", "", &["10.2.128.0/17"])]);
    assert_eq!(ranges(&bench.update()), ["q 10.2.128.0/17"]);
}

#[test]
fn a_last_good_state_is_narrowed_with_its_peer_and_its_admission() {
    let mut bench = Bench::new();
    bench.objects.slices[0] = slice(
        "p-0",
        "p",
        &[node("t1", 1, "10.2.1.0/24"), node("t2", 2, "10.2.200.0/24")],
    );
    bench.admit(&[("p", "", &["10.2.0.0/16"])]);
    bench.update();
    // Bad from now on, so that what was in force stays, as far as it may.
    let broken = json!([{"name": "n", "publicKey": "none", "prefixes": []}]);
    bench.objects.peers[0].spec = json!({"allowedCIDRs": ["10.2.0.0/17"], "nodes": broken});
    let accepted = bench.update();
    assert_eq!(bench.codes(), [Code::BadKey]);
    assert_eq!(ranges(&accepted), ["p 10.2.0.0/17"]);
    assert_eq!(nodes(&accepted, "p"), ["t1 10.2.1.0/24", "t2 "]);
    bench.admit(&[("p", "", &["10.2.64.0/18"])]);
    assert_eq!(ranges(&bench.update()), ["p 10.2.64.0/18"]);
    bench.objects.mesh_node = None;
    bench.objects.peers[0].spec["allowedCIDRs"] = json!(["10.2.64.0/19"]);
    assert_eq!(ranges(&bench.update()), ["p 10.2.64.0/19"]);
    bench.restart();
    assert_eq!(ranges(&bench.wait()), ["p 10.2.64.0/19"]);
}

#[test]
fn a_peer_that_is_made_anew_is_another() {
    let mut bench = Bench::new();
    bench.objects.peers[0].uid = "one".to_owned();
    bench.admit(&[("p", "one", &["10.2.0.0/16"])]);
    assert_eq!(bench.update().peers.len(), 1);
    bench.objects.peers[0].uid = "two".to_owned();
    assert!(bench.update().peers.is_empty());
    bench.admit(&[("p", "two", &["10.2.0.0/16"])]);
    assert_eq!(bench.update().peers.len(), 1);
}
