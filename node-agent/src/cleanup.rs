//! `culvert-agent cleanup`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netconf::{Names, Netconf};

use crate::args::CleanupArgs;
use crate::run::stop_signal;
use crate::{Health, HealthServer, Lock, StateError, StateFolder};

/// How long an agent that is just ending is waited for, and between two looks.
const ENDING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// Removes what the agent has configured on this host, then what it keeps in the state folder.
pub(crate) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let state = StateFolder::open(&args.state.folder)?;
    let patience = if args.then_wait {
        ENDING
    } else {
        Duration::ZERO
    };
    let lock = lock(&state, patience).context("cleanup needs the agent stopped")?;
    clean_host(&state.journal())?;
    state.clear(args.purge)?;
    drop(lock);
    if args.then_wait {
        wait(args)?;
    }
    Ok(())
}

fn lock(state: &StateFolder, patience: Duration) -> Result<Lock, StateError> {
    let end = Instant::now() + patience;
    loop {
        match state.lock() {
            Err(StateError::Locked { .. }) if Instant::now() < end => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

/// Tells that it is done, until it is told to end.
fn wait(args: &CleanupArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        if let Some(address) = args.health {
            let health = Arc::new(Health::default());
            health.ready();
            tokio::spawn(HealthServer::bind(address).await?.serve(health));
        }
        tracing::info!("this host is clean; waiting to be ended");
        stop.await;
        Ok(())
    })
}

fn clean_host(journal: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let report = runtime.block_on(Netconf::cleanup(Names::default(), journal));
    let report = report.context("cannot clean this host; run cleanup as root")?;
    for removed in &report.removed {
        tracing::info!(removed, "removed");
    }
    if !report.left.is_empty() {
        let left: Vec<&str> = report
            .left
            .iter()
            .map(|condition| condition.message.as_str())
            .collect();
        bail!(
            "some things could not be removed: {}; put that right and run cleanup again",
            left.join("; ")
        );
    }
    Ok(())
}
