//! Which replica leads: a Lease that one of them holds.
//!
//! Whoever waits goes by its own clock: a lease is over when it has not changed here for as long as it says. So wrong
//! clocks of nodes do no harm. A lease has no fencing; what the leader does must bear being done twice.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use crate::health::{Health, Loop};

/// Name of the Lease.
pub(crate) const LEASE: &str = "culvert-operator";

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// How long a lease is good without being renewed.
    pub(crate) lease: Duration,
    /// After how long without renewal its holder gives up; shorter than `lease`, so that it stops before another starts.
    pub(crate) renew: Duration,
    /// Between two attempts.
    pub(crate) retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// The time as leader of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    /// Rises with every term.
    pub(crate) generation: u64,
}

/// Takes part in the election.
#[derive(Debug)]
pub(crate) struct Elector {
    leases: Api<Lease>,
    me: Candidate,
    times: Times,
    health: Arc<Health>,
    seen: Option<Seen>,
}

/// Who takes part.
#[derive(Debug)]
struct Candidate {
    /// The pod, if this runs in one.
    pod: Option<String>,
    /// Unique to the process: a container that restarts in its pod begins a new term.
    identity: String,
}

/// A lease as it was when it last changed.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

/// What to do about a lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Somebody else has it.
    Wait,
    /// Write this to have it, or to go on having it.
    Write(LeaseSpec),
}

impl Elector {
    /// Takes part for a pod, or for somebody who tries it by hand.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        pod: Option<&str>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            me: Candidate::new(pod, rand::random()),
            times: Times::default(),
            health,
            seen: None,
        }
    }

    /// Waits until this process leads.
    pub(crate) async fn acquire(&mut self) -> Term {
        let mut told = false;
        loop {
            let attempt = timeout(self.times.renew, self.attempt()).await;
            match attempt.unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer")))
            {
                Ok(Some(term)) => return term,
                Ok(None) => told = false,
                Err(error) if !told => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot ask for the lease; trying on"
                    );
                    told = true;
                }
                Err(error) => tracing::debug!(error = format!("{error:#}"), "still no lease"),
            }
            tokio::time::sleep(self.times.retry).await;
        }
    }

    /// Renews until the lease is lost, and says why.
    pub(crate) async fn hold(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.times.retry).await;
            let began = Instant::now();
            let left = (renewed + self.times.renew).saturating_duration_since(began);
            match timeout(left, self.attempt()).await {
                Ok(Ok(Some(_))) => renewed = began,
                Ok(Ok(None)) => return "another replica has taken the lease".to_owned(),
                Ok(Err(error)) if began >= renewed + self.times.renew => {
                    return format!("the lease could not be renewed: {error:#}");
                }
                Ok(Err(error)) => {
                    tracing::debug!(error = format!("{error:#}"), "lease not renewed")
                }
                Err(_) => return "the API server does not answer".to_owned(),
            }
        }
    }

    /// Gives the lease up, so that another replica takes it at its next attempt.
    pub(crate) async fn release(&mut self) -> anyhow::Result<()> {
        let Some(mut lease) = self.leases.get_opt(LEASE).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.me.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        self.leases
            .replace(LEASE, &PostParams::default(), &lease)
            .await?;
        Ok(())
    }

    /// `None`: somebody else has it.
    async fn attempt(&mut self) -> anyhow::Result<Option<Term>> {
        self.health.turned(Loop::Election, Instant::now());
        let found = self
            .leases
            .get_opt(LEASE)
            .await
            .context("cannot read the lease")?;
        let spec = found.as_ref().and_then(|lease| lease.spec.clone());
        self.health.api_seen(Instant::now());
        self.see(spec.as_ref(), Instant::now());
        match decide(
            self.seen.as_ref(),
            &self.me,
            self.times.lease,
            Instant::now(),
            Timestamp::now(),
        ) {
            Step::Wait => Ok(None),
            Step::Write(spec) => self.write(found, spec).await,
        }
    }

    fn see(&mut self, spec: Option<&LeaseSpec>, now: Instant) {
        if self.seen.as_ref().map(|seen| &seen.spec) != spec {
            self.seen = spec.map(|spec| Seen {
                spec: spec.clone(),
                since: now,
            });
        }
    }

    async fn write(
        &mut self,
        found: Option<Lease>,
        spec: LeaseSpec,
    ) -> anyhow::Result<Option<Term>> {
        let term = Term {
            generation: generation(&spec),
        };
        let metadata = found.map(|lease| lease.metadata);
        let exists = metadata.is_some();
        let lease = Lease {
            metadata: metadata.unwrap_or_else(|| ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
        };
        let parameters = PostParams::default();
        let written = if exists {
            self.leases.replace(LEASE, &parameters, &lease).await
        } else {
            self.leases.create(&parameters, &lease).await
        };
        match written {
            Ok(_) => Ok(Some(term)),
            // Another was faster; the next look shows who.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                anyhow::bail!("the lease was changed meanwhile")
            }
            Err(error) => Err(error).context("cannot write the lease"),
        }
    }
}

impl Candidate {
    fn new(pod: Option<&str>, random: u32) -> Self {
        Self {
            pod: pod.map(str::to_owned),
            identity: format!("{}_{random:08x}", pod.unwrap_or("by-hand")),
        }
    }

    /// Whether the holder is an earlier process of our pod: it must have ended, or we would not have begun.
    fn follows(&self, holder: &str) -> bool {
        let pod = holder.rsplit_once('_').map(|(pod, _)| pod);
        pod.is_some() && pod == self.pod.as_deref()
    }
}

fn decide(
    seen: Option<&Seen>,
    me: &Candidate,
    lease: Duration,
    now: Instant,
    wall: Timestamp,
) -> Step {
    let Some(Seen { spec, since }) = seen else {
        return Step::Write(mine(
            &me.identity,
            lease,
            first_transitions(wall),
            wall,
            None,
        ));
    };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == me.identity {
        return Step::Write(mine(
            &me.identity,
            lease,
            spec.lease_transitions.unwrap_or(0),
            wall,
            spec.acquire_time.clone(),
        ));
    }
    let length = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    let length = length.map_or(lease, Duration::from_secs);
    let is_over = holder.is_empty() || me.follows(holder);
    if !is_over && now < *since + length {
        return Step::Wait;
    }
    let transitions = spec.lease_transitions.unwrap_or(0).max(0).saturating_add(1);
    Step::Write(mine(&me.identity, lease, transitions, wall, None))
}

fn mine(
    me: &str,
    lease: Duration,
    transitions: i32,
    wall: Timestamp,
    acquired: Option<MicroTime>,
) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(lease.as_secs()).ok(),
        acquire_time: acquired.or(Some(MicroTime(wall))),
        renew_time: Some(MicroTime(wall)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

/// Where to count from if there is no lease: minutes since 2020. A lease that was deleted then does not set the count back
/// for peers that remember it.
fn first_transitions(wall: Timestamp) -> i32 {
    const YEAR_2020: i64 = 1_577_836_800;
    i32::try_from((wall.as_second() - YEAR_2020).max(0) / 60).unwrap_or(i32::MAX)
}

fn generation(spec: &LeaseSpec) -> u64 {
    u64::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(15);

    fn me() -> Candidate {
        Candidate::new(Some("me"), 1)
    }

    fn wall() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn seen(holder: &str, transitions: i32, since: Instant) -> Seen {
        let mut spec = mine(holder, LENGTH, transitions, wall(), None);
        spec.holder_identity = Some(holder.to_owned()).filter(|holder| !holder.is_empty());
        Seen { spec, since }
    }

    fn written(step: Step) -> LeaseSpec {
        match step {
            Step::Write(spec) => spec,
            Step::Wait => panic!("waits"),
        }
    }

    #[test]
    fn a_lease_in_force_is_left_alone() {
        let since = Instant::now();
        let other = seen("other", 4, since);
        let at = |after| {
            decide(
                Some(&other),
                &me(),
                LENGTH,
                since + Duration::from_secs(after),
                wall(),
            )
        };
        assert_eq!(at(0), Step::Wait);
        assert_eq!(at(14), Step::Wait);
        let spec = written(at(15));
        assert_eq!(spec.holder_identity, Some(me().identity));
        assert_eq!(spec.lease_transitions, Some(5));
    }

    #[test]
    fn a_released_lease_is_taken_at_once_and_begins_a_new_term() {
        let now = Instant::now();
        let spec = written(decide(Some(&seen("", 4, now)), &me(), LENGTH, now, wall()));
        assert_eq!(generation(&spec), 6);
    }

    #[test]
    fn an_earlier_process_of_the_pod_has_ended() {
        let now = Instant::now();
        let earlier = seen("me_00000000", 4, now);
        let spec = written(decide(Some(&earlier), &me(), LENGTH, now, wall()));
        assert_eq!(spec.lease_transitions, Some(5));
        let other_pod = seen("me2_00000000", 4, now);
        let step = decide(Some(&other_pod), &me(), LENGTH, now, wall());
        assert_eq!(step, Step::Wait);
        let by_hand = seen("by-hand_00000000", 4, now);
        let nobody = Candidate::new(None, 1);
        let step = decide(Some(&by_hand), &nobody, LENGTH, now, wall());
        assert_eq!(step, Step::Wait);
    }

    #[test]
    fn renewing_keeps_the_term() {
        let now = Instant::now();
        let mine = seen(&me().identity, 4, now);
        let later = wall() + jiff::SignedDuration::from_secs(2);
        let spec = written(decide(Some(&mine), &me(), LENGTH, now, later));
        assert_eq!(spec.lease_transitions, Some(4));
        assert_eq!(spec.acquire_time, mine.spec.acquire_time);
        assert_eq!(spec.renew_time, Some(MicroTime(later)));
    }

    #[test]
    fn a_deleted_lease_does_not_set_the_count_back() {
        let now = Instant::now();
        let first = written(decide(None, &me(), LENGTH, now, wall()));
        let after = written(decide(
            None,
            &me(),
            LENGTH,
            now,
            wall() + jiff::SignedDuration::from_mins(10),
        ));
        assert!(generation(&first) > 1);
        assert!(generation(&after) > generation(&first));
    }

    #[test]
    fn nonsense_in_a_lease_is_borne() {
        let now = Instant::now();
        let mut odd = seen("other", i32::MAX, now);
        odd.spec.lease_duration_seconds = Some(-5);
        assert_eq!(decide(Some(&odd), &me(), LENGTH, now, wall()), Step::Wait);
        let spec = written(decide(Some(&odd), &me(), LENGTH, now + LENGTH, wall()));
        assert_eq!(spec.lease_transitions, Some(i32::MAX));
    }
}
