//! The loop of a running agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{FolderRead, Store, Surroundings};
use derp::{NodeKey, RelayUrl};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::probes::Probes;
use crate::{Engine, Health, ManifestBoard, Plan, Source, StateFolder};

/// Time between two looks at the manifests and at the host.
const LOOK: Duration = Duration::from_millis(500);
/// Time after which a failed attempt to apply is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// Time between two looks at who answers probes.
const PROBES: Duration = Duration::from_secs(1);

/// The parts of a running agent.
#[derive(Debug)]
pub struct Agent<E, S> {
    /// The state folder, locked by the caller.
    pub state: StateFolder,
    /// Where what shall be comes from.
    pub source: S,
    /// What is in force.
    pub store: Store,
    /// Where the statuses of manifests go.
    pub board: Arc<ManifestBoard>,
    /// Who is told how it goes.
    pub health: Arc<Health>,
    /// What touches the network.
    pub engine: E,
}

/// Runs an agent until `stop` completes.
pub async fn run<E: Engine, S: Source>(agent: Agent<E, S>, stop: impl Future<Output = ()>) {
    let mut loop_ = Loop {
        agent,
        read: None,
        cluster: Cluster::default(),
        surroundings: Surroundings::default(),
        probes: Probes::default(),
        probed: BTreeSet::new(),
        probes_at: None,
        applied: None,
        retry_at: None,
        unsaved: false,
    };
    tokio::select! {
        () = stop => {}
        () = loop_.forever() => {}
    }
    loop_.agent.engine.stop().await;
}

struct Loop<E, S> {
    agent: Agent<E, S>,
    /// What the source held last.
    read: Option<FolderRead>,
    cluster: Cluster,
    surroundings: Surroundings,
    probes: Probes,
    probed: BTreeSet<NodeKey>,
    /// When to look at the probes again; `None`: at once.
    probes_at: Option<Instant>,
    /// What the engine was last told with success.
    applied: Option<Plan>,
    /// When to tell it again after a failure.
    retry_at: Option<Instant>,
    /// Whether what is in force has changed since it was kept.
    unsaved: bool,
}

/// What the API server says besides the objects; what was last known while it does not say.
#[derive(Debug, Default)]
struct Cluster {
    reserved: Vec<IpNet>,
    probes: Vec<String>,
    /// What has to be there before anything can be programmed.
    missing: Option<String>,
}

impl Cluster {
    fn note(&mut self, read: &FolderRead) {
        match read {
            FolderRead::Objects(objects) => {
                self.missing = objects.missing();
                if objects.mesh_node.is_some() {
                    self.reserved = objects.reserved();
                    self.probes = objects.probes();
                }
            }
            FolderRead::Waiting { what } => self.missing = Some(what.clone()),
            FolderRead::Files(_) | FolderRead::Unreadable { .. } => self.missing = None,
        }
    }
}

impl<E: Engine, S: Source> Loop<E, S> {
    async fn forever(&mut self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.agent.source.changed() => {}
            }
            self.agent.health.beat("agent", std::time::Instant::now());
            self.look().await;
            self.choose_probes().await;
            self.apply().await;
            self.save();
        }
    }

    /// Looks at the source and the surroundings, and decides anew if either has changed.
    async fn look(&mut self) {
        let read = self.agent.source.look();
        let news = read.is_some();
        if let Some(read) = read {
            self.cluster.note(&read.folder);
            for told in read.told {
                let identity = Some(told.identity);
                self.agent.store.learn(&told.peer, identity, told.nodes);
            }
            self.read = Some(read.folder);
        }
        let surroundings = Surroundings {
            reserved: self.cluster.reserved.clone(),
            ..self.agent.engine.surroundings().await
        };
        if !news && surroundings == self.surroundings {
            return;
        }
        self.surroundings = surroundings;
        self.retry_at = None;
        let Some(read) = &self.read else {
            return;
        };
        let accepted = self.agent.store.update(read, &self.surroundings);
        self.agent.source.in_force(accepted);
        self.probes_at = None;
        self.unsaved = true;
        self.report();
    }

    fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        if let Err(error) = self.agent.state.save(&self.agent.store.saved()) {
            tracing::warn!(error = %error, "what is in force would not survive a restart");
        }
    }

    async fn choose_probes(&mut self) {
        if self.cluster.probes.is_empty() && self.probed.is_empty() {
            return;
        }
        if self.probes_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.probes_at = Some(Instant::now() + PROBES);
        let snapshot = self.agent.engine.reporter().snapshot().await;
        let accepted = self.agent.store.accepted();
        self.probed =
            self.probes
                .choose(&self.cluster.probes, accepted, &snapshot, Timestamp::now());
    }

    fn report(&self) {
        let statuses = self.agent.store.statuses();
        self.agent.board.post(statuses);
        let errors = statuses.iter().flat_map(|status| &status.errors);
        for error in errors.clone() {
            tracing::debug!(file = error.file, document = error.document, field = error.field, code = %error.code, message = error.message, "manifest refused");
        }
        let refused = self.agent.store.refused();
        for node in refused {
            tracing::debug!(peer = node.peer, node = node.node, code = %node.problem.code, message = node.problem.message, "told node refused");
        }
        let accepted = self.agent.store.accepted();
        tracing::info!(
            mesh = accepted.mesh.is_some(),
            peers = accepted.peers.len(),
            documents = statuses.len(),
            errors = errors.count(),
            refused_nodes = refused.len(),
            "manifests read; `culvert-agent status` tells what was refused"
        );
    }

    async fn apply(&mut self) {
        // Before anything has been read, there is no telling that nothing shall be.
        if self.nothing_is_known() {
            self.tell_health();
            return;
        }
        let accepted = self.agent.store.accepted();
        let passes = self.passes();
        let done = self.applied.as_ref().is_some_and(|plan| {
            plan.accepted == *accepted && plan.probed == self.probed && plan.passes == passes
        });
        if done {
            self.tell_health();
            return;
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let plan = Plan {
            accepted: accepted.clone(),
            probed: self.probed.clone(),
            passes,
        };
        match self.agent.engine.apply(&plan).await {
            Ok(()) => {
                self.applied = Some(plan);
                self.retry_at = None;
                self.tell_health();
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.agent.health.not_ready(&error);
                tracing::warn!(error, "cannot apply what is in force; trying again");
                self.applied = None;
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    fn passes(&self) -> BTreeMap<RelayUrl, String> {
        let mesh = self.agent.store.accepted().mesh.iter();
        let relays = mesh.flat_map(|mesh| &mesh.relays);
        let without = relays.filter(|relay| relay.pass.is_none());
        without
            .filter_map(|relay| Some((relay.url.clone(), self.agent.source.pass(&relay.url)?)))
            .collect()
    }

    fn nothing_is_known(&self) -> bool {
        match &self.read {
            None => true,
            Some(FolderRead::Waiting { .. }) => self.agent.store.is_empty(),
            Some(FolderRead::Files(_) | FolderRead::Objects(_) | FolderRead::Unreadable { .. }) => {
                false
            }
        }
    }

    /// What is applied counts, also if an earlier agent had it from somewhere that does not answer now.
    fn tell_health(&self) {
        let applied = self.applied.as_ref();
        let has_mesh = applied.is_some_and(|plan| plan.accepted.mesh.is_some());
        match &self.cluster.missing {
            Some(what) if !has_mesh => self.agent.health.not_ready(&format!("waiting for {what}")),
            Some(_) | None => self.agent.health.ready(),
        }
    }
}

#[cfg(test)]
mod tests;
