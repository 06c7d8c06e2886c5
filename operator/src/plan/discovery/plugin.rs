//! What network plugins, and the tools that set clusters up, say about ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::usable;
use crate::world::{NetworkKind, NetworkObject};

/// What was read from all objects.
#[derive(Debug, Default)]
pub(super) struct Plugin {
    calico: Vec<IpNet>,
    cilium: Vec<IpNet>,
    flannel: Vec<IpNet>,
    kubeadm: Vec<IpNet>,
    kubeadm_services: Vec<IpNet>,
    /// Ranges of Services.
    pub(super) services: Vec<IpNet>,
    /// Prefixes of single nodes.
    pub(super) of_nodes: BTreeMap<String, Vec<IpNet>>,
    /// Addresses of the API server.
    pub(super) servers: BTreeSet<IpAddr>,
}

impl Plugin {
    /// Reads all objects. What is not as expected says nothing.
    pub(super) fn read(objects: &[NetworkObject]) -> Self {
        let mut plugin = Self::default();
        objects.iter().for_each(|object| plugin.take(object));
        if plugin.services.is_empty() {
            plugin.services = std::mem::take(&mut plugin.kubeadm_services);
        }
        plugin
    }

    /// The ranges of pods, and whose word that is.
    pub(super) fn pods(&self) -> Option<(Vec<IpNet>, &'static str)> {
        let known = [
            (&self.calico, "IPPool"),
            (&self.cilium, "cilium-config"),
            (&self.flannel, "kube-flannel-cfg"),
            (&self.kubeadm, "kubeadm-config"),
        ];
        let first = known.into_iter().find(|(ranges, _)| !ranges.is_empty());
        first.map(|(ranges, source)| (ranges.clone(), source))
    }

    /// Whether pods have other addresses than those that the Nodes have been given.
    pub(super) fn ignores_nodes(&self) -> bool {
        !self.calico.is_empty() || !self.cilium.is_empty()
    }

    fn take(&mut self, NetworkObject { kind, object }: &NetworkObject) {
        match kind {
            NetworkKind::CalicoPool => self.calico.extend(calico_pool(object)),
            NetworkKind::CalicoBlock => self.calico_block(object),
            NetworkKind::CiliumNode => self.cilium_node(object),
            NetworkKind::CiliumConfig => self.cilium.extend(cilium_config(object)),
            NetworkKind::FlannelConfig => self.flannel.extend(flannel_config(object)),
            NetworkKind::KubeadmConfig => {
                self.kubeadm.extend(kubeadm(object, "podSubnet"));
                self.kubeadm_services
                    .extend(kubeadm(object, "serviceSubnet"));
            }
            NetworkKind::ServiceCidr => self
                .services
                .extend(usable(&strings(object, "/spec/cidrs"))),
            NetworkKind::ApiService => self
                .servers
                .extend(addresses(&strings(object, "/spec/clusterIPs"))),
            NetworkKind::ApiEndpoints => self.servers.extend(endpoints(object)),
        }
    }

    fn calico_block(&mut self, object: &Value) {
        if text(object, "/spec/state") == Some("confirmed") {
            let block = usable(text(object, "/spec/cidr").as_slice());
            self.add_node(text(object, "/spec/node"), block);
        }
    }

    fn cilium_node(&mut self, object: &Value) {
        let prefixes = usable(&strings(object, "/spec/ipam/podCIDRs"));
        self.add_node(text(object, "/metadata/name"), prefixes);
    }

    fn add_node(&mut self, node: Option<&str>, prefixes: Vec<IpNet>) {
        if let Some(node) = node.filter(|_| !prefixes.is_empty()) {
            self.of_nodes
                .entry(node.to_owned())
                .or_default()
                .extend(prefixes);
        }
    }
}

fn calico_pool(object: &Value) -> Vec<IpNet> {
    match object.pointer("/spec/disabled").and_then(Value::as_bool) {
        Some(true) => Vec::new(),
        Some(false) | None => usable(text(object, "/spec/cidr").as_slice()),
    }
}

/// Only the pools that Cilium itself cuts up; in other modes they are not used.
fn cilium_config(object: &Value) -> Vec<IpNet> {
    if !text(object, "/data/ipam").is_some_and(|mode| mode.starts_with("cluster-pool")) {
        return Vec::new();
    }
    let lists = [
        "/data/cluster-pool-ipv4-cidr",
        "/data/cluster-pool-ipv6-cidr",
    ];
    let lists = lists.iter().filter_map(|path| text(object, path));
    lists.flat_map(comma_separated).collect()
}

fn flannel_config(object: &Value) -> Vec<IpNet> {
    let config = text(object, "/data/net-conf.json").unwrap_or_default();
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    let ranges = ["/Network", "/IPv6Network"];
    let ranges: Vec<&str> = ranges
        .iter()
        .filter_map(|path| text(&config, path))
        .collect();
    usable(&ranges)
}

/// A line of the YAML that kubeadm keeps of its configuration.
fn kubeadm(object: &Value, key: &str) -> Vec<IpNet> {
    let config = text(object, "/data/ClusterConfiguration").unwrap_or_default();
    let value = config.lines().find_map(|line| {
        let (found, value) = line.trim().split_once(':')?;
        (found == key).then_some(value)
    });
    comma_separated(value.unwrap_or_default())
}

fn endpoints(object: &Value) -> Vec<IpAddr> {
    let list = object.pointer("/endpoints").and_then(Value::as_array);
    let endpoints = list.into_iter().flatten();
    endpoints
        .flat_map(|endpoint| addresses(&strings(endpoint, "/addresses")))
        .collect()
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn comma_separated(list: &str) -> Vec<IpNet> {
    let parts = list.split([',', ' ']);
    let bare = |part: &'_ str| part.trim().trim_matches(['"', '\'']).to_owned();
    usable(&parts.map(bare).collect::<Vec<_>>())
}

fn text<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    object.pointer(path)?.as_str()
}

fn strings(object: &Value, path: &str) -> Vec<String> {
    let list = object.pointer(path).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}
