//! Real Kubernetes clusters inside the lab: each a site of its own, behind a router, with nodes that run real containers.
//!
//! ```text
//!  pods ─ cni0 [node-a-1] eth0 ─┐
//!  pods ─ cni0 [node-a-2] eth0 ─┼─ lan [nat-a] wan ── [core] ── wan [nat-b] lan ─ …
//!             [control-a] eth0 ─┘
//!                  │ management
//!               [driver] ───────── [control-b] …
//! ```
//!
//! The driver's network ends in the control planes and reaches no node: an agent must not find a way around the routers.
//! A node's programs see the usual paths (`/var/lib/kubelet`, `/etc/cni` and so on), but what they write is theirs alone.
//!
//! What this needs beyond the lab's programs: containerd, runc and the CNI plugins from the system, and a [`Kit`].

mod cgroup;
mod control;
mod grounds;
mod kit;
mod kubectl;
mod machine;
mod network;
mod node;
mod pki;
mod server;
mod several;
mod spec;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;

use crate::lab::Link;
use crate::namespace::Namespace;
use crate::process::log_complaints;
use control::Server;
use grounds::{Grounds, manage};
use machine::Machine;
use network::Network;
use node::Surroundings;
use pki::Pki;

pub use kit::{Kit, PODTOOL, cache_folder, missing_programs};
pub use kubectl::Kubectl;
pub use machine::init as machine_init;
pub use node::Node;
pub use server::ApiServer;
pub use several::{Clusters, Milestone};
pub use spec::{ClusterSpec, Proxy};

pub(crate) use cgroup::{groups, remove as remove_groups};

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(180);
const COREDNS: &str = include_str!("../kubernetes/coredns.yaml");

/// A cluster. Its API server is reached through [`Kubectl`], which it stands for.
#[derive(Debug)]
pub struct Cluster {
    grounds: Grounds,
    kit: Kit,
    spec: ClusterSpec,
    network: Network,
    pki: Pki,
    server: Server,
    kubectl: Kubectl,
    control: Namespace,
    machine: Option<Machine>,
    nodes: Vec<Node>,
    images: Vec<PathBuf>,
}

impl std::ops::Deref for Cluster {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Cluster {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The router. Its interfaces are `wan` and the bridge `lan`.
    pub fn router(&self) -> &Namespace {
        &self.network.router
    }

    /// The router's public address.
    pub fn wan(&self) -> Ipv4Addr {
        self.network.wan()
    }

    /// The link to the core.
    pub fn link(&self) -> Link {
        self.network.link
    }

    /// The pods' range.
    pub fn pods(&self) -> Ipv4Net {
        self.network.pods
    }

    /// The services' range.
    pub fn services(&self) -> Ipv4Net {
        self.network.services
    }

    /// The API server's address on the LAN; its port is 6443.
    pub fn api_address(&self) -> Result<Ipv4Addr> {
        self.network.control()
    }

    /// The namespace of the control plane.
    pub fn control(&self) -> &Namespace {
        &self.control
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with a number; the first is 1.
    pub fn node(&self, number: u8) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.number == number);
        found.with_context(|| format!("{} has no node {number}", self.name()))
    }

    /// Ends the whole control plane at once. Nodes and pods go on.
    pub fn stop_api(&mut self) -> Result<()> {
        let machine = self.machine.take();
        machine.context("it is stopped already")?.kill()
    }

    /// Starts the control plane, with the state it had. Returns when it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        ensure!(self.machine.is_none(), "it runs");
        self.machine = Some(self.boot_control()?);
        if let Err(error) = self.await_ready(PATIENCE) {
            let machine = self.machine.as_mut().context("no machine")?;
            machine
                .ensure_running()
                .with_context(|| error.to_string())?;
            return Err(error);
        }
        Ok(())
    }

    /// Loads an image's archive on every node, also on those that are added later.
    pub fn load(&mut self, archive: &Path) -> Result<()> {
        // A node's programs start in another folder.
        let archive = &fs::canonicalize(archive)
            .with_context(|| format!("no image {}", archive.display()))?;
        self.images.push(archive.clone());
        thread::scope(|scope| {
            let started: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(|| node.load(archive)))
                .collect();
            let mut ended = started.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
            });
            ended.try_for_each(|result| result)
        })
    }

    /// Switches a node off, as by its plug: every process, link and rule is gone. Its disk stays.
    pub fn stop_node(&mut self, number: u8) -> Result<()> {
        let place = self.nodes.iter().position(|node| node.number == number);
        let place = place.with_context(|| format!("{} has no node {number}", self.name()))?;
        self.nodes.remove(place).stop(&self.network)
    }

    /// Switches a node on that was switched off. Does not wait until it is Ready.
    pub fn start_node(&mut self, number: u8) -> Result<()> {
        ensure!(self.node(number).is_err(), "node {number} runs");
        let node = Node::start(number, &self.surroundings())?;
        self.nodes.push(node);
        self.route_all()
    }

    /// [`Cluster::stop_node`], then [`Cluster::start_node`]: the lab's reboot.
    pub fn restart_node(&mut self, number: u8) -> Result<()> {
        self.stop_node(number)?;
        self.start_node(number)
    }

    /// Adds a node, the next by number, and returns the number. Does not wait until it is Ready.
    pub fn add_node(&mut self) -> Result<u8> {
        let number = self.nodes.iter().map(|node| node.number).max();
        let number = number.unwrap_or(0) + 1;
        self.kubectl
            .apply(&node::object(&self.network, &self.spec, number)?.to_string())?;
        self.start_node(number)?;
        Ok(number)
    }

    /// Switches a node off and deletes its object.
    pub fn delete_node(&mut self, number: u8) -> Result<()> {
        let name = self.node(number)?.name().to_owned();
        self.stop_node(number)?;
        self.kubectl(&["delete", "node", &name, "--wait=true"])
            .map(drop)
    }

    /// Waits until all nodes are Ready that have a machine.
    pub fn await_nodes(&self) -> Result<()> {
        let names: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("node/{}", node.name()))
            .collect();
        let mut words = vec!["wait", "--for=condition=Ready", "--timeout=120s"];
        words.extend(names.iter().map(String::as_str));
        self.kubectl(&words).map(drop)
    }

    /// Forwards a TCP port of the router to a port of a node.
    pub fn forward_tcp(&self, port: u16, node: u8, to: u16) -> Result<()> {
        self.network.forward_tcp(port, node, to)
    }

    /// Errors and panics of our own programs in the logs of all pods.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for node in &self.nodes {
            let pods = fs::read_dir(node.pod_logs())?.flatten();
            for container in pods.flat_map(|pod| fs::read_dir(pod.path()).into_iter().flatten()) {
                complaints.extend(log_complaints(&container?.path())?);
            }
        }
        Ok(complaints)
    }

    fn prepare(
        grounds: &Grounds,
        kit: &Kit,
        spec: &ClusterSpec,
        network: Network,
        driver: &Namespace,
    ) -> Result<Self> {
        let management = Ipv4Addr::new(10, 255, 0, network.link.number());
        let control = network.add_control(grounds)?;
        manage(driver, &control, network.link, management)?;
        let server = Server {
            name: spec.name.clone(),
            address: network.control()?,
            management,
            services: network.services,
            folder: grounds.folder.join("clusters").join(&spec.name),
        };
        let pki = server.prepare()?;
        let kubectl = server.kubectl(driver, &pki, kit, &grounds.folder)?;
        Ok(Self {
            grounds: grounds.clone(),
            kit: kit.clone(),
            spec: spec.clone(),
            network,
            pki,
            server,
            kubectl,
            control,
            machine: None,
            nodes: Vec::new(),
            images: kit.images(),
        })
    }

    fn bring_up(&mut self, start: Instant) -> Result<Vec<Milestone>> {
        let mut reached = Vec::new();
        let name = self.name().to_owned();
        let mut reach = |what| {
            reached.push(Milestone {
                cluster: name.clone(),
                what,
                after: start.elapsed(),
            });
        };
        self.start_api()?;
        reach("API server ready");
        for _ in 0..self.spec.nodes {
            self.add_node()?;
        }
        self.kubectl.apply(&self.dns()?)?;
        self.await_nodes()?;
        reach("nodes Ready");
        for node in &mut self.nodes {
            node.ensure_running()?;
        }
        if self.spec.nodes > 0 {
            self.await_rollout("kube-system", "deployment/coredns")?;
            reach("DNS available");
        }
        Ok(reached)
    }

    fn dns(&self) -> Result<String> {
        let address = crate::site::nth(self.network.services, 10)?;
        Ok(COREDNS.replace("SERVICE_ADDRESS", &address.to_string()))
    }

    fn boot_control(&self) -> Result<Machine> {
        let mut steps = self.server.steps(&self.pki);
        steps.extend(self.server.controllers(&self.pki, self.network.pods)?);
        let spec = self.server.machine(&self.grounds, &self.kit, steps);
        let folder = &self.server.folder;
        Machine::start(&self.control, &spec, folder, self.grounds.keep)
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            grounds: &self.grounds,
            kit: &self.kit,
            network: &self.network,
            pki: &self.pki,
            spec: &self.spec,
            images: &self.images,
        }
    }

    /// Routes between all nodes' pods, and from the control plane, which has no kube-proxy, to webhooks in pods.
    fn route_all(&self) -> Result<()> {
        for to in &self.nodes {
            let route = self.network.route_to(to.number)?;
            self.control.ip(&[&route])?;
            for from in self.nodes.iter().filter(|node| node.number != to.number) {
                from.netns().ip(&[&route])?;
            }
        }
        Ok(())
    }
}
