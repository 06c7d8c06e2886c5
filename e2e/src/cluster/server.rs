//! An API server with its etcd and nothing else: for kinds, admission, rights and leases.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;

use super::control::Server;
use super::grounds::Grounds;
use super::machine::Machine;
use super::pki::Pki;
use super::{Kit, Kubectl};
use crate::lab::Lab;
use crate::namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(60);

/// An API server. No controllers: nothing is collected, and namespaces have no service accounts by themselves.
pub struct ApiServer {
    grounds: Grounds,
    kit: Kit,
    server: Server,
    pki: Pki,
    ns: Namespace,
    kubectl: Kubectl,
    machine: Option<Machine>,
}

impl Deref for ApiServer {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl ApiServer {
    /// Starts one in a namespace of its own, and waits until it is ready, which takes some 4 s.
    pub fn start(lab: &Lab, name: &str) -> Result<Self> {
        let kit = Kit::find()?;
        let grounds = Grounds::of(lab);
        let ns = grounds.namespace(&format!("control-{name}"))?;
        // It advertises an address, and that may not be one of the loopback.
        let address = Ipv4Addr::new(10, 255, 1, 1);
        ns.ip(&[
            "link add api type bridge",
            &format!("addr add {address}/32 dev api"),
            "link set api up",
        ])?;
        let server = Server {
            name: name.to_owned(),
            address,
            management: address,
            services: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            folder: grounds.folder.join("clusters").join(name),
        };
        let pki = server.prepare()?;
        let kubectl = server.kubectl(&ns, &pki, &kit, &grounds.folder)?;
        let mut made = Self {
            grounds,
            kit,
            server,
            pki,
            ns,
            kubectl,
            machine: None,
        };
        made.start_api()?;
        Ok(made)
    }

    /// Ends etcd and API server at once.
    pub fn stop_api(&mut self) -> Result<()> {
        self.machine.take().context("it is stopped already")?.kill()
    }

    /// Starts them with the state they had. Returns when they are ready.
    pub fn start_api(&mut self) -> Result<()> {
        ensure!(self.machine.is_none(), "it runs");
        let steps = self.server.steps(&self.pki);
        let spec = self.server.machine(&self.grounds, &self.kit, steps);
        let folder = &self.server.folder;
        self.machine = Some(Machine::start(&self.ns, &spec, folder, self.grounds.keep)?);
        self.await_ready(PATIENCE)
    }
}
