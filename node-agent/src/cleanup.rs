//! `culvert-agent cleanup`.

use std::path::Path;

use anyhow::{Context, bail};
use netconf::{Names, Netconf};

use crate::StateFolder;
use crate::args::CleanupArgs;

/// Removes what the agent has configured on this host, then what it keeps in the state folder.
pub(crate) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let state = StateFolder::open(&args.state.folder)?;
    let lock = state.lock().context("cleanup needs the agent stopped")?;
    clean_host(&state.journal())?;
    state.clear(args.purge)?;
    drop(lock);
    Ok(())
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
