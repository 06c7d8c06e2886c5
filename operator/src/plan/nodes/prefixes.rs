//! What each node serves.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::{is_ready, present};
use crate::plan::discovery::texts;
use crate::plan::draft::find;
use crate::plan::ground::Ground;
use crate::plan::names::GATEWAY_LABEL;

/// The prefixes of every node. Where no node has its own, one gateway serves the ranges of the cluster: two with equal
/// prefixes would be one too many for whoever sends.
pub(super) fn of_nodes(ground: Ground<'_>) -> BTreeMap<String, Vec<IpNet>> {
    let known = &ground.ranges.nodes;
    if known.values().any(|prefixes| !prefixes.is_empty()) {
        return known.clone();
    }
    let gateway = gateway(ground).map(|gateway| (gateway, ground.ranges.pods.clone()));
    gateway.into_iter().collect()
}

/// Nodes that should serve and do not: no range is known to be theirs alone, and they are not the gateway.
pub(super) fn without(ground: Ground<'_>) -> Vec<String> {
    let served = of_nodes(ground);
    let serves = |name: &String| {
        served
            .get(name)
            .is_some_and(|prefixes| !prefixes.is_empty())
    };
    let names = present(ground.world).map(ResourceExt::name_any);
    names.filter(|name| !serves(name)).collect()
}

/// The gateway that serves already, while it is ready; else the first that is; else the one that served last, or the first.
fn gateway(ground: Ground<'_>) -> Option<String> {
    let world = ground.world;
    let gateways: Vec<String> = present(world)
        .filter(|node| is_gateway(node))
        .map(ResourceExt::name_any)
        .collect();
    let rank = |name: &&String| {
        let node = find(&world.mesh_nodes, name);
        let ready = node.is_some_and(|node| is_ready(world, node));
        let pods = texts(&ground.ranges.pods);
        let serves = node.is_some_and(|node| node.spec.prefixes == pods);
        (!ready, !serves, (*name).clone())
    };
    gateways.iter().min_by_key(rank).cloned()
}

fn is_gateway(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(GATEWAY_LABEL))
        .map(String::as_str)
        == Some("true")
}
