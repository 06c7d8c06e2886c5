mod cluster;

use super::*;
use crate::{Code, FileRead};

const MESH: &str = "{apiVersion: culvert.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {clusterName: a, podCIDRs: [10.1.0.0/16], relays: {external: [{url: 'http://203.0.113.20:80'}, {url: 'https://r.example'}]}}}";

fn peer(name: &str, cidr: &str, key: u8) -> String {
    peer_at(name, cidr, key, "https://r.example")
}

fn peer_at(name: &str, cidr: &str, key: u8, relay: &str) -> String {
    let key = self::key(key);
    format!(
        "{{apiVersion: culvert.dev/v1alpha1, kind: Peer, metadata: {{name: {name}}}, spec: {{allowedCIDRs: ['{cidr}'], nodes: [{{name: n, publicKey: '{key}', homeRelay: '{relay}', prefixes: ['{cidr}']}}]}}}}"
    )
}

fn key(number: u8) -> NodeKey {
    format!("nodekey:{number:02x}{}", "5a".repeat(31))
        .parse()
        .expect("a key")
}

/// A store and the folder it reads.
struct Bench {
    store: Store,
    files: BTreeMap<String, Result<String, String>>,
    surroundings: Surroundings,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            store: Store::new(key(0), None),
            files: BTreeMap::new(),
            surroundings: Surroundings::default(),
        };
        bench.write("mesh.yaml", MESH);
        bench
    }

    fn write(&mut self, file: &str, text: impl Into<String>) {
        self.files.insert(file.to_owned(), Ok(text.into()));
    }

    fn lock(&mut self, file: &str) {
        self.files
            .insert(file.to_owned(), Err("Permission denied".to_owned()));
    }

    fn folder(&self) -> FolderRead {
        let files = self.files.iter().map(|(name, content)| FileRead {
            name: name.clone(),
            content: content.clone().map(String::into_bytes),
        });
        FolderRead::Files(files.collect())
    }

    /// Updates, and returns the Peers in force with the first of their prefixes.
    fn peers(&mut self) -> Vec<String> {
        let accepted = self.store.update(&self.folder(), &self.surroundings);
        let shown = accepted
            .peers
            .iter()
            .map(|peer| format!("{} {}", peer.name, peer.allowed_cidrs[0]));
        shown.collect()
    }

    fn codes(&self) -> Vec<(String, Code)> {
        let errors = self
            .store
            .statuses()
            .iter()
            .flat_map(|status| &status.errors);
        errors
            .map(|error| (error.file.clone(), error.code))
            .collect()
    }

    fn restart(&mut self) {
        let text = serde_json::to_string(&self.store.saved()).expect("serialises");
        let saved = serde_json::from_str(&text).expect("reads back");
        self.store = Store::new(key(0), Some(saved));
    }
}

fn err(file: &str, code: Code) -> (String, Code) {
    (file.to_owned(), code)
}

#[test]
fn a_bad_document_leaves_its_last_good_state_also_over_a_restart() {
    let mut bench = Bench::new();
    bench.write(
        "a.yaml",
        peer("a", "10.2.0.0/16", 1) + "\n---\n" + &peer("b", "10.3.0.0/16", 2),
    );
    assert_eq!(bench.peers(), ["a 10.2.0.0/16", "b 10.3.0.0/16"]);
    bench.write(
        "a.yaml",
        peer("a", "10.2.0.1/16", 1) + "\n---\n" + &peer("b", "10.4.0.0/16", 2),
    );
    for _ in 0..2 {
        assert_eq!(bench.peers(), ["a 10.2.0.0/16", "b 10.4.0.0/16"]);
        assert!(bench.codes().contains(&err("a.yaml", Code::HostBitsSet)));
        bench.restart();
    }
    bench.write("a.yaml", peer("b", "10.4.0.0/16", 2));
    assert_eq!(bench.peers(), ["b 10.4.0.0/16"]);
}

#[test]
fn a_syntax_error_harms_no_other_document_and_revokes_nothing() {
    let mut bench = Bench::new();
    bench.write(
        "a.yaml",
        peer("a", "10.2.0.0/16", 1) + "\n---\n" + &peer("b", "10.3.0.0/16", 2),
    );
    bench.peers();
    bench.write(
        "a.yaml",
        "kind: [\n---\n".to_owned() + &peer("b", "10.4.0.0/16", 2),
    );
    assert_eq!(bench.peers(), ["a 10.2.0.0/16", "b 10.4.0.0/16"]);
    let statuses = bench.store.statuses();
    let of = |name: Option<&str>| {
        statuses
            .iter()
            .find(|status| status.name.as_deref() == name)
            .expect("reported")
    };
    assert_eq!(of(None).errors, of(Some("a")).errors);
    assert!(of(Some("b")).accepted && !of(Some("a")).accepted);
}

#[test]
fn an_unreadable_file_leaves_everything_read_from_it() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    bench.lock("a.yaml");
    bench.lock("mesh.yaml");
    for _ in 0..2 {
        assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
        bench.restart();
    }
    bench.write("b.yaml", peer("a", "10.5.0.0/16", 1));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    assert!(
        bench
            .codes()
            .contains(&err("b.yaml", Code::DuplicateObject))
    );
    bench.files.remove("a.yaml");
    assert_eq!(bench.peers(), ["a 10.5.0.0/16"]);
}

#[test]
fn an_object_may_move_to_another_file() {
    let mut bench = Bench::new();
    bench.write("b.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    bench.files.remove("b.yaml");
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    assert_eq!(bench.codes(), []);
    bench.files.remove("a.yaml");
    assert!(bench.peers().is_empty());
}

#[test]
fn without_a_mesh_nothing_is_in_force_but_all_is_reported() {
    let mut bench = Bench::new();
    bench.files.clear();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    assert!(bench.peers().is_empty() && bench.store.accepted().mesh.is_none());
    assert_eq!(bench.store.statuses().len(), 1);
    bench.write("mesh.yaml", MESH);
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    bench.write("a.yaml", peer("a", "10.2.0.1/16", 1));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    bench.files.remove("mesh.yaml");
    assert!(bench.peers().is_empty());
    bench.write("mesh.yaml", MESH);
    assert!(
        bench.peers().is_empty(),
        "what was revoked does not come back by its last good state"
    );
}

#[test]
fn of_two_documents_for_one_object_the_one_in_force_stays() {
    let mut bench = Bench::new();
    bench.write("b.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    bench.write("a.yaml", peer("a", "10.3.0.0/16", 1));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    assert_eq!(bench.codes(), [err("a.yaml", Code::DuplicateObject)]);
    bench.restart();
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    bench.store = Store::new(key(0), None);
    assert_eq!(bench.peers(), ["a 10.3.0.0/16"]);
    assert_eq!(bench.codes(), [err("b.yaml", Code::DuplicateObject)]);
}

#[test]
fn the_mesh_in_force_stays() {
    let mut bench = Bench::new();
    bench.peers();
    let second = MESH.replace("name: default", "name: other");
    bench.write("a.yaml", second);
    bench.peers();
    assert_eq!(
        bench.store.accepted().mesh.as_ref().expect("a mesh").name,
        "default"
    );
    assert_eq!(bench.codes(), [err("a.yaml", Code::SecondMesh)]);
    bench.write(
        "mesh.yaml",
        MESH.replace("clusterName: a", "clusterName: A"),
    );
    bench.peers();
    assert_eq!(
        bench
            .store
            .accepted()
            .mesh
            .as_ref()
            .expect("a mesh")
            .cluster_name,
        "a"
    );
    bench.files.remove("mesh.yaml");
    bench.peers();
    assert_eq!(
        bench.store.accepted().mesh.as_ref().expect("a mesh").name,
        "other"
    );
}

#[test]
fn of_two_peers_in_conflict_the_one_in_force_stays_else_the_first() {
    let mut bench = Bench::new();
    bench.write("b.yaml", peer("b", "10.2.0.0/16", 1));
    bench.peers();
    bench.write("a.yaml", peer("a", "10.2.128.0/17", 2));
    bench.write("c.yaml", peer("c", "10.3.0.0/16", 1));
    assert_eq!(bench.peers(), ["b 10.2.0.0/16"]);
    assert_eq!(
        bench.codes(),
        [
            err("a.yaml", Code::OverlapsPeer),
            err("c.yaml", Code::DuplicateKey)
        ]
    );
    bench.store = Store::new(key(0), None);
    assert_eq!(bench.peers(), ["a 10.2.128.0/17", "c 10.3.0.0/16"]);
}

#[test]
fn who_falls_back_keeps_its_ground_against_newcomers() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.write("b.yaml", peer("b", "10.3.0.0/16", 2));
    bench.peers();
    bench.write("0.yaml", peer("new", "10.2.0.0/16", 3));
    bench.write("a.yaml", peer("a", "10.3.0.0/16", 1));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16", "b 10.3.0.0/16"]);
    assert_eq!(
        bench.codes(),
        [
            err("0.yaml", Code::OverlapsPeer),
            err("a.yaml", Code::OverlapsPeer)
        ]
    );
}

#[test]
fn two_peers_may_swap_their_prefixes_in_one_go() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.write("b.yaml", peer("b", "10.3.0.0/16", 2));
    bench.peers();
    bench.write("a.yaml", peer("a", "10.3.0.0/16", 1));
    bench.write("b.yaml", peer("b", "10.2.0.0/16", 2));
    assert_eq!(bench.peers(), ["a 10.3.0.0/16", "b 10.2.0.0/16"]);
    assert_eq!(bench.codes(), []);
}

#[test]
fn what_swallows_a_connected_network_or_relay_goes_and_comes_back() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    bench
        .surroundings
        .connected
        .push("10.2.3.0/24".parse().expect("prefix"));
    assert!(bench.peers().is_empty());
    assert_eq!(bench.codes(), [err("a.yaml", Code::OverlapsConnected)]);
    bench.surroundings.connected.clear();
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    bench
        .surroundings
        .relay_addresses
        .push("10.2.3.4".parse().expect("address"));
    assert!(bench.peers().is_empty());
    assert_eq!(bench.codes(), [err("a.yaml", Code::HoldsRelay)]);
    bench.write("a.yaml", peer("a", "203.0.113.0/24", 1));
    assert!(
        bench.peers().is_empty(),
        "the literal address in a URL counts too"
    );
}

#[test]
fn the_last_good_state_does_not_return_into_a_range_that_was_given_away() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    bench.write("a.yaml", peer("a", "10.2.0.1/16", 1));
    bench
        .surroundings
        .connected
        .push("10.2.3.0/24".parse().expect("prefix"));
    assert!(bench.peers().is_empty());
    bench.surroundings.connected.clear();
    bench.write("b.yaml", peer("b", "10.2.0.0/17", 2));
    assert_eq!(bench.peers(), ["b 10.2.0.0/17"]);
    bench.files.remove("b.yaml");
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
}

#[test]
fn a_relay_that_leaves_the_mesh_is_nobodys_home() {
    let mut bench = Bench::new();
    bench.write("a.yaml", peer("a", "10.2.0.0/16", 1));
    bench.peers();
    assert!(
        bench.store.accepted().peers[0].nodes[0]
            .home_relay
            .is_some()
    );
    bench.write("mesh.yaml", MESH.replace("r.example", "s.example"));
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    assert!(
        bench.store.accepted().peers[0].nodes[0]
            .home_relay
            .is_none()
    );
    assert_eq!(bench.codes(), [err("a.yaml", Code::UnknownRelay)]);
}

#[test]
fn ipv6_needs_its_mtu() {
    let mut bench = Bench::new();
    bench.write(
        "mesh.yaml",
        MESH.replace("clusterName: a", "clusterName: a, mtu: 1279"),
    );
    bench.write("a.yaml", peer("a", "fd00:2::/48", 1));
    assert!(bench.peers().is_empty());
    assert_eq!(bench.codes(), [err("a.yaml", Code::BadMtu)]);
}

#[test]
fn defaults() {
    let mut bench = Bench::new();
    bench.peers();
    let mesh = bench.store.accepted().mesh.clone().expect("a mesh");
    assert_eq!((mesh.listen_port, mesh.mtu), (None, None));
    assert_eq!(mesh.relays[0].stun_port, Some(3478));
    assert_eq!(
        (mesh.port_mapping, mesh.port_guessing),
        (crate::PortMapping::Enabled, crate::PortGuessing::Polite)
    );
    bench.write(
        "mesh.yaml",
        MESH.replace("url: 'https", "caBundle: '', stunPort: 0, url: 'https"),
    );
    bench.peers();
    let relay = bench.store.accepted().mesh.clone().expect("a mesh").relays[1].clone();
    assert_eq!((relay.stun_port, relay.ca_bundle), (None, None));
}

#[test]
fn the_document_of_the_contract_is_accepted() {
    let text = format!(
        "apiVersion: culvert.dev/v1alpha1
kind: Mesh
metadata: {{name: default, labels: {{a: b}}, annotations: {{c: d}}}}
spec:
  clusterName: berlin
  podCIDRs: [10.1.0.0/16]
  addresses: [10.99.0.1/32]
  listenPort: 20443
  mtu: 1280
  relays:
    external:
      - {{url: \"http://203.0.113.20:8080\", stunPort: 3478, caBundle: \"\"}}
  traversal: {{portMapping: Enabled, portGuessing: Polite}}
status: {{anything: [goes]}}
---
apiVersion: culvert.dev/v1alpha1
kind: Peer
metadata: {{name: tokyo}}
spec:
  meshRef: default
  allowedCIDRs: [10.2.0.0/16]
  nodes:
    - name: tokyo-1
      publicKey: \"{}\"
      homeRelay: \"http://203.0.113.20:8080\"
      prefixes: [10.2.0.0/16]
",
        key(1)
    );
    let mut bench = Bench::new();
    bench.write("mesh.yaml", text);
    assert_eq!(bench.peers(), ["tokyo 10.2.0.0/16"]);
    assert_eq!(bench.codes(), []);
    assert_eq!(
        bench
            .store
            .accepted()
            .mesh
            .as_ref()
            .expect("a mesh")
            .own_prefixes()
            .count(),
        2
    );
}

#[test]
fn nodes_may_nest_and_a_relay_may_be_written_differently() {
    let mut bench = Bench::new();
    let two = peer_at("a", "10.2.0.0/16", 1, "https://R.Example:443/").replace(
        "nodes: [",
        &format!(
            "nodes: [{{name: inner, publicKey: '{}', prefixes: [10.2.3.0/24]}}, ",
            key(2)
        ),
    );
    bench.write("a.yaml", two);
    assert_eq!(bench.peers(), ["a 10.2.0.0/16"]);
    assert_eq!(bench.codes(), []);
    let nodes = &bench.store.accepted().peers[0].nodes;
    assert_eq!(nodes.len(), 2);
    let relays = &bench.store.accepted().mesh.as_ref().expect("a mesh").relays;
    assert_eq!(nodes[1].home_relay.as_ref(), Some(&relays[1].url));
}

#[test]
fn a_host_may_have_addresses_alone() {
    let mut bench = Bench::new();
    let host = MESH.replace("podCIDRs: [10.1.0.0/16]", "addresses: [10.99.0.1/32]");
    bench.write("mesh.yaml", host);
    bench.write("a.yaml", peer("a", "10.99.0.0/24", 1));
    assert!(bench.peers().is_empty());
    assert_eq!(bench.codes(), [err("a.yaml", Code::OverlapsOwn)]);
    let mesh = bench.store.accepted().mesh.clone().expect("a mesh");
    assert_eq!(mesh.own_prefixes().count(), 1);
}

#[test]
fn a_key_written_a_second_way_does_not_pass_for_another() {
    let mut bench = Bench::new();
    // X25519 takes no notice of the highest bit of the last byte.
    let own = key(0).to_hex();
    let second = own.strip_suffix("5a").expect("its end").to_owned() + "da";
    let written =
        peer("a", "10.2.0.0/16", 1).replace(&key(1).to_string(), &format!("nodekey:{second}"));
    bench.write("a.yaml", written);
    assert!(bench.peers().is_empty());
    assert_eq!(bench.codes(), [err("a.yaml", Code::BadKey)]);
}
