//! The loop of the replica that leads: look at everything, decide, act, wait for news.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use sync::{ClusterSecret, JoinAnswer, Refused, RefusedCode};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::action::{Action, Plan, Redemption};
use crate::apply::{Applier, Redeemed, Written};
use crate::bridge::Bridge;
use crate::denylist::DenyLists;
use crate::health::{Health, Loop};
use crate::join::answer;
use crate::metrics::Metrics;
use crate::network::Networks;
use crate::plan::{identity, plan};
use crate::watch::Watched;
use crate::world::{Fresh, JoinAsk, Release, World};

/// How long more news may come before the next look.
const DEBOUNCE: Duration = Duration::from_millis(70);
/// The longest time between two looks.
const PERIOD: Duration = Duration::from_secs(30);
/// How long a look waits for the watches to show what was written.
const ECHO: Duration = Duration::from_secs(1);
/// How often a decision about a joiner is made anew because its invite has changed.
const DECISIONS: usize = 4;
/// How often what a joiner's admission takes is tried.
const ATTEMPTS: usize = 3;

/// What the loop works with.
#[derive(Clone)]
pub(crate) struct Setting {
    /// Of the API server.
    pub(crate) client: Client,
    /// How this operator was installed.
    pub(crate) release: Release,
    /// Name of this replica.
    pub(crate) replica: String,
    /// To say that the loop turns.
    pub(crate) health: Arc<Health>,
    /// To measure.
    pub(crate) metrics: Arc<Metrics>,
}

/// The loop's state.
pub(crate) struct Reconciler {
    setting: Setting,
    changed: Arc<Notify>,
    watched: Watched,
    networks: Networks,
    applier: Applier,
    bridge: Bridge,
    deny_lists: DenyLists,
    /// What was written and perhaps not yet seen.
    written: Vec<Written>,
    /// Why there are no conversations, as it was last said.
    sync_problem: Option<String>,
}

impl Reconciler {
    /// Begins to watch, and does nothing yet.
    pub(crate) fn new(setting: Setting, generation: u64) -> Self {
        let changed = Arc::new(Notify::new());
        setting.health.catching_up(true);
        Self {
            watched: Watched::start(&setting.client, &setting.release.namespace, &changed),
            networks: Networks::start(&setting.client, &changed),
            applier: Applier::new(&setting.client, &setting.replica),
            bridge: Bridge::new(generation, Arc::clone(&changed)),
            deny_lists: DenyLists::new(Arc::clone(&changed)),
            written: Vec::new(),
            sync_problem: None,
            changed,
            setting,
        }
    }

    /// Looks and acts until something makes it impossible to go on. May be dropped at any moment.
    pub(crate) async fn run(&mut self) -> anyhow::Result<()> {
        self.catch_up().await;
        loop {
            let wake = self.reconcile().await?;
            self.wait(wake).await?;
        }
    }

    /// Says goodbye to peers and relays.
    pub(crate) async fn close(&mut self) {
        self.bridge.close().await;
    }

    /// Waits until everything has been seen once: what is not there yet must not be taken for missing.
    async fn catch_up(&self) {
        while !(self.watched.is_complete() && self.networks.is_complete()) {
            self.turned();
            // The time-out is for the sign of life alone.
            let _ = timeout(PERIOD, self.changed.notified()).await;
        }
        self.setting.health.catching_up(false);
        tracing::info!("everything has been seen once");
    }

    /// One look and what it calls for. Returns when to look again at the latest.
    async fn reconcile(&mut self) -> anyhow::Result<Instant> {
        self.turned();
        self.settle().await;
        let started = Instant::now();
        let world = self.look()?;
        let secret = identity::read(&world).known();
        let Plan {
            actions,
            sync,
            join,
            denylists,
            watch_pods,
            wake_after,
        } = plan(&world);
        self.watched.want_pods(watch_pods);
        self.count_peers(&world);
        self.bridge.check()?;
        let followed = self.bridge.follow(sync, secret.as_ref()).await;
        self.say_sync_problem(followed.err().map(|error| format!("{error:#}")));
        if let Some((order, secret)) = join.zip(secret.as_ref()) {
            self.bridge.join(order, secret);
        }
        self.deny_lists.start(denylists);
        self.written = self.applier.perform(actions, &self.setting.metrics).await;
        self.setting.metrics.reconciled(started.elapsed());
        let now = Instant::now();
        let wakes = [
            wake_after.map(|after| now + after),
            self.applier.next(),
            self.deny_lists.next(),
        ];
        Ok(wakes.into_iter().flatten().fold(now + PERIOD, Instant::min))
    }

    /// Waits for news, answering those who want to join meanwhile.
    async fn wait(&mut self, until: Instant) -> anyhow::Result<()> {
        let request = tokio::select! {
            () = self.changed.notified() => None,
            () = sleep_until(until) => None,
            request = self.bridge.next_request() => Some(request),
        };
        match request {
            Some(request) => self.admit(request).await,
            None => {
                sleep(DEBOUNCE).await;
                Ok(())
            }
        }
    }

    /// Lets the watches show what was written: else the next look would call for the same once more.
    async fn settle(&mut self) {
        let written = std::mem::take(&mut self.written);
        let deadline = Instant::now() + ECHO;
        let seen = |written: &Written| {
            self.watched
                .has_reached(written.kind, &written.name, &written.version)
        };
        while !written.iter().all(seen) {
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(deadline) => return,
            }
        }
    }

    fn look(&mut self) -> anyhow::Result<World> {
        self.deny_lists
            .update(&self.bridge.take_lost(), &self.setting.metrics);
        let fresh = || ClusterSecret::generate().context("the system gives no randomness");
        let mut world = World {
            now: Timestamp::now(),
            release: self.setting.release.clone(),
            fresh: Fresh {
                identity: fresh()?,
                invite: fresh()?,
            },
            meshes: Vec::new(),
            peers: Vec::new(),
            invites: Vec::new(),
            mesh_nodes: Vec::new(),
            heard: crate::heard::Heard::default(),
            slices: Vec::new(),
            nodes: Vec::new(),
            pods: crate::world::Pods::Unknown,
            networks: self.networks.objects(),
            owned: crate::world::Owned::default(),
            sync: self.bridge.view(Timestamp::now()),
            join: self.bridge.join_outcome(),
            denied: self.deny_lists.taken(),
            undenied: self.deny_lists.problems(),
        };
        self.watched.fill(&mut world);
        Ok(world)
    }

    /// Decides about one who wants to join, and answers when the decision is written down.
    async fn admit(&mut self, request: sync::JoinRequest) -> anyhow::Result<()> {
        let asked = JoinAsk {
            invite: request.invite,
            identity: request.identity,
            audience: request.audience,
            cluster_name: request.cluster_name.clone(),
            cidrs: request.cidrs.clone(),
        };
        let mut reply = busy("the operator cannot decide now");
        for _ in 0..DECISIONS {
            self.settle().await;
            let world = self.look()?;
            let (answer, actions) = answer(&world, &asked);
            let (redemptions, others) = split(actions);
            if answer.redeems {
                match self.redeem(&redemptions).await {
                    Redeemed::Done(written) => self.written.push(written),
                    Redeemed::Changed => {
                        // The watch is about to show how.
                        let _ = timeout(ECHO, self.changed.notified()).await;
                        continue;
                    }
                    Redeemed::Failed(error) => {
                        tracing::warn!(
                            error,
                            "an invite could not be used up; its holder is told to ask again"
                        );
                        break;
                    }
                }
            }
            reply = match self.carry_out(others).await {
                Ok(()) => answer.reply,
                Err(error) => {
                    tracing::warn!(
                        error,
                        "who joined could not be admitted; it is told to ask again"
                    );
                    busy("the operator could not write down what it decided")
                }
            };
            break;
        }
        // Whoever is gone meanwhile asks again.
        let _ = request.answer.send(reply);
        Ok(())
    }

    async fn redeem(&self, redemptions: &[Redemption]) -> Redeemed {
        match redemptions {
            [redemption] => self.applier.redeem(redemption).await,
            _ => Redeemed::Failed("one invite must be used, and just one".to_owned()),
        }
    }

    async fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), String> {
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            match self
                .applier
                .insist(actions.clone(), &self.setting.metrics)
                .await
            {
                Ok(written) => {
                    self.written.extend(written);
                    return Ok(());
                }
                Err(error) => outcome = Err(error),
            }
            sleep(DEBOUNCE).await;
        }
        outcome
    }

    fn turned(&self) {
        self.setting.health.turned(Loop::Reconcile, Instant::now());
    }

    fn count_peers(&self, world: &World) {
        let connected = world
            .sync
            .peers
            .values()
            .filter(|peer| peer.is_up())
            .count();
        self.setting.metrics.peers(world.peers.len(), connected);
    }

    /// Says it once.
    fn say_sync_problem(&mut self, problem: Option<String>) {
        if let Some(problem) = problem.as_ref().filter(|_| problem != self.sync_problem) {
            tracing::warn!(problem, "no conversations with peers");
        }
        self.sync_problem = problem;
    }
}

fn split(actions: Vec<Action>) -> (Vec<Redemption>, Vec<Action>) {
    let (mut redemptions, mut others) = (Vec::new(), Vec::new());
    for action in actions {
        match action {
            Action::Redeem(redemption) => redemptions.push(redemption),
            other @ (Action::Apply(_)
            | Action::Swap(_)
            | Action::Create(_)
            | Action::Certify(_)
            | Action::ApplyStatus(_)
            | Action::Delete(_)
            | Action::Event(_)) => others.push(other),
        }
    }
    (redemptions, others)
}

fn busy(message: &str) -> JoinAnswer {
    JoinAnswer::Refused(Refused {
        code: RefusedCode::Busy,
        message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn using_an_invite_is_told_from_the_rest() {
        let redemption = Redemption {
            name: "a".to_owned(),
            resource_version: "1".to_owned(),
            status: Box::default(),
        };
        let other = Action::Create(crate::action::Object::Secret(Box::default()));
        let (redemptions, others) = split(vec![other, Action::Redeem(redemption.clone())]);
        assert_eq!(redemptions, [redemption]);
        assert!(matches!(others.as_slice(), [Action::Create(_)]));
    }
}
