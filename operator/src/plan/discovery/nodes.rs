//! What Nodes say about themselves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::usable;

/// The prefixes that the controller manager gave to each node.
pub(super) fn prefixes(nodes: &[Arc<Node>]) -> BTreeMap<String, Vec<IpNet>> {
    let of = |node: &Arc<Node>| (node.name_any(), of_node(node));
    nodes.iter().map(of).collect()
}

/// The addresses of all nodes, with the node's name.
pub(super) fn addresses(nodes: &[Arc<Node>]) -> BTreeMap<IpAddr, String> {
    let mut found = BTreeMap::new();
    for node in nodes {
        let status = node.status.as_ref();
        let listed = status.and_then(|status| status.addresses.as_ref());
        for address in listed.into_iter().flatten() {
            if let Ok(address) = address.address.parse() {
                found.insert(address, node.name_any());
            }
        }
    }
    found
}

fn of_node(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    match &spec.pod_cidrs {
        Some(all) if !all.is_empty() => usable(all),
        Some(_) | None => usable(spec.pod_cidr.as_slice()),
    }
}
