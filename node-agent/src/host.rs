//! The engine of a real host: a tunnel, and a keeper that holds the host's configuration as wanted.

mod keeper;
mod names;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use api::{MeshConfig, Surroundings};
use arc_swap::ArcSwapOption;
use derp::NodeSecret;
use netconf::{Desired, Names, Netconf};
use tunnel::{NodeSpec, RelaySpec, Tunnel, Wanted};

use self::keeper::{Keeper, Order};
use self::report::{View, ViewReporter};
use crate::{Engine, Health, Plan, Reporter};

/// Inner MTU where the Mesh names none: IPv6's minimum, which every path carries.
const DEFAULT_MTU: u16 = 1_280;

/// What does not change while the agent runs.
#[derive(Debug)]
pub(crate) struct HostConfig {
    /// This node's key.
    pub(crate) secret: NodeSecret,
    /// UDP port where the Mesh names none.
    pub(crate) port: u16,
    /// Several datagrams per system call.
    pub(crate) offload: bool,
    /// Journal of what was programmed on the host.
    pub(crate) journal: PathBuf,
    /// Who is told that the keeper's loop turns.
    pub(crate) health: Arc<Health>,
}

/// Tunnel and host configuration.
pub(crate) struct Host {
    config: HostConfig,
    keeper: Keeper,
    running: Option<Running>,
    view: Arc<ArcSwapOption<View>>,
}

struct Running {
    tunnel: Arc<Tunnel>,
    port: u16,
    mtu: u16,
}

impl Host {
    /// Opens the host's configuration; nothing is changed yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When something on the host has our names and is not ours, or the journal cannot be used.
    pub(crate) async fn open(config: HostConfig) -> anyhow::Result<Self> {
        let netconf = Netconf::open(Names::default(), config.journal.clone()).await?;
        Ok(Self {
            keeper: Keeper::spawn(netconf, Arc::clone(&config.health)),
            config,
            running: None,
            view: Arc::default(),
        })
    }

    /// The tunnel with the Mesh's port and MTU; another port or MTU takes a new one.
    async fn tunnel(&mut self, mesh: &MeshConfig) -> anyhow::Result<Arc<Tunnel>> {
        let (port, mtu) = (
            mesh.listen_port.unwrap_or(self.config.port),
            mesh.mtu.unwrap_or(DEFAULT_MTU),
        );
        if let Some(running) = self
            .running
            .as_ref()
            .filter(|running| (running.port, running.mtu) == (port, mtu))
        {
            return Ok(Arc::clone(&running.tunnel));
        }
        self.stop_tunnel().await;
        let tunnel = Arc::new(Tunnel::start(tunnel::Config {
            device: Names::default().device,
            secret: self.config.secret.clone(),
            listen_port: port,
            offload: self.config.offload,
            mtu,
        })?);
        tracing::info!(port, mtu, "tunnel started");
        self.running = Some(Running {
            tunnel: Arc::clone(&tunnel),
            port,
            mtu,
        });
        Ok(tunnel)
    }

    async fn stop_tunnel(&mut self) {
        self.view.store(None);
        if let Some(running) = self.running.take() {
            running.tunnel.stop().await;
        }
    }
}

impl Engine for Host {
    async fn surroundings(&mut self) -> Surroundings {
        self.keeper.surroundings()
    }

    async fn apply(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let Some(mesh) = &plan.accepted.mesh else {
            self.stop_tunnel().await;
            return self
                .keeper
                .obey(Order {
                    tunnel: None,
                    wanted: Wanted::default(),
                    desired: nothing(),
                })
                .await;
        };
        let tunnel = self.tunnel(mesh).await.context("the tunnel cannot start")?;
        let running = self
            .running
            .as_ref()
            .map_or((self.config.port, DEFAULT_MTU), |one| (one.port, one.mtu));
        let order = Order {
            tunnel: Some(Arc::downgrade(&tunnel)),
            wanted: wanted(mesh, plan),
            desired: desired(mesh, plan, running),
        };
        let obeyed = self.keeper.obey(order).await;
        // Peers enter the status after the host has been told of them: only then do their routes stand.
        self.view.store(Some(Arc::new(View {
            tunnel,
            peers: plan.accepted.peers.clone(),
            port: running.0,
            mtu: running.1,
        })));
        obeyed
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(ViewReporter {
            view: Arc::clone(&self.view),
            host: self.keeper.report(),
        })
    }

    async fn stop(&mut self) {
        self.stop_tunnel().await;
    }
}

fn nothing() -> Desired {
    Desired {
        mtu: u32::from(DEFAULT_MTU),
        listen_port: 0,
        addresses: Vec::new(),
        local: Vec::new(),
        remote: Vec::new(),
        held: Vec::new(),
        device: false,
    }
}

fn desired(mesh: &MeshConfig, plan: &Plan, (port, mtu): (u16, u16)) -> Desired {
    let peers = &plan.accepted.peers;
    let prefixes = peers
        .iter()
        .flat_map(|peer| &peer.nodes)
        .flat_map(|node| &node.prefixes);
    let allowed = peers.iter().flat_map(|peer| &peer.allowed_cidrs);
    Desired {
        mtu: u32::from(mtu),
        listen_port: port,
        addresses: mesh.addresses.clone(),
        local: mesh.own_prefixes().collect(),
        remote: prefixes.copied().collect(),
        // What a peer may use but no node serves now must not leave in the clear either.
        held: allowed.copied().collect(),
        device: true,
    }
}

fn wanted(mesh: &MeshConfig, plan: &Plan) -> Wanted {
    let relay = |relay: &api::RelayConfig| RelaySpec {
        url: relay.url.clone(),
        dial: relay.dial.clone(),
        stun_port: relay.stun_port,
        ca_bundle: relay.ca_bundle.clone(),
        pass: relay
            .pass
            .as_ref()
            .or_else(|| plan.passes.get(&relay.url))
            .cloned(),
    };
    let node = |node: &api::PeerNode| NodeSpec {
        key: node.public_key,
        home_relay: node.home_relay.clone(),
        prefixes: node.prefixes.clone(),
    };
    Wanted {
        relays: mesh.relays.iter().map(relay).collect(),
        nodes: plan
            .accepted
            .peers
            .iter()
            .flat_map(|peer| &peer.nodes)
            .map(node)
            .collect(),
        probed: plan.probed.clone(),
        local: mesh.own_prefixes().collect(),
        ..Wanted::default()
    }
}
