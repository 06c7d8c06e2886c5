//! Two sites, a relay, an agent on each node: what most scenarios begin with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use crate::lab::Lab;
use crate::manifest::{MeshManifest, PeerManifest};
use crate::process::{Agent, Relay, RelayOptions};
use crate::site::{Pod, Site, SiteSpec};
use crate::status::PathState;
use crate::traffic::{Echo, Pinger};
use crate::wait::wait_for;

/// The port of the echo server in each site's first pod.
pub const ECHO_PORT: u16 = 9000;

/// Two sites that know each other. Fields are dropped in order: the lab last.
pub struct Pair {
    /// The first site.
    pub a: Side,
    /// The second site.
    pub b: Side,
    /// The relay between them.
    pub relay: Relay,
    /// The lab.
    pub lab: Lab,
}

/// One of the two.
pub struct Side {
    /// Router, node and pods.
    pub site: Site,
    /// The agent on the node.
    pub agent: Agent,
    /// The echo server in the first pod.
    pub echo: Echo,
    /// The name of the other side in this side's manifests.
    pub other: String,
}

impl Pair {
    /// Builds the lab, starts the relay, makes keys, writes manifests. The agents do not run yet.
    pub fn new(name: &str, a: SiteSpec, b: SiteSpec) -> Result<Self> {
        Self::within(Lab::new(name)?, a, b, ["site-a", "site-b"])
    }

    /// The same in a lab that has been made, with names for the sites.
    pub fn within(mut lab: Lab, a: SiteSpec, b: SiteSpec, names: [&str; 2]) -> Result<Self> {
        let host = lab.relay_host()?;
        let relay = Relay::start(&lab, &host, RelayOptions::default())?;
        let a = Side::new(&mut lab, a, names[1])?;
        let b = Side::new(&mut lab, b, names[0])?;
        let pair = Self { a, b, relay, lab };
        pair.introduce(names)?;
        Ok(pair)
    }

    /// Two sites with default pods behind the given routers.
    pub fn behind(name: &str, a: crate::Profile, b: crate::Profile) -> Result<Self> {
        Self::new(name, SiteSpec::new(a), SiteSpec::new(b))
    }

    fn introduce(&self, names: [&str; 2]) -> Result<()> {
        let relays = vec![(self.relay.url(), self.relay.stun().port())];
        for (side, name, other) in [(&self.a, names[0], &self.b), (&self.b, names[1], &self.a)] {
            side.agent
                .write("mesh.yaml", &side.mesh(name, &relays).yaml())?;
            side.agent
                .write("peer.yaml", &other.as_peer(&side.other)?.yaml())?;
        }
        Ok(())
    }

    /// Starts both agents at once. Returns when the later one was started.
    pub fn start(&mut self) -> Result<Instant> {
        self.a.agent.start()?;
        self.b.agent.start()
    }

    /// Starts both agents and waits until data goes by `path` at both ends, with pings going from `a` to `b`.
    pub fn establish(&mut self, path: &str) -> Result<()> {
        self.start()?;
        let pinger = self.ping_from_a(50)?;
        wait_for(Duration::from_secs(20), "the first ping arrives", || {
            self.b
                .echo
                .arrivals(pinger.flow())
                .first()
                .context("nothing arrived")
        })?;
        self.await_paths(path, Duration::from_secs(30))
    }

    /// Waits until both ends use a path, no longer than `patience` in all.
    pub fn await_paths(&self, path: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        self.a.await_path(path, patience).context("site a")?;
        let left = patience.saturating_sub(start.elapsed());
        self.b.await_path(path, left).context("site b")?;
        Ok(())
    }

    /// Waits until both ends give the same final reason for using the relay.
    pub fn await_reason(&self, reason: &str, patience: Duration) -> Result<()> {
        wait_for(patience, reason, || {
            let (a, b) = (self.a.path()?, self.b.path()?);
            let fits =
                |path: &PathState| path.path == "relay" && path.reason.as_deref() == Some(reason);
            if fits(&a) && fits(&b) {
                Ok(())
            } else {
                bail!("a: {a:?}\nb: {b:?}")
            }
        })
    }

    /// Pings from the first pod of `a` to the echo server of `b`.
    pub fn ping_from_a(&self, rate: u32) -> Result<Pinger> {
        self.a.ping(&self.b, rate)
    }

    /// Pings from the first pod of `b` to the echo server of `a`.
    pub fn ping_from_b(&self, rate: u32) -> Result<Pinger> {
        self.b.ping(&self.a, rate)
    }

    /// Ends the scenario well: both agents still run, and no log holds an error.
    pub fn finish(mut self) -> Result<()> {
        for side in [&mut self.a, &mut self.b] {
            if let Ok(daemon) = side.agent.daemon() {
                daemon.ensure_running()?;
            }
        }
        self.lab.finish()
    }
}

impl Side {
    fn new(lab: &mut Lab, spec: SiteSpec, other: &str) -> Result<Self> {
        let site = lab.site(spec)?;
        let agent = Agent::new(lab, &site)?;
        let pod = site.pod()?;
        let echo = Echo::start(&pod.ns, pod.at(ECHO_PORT))?;
        Ok(Self {
            site,
            agent,
            echo,
            other: other.to_owned(),
        })
    }

    /// What the site serves.
    pub fn prefixes(&self) -> Vec<IpNet> {
        let v6 = self.site.pod_cidr6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.site.pod_cidr))
            .chain(v6)
            .collect()
    }

    /// The site's own Mesh.
    pub fn mesh(&self, name: &str, relays: &[(String, u16)]) -> MeshManifest {
        MeshManifest {
            cluster_name: name.to_owned(),
            pod_cidrs: self.prefixes(),
            relays: relays.to_vec(),
            listen_port: None,
        }
    }

    /// The Peer by which others know the site.
    pub fn as_peer(&self, name: &str) -> Result<PeerManifest> {
        let node = (format!("{name}-1"), self.agent.key()?, self.prefixes());
        Ok(PeerManifest {
            name: name.to_owned(),
            allowed_cidrs: self.prefixes(),
            nodes: vec![node],
        })
    }

    /// The path to the other side now.
    pub fn path(&self) -> Result<PathState> {
        self.agent.status()?.path_to(&self.other)
    }

    /// Waits until data goes by a path.
    pub fn await_path(&self, path: &str, patience: Duration) -> Result<PathState> {
        wait_for(patience, &format!("path {path}"), || {
            let now = self.path()?;
            if now.path == path {
                Ok(now)
            } else {
                bail!("{now:?}")
            }
        })
    }

    /// Pings from the first pod to another side's echo server.
    pub fn ping(&self, to: &Self, rate: u32) -> Result<Pinger> {
        let pod = self.pod()?;
        Pinger::start(&pod.ns, pod.at(0), to.echo.address(), rate)
    }

    /// The first pod.
    pub fn pod(&self) -> Result<&Pod> {
        self.site.pod()
    }

    /// A port of the first pod.
    pub fn pod_at(&self, port: u16) -> Result<SocketAddr> {
        Ok(self.pod()?.at(port))
    }
}
