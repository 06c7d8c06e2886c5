//! Reports to the status of this node's `MeshNode`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::{API_VERSION, MeshNode, MeshNodeStatus};
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::OwnNode;
use super::status::{Facts, damp, is_due, round_trips, status};
use crate::{Health, StatusSource};

/// Who owns the fields.
const MANAGER: &str = "culvert-agent";
/// Time between two looks at how things are.
const LOOK: Duration = Duration::from_millis(500);
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after the first failed write; it doubles with every other.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long a status that is not as it was written may still be on its way.
const SETTLE: Duration = Duration::from_secs(5);

/// Reports to the status of this node's `MeshNode`.
pub(crate) struct Writer {
    api: Api<DynamicObject>,
    node: String,
    own: Receiver<Option<OwnNode>>,
    source: StatusSource,
    health: Arc<Health>,
    /// What was written last, and into which object.
    written: Option<Written>,
    /// When to try again, and how long to wait after the next failure.
    retry: Option<(Instant, Duration)>,
}

struct Written {
    uid: String,
    status: MeshNodeStatus,
    at: Instant,
    /// When other round trips were written last.
    trips_at: Instant,
}

impl Writer {
    /// A writer for the node of this name.
    pub(crate) fn new(
        client: Client,
        node: String,
        own: Receiver<Option<OwnNode>>,
        source: StatusSource,
        health: Arc<Health>,
    ) -> Self {
        let kind = ApiResource::erase::<MeshNode>(&());
        Self {
            api: Api::all_with(client, &kind),
            node,
            own,
            source,
            health,
            written: None,
            retry: None,
        }
    }

    /// Writes for ever, at once where the object has come, and otherwise when there is something to tell.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = self.own.changed(), if watched => watched = changed.is_ok(),
            }
            self.health.beat("status", std::time::Instant::now());
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        let Some(own) = self.own.borrow_and_update().clone() else {
            self.written = None;
            return;
        };
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return;
        }
        if self
            .written
            .as_ref()
            .is_some_and(|written| written.is_lost(&own))
        {
            self.written = None;
        }
        let mut next = self.status(&own).await;
        if let Some(written) = &self.written {
            damp(&written.status, &mut next, written.trips_at.elapsed());
        }
        let due = self
            .written
            .as_ref()
            .is_none_or(|written| is_due(&written.status, &next, written.at.elapsed()));
        if !due {
            return;
        }
        match self.write(&next).await {
            Ok(()) => {
                self.retry = None;
                self.written = Some(Written::new(self.written.take(), own.uid, next));
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn status(&self, own: &OwnNode) -> MeshNodeStatus {
        let snapshot = self.source.reporter.snapshot().await;
        let facts = Facts {
            public_key: self.source.public_key,
            port: self.source.port,
            snapshot: &snapshot,
            manifests: &self.source.manifests.read(),
            generation: own.generation,
        };
        let before = self.written.as_ref().map(|written| &written.status);
        status(&facts, before.unwrap_or(&own.status), Timestamp::now())
    }

    async fn write(&self, status: &MeshNodeStatus) -> anyhow::Result<()> {
        let patch = json!({
            "apiVersion": API_VERSION,
            "kind": "MeshNode",
            "metadata": {"name": self.node},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(patch);
        let write = self.api.patch_status(&self.node, &params, &patch);
        timeout(PATIENCE, write)
            .await
            .context("no answer")?
            .context("refused")?;
        Ok(())
    }

    fn failed(&mut self, error: &anyhow::Error) {
        let pause = match self.retry {
            None => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot write the status of this node's MeshNode; trying again"
                );
                RETRY
            }
            Some((_, pause)) => pause.saturating_mul(2).min(MAX_RETRY),
        };
        self.retry = Some((Instant::now() + pause, pause));
    }
}

impl Written {
    fn new(before: Option<Self>, uid: String, status: MeshNodeStatus) -> Self {
        let now = Instant::now();
        let same = before.filter(|it| round_trips(&it.status) == round_trips(&status));
        Self {
            uid,
            status,
            at: now,
            trips_at: same.map_or(now, |it| it.trips_at),
        }
    }

    /// Whether the object is another one by now, or somebody has taken the status away.
    fn is_lost(&self, own: &OwnNode) -> bool {
        let other = self.uid != own.uid;
        let wiped = own.status.public_key != self.status.public_key && self.at.elapsed() > SETTLE;
        other || wiped
    }
}
