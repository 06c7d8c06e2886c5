//! Which ranges this cluster uses, and who says so.
//!
//! Ranges of pods come from the first of these that has any: `spec.podCIDRs` of the Mesh, the network plugin's own objects,
//! the Nodes. Ranges of single nodes come from the network plugin, else from the Nodes.

mod nodes;
mod plugin;
mod range;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{ClusterRanges, MeshSpec, check_prefix};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;

use crate::world::NetworkObject;
use plugin::Plugin;

pub(crate) use range::within;

/// Most ranges of pods.
const MAX_PODS: usize = 256;
/// Most ranges of Services.
const MAX_SERVICES: usize = 64;

/// The ranges of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Of pods, sorted.
    pub(crate) pods: Vec<IpNet>,
    /// Of Services, sorted.
    pub(crate) services: Vec<IpNet>,
    /// Who says what the ranges of pods are; empty if nobody does.
    pub(crate) source: String,
    /// Of the pods of single nodes, all within `pods`.
    pub(crate) nodes: BTreeMap<String, Vec<IpNet>>,
    /// Addresses of nodes.
    pub(crate) addresses: BTreeMap<IpAddr, String>,
    /// Addresses of the API server.
    pub(crate) servers: BTreeSet<IpAddr>,
}

impl Ranges {
    /// Everything that no peer may have.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = IpNet> {
        self.pods.iter().chain(&self.services).copied()
    }

    /// As they stand in the status of the Mesh.
    pub(crate) fn status(&self) -> ClusterRanges {
        ClusterRanges {
            pod_cidrs: texts(&self.pods),
            service_cidrs: texts(&self.services),
            source: self.source.clone(),
        }
    }
}

/// Finds the ranges.
pub(crate) fn discover(spec: &MeshSpec, networks: &[NetworkObject], nodes: &[Arc<Node>]) -> Ranges {
    let plugin = Plugin::read(networks);
    let of_nodes = node_ranges(&plugin, nodes);
    let (pods, source) = pod_ranges(spec, &plugin, &of_nodes);
    let of_nodes = of_nodes
        .into_iter()
        .map(|(node, prefixes)| (node, within(&pods, prefixes)));
    Ranges {
        services: bounded(plugin.services, MAX_SERVICES),
        source: source.to_owned(),
        nodes: of_nodes.collect(),
        addresses: nodes::addresses(nodes),
        servers: plugin.servers,
        pods,
    }
}

/// The texts of prefixes.
pub(crate) fn texts(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(IpNet::to_string).collect()
}

/// The prefixes that may be used at all.
pub(crate) fn usable<T: AsRef<str>>(texts: &[T]) -> Vec<IpNet> {
    texts
        .iter()
        .filter_map(|text| check_prefix("", text.as_ref().trim()).ok())
        .collect()
}

fn pod_ranges(
    spec: &MeshSpec,
    plugin: &Plugin,
    of_nodes: &BTreeMap<String, Vec<IpNet>>,
) -> (Vec<IpNet>, &'static str) {
    let given = usable(&spec.pod_cidrs);
    if !given.is_empty() {
        return (bounded(given, MAX_PODS), "Spec");
    }
    if let Some((ranges, source)) = plugin.pods() {
        return (bounded(ranges, MAX_PODS), source);
    }
    let all = of_nodes.values().flatten().copied().collect();
    let ranges = bounded(range::collapse(all), MAX_PODS);
    let source = if ranges.is_empty() { "" } else { "Nodes" };
    (ranges, source)
}

/// The plugin's word counts for a node: it may use other prefixes than those in the Nodes.
fn node_ranges(plugin: &Plugin, nodes: &[Arc<Node>]) -> BTreeMap<String, Vec<IpNet>> {
    if plugin.ignores_nodes() {
        return plugin.of_nodes.clone();
    }
    let mut ranges = nodes::prefixes(nodes);
    ranges.extend(plugin.of_nodes.clone());
    ranges
}

/// Sorted, each once, no more than that many.
fn bounded(ranges: Vec<IpNet>, most: usize) -> Vec<IpNet> {
    let sorted: BTreeSet<IpNet> = ranges.into_iter().collect();
    sorted.into_iter().take(most).collect()
}
