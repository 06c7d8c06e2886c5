//! `culvert-agent run`.

use std::sync::Arc;

use anyhow::Context;
use api::Store;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::RunArgs;
use crate::host::{Host, HostConfig};
use crate::{
    Agent, Engine, ManifestBoard, MetricsServer, StateFolder, StatusServer, StatusSource, Watcher,
    agent,
};

/// Runs the agent until it is told to stop.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let started_at = Timestamp::now();
    let state = StateFolder::open(&args.state.folder)?;
    let lock = state.lock()?;
    check_privileges()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args, state, started_at))?;
    drop(lock);
    Ok(())
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
    let secret = state.key()?;
    let public_key = secret.public();
    let port = state.port()?;
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
    })
    .await?;
    let source = StatusSource {
        started_at,
        public_key,
        port,
        manifests: Arc::new(ManifestBoard::default()),
        reporter: engine.reporter(),
    };
    let board = Arc::clone(&source.manifests);
    tokio::spawn(status.serve(source.clone()));
    if let Some(metrics) = metrics {
        tokio::spawn(metrics.serve(source));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), port, "agent started");
    let watcher = Watcher::new(&args.manifests);
    let agent = Agent {
        state,
        watcher,
        store,
        board,
        engine,
    };
    agent::run(agent, stop).await;
    tracing::info!(
        "agent stopped; what it configured stays in place until `culvert-agent cleanup`"
    );
    Ok(())
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
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
