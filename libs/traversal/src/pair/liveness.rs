//! Whether the direct path in use still works, in both directions.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Between probes while data flows.
const BUSY: Duration = Duration::from_millis(250);
/// Between probes while none does: often enough for NATs and for WireGuard's timers.
const IDLE: Duration = Duration::from_secs(10);
/// Between probes once one is overdue.
const DOUBTFUL: Duration = Duration::from_millis(100);
/// Between probes of a path that is only kept because there is no other.
const FORLORN: Duration = Duration::from_secs(1);
/// An answer that takes longer than this, or than two round trips, is overdue.
const OVERDUE: Duration = Duration::from_millis(150);
/// Silence after which another path is preferred whatever its round trip.
const SILENT: Duration = Duration::from_millis(500);
/// Silence after which the path is given up, with this many probes unanswered.
const DEAD: Duration = Duration::from_millis(1_100);
const DEAD_PROBES: usize = 3;
/// Probes remembered.
const REMEMBERED: usize = 64;
/// An idle path that was not answered for this long is not trusted: some NATs forget a flow after 30 s.
const STALE: Duration = Duration::from_secs(25);
/// How long a path without any answer is probed fast, if there is no other.
const HOPE: Duration = Duration::from_secs(10);

/// Watches one direct path.
#[derive(Debug)]
pub(super) struct Liveness {
    pub(super) address: SocketAddr,
    /// When unanswered probes left, oldest first.
    unanswered: VecDeque<Instant>,
    answered: Instant,
    probed: Instant,
    rtt: Duration,
    hurried: bool,
}

impl Liveness {
    /// A path that was answered at `answered`.
    pub(super) fn new(address: SocketAddr, answered: Instant, rtt: Duration) -> Self {
        Self {
            address,
            unanswered: VecDeque::new(),
            answered,
            probed: answered,
            rtt,
            hurried: false,
        }
    }

    /// A probe on this path leaves.
    pub(super) fn sent(&mut self, now: Instant) {
        self.hurried = false;
        self.probed = now;
        if self.unanswered.len() < REMEMBERED {
            self.unanswered.push_back(now);
        }
    }

    /// The probe that left at `sent` was answered, and with it all before.
    pub(super) fn answered(&mut self, now: Instant, sent: Instant, rtt: Duration) {
        self.unanswered.retain(|at| *at > sent);
        self.answered = now;
        self.rtt = rtt;
    }

    /// Probe at the next opportunity.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// When the next probe is due; data flows until `busy_until` at least.
    pub(super) fn probe_due(&self, busy_until: Instant) -> Instant {
        if self.hurried {
            return self.probed + DOUBTFUL;
        }
        let Some(first) = self.unanswered.front() else {
            let busy = self.probed + BUSY <= busy_until;
            return self.probed + if busy { BUSY } else { IDLE };
        };
        let overdue = *first + OVERDUE.max(self.rtt * 2);
        if self.probed >= *first + HOPE {
            self.probed + FORLORN
        } else {
            (self.probed + BUSY).min(overdue.max(self.probed + DOUBTFUL))
        }
    }

    /// Silent for so long that another path that works is better.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.unanswered
            .front()
            .is_some_and(|first| now >= *first + SILENT.max(self.rtt * 2))
    }

    /// When the path counts as dead if nothing comes.
    pub(super) fn dies(&self) -> Option<Instant> {
        let first = *self.unanswered.front()?;
        let last_needed = *self.unanswered.get(DEAD_PROBES - 1)?;
        Some((first + DEAD.max(self.rtt * 2)).max(last_needed))
    }

    /// Nothing has come, and nothing is to be expected.
    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.dies().is_some_and(|dies| now >= dies)
    }

    /// Nothing was answered for so long that the NATs may have forgotten the path.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now >= self.answered + STALE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "203.0.113.9:4000";

    #[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Probes whenever one is due and returns when the path is given up.
    fn silence(busy: bool) -> (Duration, usize) {
        let start = start();
        let mut liveness = Liveness::new(ADDRESS.parse().unwrap(), start, millis(40));
        let mut probes = 0;
        loop {
            let due = liveness.probe_due(if busy { start + IDLE * 2 } else { start });
            match liveness.dies() {
                Some(dies) if dies <= due => return (dies - start, probes),
                _ => {}
            }
            liveness.sent(due);
            probes += 1;
        }
    }

    #[test]
    fn a_busy_path_dies_within_a_second_and_a_half() {
        let (after, probes) = silence(true);
        assert!(after <= millis(1_400), "{after:?}");
        assert!((3..=12).contains(&probes), "{probes}");
    }

    #[test]
    fn an_idle_path_is_probed_rarely_and_dies_as_fast_after_the_first_silence() {
        let (after, _) = silence(false);
        assert!(after >= IDLE && after <= IDLE + millis(1_200), "{after:?}");
    }

    #[test]
    fn one_answer_clears_all_earlier_probes() {
        let start = start();
        let mut liveness = Liveness::new(ADDRESS.parse().unwrap(), start, millis(40));
        for tick in 1..=5 {
            liveness.sent(start + millis(100) * tick);
        }
        liveness.answered(start + millis(550), start + millis(500), millis(50));
        assert_eq!(liveness.dies(), None);
        assert!(!liveness.is_silent(start + millis(900)));
    }
}
