//! Carries out what was decided.
//!
//! What fails is left alone for a while, each object by itself, and said once. Nothing else waits for it.

mod object;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use crate::action::{Action, Note, Redemption};
use crate::backoff::Backoff;
use crate::leader::LEASE;
use crate::metrics::Metrics;
use crate::plan::issue_certificate;
use object::{Failure, Writer};

/// Owner of the fields that the operator writes.
pub(crate) const MANAGER: &str = "culvert-operator";
/// Writes at a time.
const AT_ONCE: usize = 8;
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Events that wait to be written.
const MAX_NOTES: usize = 64;
/// Longest text of an event, in bytes.
const MAX_NOTE: usize = 1000;

/// Writes to the API server.
pub(crate) struct Applier {
    writer: Writer,
    recorder: Recorder,
    backoff: Backoff<Key>,
    notes: VecDeque<Note>,
}

/// What tells one thing to be done from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: &'static str,
    kind: &'static str,
    name: String,
}

/// An object as it is after a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
}

/// How using an invite went.
#[derive(Debug)]
pub(crate) enum Redeemed {
    /// It has been used.
    Done(Written),
    /// It has changed since it was looked at.
    Changed,
    /// Nobody knows.
    Failed(String),
}

impl Applier {
    /// Writes with `client`; events name the replica.
    pub(crate) fn new(client: &Client, replica: &str) -> Self {
        let reporter = Reporter {
            controller: LEASE.to_owned(),
            instance: Some(replica.to_owned()),
        };
        Self {
            writer: Writer::new(client.clone()),
            recorder: Recorder::new(client.clone(), reporter),
            backoff: Backoff::default(),
            notes: VecDeque::new(),
        }
    }

    /// Does all of it that is due, and returns what has been written. What a plan no longer holds is forgotten: it is
    /// either done or not wanted any more.
    pub(crate) async fn perform(
        &mut self,
        actions: Vec<Action>,
        metrics: &Metrics,
    ) -> Vec<Written> {
        let (notes, writes): (Vec<_>, Vec<_>) = actions
            .into_iter()
            .partition(|action| matches!(action, Action::Event(_)));
        let wanted: BTreeSet<Key> = writes.iter().map(key).collect();
        self.backoff.retain(|key| wanted.contains(key));
        let mut written = Vec::new();
        for batch in batches(self.due(writes)) {
            let attempts = join_all(batch.iter().map(|action| attempt(&self.writer, action))).await;
            for (action, attempt) in batch.iter().zip(attempts) {
                written.extend(self.note(action, attempt, metrics));
            }
        }
        self.publish(notes, metrics).await;
        written
    }

    /// Uses an invite, if it is still as it was.
    pub(crate) async fn redeem(&self, redemption: &Redemption) -> Redeemed {
        match tokio::time::timeout(PATIENCE, self.writer.redeem(redemption)).await {
            Ok(Ok(Some(written))) => Redeemed::Done(written),
            // Deleted meanwhile.
            Ok(Ok(None)) | Ok(Err(Failure::Conflict(_))) => Redeemed::Changed,
            Ok(Err(failure)) => Redeemed::Failed(failure.to_string()),
            Err(_) => Redeemed::Failed("the API server does not answer".to_owned()),
        }
    }

    /// Does all of it, in order, now and once; ends with the first that fails.
    pub(crate) async fn insist(
        &mut self,
        actions: Vec<Action>,
        metrics: &Metrics,
    ) -> Result<Vec<Written>, String> {
        let (notes, writes): (Vec<_>, Vec<_>) = actions
            .into_iter()
            .partition(|action| matches!(action, Action::Event(_)));
        let mut written = Vec::new();
        for action in &writes {
            let attempt = attempt(&self.writer, action).await;
            written.extend(attempt.map_err(|failure| failure.to_string())?);
        }
        self.publish(notes, metrics).await;
        Ok(written)
    }

    /// When something that failed may be tried again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let retry_notes = (!self.notes.is_empty()).then(|| Instant::now() + PATIENCE);
        self.backoff.next().into_iter().chain(retry_notes).min()
    }

    fn due(&self, writes: Vec<Action>) -> Vec<Action> {
        let now = Instant::now();
        let due = |action: &Action| self.backoff.is_due(&key(action), now);
        writes.into_iter().filter(due).collect()
    }

    fn note(
        &mut self,
        action: &Action,
        attempt: Result<Option<Written>, Failure>,
        metrics: &Metrics,
    ) -> Option<Written> {
        let key = key(action);
        match attempt {
            Ok(written) => {
                self.backoff.succeeded(&key);
                tracing::debug!(verb = key.verb, kind = key.kind, name = key.name, "done");
                written
            }
            Err(failure @ Failure::Conflict(_)) => {
                let (Key { verb, kind, name }, error) = (key.clone(), failure.to_string());
                tracing::debug!(verb, kind, name, error, "it has changed; deciding anew");
                self.backoff
                    .failed(key, &error, Instant::now(), rand::random());
                None
            }
            Err(failure) => {
                metrics.failed(key.verb);
                let (Key { verb, kind, name }, error) = (key.clone(), failure.to_string());
                if self
                    .backoff
                    .failed(key, &error, Instant::now(), rand::random())
                {
                    tracing::warn!(verb, kind, name, error, "failed; trying again in a while");
                } else {
                    tracing::debug!(verb, kind, name, error, "failed again");
                }
                None
            }
        }
    }

    /// Tells people; what cannot be told now is told later, unless it gets too much.
    async fn publish(&mut self, notes: Vec<Action>, metrics: &Metrics) {
        for action in notes {
            if let Action::Event(note) = action {
                self.notes.push_back(note);
            }
        }
        while self.notes.len() > MAX_NOTES {
            self.notes.pop_front();
        }
        while let Some(note) = self.notes.pop_front() {
            let event = event(&note);
            let published = self.recorder.publish(&event, &note.about);
            match tokio::time::timeout(PATIENCE, published).await {
                Ok(Ok(())) => {}
                // To be read nowhere, or no event at all: nothing gets better by waiting.
                Ok(Err(kube::Error::Api(status)))
                    if (400..500).contains(&status.code) && status.code != 429 =>
                {
                    tracing::warn!(reason = note.reason, error = %status, "an event is not taken");
                    metrics.failed("event");
                }
                Ok(Err(_)) | Err(_) => {
                    metrics.failed("event");
                    self.notes.push_front(note);
                    return;
                }
            }
        }
    }
}

async fn attempt(writer: &Writer, action: &Action) -> Result<Option<Written>, Failure> {
    let attempt = async {
        match action {
            Action::Apply(object) => writer.apply(object).await.map(Some),
            Action::Swap(object) => writer.swap(object).await.map(Some),
            Action::Create(object) => writer.create(object).await,
            Action::Certify(order) => {
                let secret = issue_certificate(order, Timestamp::now())
                    .map_err(|error| Failure::Other(error.to_string()))?;
                writer.apply_secret(&secret).await.map(Some)
            }
            Action::ApplyStatus(status) => writer.apply_status(status).await,
            Action::Redeem(redemption) => writer.redeem(redemption).await,
            Action::Delete(target) => writer.delete(target).await.map(|()| None),
            Action::Event(_) => Ok(None),
        }
    };
    let attempted = tokio::time::timeout(PATIENCE, attempt).await;
    attempted.unwrap_or_else(|_| Err(Failure::Other("the API server does not answer".to_owned())))
}

fn key(action: &Action) -> Key {
    let (verb, kind, name) = match action {
        Action::Apply(object) => ("apply", object.kind().name(), name(object.metadata())),
        Action::Swap(object) => ("swap", object.kind().name(), name(object.metadata())),
        Action::Create(object) => ("create", object.kind().name(), name(object.metadata())),
        Action::Certify(order) => (
            "certify",
            "Secret",
            order.metadata.name.clone().unwrap_or_default(),
        ),
        Action::ApplyStatus(status) => {
            let (kind, name) = status.object();
            ("status", kind, name.to_owned())
        }
        Action::Redeem(redemption) => ("redeem", "Invite", redemption.name.clone()),
        Action::Delete(target) => ("delete", target.kind.name(), target.name.clone()),
        Action::Event(note) => (
            "event",
            note.reason,
            note.about.name.clone().unwrap_or_default(),
        ),
    };
    Key { verb, kind, name }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// In their order; neighbours that do the same to the same kind go together.
fn batches(actions: Vec<Action>) -> Vec<Vec<Action>> {
    let mut batches: Vec<Vec<Action>> = Vec::new();
    for action in actions {
        let alike = |batch: &Vec<Action>| {
            let (Key { verb, kind, .. }, now) = (batch.first().map(key)?, key(&action));
            Some(batch.len() < AT_ONCE && (verb, kind) == (now.verb, now.kind))
        };
        match batches.last_mut() {
            Some(batch) if alike(batch) == Some(true) => batch.push(action),
            Some(_) | None => batches.push(vec![action]),
        }
    }
    batches
}

fn event(note: &Note) -> Event {
    let mut end = note.note.len().min(MAX_NOTE);
    while !note.note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_: if note.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: note.reason.to_owned(),
        note: note.note.get(..end).map(str::to_owned),
        action: note.action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;
    use crate::action::{Kind, Object, Target};

    fn delete(kind: Kind, name: &str) -> Action {
        Action::Delete(Target {
            kind,
            namespace: None,
            name: name.to_owned(),
            uid: None,
        })
    }

    fn sizes(actions: Vec<Action>) -> Vec<usize> {
        batches(actions).iter().map(Vec::len).collect()
    }

    #[test]
    fn neighbours_of_one_kind_go_together_in_order() {
        assert_eq!(sizes(vec![]), [0; 0]);
        let slices = |count: usize| (0..count).map(|at| delete(Kind::PeerSlice, &at.to_string()));
        assert_eq!(sizes(slices(19).collect()), [8, 8, 3]);
        let mixed = vec![
            delete(Kind::Peer, "a"),
            delete(Kind::Secret, "a"),
            delete(Kind::Peer, "b"),
        ];
        assert_eq!(sizes(mixed.clone()), [1, 1, 1]);
        let again: Vec<_> = batches(mixed.clone()).iter().flatten().map(key).collect();
        assert_eq!(again, mixed.iter().map(key).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_done_to_an_object_is_told_apart() {
        let secret = || Object::Secret(Box::default());
        let (apply, create) = (
            key(&Action::Apply(secret())),
            key(&Action::Create(secret())),
        );
        assert_ne!(apply, create);
        assert_eq!((apply.kind, create.kind), ("Secret", "Secret"));
    }

    #[test]
    fn the_text_of_an_event_is_cut() {
        let note = Note {
            about: ObjectReference::default(),
            warning: true,
            reason: "Joined",
            action: "Join",
            note: "ü".repeat(2000),
        };
        let event = event(&note);
        assert_eq!(event.note.map(|text| text.len()), Some(MAX_NOTE));
        assert_eq!(event.type_, EventType::Warning);
    }
}
