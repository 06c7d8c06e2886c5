//! When to try again to get direct.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Entropy;
use crate::entropy;

/// From the start of one attempt to the next, while the pair is in use.
const GAPS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(12),
];
/// How long attempts are frequent.
const EAGER: Duration = Duration::from_secs(300);
/// Traffic this recent keeps attempts frequent.
const USED: Duration = Duration::from_secs(60);
/// After that, and for hopeless pairs: doubling up to the last.
const SLOW: Duration = Duration::from_secs(30);
const SLOWEST: Duration = Duration::from_secs(3_600);
/// Least time between two attempts, whatever happens.
const LEAST: Duration = Duration::from_millis(250);
/// Attempts within this time that events may bring about; further events wait.
const EVENTS: usize = 12;
const EVENTS_WITHIN: Duration = Duration::from_secs(30);
/// Pause after the loss of a direct path.
const BREATHER: Duration = Duration::from_secs(1);
/// Both sides' NATs forget a flow without answer in this time. One that was taken for a flow of the router itself
/// stands in the way of the next until then.
const SILENCE: Duration = Duration::from_secs(36);
/// Attempts that have to fail before that is worth the wait.
const PATIENCE: u32 = 6;
/// Long enough to ask a STUN server.
const MOMENT: Duration = Duration::from_millis(300);
/// Rest after an attempt.
const REST: Duration = Duration::from_millis(500);

/// What an attempt that has failed makes of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    /// The next may succeed.
    Good,
    /// The NATs will not let it.
    Hopeless,
    /// The NATs may have to forget first.
    Silence,
}

/// The schedule of attempts while relayed.
#[derive(Debug, Default)]
pub(super) struct Retry {
    next: Option<Instant>,
    /// The newest attempts.
    starts: VecDeque<Instant>,
    /// Since when the schedule runs.
    since: Option<Instant>,
    eager: usize,
    slow: u32,
    /// Attempts that failed since a direct path was last in use.
    failures: u32,
}

impl Retry {
    /// Something has changed: try now, or as soon as the last attempt is not too recent, and begin the schedule anew.
    pub(super) fn event(&mut self, now: Instant) {
        (self.since, self.eager, self.slow) = (Some(now), 0, 0);
        let earliest = self.earliest().map_or(now, |earliest| earliest.max(now));
        self.next = Some(self.next.map_or(earliest, |next| next.min(earliest)));
    }

    /// A direct path was lost: try in a second.
    pub(super) fn lost(&mut self, now: Instant) {
        (self.since, self.eager, self.slow, self.failures) = (Some(now), 1, 0, 0);
        self.next = Some(now + BREATHER);
    }

    /// Nothing can be tried before the next event.
    pub(super) fn put_off(&mut self) {
        self.next = None;
    }

    /// An attempt begins.
    pub(super) fn started(&mut self, now: Instant) {
        self.next = None;
        if self.starts.len() == EVENTS {
            self.starts.pop_front();
        }
        self.starts.push_back(now);
        self.since.get_or_insert(now);
    }

    /// Something has changed, but what exactly will only be known in a moment.
    pub(super) fn event_soon(&mut self, now: Instant) {
        self.event(now);
        self.next = self.next.map(|next| next.max(now + MOMENT));
    }

    /// The attempt has ended without success; `outlook` is what is to be hoped for from more of the same.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        used: Instant,
        outlook: Outlook,
        random: &mut dyn Entropy,
    ) {
        self.failures = self.failures.saturating_add(1);
        let eager = self.since.is_some_and(|since| now < since + EAGER) && now < used + USED;
        let gap = if outlook == Outlook::Silence && self.failures >= PATIENCE {
            self.next.get_or_insert(now + SILENCE);
            return;
        } else if eager && outlook != Outlook::Hopeless {
            let gap = GAPS
                .get(self.eager)
                .or(GAPS.last())
                .copied()
                .unwrap_or(SLOW);
            self.eager += 1;
            gap
        } else {
            let gap = SLOW.saturating_mul(1 << self.slow.min(16)).min(SLOWEST);
            self.slow += 1;
            // A quarter is left to chance, so that many pairs do not try together.
            gap - (gap / 1_024) * u32::try_from(entropy::id(random) % 256).unwrap_or_default()
        };
        let from = self.starts.back().copied().unwrap_or(now);
        self.next
            .get_or_insert_with(|| (from + gap).max(now + REST));
    }

    /// A direct path is in use.
    pub(super) fn stop(&mut self) {
        *self = Self {
            starts: std::mem::take(&mut self.starts),
            ..Self::default()
        };
    }

    /// When an event may bring about the next attempt.
    fn earliest(&self) -> Option<Instant> {
        let after_last = *self.starts.back()? + LEAST;
        let full = self.starts.front().filter(|_| self.starts.len() == EVENTS);
        Some(full.map_or(after_last, |oldest| after_last.max(*oldest + EVENTS_WITHIN)))
    }

    /// When to try next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Random;

    #[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Times of the attempts of five seconds each that a schedule makes within `limit`.
    fn attempts(
        limit: Duration,
        used: Duration,
        outlook: impl Fn(usize) -> Outlook,
    ) -> Vec<Duration> {
        let (start, mut retry, mut times) = (start(), Retry::default(), Vec::new());
        retry.event(start);
        while let Some(due) = retry.due().filter(|due| *due < start + limit) {
            retry.started(due);
            times.push(due - start);
            let ended = due + Duration::from_secs(5);
            let used = ended.min(start + used);
            retry.failed(ended, used, outlook(times.len()), &mut Random(3));
        }
        times
    }

    fn longest(times: &[Duration]) -> Duration {
        times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    #[test]
    fn at_least_every_15_seconds_for_five_minutes_while_used() {
        let times = attempts(FIVE_MINUTES, FIVE_MINUTES, |_| Outlook::Good);
        assert!(longest(&times) <= Duration::from_secs(15), "{times:?}");
        assert!((20..30).contains(&times.len()), "{times:?}");
    }

    #[test]
    fn ever_more_rarely_afterwards_and_for_hopeless_pairs() {
        let day = Duration::from_secs(86_400);
        let times = attempts(day, day, |_| Outlook::Hopeless);
        assert!((24..45).contains(&times.len()), "{}", times.len());
        assert!(longest(&times) <= Duration::from_secs(3_600));
        let unused = attempts(FIVE_MINUTES, Duration::ZERO, |_| Outlook::Good);
        assert!(unused.len() < 12, "{unused:?}");
    }

    #[test]
    fn silence_comes_only_after_many_failures() {
        let times = attempts(FIVE_MINUTES, FIVE_MINUTES, |_| Outlook::Silence);
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps[..5].iter().all(|gap| *gap <= Duration::from_secs(15)),
            "{gaps:?}"
        );
        assert!(gaps[5] > Duration::from_secs(36), "{gaps:?}");
    }

    #[test]
    fn events_without_end_bring_about_few_attempts() {
        let (start, mut retry, mut attempts) = (start(), Retry::default(), 0);
        for tick in 0..6_000 {
            let now = start + Duration::from_millis(10) * tick;
            retry.event(now);
            if retry.due().is_some_and(|due| due <= now) {
                retry.started(now);
                attempts += 1;
            }
        }
        assert!((20..=26).contains(&attempts), "{attempts} in a minute");
    }

    #[test]
    fn events_are_answered_at_once_but_not_in_bursts() {
        let start = start();
        let mut retry = Retry::default();
        retry.event(start);
        assert_eq!(retry.due(), Some(start));
        retry.started(start);
        retry.event(start + Duration::from_millis(10));
        assert_eq!(retry.due(), Some(start + LEAST));
    }
}
