//! What the machines of a lab stand on: names, folders, and the network from which the control planes are managed.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use crate::lab::{Lab, Link};
use crate::namespace::Namespace;

/// What all machines of a lab share.
#[derive(Clone, Debug)]
pub(super) struct Grounds {
    prefix: String,
    pub(super) folder: PathBuf,
    pub(super) keep: bool,
}

impl Grounds {
    pub(super) fn of(lab: &Lab) -> Self {
        Self {
            prefix: lab.prefix().to_owned(),
            folder: lab.folder().to_owned(),
            keep: lab.is_kept(),
        }
    }

    /// A namespace with the prefix of the lab.
    pub(super) fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}{name}", self.prefix))
    }

    /// The control group of a machine.
    pub(super) fn group(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix.trim_end_matches('-'))
    }
}

/// The driver's namespace: a bridge that all control planes are on.
pub(super) fn driver(grounds: &Grounds) -> Result<Namespace> {
    let ns = grounds.namespace("driver")?;
    ns.ip(&[
        "link add management type bridge",
        "addr add 10.255.0.254/24 dev management",
        "link set management up",
    ])?;
    Ok(ns)
}

/// Puts a control plane on the driver's bridge, with this address.
pub(super) fn manage(
    driver: &Namespace,
    control: &Namespace,
    link: Link,
    address: Ipv4Addr,
) -> Result<()> {
    let port = link.port();
    driver.ip(&[
        &format!(
            "link add {port} type veth peer name management netns {}",
            control.name()
        ),
        &format!("link set {port} master management up"),
    ])?;
    control.ip(&[
        &format!("addr add {address}/24 dev management"),
        "link set management up",
    ])
}
