//! `culvert-agent run`.

use std::sync::Arc;

use anyhow::Context;
use api::Store;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::{RunArgs, WrongUsage};
use crate::folders::Folders;
use crate::host::{Host, HostConfig};
use crate::kubernetes::{self, Outlets, Writer};
use crate::member::Member;
use crate::state::JOINED;
use crate::{
    Agent, Engine, Health, HealthServer, Kubernetes, ManifestBoard, MetricsServer, Source,
    StateFolder, StatusServer, StatusSource, Watcher, agent,
};

/// Runs the agent until it is told to stop.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let started_at = Timestamp::now();
    check_source(args)?;
    let state = StateFolder::open(&args.state.folder)?;
    let lock = state.lock()?;
    check_privileges()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args, state, started_at))?;
    drop(lock);
    Ok(())
}

/// Somebody has to say what shall be.
fn check_source(args: &RunArgs) -> anyhow::Result<()> {
    let joined = args.state.folder.join(JOINED);
    if args.manifests.is_some() || args.kubernetes || joined.exists() {
        return Ok(());
    }
    Err(WrongUsage(
        "give --manifests DIR or --kubernetes, or let this host join first with `culvert-agent join`",
    )
    .into())
}

/// Without the right to configure the network every attempt would fail, for ever.
fn check_privileges() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    anyhow::ensure!(
        may_configure(&status).unwrap_or(true),
        "this process may not configure the network; run as root or with CAP_NET_ADMIN"
    );
    Ok(())
}

/// Whether the effective capabilities in a `status` file of procfs hold `CAP_NET_ADMIN`; `None` if it does not tell.
fn may_configure(status: &str) -> Option<bool> {
    const CAP_NET_ADMIN: u32 = 12;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(capabilities >> CAP_NET_ADMIN & 1 == 1)
}

async fn serve(args: &RunArgs, state: StateFolder, started_at: Timestamp) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let health = Arc::new(Health::default());
    if let Some(address) = args.health {
        let server = HealthServer::bind(address).await?;
        tokio::spawn(server.serve(Arc::clone(&health)));
    }
    let secret = state.key()?;
    let public_key = secret.public();
    let port = state.port()?;
    let folder = state.path().to_owned();
    let store = Store::new(public_key, state.saved()?);
    let status = StatusServer::bind(&state.socket())?;
    let metrics = match args.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let engine = Host::open(HostConfig {
        secret,
        port,
        offload: args.offload,
        journal: state.journal(),
        health: Arc::clone(&health),
    })
    .await?;
    let source = StatusSource {
        started_at,
        public_key,
        port,
        manifests: Arc::new(ManifestBoard::default()),
        reporter: engine.reporter(),
    };
    tokio::spawn(status.serve(source.clone()));
    if let Some(metrics) = metrics {
        tokio::spawn(metrics.serve(source.clone()));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), port, "agent started");
    let parts = Parts {
        state,
        store,
        engine,
        health,
        status: source,
    };
    match &args.node {
        Some(node) if args.kubernetes => {
            let source = start_kubernetes(node, &parts).await?;
            parts.run(source, stop).await;
        }
        Some(_) | None => {
            let source = folders(args, &parts);
            parts.run(source, stop).await;
        }
    }
    tracing::info!(
        "agent stopped; what it configured stays in place until `culvert-agent cleanup --state {}`",
        folder.display()
    );
    Ok(())
}

/// An agent without a source.
struct Parts {
    state: StateFolder,
    store: Store,
    engine: Host,
    health: Arc<Health>,
    status: StatusSource,
}

impl Parts {
    async fn run(self, source: impl Source, stop: impl Future<Output = ()>) {
        let agent = Agent {
            state: self.state,
            source,
            store: self.store,
            board: self.status.manifests,
            health: self.health,
            engine: self.engine,
        };
        agent::run(agent, stop).await;
    }
}

fn folders(args: &RunArgs, parts: &Parts) -> Folders {
    let member = Member::new(
        parts.state.clone(),
        parts.status.public_key,
        Arc::clone(&parts.status.reporter),
    );
    let manifests = args.manifests.as_deref().map(Watcher::new);
    Folders::new(manifests, parts.state.joined(), member)
}

/// Starts to watch the API server, and to write there.
async fn start_kubernetes(node: &str, parts: &Parts) -> anyhow::Result<Kubernetes> {
    let client = client().await?;
    let (objects, objects_out) = watch::channel(None);
    let (own, own_out) = watch::channel(None);
    let writer = Writer::new(
        client.clone(),
        node.to_owned(),
        own_out,
        parts.status.clone(),
        Arc::clone(&parts.health),
    );
    tokio::spawn(kubernetes::watch(
        client,
        node.to_owned(),
        Outlets { objects, own },
    ));
    tokio::spawn(writer.run());
    Ok(Kubernetes::new(objects_out))
}

async fn client() -> anyhow::Result<kube::Client> {
    const HINT: &str =
        "there is no way to the API server; run in a pod with a service account, or set KUBECONFIG";
    // Fails if there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let config = if in_pod && std::env::var_os("KUBECONFIG").is_none() {
        kube::Config::incluster().context(HINT)?
    } else {
        kube::Config::infer().await.context(HINT)?
    };
    kube::Client::try_from(config).context("cannot speak to the API server")
}

/// Completes on SIGTERM or SIGINT.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_procfs() {
        assert_eq!(
            may_configure("Name:\tx\nCapEff:\t0000000000001000\n"),
            Some(true)
        );
        assert_eq!(may_configure("CapEff:\t000001fffffeefff\n"), Some(false));
        assert_eq!(may_configure("Name:\tx\n"), None);
    }
}
