//! Moving data from one path to another.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Liveness, Pair, PairEvent, Path};
use crate::control::Control;
use crate::entropy;

/// The answer to a marker is awaited for two round trips through the relay, within these bounds.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// Without data for this long, nothing can be under way that could be overtaken.
const QUIET: Duration = Duration::from_secs(5);
/// IPv6 is preferred by this much.
const V6_BIAS: Duration = Duration::from_millis(3);
/// Another direct path has to be better by this much, or by a fifth.
const MARGIN: Duration = Duration::from_millis(10);

/// A marker is under way: data waits for its answer before it moves to `target`.
#[derive(Debug)]
pub(super) struct Hold {
    id: u64,
    pub(super) target: SocketAddr,
    pub(super) until: Instant,
}

impl Pair {
    /// An address has answered: use it, or use it instead of the present one if that is worse or silent.
    pub(super) fn consider(&mut self, now: Instant, address: SocketAddr, rtt: Duration) {
        if self.traffic.asleep || !self.session {
            return;
        }
        match &self.direct {
            None if self.hold.is_none() => self.promote(now, address),
            Some(direct)
                if direct.is_silent(now) || self.is_better(address, rtt, direct.address) =>
            {
                self.use_direct(now, address);
            }
            None | Some(_) => {}
        }
    }

    /// Moves data from the relay to `target`. What is still under way through the relay must not be overtaken, nor
    /// fall out of the receiver's replay window: a marker goes last, and data waits for its answer.
    fn promote(&mut self, now: Instant, target: SocketAddr) {
        let flows = self.traffic.sent.is_some_and(|sent| now < sent + QUIET);
        if !flows || !self.relay.up {
            self.use_direct(now, target);
            return;
        }
        let id = entropy::id(self.entropy.as_mut());
        let (least, most) = HOLD;
        let wait = self
            .relay_rtt()
            .map_or(most, |rtt| rtt * 2)
            .clamp(least, most);
        self.hold = Some(Hold {
            id,
            target,
            until: now + wait,
        });
        self.events.push_back(PairEvent::Hold {
            marker: Control::Marker { id },
        });
    }

    pub(super) fn handle_marker_reply(&mut self, now: Instant, id: u64) {
        if let Some(hold) = self.hold.take_if(|hold| hold.id == id) {
            self.use_direct(now, hold.target);
        }
    }

    /// Everything before the marker has arrived. The answer takes the direct path if there is one, which is faster.
    pub(super) fn answer_marker(&mut self, now: Instant, id: u64) {
        let direct = self.direct.as_ref().map(|direct| direct.address);
        let via = direct
            .or_else(|| self.probes.latest())
            .map_or(Path::Relay, Path::Direct);
        self.outbox
            .push(now, via, None, Control::MarkerReply { id });
    }

    /// Ends a hold that has lasted too long, or whose relay is gone.
    pub(super) fn end_hold(&mut self, now: Instant) {
        let relay_up = self.relay.up;
        if let Some(hold) = self.hold.take_if(|hold| now >= hold.until || !relay_up) {
            self.use_direct(now, hold.target);
        }
    }

    /// Data stays on the relay after all.
    pub(super) fn cancel_hold(&mut self) {
        if self.hold.take().is_some() {
            self.events.push_back(PairEvent::Use(Path::Relay));
        }
    }

    /// The direct path is silent: back to the relay, and try again soon.
    pub(super) fn demote(&mut self, now: Instant) {
        self.use_relay(now);
        self.retry.lost(now);
    }

    pub(super) fn use_relay(&mut self, now: Instant) {
        self.cancel_hold();
        if self.direct.take().is_some() {
            self.since = now;
            self.relay.probe_soon(now);
            self.events.push_back(PairEvent::Use(Path::Relay));
        }
    }

    fn use_direct(&mut self, now: Instant, address: SocketAddr) {
        let rtt = self.probes.rtt(address).unwrap_or_default();
        self.direct = Some(Liveness::new(address, now, rtt));
        self.last = Some(address);
        self.since = now;
        self.hold = None;
        self.relay.trust();
        self.retry.stop();
        self.ladder.settle();
        self.events.push_back(PairEvent::Use(Path::Direct(address)));
    }

    fn is_better(&self, address: SocketAddr, rtt: Duration, current: SocketAddr) -> bool {
        let present = self.probes.rtt(current).unwrap_or_default();
        let bias = |address: SocketAddr| {
            if address.is_ipv6() {
                Duration::ZERO
            } else {
                V6_BIAS
            }
        };
        rtt + bias(address) + MARGIN.max(present / 5) < present + bias(current)
    }
}
