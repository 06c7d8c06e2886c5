//! `culvert-operator run`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::args::RunArgs;
use crate::health::{Health, Server};
use crate::leader::{Elector, LEASE, Term};
use crate::metrics::Metrics;
use crate::reconcile::{Reconciler, Setting};
use crate::world::Release;

/// How long giving the lease back may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// Runs the operator until it is told to stop, or loses its lease.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    install_crypto();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args))
}

/// Has everything that speaks TLS use the same library.
pub(crate) fn install_crypto() {
    // Only a test that starts two commands in one process comes here twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client of the API server: of this pod's cluster, or of the kubeconfig.
pub(crate) async fn client() -> anyhow::Result<Client> {
    let config = kube::Config::infer().await;
    let config = config.context("no cluster to talk to: run in a pod, or set KUBECONFIG")?;
    Client::try_from(config).context("cannot talk to the API server")
}

async fn serve(args: &RunArgs) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let (health, metrics) = (Arc::<Health>::default(), Arc::<Metrics>::default());
    for address in [Some(args.health), args.metrics].into_iter().flatten() {
        let server = Server::bind(address, Arc::clone(&health), Arc::clone(&metrics)).await?;
        tokio::spawn(server.serve());
    }
    let client = client().await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = args.namespace,
        "operator started"
    );
    let elector = Elector::new(
        client.clone(),
        &args.namespace,
        args.name.as_deref(),
        Arc::clone(&health),
    );
    let setting = Setting {
        client,
        release: release(args),
        replica: args.name.clone().unwrap_or_else(|| LEASE.to_owned()),
        health,
        metrics,
    };
    lead(elector, setting, stop).await
}

/// Waits for the lease, and acts as long as it holds.
async fn lead(
    mut elector: Elector,
    setting: Setting,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    let term = tokio::select! {
        term = elector.acquire() => term,
        () = &mut stop => {
            tracing::info!("operator stopped; another replica leads");
            return Ok(());
        }
    };
    let Term { generation } = term;
    tracing::info!(generation, "this replica leads");
    setting.metrics.leads();
    let mut reconciler = Reconciler::new(setting, generation);
    let ended = tokio::select! {
        reason = elector.hold() => Err(anyhow::anyhow!("this replica no longer leads: {reason}")),
        Err(error) = reconciler.run() => Err(error),
        () = &mut stop => Ok(()),
    };
    // Before another replica starts: two must not hold one address on a relay.
    reconciler.close().await;
    give_up(&mut elector).await;
    if ended.is_ok() {
        tracing::info!("operator stopped; agents go on with what they know");
    }
    ended
}

/// Lets another replica lead at once.
async fn give_up(elector: &mut Elector) {
    match timeout(FAREWELL, elector.release()).await {
        Ok(Ok(())) => tracing::debug!("lease given back"),
        Ok(Err(error)) => tracing::debug!(
            error = format!("{error:#}"),
            "lease not given back; it runs out"
        ),
        Err(_) => tracing::debug!("lease not given back; it runs out"),
    }
}

fn release(args: &RunArgs) -> Release {
    let secrets = args
        .image_pull_secret
        .iter()
        .filter(|name| !name.is_empty());
    Release {
        namespace: args.namespace.clone(),
        instance: args.instance.clone(),
        relay_image: args.relay_image.clone(),
        pull_policy: Some(args.image_pull_policy.as_str().to_owned()),
        pull_secrets: secrets.cloned().collect(),
    }
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
