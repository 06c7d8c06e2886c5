//! What each node serves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::{is_ready, present};
use crate::plan::discovery::{texts, usable, within};
use crate::plan::draft::find;
use crate::plan::ground::Ground;
use crate::plan::names::GATEWAY_LABEL;
use crate::world::Pods;

/// Whether nodes have ranges of their own.
pub(super) fn are_given(ground: Ground<'_>) -> bool {
    let known = &ground.ranges.nodes;
    known.values().any(|prefixes| !prefixes.is_empty())
}

/// The prefixes of every node. Where no node has its own, each serves the addresses of its pods, and one gateway the ranges
/// of the cluster besides: two with equal prefixes would be one too many for whoever sends.
pub(super) fn of_nodes(ground: Ground<'_>) -> BTreeMap<String, Vec<IpNet>> {
    if are_given(ground) {
        return ground.ranges.nodes.clone();
    }
    let mut prefixes = match &ground.world.pods {
        Pods::Unknown => as_before(ground),
        Pods::Forbidden => BTreeMap::new(),
        Pods::Known(nodes) => of_pods(nodes, &ground.ranges.pods),
    };
    if let Some(gateway) = gateway(ground) {
        // Addresses of other nodes are more specific; its own are within.
        prefixes.insert(gateway, ground.ranges.pods.clone());
    }
    prefixes
}

/// The first address of a pod, of a family that the cluster's ranges have, that lies in none of them, and its node.
pub(super) fn stray(ground: Ground<'_>) -> Option<(IpAddr, &str)> {
    let Pods::Known(nodes) = &ground.world.pods else {
        return None;
    };
    let ranges = &ground.ranges.pods;
    // A pod may have an address of the other family, too, which nobody has asked for.
    let family = |address: &IpAddr| {
        let is_v4 = address.is_ipv4();
        ranges.iter().any(|range| range.addr().is_ipv4() == is_v4)
    };
    let outside = |address: &IpAddr| !ranges.iter().any(|range| range.contains(address));
    let mut strays = nodes
        .iter()
        .filter(|(address, _)| family(address) && outside(address));
    strays.next().map(|(address, node)| (*address, &**node))
}

/// What nodes serve until their pods have been seen: without the ranges, which belong to a gateway.
fn as_before(ground: Ground<'_>) -> BTreeMap<String, Vec<IpNet>> {
    let ranges = &ground.ranges.pods;
    let nodes = ground.world.mesh_nodes.iter();
    let kept = nodes.map(|node| {
        let mut prefixes = within(ranges, usable(&node.spec.prefixes));
        prefixes.retain(|prefix| !ranges.contains(prefix));
        (node.name_any(), prefixes)
    });
    kept.collect()
}

fn of_pods(nodes: &BTreeMap<IpAddr, Arc<str>>, ranges: &[IpNet]) -> BTreeMap<String, Vec<IpNet>> {
    let mut prefixes: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (address, node) in nodes {
        if let Some(all) = prefixes.get_mut(&**node) {
            all.push(IpNet::from(*address));
        } else {
            prefixes.insert(node.to_string(), vec![IpNet::from(*address)]);
        }
    }
    for all in prefixes.values_mut() {
        let usable = within(ranges, std::mem::take(all));
        *all = IpNet::aggregate(&usable);
        all.sort_unstable();
    }
    prefixes
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
pub(super) fn gateway(ground: Ground<'_>) -> Option<String> {
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
