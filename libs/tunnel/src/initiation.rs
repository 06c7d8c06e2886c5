//! When to send the next handshake initiation to a node that has no session with us, and by which relay.

use std::time::{Duration, Instant};

/// Gaps after the first initiations; then [`STEADY`] until [`PATIENCE`] is over.
const FIRST: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(250),
    Duration::from_millis(500),
];
const STEADY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(10);
/// Without an answer for this long the next relay is tried.
const RELAY_PATIENCE: Duration = Duration::from_secs(1);

/// The schedule of one attempt to reach a node: 0, 0.25, 0.5, 1 s, then every second for a minute, then ever more
/// rarely, and never more often than every two round trips of the relay.
#[derive(Debug)]
pub(crate) struct Initiation {
    started: Instant,
    next: Instant,
    sent: usize,
    gap: Duration,
    relay: usize,
    relay_since: Option<Instant>,
}

impl Initiation {
    /// A new attempt, due at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            next: now,
            sent: 0,
            gap: STEADY,
            relay: 0,
            relay_since: None,
        }
    }

    /// When the next initiation is due.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Makes the next initiation due now: the peer has just appeared.
    pub(crate) fn hurry(&mut self, now: Instant) {
        (self.next, self.relay_since) = (now, None);
    }

    /// There is no relay to send by. One that connects makes the next initiation due at once.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.next = now + STEADY;
    }

    /// The relay does not know the node: try the next one at once. `true` when all have been tried.
    pub(crate) fn relay_failed(&mut self, now: Instant, relays: usize) -> bool {
        self.relay += 1;
        self.relay_since = None;
        let all = self.relay.is_multiple_of(relays.max(1));
        if !all {
            self.next = now;
        }
        all
    }

    /// Which of `relays` the initiation that is due now goes to.
    pub(crate) fn relay(&mut self, now: Instant, relays: usize) -> usize {
        let since = *self.relay_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= RELAY_PATIENCE {
            (self.relay, self.relay_since) = (self.relay + 1, Some(now));
        }
        self.relay % relays.max(1)
    }

    /// An initiation went out.
    pub(crate) fn sent(&mut self, now: Instant, relay_rtt: Option<Duration>) {
        let gap = match FIRST.get(self.sent) {
            Some(first) => *first,
            None if now.saturating_duration_since(self.started) < PATIENCE => STEADY,
            None => {
                self.gap = (self.gap * 2).min(LONGEST);
                self.gap
            }
        };
        self.sent += 1;
        self.next = now + gap.max(relay_rtt.unwrap_or_default() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rtt: Option<Duration>, until: Duration) -> Vec<u128> {
        let start = Instant::now();
        let mut initiation = Initiation::new(start);
        let mut times = Vec::new();
        while initiation.due() < start + until {
            let now = initiation.due();
            times.push((now - start).as_millis());
            initiation.sent(now, rtt);
        }
        times
    }

    #[test]
    fn the_first_second_is_dense_and_the_first_minute_steady() {
        assert_eq!(
            times(None, Duration::from_secs(4)),
            [0, 250, 500, 1_000, 2_000, 3_000]
        );
        assert_eq!(times(None, Duration::from_secs(60)).len(), 62);
    }

    #[test]
    fn later_attempts_back_off_to_ten_seconds() {
        let late = times(None, Duration::from_secs(120));
        let gaps: Vec<_> = late.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps.iter().max(), Some(&10_000));
    }

    #[test]
    fn a_slow_relay_is_asked_no_more_than_every_two_round_trips() {
        assert_eq!(
            times(Some(Duration::from_millis(400)), Duration::from_secs(3)),
            [0, 800, 1_600, 2_400]
        );
    }

    #[test]
    fn another_relay_is_tried_after_a_second_or_a_refusal() {
        let start = Instant::now();
        let mut initiation = Initiation::new(start);
        assert_eq!(initiation.relay(start, 3), 0);
        assert_eq!(initiation.relay(start + Duration::from_millis(900), 3), 0);
        assert_eq!(initiation.relay(start + Duration::from_secs(1), 3), 1);
        initiation.sent(start, None);
        assert!(!initiation.relay_failed(start, 3));
        assert_eq!((initiation.relay(start, 3), initiation.due()), (2, start));
    }

    #[test]
    fn refusals_of_all_relays_do_not_speed_up_the_schedule() {
        let start = Instant::now();
        let mut initiation = Initiation::new(start);
        initiation.sent(start, None);
        assert!(initiation.relay_failed(start, 1));
        assert_eq!(initiation.due(), start + FIRST[0]);
    }
}
