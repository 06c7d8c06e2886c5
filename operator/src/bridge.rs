//! The conversations with peers: what was decided goes in, what they show comes out.

mod convert;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
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
    /// When a peer was last heard over each relay.
    used: BTreeMap<RelayUrl, Timestamp>,
    /// Relays of conversations that have ended: nobody sees any more what becomes of them.
    left: BTreeSet<RelayUrl>,
}

/// The conversations of one cluster, under one name.
struct Running {
    identity: ClusterIdentity,
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
            used: BTreeMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// Takes what is wanted now. Starts and ends the conversations as it says.
    pub(crate) async fn follow(
        &mut self,
        input: Option<SyncInput>,
        secret: Option<&ClusterSecret>,
    ) -> anyhow::Result<()> {
        let wanted = input.zip(secret);
        let stays = |running: &Running| {
            wanted.as_ref().is_some_and(|(input, secret)| {
                running.cluster_name == input.cluster_name && running.identity == secret.identity()
            })
        };
        if self.running.as_ref().is_some_and(|running| !stays(running)) {
            tracing::info!("the conversations end: name or identity of this cluster is another");
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

    /// Fails if the conversations have ended by a fault: a process that begins anew has better ones.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let failed = self.running.as_ref().map(|running| &running.sync);
        ensure!(
            !failed.is_some_and(Sync::has_failed),
            "the conversations with peers have ended by a fault of this program; starting anew"
        );
        Ok(())
    }

    /// What the conversations show at this time.
    pub(crate) fn view(&mut self, now: Timestamp) -> SyncView {
        let Some(running) = &self.running else {
            return SyncView::default();
        };
        let (peers, relays) = (
            running.peers.borrow().clone(),
            running.relays.borrow().clone(),
        );
        let up = peers.iter().filter(|(_, view)| view.is_up());
        let heard =
            up.flat_map(|(peer, view)| running.sync.relay_of(peer).into_iter().chain(homes(view)));
        self.used.extend(heard.map(|relay| (relay, now)));
        self.used.retain(|relay, _| relays.contains_key(relay));
        SyncView {
            running: true,
            peers,
            relays,
            used: self.used.clone(),
        }
    }

    /// Relays whose connection was lost, or given up, since this was last asked.
    pub(crate) fn take_lost(&mut self) -> BTreeSet<RelayUrl> {
        let mut all = std::mem::take(&mut self.left);
        if let Some(running) = &self.running {
            all.append(&mut lock(&running.lost));
        }
        all
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
            self.left.append(&mut lock(&running.lost));
            self.left.extend(running.relays.borrow().keys().cloned());
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
            identity: secret.identity(),
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

/// Relays where a peer says that its nodes listen. Only its word: its operator is heard over one relay at a time.
fn homes(view: &PeerView) -> impl Iterator<Item = RelayUrl> {
    let records = view.records.iter().flat_map(|records| records.iter());
    records.filter_map(|(_, record)| record.home_relay().cloned())
}

/// Tells of every change, and that there can be none any more.
async fn tell<T>(mut watched: watch::Receiver<T>, changed: Arc<Notify>) {
    while watched.changed().await.is_ok() {
        changed.notify_one();
    }
    changed.notify_one();
}

/// Tells of every change, and notes each loss: also if the connection is back before anybody looks, and if the relay is
/// not wanted any more.
async fn watch_relays(
    mut watched: watch::Receiver<BTreeMap<RelayUrl, RelayState>>,
    lost: Arc<Mutex<BTreeSet<RelayUrl>>>,
    changed: Arc<Notify>,
) {
    let mut before = connections(&watched.borrow_and_update());
    while watched.changed().await.is_ok() {
        let now = connections(&watched.borrow_and_update());
        let gone = before
            .iter()
            .filter(|(url, one)| now.get(*url) != Some(*one));
        lock(&lost).extend(gone.map(|(url, _)| url.clone()));
        before = now;
        changed.notify_one();
    }
}

/// The connection to each relay that is connected.
fn connections(relays: &BTreeMap<RelayUrl, RelayState>) -> BTreeMap<RelayUrl, u64> {
    let connected = relays.iter().filter(|(_, state)| state.connected);
    connected
        .map(|(url, state)| (url.clone(), state.connection))
        .collect()
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
    async fn a_loss_is_remembered_also_if_nobody_saw_it_happen() {
        let url: RelayUrl = "http://192.0.2.1:80".parse().expect("a URL");
        let state = |connection| {
            let state = RelayState {
                connected: connection > 0,
                connection,
                ..RelayState::default()
            };
            BTreeMap::from([(url.clone(), state)])
        };
        let relays = watch::Sender::new(state(0));
        let (lost, changed) = (Arc::default(), Arc::new(Notify::new()));
        let follower = tokio::spawn(watch_relays(
            relays.subscribe(),
            Arc::clone(&lost),
            Arc::clone(&changed),
        ));
        tokio::task::yield_now().await;
        for (next, is_lost) in [
            (state(1), false),
            (state(2), true),
            (state(0), true),
            (state(3), false),
            (BTreeMap::new(), true),
        ] {
            relays.send_replace(next.clone());
            changed.notified().await;
            let seen = std::mem::take(&mut *lock(&lost));
            assert_eq!(seen.contains(&url), is_lost, "{next:?}");
        }
        drop(relays);
        follower.await.expect("it ends");
    }

    fn input(name: &str) -> SyncInput {
        SyncInput {
            cluster_name: name.parse().expect("a name"),
            relays: Vec::new(),
            peers: BTreeSet::new(),
            records: Records::default(),
            invites: BTreeSet::new(),
            memberships: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn relays_are_lost_with_the_conversations() {
        let secret = ClusterSecret::from_seed([1; 32]).expect("a seed");
        let relay = Relay {
            url: "http://127.0.0.1:9".parse().expect("a URL"),
            dial: None,
            ca_bundle: None,
            pass: None,
        };
        let url = relay.url.clone();
        let wanted = SyncInput {
            relays: vec![relay],
            ..input("berlin")
        };
        let mut bridge = Bridge::new(1, Arc::default());
        let followed = bridge.follow(Some(wanted), Some(&secret)).await;
        followed.expect("they begin");
        let running = bridge.running.as_mut().expect("they run");
        let known = |relays: &BTreeMap<_, _>| relays.contains_key(&url);
        running.relays.wait_for(known).await.expect("it is wanted");
        assert!(bridge.take_lost().is_empty());
        bridge.follow(None, None).await.expect("they end");
        assert_eq!(bridge.take_lost(), BTreeSet::from([url.clone()]));
        assert!(bridge.take_lost().is_empty(), "told once");
    }

    #[tokio::test]
    async fn the_conversations_follow_name_and_identity() {
        let secret = |seed| ClusterSecret::from_seed([seed; 32]).expect("a seed");
        let mut bridge = Bridge::new(1, Arc::default());
        let mut speaks_as = async |name: &str, seed: Option<u8>| {
            let secret = seed.map(secret);
            let followed = bridge.follow(Some(input(name)), secret.as_ref()).await;
            followed.expect("they begin");
            bridge.check().expect("they run");
            assert_eq!(bridge.view(Timestamp::UNIX_EPOCH).running, seed.is_some());
            bridge.running.as_ref().map(|running| running.identity)
        };
        for (name, seed) in [
            ("berlin", Some(1)),
            ("berlin", Some(2)),
            ("tokyo", Some(2)),
            ("tokyo", None),
            ("tokyo", Some(1)),
        ] {
            let identity = seed.map(|seed| secret(seed).identity());
            assert_eq!(speaks_as(name, seed).await, identity);
        }
        bridge.close().await;
    }
}
