//! `culvert-agent cleanup`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use netconf::{CleanupReport, Names, Netconf};

use crate::args::CleanupArgs;
use crate::run::stop_signal;
use crate::{Health, HealthServer, Lock, StateError, StateFolder, output};

/// How long an agent that is just ending is waited for, and between two looks.
const ENDING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// Removes what the agent has configured on this host, then what it keeps in the state folder.
pub(crate) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let folder = &args.state.folder;
    if folder.try_exists().is_ok_and(|exists| !exists) {
        output::print(&nothing_to_do(folder, &foresee()?)?)?;
    } else {
        clean(args)?;
    }
    if args.then_wait {
        wait(args)?;
    }
    Ok(())
}

fn clean(args: &CleanupArgs) -> anyhow::Result<()> {
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

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
}

/// Tells that it is done, until it is told to end.
fn wait(args: &CleanupArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
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

/// What would have to be removed, with nothing but owner marks to tell.
fn foresee() -> anyhow::Result<CleanupReport> {
    let report = runtime()?.block_on(Netconf::foresee_cleanup(Names::default()));
    report.context("cannot look at this host; run cleanup as root")
}

/// The words for a folder that is not there. It went with an earlier `--purge`, or it is another one: then an agent that has
/// this host may still run, and the old values of sysctls are in its journal.
fn nothing_to_do(folder: &Path, report: &CleanupReport) -> anyhow::Result<String> {
    let folder = folder.display();
    ensure!(
        report.removed.is_empty(),
        "{folder} is not there, and Culvert has configured this host; name the folder that the agent was run with, or make it empty if it is lost"
    );
    complete(report)?;
    Ok(format!(
        "{folder} is not there, and nothing of Culvert is configured here\n"
    ))
}

fn clean_host(journal: &Path) -> anyhow::Result<()> {
    let report = runtime()?.block_on(Netconf::cleanup(Names::default(), journal));
    let report = report.context("cannot clean this host; run cleanup as root")?;
    for removed in &report.removed {
        tracing::info!(removed, "removed");
    }
    complete(&report)
}

/// An error if something could not be looked at or removed.
fn complete(report: &CleanupReport) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use netconf::{Condition, ConditionCode};

    use super::*;

    fn verdict(removed: &[&str], left: &[&str]) -> Result<String, String> {
        let condition = |text: &&str| Condition {
            code: ConditionCode::NftMissing,
            message: (*text).to_owned(),
        };
        let report = CleanupReport {
            removed: removed.iter().map(|text| (*text).to_owned()).collect(),
            left: left.iter().map(condition).collect(),
        };
        nothing_to_do(Path::new("/var/lib/typo"), &report).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_that_is_not_there_is_fine_on_a_clean_host_only() {
        let clean = verdict(&[], &[]).expect("a second cleanup is fine");
        assert!(
            clean.contains("/var/lib/typo is not there, and nothing of Culvert"),
            "{clean}"
        );
        let other = verdict(&["remove the table"], &[]).expect_err("another folder");
        assert!(
            other.contains("name the folder that the agent was run with"),
            "{other}"
        );
        let unknown = verdict(&[], &["nft is missing"]).expect_err("nobody knows");
        assert!(unknown.contains("nft is missing"), "{unknown}");
    }
}
