//! The conversations with peers: what was decided goes in, what they show comes out.

mod convert;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use derp::RelayUrl;
use jiff::Timestamp;
use sync::{
    ClusterIdentity, ClusterName, ClusterSecret, PeerView, Records, Relay, RelayState, Sync,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::action::{JoinOrder, SyncInput};
use crate::world::{JoinOutcome, SyncView};

/// Holds the conversations while they are wanted.
pub(crate) struct Bridge {
    generation: u64,
    changed: Arc<Notify>,
    running: Option<Running>,
    join: Join,
}

/// The conversations of one cluster name.
struct Running {
    cluster_name: ClusterName,
    sync: Sync,
    inputs: Senders,
    peers: watch::Receiver<BTreeMap<ClusterIdentity, PeerView>>,
    relays: watch::Receiver<BTreeMap<RelayUrl, RelayState>>,
    requests: mpsc::Receiver<sync::JoinRequest>,
    /// Relays whose connection was seen lost since somebody last asked.
    lost: Arc<Mutex<BTreeSet<RelayUrl>>>,
    followers: Vec<JoinHandle<()>>,
}

struct Senders {
    relays: watch::Sender<Vec<Relay>>,
    peers: watch::Sender<BTreeSet<ClusterIdentity>>,
    records: watch::Sender<Arc<Records>>,
    memberships: watch::Sender<BTreeMap<ClusterIdentity, String>>,
    invites: watch::Sender<BTreeSet<ClusterIdentity>>,
}

/// The attempt to join.
#[derive(Default)]
struct Join {
    running: Option<JoinHandle<()>>,
    /// What came of the one that ran, until somebody looks.
    ended: Arc<Mutex<Option<JoinOutcome>>>,
    last: Option<JoinOutcome>,
}

impl Bridge {
    /// Nothing runs yet. `changed` is told of all news.
    pub(crate) fn new(generation: u64, changed: Arc<Notify>) -> Self {
        Self {
            generation,
            changed,
            running: None,
            join: Join::default(),
        }
    }

    /// Takes what is wanted now. Starts and ends the conversations as it says.
    pub(crate) async fn follow(
        &mut self,
        input: Option<SyncInput>,
        secret: Option<&ClusterSecret>,
    ) -> anyhow::Result<()> {
        let wanted = input.zip(secret);
        let name = wanted.as_ref().map(|(input, _)| &input.cluster_name);
        if self
            .running
            .as_ref()
            .is_some_and(|running| Some(&running.cluster_name) != name)
        {
            self.close().await;
        }
        let Some((input, secret)) = wanted else {
            return Ok(());
        };
        match &self.running {
            Some(running) => running.inputs.update(input),
            None => self.running = Some(self.start(input, secret)?),
        }
        Ok(())
    }

    /// What the conversations show.
    pub(crate) fn view(&self) -> SyncView {
        let Some(running) = &self.running else {
            return SyncView::default();
        };
        SyncView {
            running: true,
            peers: running.peers.borrow().clone(),
            relays: running.relays.borrow().clone(),
        }
    }

    /// Relays whose connection was lost since this was last asked.
    pub(crate) fn take_lost(&self) -> BTreeSet<RelayUrl> {
        let lost = self.running.as_ref().map(|running| &running.lost);
        lost.map(|lost| std::mem::take(&mut *lock(lost)))
            .unwrap_or_default()
    }

    /// The next holder of an invite who asks to be let in. Waits for ever if there can be none.
    pub(crate) async fn next_request(&mut self) -> sync::JoinRequest {
        let request = match &mut self.running {
            Some(running) => running.requests.recv().await,
            None => None,
        };
        match request {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Tries to join, unless an attempt is under way.
    pub(crate) fn join(&mut self, order: JoinOrder, secret: &ClusterSecret) {
        if self
            .join
            .running
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        tracing::info!(cluster = %order.attempt.cluster_name, "joining with the token");
        let (secret, before) = (secret.clone(), self.join.last.clone());
        let (ended, changed) = (Arc::clone(&self.join.ended), Arc::clone(&self.changed));
        self.join.running = Some(tokio::spawn(async move {
            let result = convert::join(&order, &secret).await;
            let outcome =
                convert::outcome(order.attempt, result, before.as_ref(), Timestamp::now());
            *lock(&ended) = Some(outcome);
            changed.notify_one();
        }));
    }

    /// How the last attempt to join ended.
    pub(crate) fn join_outcome(&mut self) -> Option<JoinOutcome> {
        if let Some(outcome) = lock(&self.join.ended).take() {
            self.join.last = Some(outcome);
        }
        self.join.last.clone()
    }

    /// Says goodbye to peers and relays.
    pub(crate) async fn close(&mut self) {
        if let Some(task) = self.join.running.take() {
            task.abort();
        }
        if let Some(running) = self.running.take() {
            for follower in running.followers {
                follower.abort();
            }
            running.sync.close().await;
        }
    }

    fn start(&self, input: SyncInput, secret: &ClusterSecret) -> anyhow::Result<Running> {
        let cluster_name = input.cluster_name.clone();
        let config = sync::Config::new(cluster_name.clone(), self.generation);
        let (inputs, receivers) = Senders::new(input);
        let mut sync =
            Sync::spawn(config, secret.clone(), receivers).context("cannot talk to peers")?;
        let (peers, relays) = (sync.peers(), sync.relays());
        let requests = sync.join_requests().context("nobody hears joiners")?;
        let lost = Arc::default();
        let followers = vec![
            tokio::spawn(tell(sync.peers(), Arc::clone(&self.changed))),
            tokio::spawn(watch_relays(
                sync.relays(),
                Arc::clone(&lost),
                Arc::clone(&self.changed),
            )),
        ];
        tracing::info!(cluster = %cluster_name, generation = self.generation, "talking to peers from now on");
        Ok(Running {
            cluster_name,
            sync,
            inputs,
            peers,
            relays,
            requests,
            lost,
            followers,
        })
    }
}

impl Senders {
    fn new(input: SyncInput) -> (Self, sync::Inputs) {
        let memberships = convert::memberships(&input.memberships);
        let senders = Self {
            relays: watch::Sender::new(input.relays),
            peers: watch::Sender::new(input.peers),
            records: watch::Sender::new(Arc::new(input.records)),
            memberships: watch::Sender::new(memberships),
            invites: watch::Sender::new(input.invites),
        };
        let receivers = sync::Inputs {
            relays: senders.relays.subscribe(),
            peers: senders.peers.subscribe(),
            records: senders.records.subscribe(),
            memberships: senders.memberships.subscribe(),
            invites: senders.invites.subscribe(),
        };
        (senders, receivers)
    }

    fn update(&self, input: SyncInput) {
        set(&self.relays, input.relays);
        set(&self.peers, input.peers);
        set(&self.records, Arc::new(input.records));
        set(&self.memberships, convert::memberships(&input.memberships));
        set(&self.invites, input.invites);
    }
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|before| {
        let differs = *before != value;
        *before = value;
        differs
    });
}

/// Tells of every change until there can be none any more.
async fn tell<T>(mut watched: watch::Receiver<T>, changed: Arc<Notify>) {
    while watched.changed().await.is_ok() {
        changed.notify_one();
    }
}

/// Tells of every change, and notes each loss even if the connection is back before anybody looks.
async fn watch_relays(
    mut watched: watch::Receiver<BTreeMap<RelayUrl, RelayState>>,
    lost: Arc<Mutex<BTreeSet<RelayUrl>>>,
    changed: Arc<Notify>,
) {
    while watched.changed().await.is_ok() {
        let down: Vec<_> = {
            let relays = watched.borrow_and_update();
            let down = relays.iter().filter(|(_, state)| !state.connected);
            down.map(|(url, _)| url.clone()).collect()
        };
        lock(&lost).extend(down);
        changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_the_same_is_no_change() {
        let sender = watch::Sender::new(1);
        let receiver = sender.subscribe();
        set(&sender, 1);
        assert!(!receiver.has_changed().expect("open"));
        set(&sender, 2);
        assert!(receiver.has_changed().expect("open"));
    }

    #[tokio::test]
    async fn a_loss_is_remembered_after_the_connection_is_back() {
        let url: RelayUrl = "http://192.0.2.1:80".parse().expect("a URL");
        let state = |connected| {
            let state = RelayState {
                connected,
                ..RelayState::default()
            };
            BTreeMap::from([(url.clone(), state)])
        };
        let relays = watch::Sender::new(state(true));
        let (lost, changed) = (Arc::default(), Arc::new(Notify::new()));
        let follower = tokio::spawn(watch_relays(
            relays.subscribe(),
            Arc::clone(&lost),
            Arc::clone(&changed),
        ));
        tokio::task::yield_now().await;
        relays.send_replace(state(false));
        changed.notified().await;
        relays.send_replace(state(true));
        changed.notified().await;
        assert_eq!(*lock(&lost), BTreeSet::from([url.clone()]));
        follower.abort();
    }
}
