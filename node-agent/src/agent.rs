//! The loop of a running agent.

use std::sync::Arc;
use std::time::Duration;

use api::{Accepted, FolderRead, Store, Surroundings};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{Engine, ManifestBoard, StateFolder, Watcher};

/// Time between two looks at the manifests and at the host.
const LOOK: Duration = Duration::from_millis(500);
/// Time after which a failed attempt to apply is repeated.
const RETRY: Duration = Duration::from_secs(2);

/// The parts of a running agent.
#[derive(Debug)]
pub struct Agent<E> {
    /// The state folder, locked by the caller.
    pub state: StateFolder,
    /// The manifest folder.
    pub watcher: Watcher,
    /// What is in force.
    pub store: Store,
    /// Where the statuses of manifests go.
    pub board: Arc<ManifestBoard>,
    /// What touches the network.
    pub engine: E,
}

/// Runs an agent until `stop` completes.
pub async fn run<E: Engine>(agent: Agent<E>, stop: impl Future<Output = ()>) {
    let mut loop_ = Loop {
        agent,
        folder: None,
        surroundings: Surroundings::default(),
        applied: None,
        retry_at: None,
    };
    tokio::select! {
        () = stop => {}
        () = loop_.forever() => {}
    }
    loop_.agent.engine.stop().await;
}

struct Loop<E> {
    agent: Agent<E>,
    folder: Option<FolderRead>,
    surroundings: Surroundings,
    /// What the engine was last told with success.
    applied: Option<Accepted>,
    /// When to tell it again after a failure.
    retry_at: Option<Instant>,
}

impl<E: Engine> Loop<E> {
    async fn forever(&mut self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look().await;
            self.apply().await;
        }
    }

    /// Looks at manifests and surroundings, and decides anew if either has changed.
    async fn look(&mut self) {
        let surroundings = self.agent.engine.surroundings().await;
        let folder = self.agent.watcher.look();
        if folder.is_none() && surroundings == self.surroundings {
            return;
        }
        self.surroundings = surroundings;
        self.retry_at = None;
        self.folder = folder.or_else(|| self.folder.take());
        let Some(folder) = &self.folder else {
            return;
        };
        self.agent.store.update(folder, &self.surroundings);
        self.report();
        if let Err(error) = self.agent.state.save(&self.agent.store.saved()) {
            tracing::warn!(error = %error, "what is in force would not survive a restart");
        }
    }

    fn report(&self) {
        let statuses = self.agent.store.statuses();
        self.agent.board.post(statuses);
        let errors = statuses.iter().flat_map(|status| &status.errors);
        for error in errors.clone() {
            tracing::debug!(file = error.file, document = error.document, field = error.field, code = %error.code, message = error.message, "manifest refused");
        }
        let accepted = self.agent.store.accepted();
        tracing::info!(
            mesh = accepted.mesh.is_some(),
            peers = accepted.peers.len(),
            documents = statuses.len(),
            errors = errors.count(),
            "manifests read; `culvert-agent status` tells what was refused"
        );
    }

    async fn apply(&mut self) {
        let accepted = self.agent.store.accepted();
        if self.applied.as_ref() == Some(accepted)
            || self.retry_at.is_some_and(|at| Instant::now() < at)
        {
            return;
        }
        match self.agent.engine.apply(accepted).await {
            Ok(()) => {
                self.applied = Some(accepted.clone());
                self.retry_at = None;
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot apply what is in force; trying again"
                );
                self.applied = None;
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests;
