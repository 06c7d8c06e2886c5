use serde_json::{Value, json};

use super::*;
use crate::world::NetworkKind;

fn object(kind: NetworkKind, object: Value) -> NetworkObject {
    NetworkObject { kind, object }
}

fn node(name: &str, prefixes: &[&str], address: &str) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": prefixes},
        "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
    });
    Arc::new(serde_json::from_value(node).expect("a Node"))
}

fn spec(cidrs: &[&str]) -> MeshSpec {
    serde_json::from_value(json!({"clusterName": "a", "podCIDRs": cidrs})).expect("a Mesh")
}

fn nodes() -> Vec<Arc<Node>> {
    vec![
        node("n1", &["10.1.1.0/24", "fd01:0:0:1::/64"], "192.0.2.1"),
        node("n2", &["10.1.2.0/24", "fd01:0:0:2::/64"], "192.0.2.2"),
    ]
}

#[test]
fn without_anything_else_the_nodes_say_it() {
    let found = discover(&spec(&[]), &[], &nodes());
    assert_eq!(texts(&found.pods), ["10.1.0.0/22", "fd01::/62"]);
    assert_eq!(found.source, "Nodes");
    assert_eq!(
        texts(&found.nodes["n2"]),
        ["10.1.2.0/24", "fd01:0:0:2::/64"]
    );
    assert_eq!(found.addresses.len(), 2);
}

#[test]
fn the_api_server_is_found() {
    let networks = [
        object(
            NetworkKind::ApiService,
            json!({"spec": {"clusterIPs": ["10.96.0.1", "fd96::1"]}}),
        ),
        object(
            NetworkKind::ApiEndpoints,
            json!({"endpoints": [{"addresses": ["198.51.100.7"]}, {"addresses": ["x"]}, {}]}),
        ),
    ];
    let found = discover(&spec(&[]), &networks, &nodes());
    let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.96.0.1", "198.51.100.7", "fd96::1"]);
}

#[test]
fn nodes_far_apart_are_not_joined_to_a_range() {
    let nodes = [
        node("n1", &["10.1.0.0/24"], "192.0.2.1"),
        node("n2", &["10.1.1.0/24"], "192.0.2.2"),
        node("n3", &["10.9.1.0/24"], "192.0.2.3"),
    ];
    let found = discover(&spec(&[]), &[], &nodes);
    assert_eq!(texts(&found.pods), ["10.1.0.0/23", "10.9.1.0/24"]);
}

#[test]
fn the_spec_wins_and_nodes_outside_it_serve_nothing() {
    let found = discover(&spec(&["10.1.1.0/24", "fd01::/48"]), &[], &nodes());
    assert_eq!(found.source, "Spec");
    assert_eq!(
        texts(&found.nodes["n1"]),
        ["10.1.1.0/24", "fd01:0:0:1::/64"]
    );
    assert_eq!(texts(&found.nodes["n2"]), ["fd01:0:0:2::/64"]);
}

#[test]
fn every_plugin_is_understood() {
    let kubeadm = "networking:\n  dnsDomain: cluster.local\n  podSubnet: 10.1.0.0/16,fd01::/48\n  serviceSubnet: \"10.96.0.0/12\"\n";
    let cases = [
        (
            NetworkKind::CalicoPool,
            json!({"spec": {"cidr": "10.1.0.0/16"}}),
            "IPPool",
        ),
        (
            NetworkKind::CiliumConfig,
            json!({"data": {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.1.0.0/16"}}),
            "cilium-config",
        ),
        (
            NetworkKind::FlannelConfig,
            json!({"data": {"net-conf.json": r#"{"Network": "10.1.0.0/16"}"#}}),
            "kube-flannel-cfg",
        ),
        (
            NetworkKind::KubeadmConfig,
            json!({"data": {"ClusterConfiguration": kubeadm}}),
            "kubeadm-config",
        ),
    ];
    for (kind, value, source) in cases {
        let found = discover(&spec(&[]), &[object(kind, value)], &nodes());
        assert_eq!(found.source, source);
        assert_eq!(found.pods[0].to_string(), "10.1.0.0/16", "{source}");
    }
}

#[test]
fn services_come_from_their_own_objects_first() {
    let kubeadm = json!({"data": {"ClusterConfiguration": "serviceSubnet: 10.96.0.0/12"}});
    let kubeadm = object(NetworkKind::KubeadmConfig, kubeadm);
    let services = json!({"spec": {"cidrs": ["10.97.0.0/16", "fd97::/108"]}});
    let services = object(NetworkKind::ServiceCidr, services);
    let found = discover(&spec(&[]), &[kubeadm.clone(), services], &[]);
    assert_eq!(texts(&found.services), ["10.97.0.0/16", "fd97::/108"]);
    let found = discover(&spec(&[]), &[kubeadm], &[]);
    assert_eq!(texts(&found.services), ["10.96.0.0/12"]);
    assert_eq!(found.reserved().count(), 1);
}

#[test]
fn calico_and_cilium_know_better_than_nodes() {
    let pool = object(
        NetworkKind::CalicoPool,
        json!({"spec": {"cidr": "10.1.0.0/16"}}),
    );
    let block = |cidr: &str, state: &str| {
        let spec = json!({"spec": {"cidr": cidr, "node": "n1", "state": state}});
        object(NetworkKind::CalicoBlock, spec)
    };
    let objects = [
        pool,
        block("10.1.77.0/26", "confirmed"),
        block("10.1.78.0/26", "pending"),
    ];
    let found = discover(&spec(&[]), &objects, &nodes());
    assert_eq!(texts(&found.nodes["n1"]), ["10.1.77.0/26"]);
    assert!(!found.nodes.contains_key("n2"));

    let cilium =
        json!({"metadata": {"name": "n1"}, "spec": {"ipam": {"podCIDRs": ["10.1.5.0/24"]}}});
    let cilium = object(NetworkKind::CiliumNode, cilium);
    let found = discover(&spec(&[]), &[cilium], &nodes());
    assert_eq!(texts(&found.nodes["n1"]), ["10.1.5.0/24"]);
    assert_eq!(found.source, "Nodes");
}

#[test]
fn what_cannot_be_used_or_read_says_nothing() {
    let objects = [
        object(
            NetworkKind::CalicoPool,
            json!({"spec": {"cidr": "10.1.0.0/16", "disabled": true}}),
        ),
        object(
            NetworkKind::CalicoPool,
            json!({"spec": {"cidr": "0.0.0.0/0"}}),
        ),
        object(
            NetworkKind::CiliumConfig,
            json!({"data": {"ipam": "kubernetes", "cluster-pool-ipv4-cidr": "10.0.0.0/8"}}),
        ),
        object(
            NetworkKind::FlannelConfig,
            json!({"data": {"net-conf.json": "{"}}),
        ),
        object(NetworkKind::KubeadmConfig, Value::Null),
        object(NetworkKind::ServiceCidr, json!([1])),
    ];
    let found = discover(&spec(&["nonsense"]), &objects, &[node("n", &["x"], "y")]);
    assert_eq!(found.pods, []);
    assert_eq!(found.source, "");
}
