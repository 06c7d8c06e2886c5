//! The relay: what is known about it, and the probes that measure it and notice its silence.

use std::time::{Duration, Instant};

use super::{Pair, PairEvent, Path};

/// Between probes through the relay.
const RELAY_PROBE: Duration = Duration::from_secs(10);
/// The same while the last one has no answer.
const RELAY_DOUBT: Duration = Duration::from_secs(2);
/// The least time after which a probe without an answer is repeated when the peer is heard.
const RELAY_REPEAT: Duration = Duration::from_millis(250);
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
    /// While the pair sleeps: when the next probe of the peer should have come, if it goes on probing.
    expected: Option<Instant>,
    pub(super) refused: bool,
    pub(super) peer_missing: bool,
}

impl Relay {
    /// There is no silence.
    pub(super) fn trust(&mut self) {
        (self.unanswered, self.doubted) = (None, false);
    }

    /// Whether something new leads to the peer is to be known at once.
    pub(super) fn probe_soon(&mut self, now: Instant) {
        self.next_probe = Some(now);
    }

    /// A probe of ours was answered: that says it for a while. Anything else that comes through only ends a silence.
    pub(super) fn answered(&mut self, now: Instant) {
        self.next_probe = Some(now + RELAY_PROBE);
    }

    /// A probe of the peer arrived. One that goes on probing is to be heard again within this time.
    pub(super) fn probed(&mut self, now: Instant) {
        self.expected = Some(now + RELAY_PROBE + RELAY_DOUBT);
    }
}

impl Pair {
    /// The peer lives, at the far end of this path.
    pub(super) fn heard(&mut self, now: Instant, via: Path) {
        if via != Path::Relay {
            return;
        }
        self.relay.heard = Some(now);
        if let Some(first) = self.relay.unanswered {
            // Lost, most likely, because the peer had not connected to the relay yet: it does not wait for the next turn.
            let repeat = self.relay_rtt().map_or(RELAY_DOUBT, |rtt| rtt * 2);
            let at = now.max(first + repeat.max(RELAY_REPEAT));
            self.relay.next_probe = self.relay.next_probe.map(|next| next.min(at));
        }
        self.relay.trust();
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

    /// A pair that sleeps probes nothing, and would hear nothing through a relay that died without a word, while the
    /// peer probes and probes.
    pub(super) fn miss_probes(&mut self, now: Instant) {
        let missed = self.missed_probe_due().is_some_and(|due| now >= due);
        if missed || !self.relay.up || !self.traffic.asleep {
            self.relay.expected = None;
        }
        if missed {
            self.events.push_back(PairEvent::DoubtRelay);
        }
    }

    pub(super) fn missed_probe_due(&self) -> Option<Instant> {
        let sleeps = self.relay.up && self.traffic.asleep;
        self.relay.expected.filter(|_| sleeps)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Local;
    use crate::control::Control;
    use crate::sim::Random;

    /// A pair with a session on a relay, whose first probe has left at the returned time.
    fn pair() -> (Pair, Instant) {
        pair_at(None)
    }

    /// The same, on a relay that is so far away.
    #[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
    fn pair_at(rtt: Option<Duration>) -> (Pair, Instant) {
        let now = Instant::now();
        let mut pair = Pair::new(now, Box::new(Random(5)), Local::default());
        pair.handle_relay(now, true, rtt);
        pair.handle_session(now);
        assert!(probe(&mut pair).is_some());
        (pair, now)
    }

    /// The last probe to be sent.
    fn probe(pair: &mut Pair) -> Option<u64> {
        let transmits = std::iter::from_fn(|| pair.poll_transmit());
        let probes = transmits.filter_map(|transmit| {
            if let Control::Probe { id } = transmit.message {
                return Some(id);
            }
            None
        });
        probes.last()
    }

    fn answer(pair: &mut Pair, now: Instant, id: u64) {
        let observed = ([0, 0, 0, 0], 0).into();
        pair.handle_control(now, Path::Relay, Control::ProbeReply { id, observed });
    }

    /// When the next probe leaves, at or after `from`.
    fn next(pair: &mut Pair, from: Instant) -> Instant {
        let steps = (0..2_000).map(|step| from + Duration::from_millis(10) * step);
        let mut sent = steps.filter(|&now| {
            pair.handle_timeout(now);
            probe(pair).is_some()
        });
        sent.next().expect("a probe")
    }

    #[test]
    fn only_an_answer_puts_the_next_probe_off() {
        let (mut pair, start) = pair();
        let heard = start + Duration::from_secs(1);
        pair.handle_authenticated(heard, Path::Relay);
        assert_eq!(next(&mut pair, heard), start + RELAY_DOUBT);
        let (mut pair, start) = self::pair();
        pair.relay.probe_soon(start);
        pair.handle_timeout(start);
        let id = probe(&mut pair).expect("due");
        answer(&mut pair, start, id);
        assert_eq!(pair.status(start).proven, Some(start));
        assert_eq!(next(&mut pair, start), start + RELAY_PROBE);
    }

    #[test]
    fn a_peer_that_is_heard_after_a_lost_probe_is_probed_soon() {
        let millis = Duration::from_millis;
        for (rtt, heard, probed) in [
            (1, 10, 250),
            (1, 1_000, 1_000),
            (400, 10, 800),
            (400, 900, 900),
        ] {
            let (mut pair, start) = pair_at(Some(millis(rtt)));
            for more in 0..5 {
                pair.handle_authenticated(start + millis(heard + more), Path::Relay);
            }
            let next = next(&mut pair, start + millis(heard));
            let probed = start + millis(probed);
            assert!(
                next >= probed && next < probed + millis(20),
                "{rtt} {heard}"
            );
        }
    }

    #[test]
    fn whatever_is_new_is_probed_at_once() {
        type News = fn(&mut Pair, Instant);
        let news: [(&str, News); 3] = [
            ("keys", |pair, now| pair.handle_session(now)),
            ("peer", |pair, now| pair.handle_unreachable(now, false)),
            ("relay", |pair, now| {
                pair.handle_relay(now, false, None);
                pair.handle_relay(now, true, None);
            }),
        ];
        for (name, happens) in news {
            let (mut pair, start) = pair();
            let now = start + RELAY_DOUBT / 2;
            happens(&mut pair, now);
            assert_eq!(next(&mut pair, now), now, "{name}");
        }
    }

    /// How often the relay is doubted within a minute.
    fn doubts(pair: &mut Pair, from: Instant) -> usize {
        let mut doubts = 0;
        for tenth in 0..600 {
            pair.handle_timeout(from + Duration::from_millis(100) * tenth);
            while pair.poll_transmit().is_some() {}
            doubts += std::iter::from_fn(|| pair.poll_event())
                .filter(|event| *event == PairEvent::DoubtRelay)
                .count();
        }
        doubts
    }

    #[test]
    fn a_sleeper_that_is_probed_no_more_doubts_its_relay_once() {
        let (mut pair, start) = pair();
        let asleep = start + crate::pair::SLEEP;
        assert_eq!(doubts(&mut pair, asleep), 0);
        let mut now = asleep;
        for _ in 0..5 {
            now += RELAY_PROBE;
            pair.handle_control(now, Path::Relay, Control::Probe { id: 1 });
            assert_eq!(pair.poll_event(), None);
        }
        assert!(!pair.is_active(now));
        assert_eq!(pair.poll_timeout(), Some(now + RELAY_PROBE + RELAY_DOUBT));
        assert_eq!(doubts(&mut pair, now), 1);
        pair.handle_control(now, Path::Relay, Control::Probe { id: 1 });
        pair.handle_relay(now, false, None);
        assert_eq!(doubts(&mut pair, now), 0, "there is none to doubt");
    }
}
