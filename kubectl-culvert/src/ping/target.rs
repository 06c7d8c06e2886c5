//! What to ping, and from where.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{anyhow, bail};
use k8s_openapi::api::core::v1::Pod;

/// What to ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An address.
    Address(IpAddr),
    /// The address of a pod.
    Pod(PodName),
}

/// Where to ping from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A new pod on this node.
    Node(String),
    /// This pod.
    Pod(PodName),
}

/// A pod by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    /// `None`: the namespace of the context.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self::Address)
            .or_else(|_| text.parse().map(Self::Pod))
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("node/") {
            Some(node) if is_name(node) => Ok(Self::Node(node.to_owned())),
            Some(node) => Err(format!("{node:?} is not the name of a node")),
            None => text.parse().map(Self::Pod),
        }
    }
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if is_name(name) && namespace.is_none_or(is_name) {
            Ok(Self {
                namespace: namespace.map(ToOwned::to_owned),
                name: name.to_owned(),
            })
        } else {
            Err("write an address, a pod's name, or namespace/name".to_owned())
        }
    }
}

impl PodName {
    /// Its namespace, or this one.
    pub(super) fn namespace_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(default)
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// The address of a pod in the mesh.
pub(super) fn pod_address(pod: &Pod) -> anyhow::Result<IpAddr> {
    let of_node = pod.spec.as_ref().and_then(|spec| spec.host_network);
    if of_node == Some(true) {
        bail!("this pod uses its node's network, and has no address in the mesh");
    }
    let address = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.as_ref());
    address
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| anyhow!("this pod has no address yet; wait until it runs"))
}

fn is_name(text: &str) -> bool {
    text.len() <= 253
        && text
            .split('.')
            .all(|label| api::check_label("", label).is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn targets_and_sources() {
        let pod = |namespace: Option<&str>, name: &str| PodName {
            namespace: namespace.map(ToOwned::to_owned),
            name: name.to_owned(),
        };
        assert_eq!(
            "10.2.0.5".parse(),
            Ok(Target::Address(IpAddr::from([10, 2, 0, 5])))
        );
        assert_eq!("web-0".parse(), Ok(Target::Pod(pod(None, "web-0"))));
        assert_eq!(
            "shop/web-0".parse(),
            Ok(Target::Pod(pod(Some("shop"), "web-0")))
        );
        assert_eq!(
            "node/w1.example".parse(),
            Ok(Source::Node("w1.example".to_owned()))
        );
        assert_eq!(
            "shop/web-0".parse(),
            Ok(Source::Pod(pod(Some("shop"), "web-0")))
        );
        for bad in ["", "/", "a/b/c", "A", "a b", "-a", "node/", "node/A"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_address_of_a_pod() {
        let of = |spec: Value, status: Value| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status}))
                    .expect("a Pod");
            pod_address(&pod).map_err(|error| error.to_string())
        };
        let running = json!({"podIP": "10.2.0.5"});
        assert_eq!(
            of(json!({"containers": []}), running.clone()),
            Ok(IpAddr::from([10, 2, 0, 5]))
        );
        assert!(of(json!({"containers": [], "hostNetwork": true}), running).is_err());
        assert!(of(json!({"containers": []}), json!({})).is_err());
    }
}
