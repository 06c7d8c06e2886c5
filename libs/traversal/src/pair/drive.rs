//! What is due now, and when something is due next.

use std::time::Instant;

use super::ladder::{Step, Targets};
use super::retry::Outlook;
use super::targets::targets;
use super::{BUSY, Pair, Path, SLEEP};
use crate::control::Control;
use crate::entropy;

impl Pair {
    /// Does all that is due.
    pub(super) fn drive(&mut self, now: Instant) {
        if !self.session {
            return;
        }
        self.fall_asleep(now);
        self.end_hold(now);
        self.watch(now);
        self.say_hello(now);
        self.begin_attempt(now);
        self.climb(now);
        self.probe_relay(now);
        self.miss_probes(now);
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<Instant> {
        if !self.session {
            return None;
        }
        let sleep = (!self.traffic.asleep && !self.traffic.kept).then(|| self.traffic.any + SLEEP);
        let hold = self.hold.as_ref().map(|hold| hold.until);
        let times = [
            sleep,
            hold,
            self.watch_due(),
            self.exchange.due().filter(|_| self.can_signal()),
            self.retry.due(),
            self.ladder.due(),
            self.relay_probe_due(),
            self.missed_probe_due(),
        ];
        times.into_iter().flatten().min()
    }

    /// Sends a probe.
    pub(super) fn probe(&mut self, now: Instant, to: Path, ttl: Option<u8>) {
        let id = entropy::id(self.entropy.as_mut());
        if !self.outbox.push(now, to, ttl, Control::Probe { id }) {
            return;
        }
        self.probes.sent(now, id, to);
        if let Some(direct) = self
            .direct
            .as_mut()
            .filter(|direct| Path::Direct(direct.address) == to)
        {
            direct.sent(now);
        }
    }

    /// Where an attempt may send, if the peer has told so recently.
    pub(super) fn targets(&self, now: Instant) -> Option<Targets> {
        let remote = self.exchange.fresh_remote(now)?;
        let (open, behind_nat) = targets(&self.local, remote, self.last);
        let hopeless = self.pair_reason().is_hopeless();
        Some(Targets {
            open,
            behind_nat,
            seen: remote.seq,
            must_see: self.exchange.candidates_seq(),
            hopeless,
        })
    }

    pub(super) fn is_asleep(&self, now: Instant) -> bool {
        self.traffic.asleep || !self.traffic.kept && now >= self.traffic.any + SLEEP
    }

    fn fall_asleep(&mut self, now: Instant) {
        if self.traffic.asleep || !self.is_asleep(now) {
            return;
        }
        self.traffic.asleep = true;
        self.exchange.offer(now, &self.local, false);
        self.ladder.stop();
        self.retry.stop();
        self.use_relay(now);
        self.since = now;
    }

    /// Probes the direct path in use, or gives it up.
    fn watch(&mut self, now: Instant) {
        let Some(direct) = &self.direct else { return };
        if self.relay.up && direct.is_dead(now) {
            self.demote(now);
        } else if now >= direct.probe_due(self.traffic.any + BUSY) {
            self.probe(now, Path::Direct(direct.address), None);
        }
    }

    fn watch_due(&self) -> Option<Instant> {
        let direct = self.direct.as_ref()?;
        let probe = direct.probe_due(self.traffic.any + BUSY);
        Some(
            direct
                .dies()
                .filter(|_| self.relay.up)
                .map_or(probe, |dies| dies.min(probe)),
        )
    }

    fn can_signal(&self) -> bool {
        self.relay.up || self.direct.is_some()
    }

    fn say_hello(&mut self, now: Instant) {
        if !self.can_signal() {
            return;
        }
        let Some(hello) = self.exchange.take(now) else {
            return;
        };
        if self.relay.up {
            self.outbox
                .push(now, Path::Relay, None, Control::Hello(hello.clone()));
        }
        // The peer may have lost the relay.
        if let Path::Direct(address) = self.path() {
            self.outbox
                .push(now, Path::Direct(address), None, Control::Hello(hello));
        }
    }

    fn begin_attempt(&mut self, now: Instant) {
        if self.retry.due().is_none_or(|due| now < due) {
            return;
        }
        match self.targets(now) {
            Some(targets) => {
                self.retry.started(now);
                self.ladder.begin(now, targets);
            }
            None => {
                self.retry.put_off();
                self.outdated = true;
                if self.exchange.remote().is_some() {
                    self.exchange.announce(now);
                    self.say_hello(now);
                }
            }
        }
    }

    /// Takes the steps of the attempt.
    fn climb(&mut self, now: Instant) {
        loop {
            while let Some(step) = self.ladder.take(now) {
                self.step(now, step);
            }
            if self.ladder.due().is_none_or(|due| now < due) {
                return;
            }
            if self.ladder.advance(now) && self.may_try() {
                let outlook = self.outlook();
                self.retry
                    .failed(now, self.traffic.any, outlook, self.entropy.as_mut());
            }
        }
    }

    fn outlook(&self) -> Outlook {
        if self.pair_reason().is_hopeless() {
            Outlook::Hopeless
        } else if self.ladder.is_followed_by_silence() {
            Outlook::Silence
        } else {
            Outlook::Good
        }
    }

    fn step(&mut self, now: Instant, step: Step) {
        match step {
            Step::Probe { to, ttl, .. } => self.probe(now, Path::Direct(to), ttl),
            Step::Barrier { round, seen } if self.relay.up => {
                let barrier = Control::Barrier {
                    epoch: self.exchange.epoch(),
                    round,
                    seen,
                };
                self.outbox.push(now, Path::Relay, None, barrier);
            }
            Step::Barrier { .. } => {}
        }
    }
}
