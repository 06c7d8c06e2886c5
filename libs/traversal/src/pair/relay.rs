//! The relay: what is known about it, and the probes that measure it and notice its silence.

use std::time::{Duration, Instant};

use super::{Pair, PairEvent, Path};

/// Between probes through the relay.
const RELAY_PROBE: Duration = Duration::from_secs(10);
/// The same while the last one has no answer.
const RELAY_DOUBT: Duration = Duration::from_secs(2);
/// A relay through which nothing comes for this long leads nowhere.
const RELAY_SILENT: Duration = Duration::from_secs(8);

/// What is known about the relay.
#[derive(Debug, Default)]
pub(super) struct Relay {
    pub(super) up: bool,
    /// To the relay and back, from its client.
    pub(super) rtt: Option<Duration>,
    /// Through the relay to the peer and back.
    pub(super) measured: Option<Duration>,
    pub(super) next_probe: Option<Instant>,
    /// The first probe through the relay that has no answer yet, nor anything else since.
    pub(super) unanswered: Option<Instant>,
    /// The present silence has been told of.
    pub(super) doubted: bool,
    /// When anything of the peer came through the relay last.
    pub(super) heard: Option<Instant>,
    pub(super) refused: bool,
    pub(super) peer_missing: bool,
}

impl Relay {
    /// There is no silence.
    pub(super) fn trust(&mut self) {
        (self.unanswered, self.doubted) = (None, false);
    }
}

impl Pair {
    /// The peer lives, at the far end of this path.
    pub(super) fn heard(&mut self, now: Instant, via: Path) {
        if via != Path::Relay {
            return;
        }
        self.relay.heard = Some(now);
        if self.relay.unanswered.is_some() {
            self.relay.trust();
            self.relay.next_probe = Some(now + RELAY_PROBE);
        }
    }

    /// Data leaves and nothing comes back: a relay that died without a word would not be noticed for long.
    pub(super) fn suspect_relay(&mut self, now: Instant) {
        let heard = self.relay.heard;
        if self.relay.unanswered.is_none() && heard.is_none_or(|heard| now >= heard + RELAY_DOUBT) {
            self.relay.next_probe = self.relay.next_probe.map(|next| next.min(now));
        }
    }

    /// Measures the relay and keeps the session awake while there is nothing else to do it.
    pub(super) fn probe_relay(&mut self, now: Instant) {
        if self.relay_probe_due().is_some_and(|due| now >= due) {
            self.relay.next_probe = Some(now + RELAY_DOUBT);
            let first = *self.relay.unanswered.get_or_insert(now);
            if now >= first + RELAY_DOUBT && !std::mem::replace(&mut self.relay.doubted, true) {
                self.events.push_back(PairEvent::DoubtRelay);
            }
            self.probe(now, Path::Relay, None);
        }
    }

    pub(super) fn relay_probe_due(&self) -> Option<Instant> {
        self.relay
            .next_probe
            .filter(|_| self.relay.up && self.direct.is_none() && !self.traffic.asleep)
    }

    /// The peer is gone from the far end, or has revoked this node: it would have answered.
    pub(super) fn is_relay_silent(&self, now: Instant) -> bool {
        let since = self.relay.unanswered;
        since.is_some_and(|since| now >= since + RELAY_SILENT)
    }

    /// Through the relay to the peer and back.
    pub(super) fn relay_rtt(&self) -> Option<Duration> {
        self.relay.measured.or(self.relay.rtt)
    }
}
