//! Tells relays whom they let in no longer: `PUT /denylist`, each relay by itself until it has taken the list.

mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use derp::RelayUrl;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::action::DenyPush;
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::world::{DenyFault, DenyProblem};
use request::Failure;

/// Longest text of a problem.
const MAX_PROBLEM: usize = 256;
/// How long one push may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which relay has which list.
pub(crate) struct DenyLists {
    taken: BTreeMap<RelayUrl, u64>,
    /// Of the relays that have not taken the last one.
    problems: BTreeMap<RelayUrl, DenyProblem>,
    /// Pushes under way, and whether the relay was lost meanwhile: what it answers then says nothing about the next.
    running: BTreeMap<RelayUrl, bool>,
    backoff: Backoff<RelayUrl>,
    sender: mpsc::UnboundedSender<Pushed>,
    results: mpsc::UnboundedReceiver<Pushed>,
    changed: Arc<Notify>,
}

/// How a push went.
struct Pushed {
    relay: RelayUrl,
    serial: u64,
    result: Result<(), Failure>,
}

impl DenyLists {
    /// Nobody has any list. `changed` is told of results.
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        Self {
            taken: BTreeMap::new(),
            problems: BTreeMap::new(),
            running: BTreeMap::new(),
            backoff: Backoff::default(),
            sender,
            results,
            changed,
        }
    }

    /// Takes results, and which relays have been lost since the last time.
    pub(crate) fn update(&mut self, lost: &BTreeSet<RelayUrl>, metrics: &Metrics) {
        for relay in lost {
            self.taken.remove(relay);
            self.problems.remove(relay);
            if let Some(was_lost) = self.running.get_mut(relay) {
                *was_lost = true;
            }
        }
        while let Ok(pushed) = self.results.try_recv() {
            self.finish(pushed, metrics);
        }
    }

    /// Serial of the list that each relay has taken and not lost.
    pub(crate) fn taken(&self) -> BTreeMap<RelayUrl, u64> {
        self.taken.clone()
    }

    /// Why those that have not taken the last list have not.
    pub(crate) fn problems(&self) -> BTreeMap<RelayUrl, DenyProblem> {
        self.problems.clone()
    }

    /// Starts those that are due.
    pub(crate) fn start(&mut self, pushes: Vec<DenyPush>) {
        let wanted: BTreeSet<_> = pushes.iter().map(|push| push.relay.clone()).collect();
        self.backoff.retain(|relay| wanted.contains(relay));
        let now = Instant::now();
        for push in pushes {
            if self.running.contains_key(&push.relay) || !self.backoff.is_due(&push.relay, now) {
                continue;
            }
            self.running.insert(push.relay.clone(), false);
            let (sender, changed) = (self.sender.clone(), Arc::clone(&self.changed));
            tokio::spawn(async move {
                let attempt = tokio::time::timeout(PATIENCE, request::put(&push)).await;
                let result = attempt.unwrap_or_else(|_| Err(Failure::late()));
                // Nobody takes it when the process ends.
                let _ = sender.send(Pushed {
                    relay: push.relay,
                    serial: push.serial,
                    result,
                });
                changed.notify_one();
            });
        }
    }

    /// When one that failed may be tried again; those that are being tried now wake the caller by themselves.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.backoff
            .next_of(|relay| !self.running.contains_key(relay))
    }

    fn finish(&mut self, pushed: Pushed, metrics: &Metrics) {
        let Pushed {
            relay,
            serial,
            result,
        } = pushed;
        let was_lost = self.running.remove(&relay).unwrap_or(false);
        match result {
            Ok(()) if was_lost => {}
            Ok(()) => {
                tracing::info!(%relay, serial, "deny list taken");
                self.backoff.succeeded(&relay);
                self.problems.remove(&relay);
                self.taken.insert(relay, serial);
            }
            Err(Failure { fault, message }) => {
                metrics.failed("denylist");
                if self
                    .backoff
                    .failed(relay.clone(), &message, Instant::now(), rand::random())
                {
                    tracing::warn!(%relay, serial, error = message, "deny list not taken");
                }
                // What is said of a relay that was lost meanwhile is old.
                if !was_lost {
                    self.note(relay, fault, message);
                }
            }
        }
    }

    fn note(&mut self, relay: RelayUrl, fault: DenyFault, message: String) {
        let before = self.problems.get(&relay).map_or(0, |before| before.times);
        let problem = DenyProblem {
            fault,
            message: message.chars().take(MAX_PROBLEM).collect(),
            times: before.saturating_add(1),
        };
        self.problems.insert(relay, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> RelayUrl {
        "http://192.0.2.1:80".parse().expect("a URL")
    }

    fn refused(fault: DenyFault) -> Result<(), Failure> {
        Err(Failure {
            fault,
            message: "no".to_owned(),
        })
    }

    fn pushed(serial: u64, result: Result<(), Failure>) -> Pushed {
        Pushed {
            relay: url(),
            serial,
            result,
        }
    }

    #[test]
    fn a_relay_that_is_lost_has_no_list() {
        let metrics = Metrics::default();
        let mut lists = DenyLists::new(Arc::default());
        lists.finish(pushed(3, Ok(())), &metrics);
        assert_eq!(lists.taken(), BTreeMap::from([(url(), 3)]));
        lists.update(&BTreeSet::from([url()]), &metrics);
        assert!(lists.taken().is_empty());
    }

    #[test]
    fn what_was_sent_before_the_loss_does_not_count_after_it() {
        let metrics = Metrics::default();
        let mut lists = DenyLists::new(Arc::default());
        lists.running.insert(url(), false);
        lists.update(&BTreeSet::from([url()]), &metrics);
        lists.finish(pushed(3, Ok(())), &metrics);
        assert!(lists.taken().is_empty());
        assert!(lists.next().is_none(), "it may be tried at once");
    }

    #[test]
    fn a_failure_waits() {
        let mut lists = DenyLists::new(Arc::default());
        lists.finish(pushed(3, refused(DenyFault::Other)), &Metrics::default());
        assert!(lists.taken().is_empty() && lists.next().is_some());
    }

    #[test]
    fn why_a_list_is_not_taken_stands_until_it_is_or_the_relay_begins_anew() {
        let metrics = Metrics::default();
        let mut lists = DenyLists::new(Arc::default());
        let stale = DenyFault::Stale { in_force: 9 };
        for times in 1..4 {
            lists.finish(pushed(3, refused(stale)), &metrics);
            let problem = &lists.problems()[&url()];
            assert_eq!((problem.fault, problem.times), (stale, times));
            assert!(lists.taken().is_empty(), "a refusal is no consent");
        }
        lists.finish(pushed(10, Ok(())), &metrics);
        assert!(lists.problems().is_empty());
        lists.finish(pushed(11, refused(DenyFault::NotOwner)), &metrics);
        lists.update(&BTreeSet::from([url()]), &metrics);
        assert!(lists.problems().is_empty());
    }
}
