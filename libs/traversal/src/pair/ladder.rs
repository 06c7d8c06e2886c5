//! Attempts to get direct: which packet goes where, and when.
//!
//! An attempt probes open addresses (host, port-mapped) at once, at full time to live. For addresses behind a NAT it
//! goes through up to three *rounds*. In a round each side first sends openers, probes whose time to live lets them
//! pass its own NAT but not reach the peer's, then a barrier through the relay, and sends at full time to live only
//! after its own openers have left and the peer's barrier has come. A NAT whose router accepts packets to itself would
//! otherwise take an early probe for a flow of its own, and could never again use that port towards that peer.
//!
//! Rounds are counted over the life of a pair, and both sides share the count: a barrier with a higher number pulls
//! the other side along, into a new attempt if need be. The time to live follows from the number.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Rounds of one attempt, with openers of time to live 2, 3 and 4.
const ROUNDS: u32 = 3;
const FIRST_TTL: u8 = 2;
/// Attempts from one long silence to the next.
const SILENCE_EVERY: u32 = 6;
/// Openers per address: one may get lost.
const OPENERS: u32 = 2;
/// Between two addresses that are probed side by side.
const PACING: Duration = Duration::from_millis(20);
/// When an open address is probed.
const OPEN: [u64; 6] = [0, 50, 100, 200, 400, 800];
/// When an address behind a NAT is probed, after the barriers.
const BEHIND_NAT: [u64; 7] = [0, 30, 60, 100, 200, 400, 800];
/// When the barrier is said again while the peer's is missing.
const BARRIERS: [u64; 4] = [0, 200, 500, 1_000];
/// A round without the peer's barrier ends after this time.
const ROUND: Duration = Duration::from_millis(1_600);
/// A round ends this long after both barriers.
const AFTER_BARRIER: Duration = Duration::from_millis(1_400);
/// Least time between two rounds that the peer pulls us into, and between two answers to its barrier.
const PULL_PAUSE: Duration = Duration::from_millis(100);
/// A barrier this old says nothing any more: the peer's NAT may have closed again.
const BARRIER_HOLDS: Duration = Duration::from_secs(5);
/// A peer that counts higher than this is not followed.
const MAX_ROUND: u32 = 1 << 30;

/// Where to send in an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Targets {
    /// Addresses without a NAT in front of them.
    pub(super) open: Vec<SocketAddr>,
    /// Addresses behind a NAT.
    pub(super) behind_nat: Vec<BehindNat>,
    /// The peer's hello that these come from.
    pub(super) seen: u32,
    /// The hello of ours that the peer's barrier must have seen.
    pub(super) must_see: u32,
    /// One round is enough.
    pub(super) hopeless: bool,
}

/// An address of the peer behind its NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BehindNat {
    pub(super) to: SocketAddr,
    /// Our own NAT has to be opened towards it.
    pub(super) opener: bool,
    /// The peer can open its NAT towards us, or need not: it knows our public address, or lets everybody in.
    pub(super) expected: bool,
}

/// What to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A probe; with a time to live it is an opener.
    Probe {
        to: SocketAddr,
        ttl: Option<u8>,
        behind_nat: bool,
    },
    /// A barrier through the relay.
    Barrier { round: u32, seen: u32 },
}

/// The attempt under way, if any.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    /// What is still to be sent, in order.
    steps: BTreeMap<(Instant, u32), Step>,
    serial: u32,
    round: Option<Round>,
    /// Highest round that this side has been in.
    number: u32,
    /// The peer's newest barrier, and when it came.
    heard: Option<(Barrier, Instant)>,
    answered: Option<Instant>,
}

#[derive(Debug)]
struct Round {
    targets: Targets,
    entered: Instant,
    ends: Instant,
    /// Both barriers are there.
    open: bool,
}

/// A barrier of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Barrier {
    pub(super) round: u32,
    pub(super) seen: u32,
}

impl Ladder {
    /// Begins an attempt, or begins it again with other targets.
    pub(super) fn begin(&mut self, now: Instant, targets: Targets) {
        self.steps.clear();
        for (index, &to) in (0..).zip(&targets.open) {
            for after in OPEN {
                // The first goes to all at once, and before the barrier: it also opens our own NAT towards an address
                // from which the peer sends as soon as that has come.
                let pacing = if after == 0 { 0 } else { index };
                let at = now + PACING * pacing + Duration::from_millis(after);
                self.plan(
                    at,
                    Step::Probe {
                        to,
                        ttl: None,
                        behind_nat: false,
                    },
                );
            }
        }
        let heard = self
            .heard(now)
            .map(|barrier| barrier.round)
            .filter(|round| *round > self.number);
        let next = heard.unwrap_or_else(|| self.number.div_ceil(ROUNDS) * ROUNDS + 1);
        self.enter(now, next, targets);
    }

    /// Ends the attempt; open addresses are still tried to the end, since one may turn out better.
    pub(super) fn settle(&mut self) {
        self.round = None;
        self.steps.retain(|_, step| {
            matches!(
                step,
                Step::Probe {
                    behind_nat: false,
                    ..
                }
            )
        });
    }

    /// Ends the attempt and everything with it.
    pub(super) fn stop(&mut self) {
        self.round = None;
        self.steps.clear();
    }

    /// Nothing more is sent to `address` in this attempt.
    pub(super) fn skip(&mut self, address: SocketAddr) {
        self.steps
            .retain(|_, step| !matches!(step, Step::Probe { to, .. } if *to == address));
    }

    /// The peer's barrier arrived; `true` if it asks for a round in which this side is not yet.
    pub(super) fn handle_barrier(&mut self, now: Instant, barrier: Barrier) -> bool {
        if barrier.round > MAX_ROUND
            || self
                .heard
                .is_some_and(|(heard, _)| barrier.round < heard.round)
        {
            return false;
        }
        self.heard = Some((barrier, now));
        if barrier.round > self.number || self.round.is_none() {
            let entered = self.round.as_ref().map(|round| round.entered);
            return entered.is_none_or(|entered| now >= entered + PULL_PAUSE);
        }
        self.open_round(now);
        self.answer(now, barrier);
        false
    }

    /// Enters the round the peer is in, within the attempt under way.
    pub(super) fn follow(&mut self, now: Instant, targets: Targets) {
        let Some(heard) = self.heard(now) else { return };
        if self.round.is_none() {
            self.number = self.number.min(heard.round.saturating_sub(1));
            self.begin(now, targets);
        } else {
            self.enter(now, heard.round, targets);
        }
    }

    /// The attempt that has just ended is one after which both sides keep silent for longer than NATs remember.
    pub(super) fn is_followed_by_silence(&self) -> bool {
        self.number.div_ceil(ROUNDS).is_multiple_of(SILENCE_EVERY)
    }

    /// When [`Self::take`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let step = self.steps.keys().next().map(|(at, _)| *at);
        step.into_iter()
            .chain(self.round.as_ref().map(|round| round.ends))
            .min()
    }

    /// The next step that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Step> {
        let entry = self
            .steps
            .first_entry()
            .filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// Goes on to the next round if this one is over; `true` if the attempt is.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        let Some(round) = self.round.take_if(|round| now >= round.ends) else {
            return false;
        };
        if round.targets.hopeless || self.number.is_multiple_of(ROUNDS) {
            self.steps.clear();
            return true;
        }
        self.enter(now, self.number.saturating_add(1), round.targets);
        false
    }

    fn enter(&mut self, now: Instant, number: u32, targets: Targets) {
        self.steps.retain(|_, step| {
            matches!(
                step,
                Step::Probe {
                    behind_nat: false,
                    ..
                }
            )
        });
        self.number = number;
        let ttl = Some(opener_ttl(number));
        for _ in 0..OPENERS {
            for &BehindNat { to, .. } in targets.behind_nat.iter().filter(|target| target.opener) {
                self.plan(
                    now,
                    Step::Probe {
                        to,
                        ttl,
                        behind_nat: true,
                    },
                );
            }
        }
        for after in BARRIERS {
            let step = Step::Barrier {
                round: number,
                seen: targets.seen,
            };
            self.plan(now + Duration::from_millis(after), step);
        }
        self.round = Some(Round {
            targets,
            entered: now,
            ends: now + ROUND,
            open: false,
        });
        self.open_round(now);
    }

    /// Lets packets out at full time to live if the peer's barrier is there.
    fn open_round(&mut self, now: Instant) {
        let Some(heard) = self.heard(now) else { return };
        let Some(round) = self.round.as_mut().filter(|round| !round.open) else {
            return;
        };
        if heard.round < self.number || heard.seen < round.targets.must_see {
            return;
        }
        (round.open, round.ends) = (true, round.ends.max(now + AFTER_BARRIER));
        let expected = round
            .targets
            .behind_nat
            .iter()
            .filter(|target| target.expected);
        let addresses: Vec<_> = expected.map(|target| target.to).collect();
        // The first barrier is behind the openers in the plan; it is not said again.
        let first = self
            .steps
            .iter()
            .find(|(_, step)| matches!(step, Step::Barrier { .. }))
            .map(|(key, _)| *key);
        self.steps.retain(|key, step| {
            !matches!(step, Step::Barrier { .. }) || (Some(*key) == first && key.0 <= now)
        });
        for to in addresses {
            for after in BEHIND_NAT {
                self.plan(
                    now + Duration::from_millis(after),
                    Step::Probe {
                        to,
                        ttl: None,
                        behind_nat: true,
                    },
                );
            }
        }
    }

    /// The peer's newest barrier, unless it is too old.
    fn heard(&self, now: Instant) -> Option<Barrier> {
        self.heard
            .filter(|(_, at)| now < *at + BARRIER_HOLDS)
            .map(|(barrier, _)| barrier)
    }

    /// The peer repeats its barrier because it has not heard ours.
    fn answer(&mut self, now: Instant, barrier: Barrier) {
        let waits =
            barrier.round <= self.number && self.answered.is_none_or(|at| now >= at + PULL_PAUSE);
        if let Some(round) = self.round.as_ref().filter(|_| waits) {
            let step = Step::Barrier {
                round: self.number,
                seen: round.targets.seen,
            };
            self.answered = Some(now);
            self.plan(now, step);
        }
    }

    fn plan(&mut self, at: Instant, step: Step) {
        self.serial = self.serial.wrapping_add(1);
        self.steps.insert((at, self.serial), step);
    }
}

/// Grows by one with each round of an attempt: the opener has to die between the NATs, and how many hops lie between
/// this host and its own NAT is not known.
fn opener_ttl(round: u32) -> u8 {
    let step = round.saturating_sub(1) % ROUNDS;
    FIRST_TTL.saturating_add(u8::try_from(step).unwrap_or_default())
}

#[cfg(test)]
mod tests;
