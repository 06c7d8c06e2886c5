//! How long to leave alone what has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(120);

/// What has failed lately, by key.
#[derive(Debug)]
pub(crate) struct Backoff<K> {
    failures: BTreeMap<K, Failure>,
}

#[derive(Debug)]
struct Failure {
    /// How often in a row.
    times: u32,
    next: Instant,
    message: String,
}

impl<K: Ord> Default for Backoff<K> {
    fn default() -> Self {
        Self {
            failures: BTreeMap::new(),
        }
    }
}

impl<K: Ord> Backoff<K> {
    /// Whether this may be tried now.
    pub(crate) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.failures
            .get(key)
            .is_none_or(|failure| failure.next <= now)
    }

    /// Notes a success.
    pub(crate) fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Notes a failure; `jitter` is 0 to 1. Says whether this message is news.
    pub(crate) fn failed(&mut self, key: K, message: &str, now: Instant, jitter: f64) -> bool {
        let failure = self.failures.entry(key).or_insert_with(|| Failure {
            times: 0,
            next: now,
            message: String::new(),
        });
        failure.next = now + wait(failure.times, jitter);
        failure.times = failure.times.saturating_add(1);
        let news = failure.message != message;
        if news {
            message.clone_into(&mut failure.message);
        }
        news
    }

    /// Forgets what nobody wants any more.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.failures.retain(|key, _| wanted(key));
    }

    /// When something may be tried again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next_of(|_| true)
    }

    /// The same among some of them.
    pub(crate) fn next_of(&self, counts: impl Fn(&K) -> bool) -> Option<Instant> {
        let failures = self.failures.iter().filter(|(key, _)| counts(key));
        failures.map(|(_, failure)| failure.next).min()
    }
}

/// Doubles up to two minutes, less up to a quarter of it.
fn wait(times: u32, jitter: f64) -> Duration {
    let full = FIRST.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
    full.min(LONGEST)
        .mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let waits: Vec<_> = (0..12).map(|times| wait(times, 0.0)).collect();
        assert_eq!(waits[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(wait(11, 0.0), LONGEST);
        assert_eq!(wait(u32::MAX, 1.0), LONGEST * 3 / 4);
        assert!(waits.is_sorted());
    }

    #[test]
    fn one_failure_holds_up_nothing_else() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.failed("a", "no", now, 0.0));
        assert!(!backoff.is_due(&"a", now) && backoff.is_due(&"b", now));
        assert_eq!(backoff.next(), Some(now + FIRST));
        assert!(backoff.is_due(&"a", now + FIRST));
    }

    #[test]
    fn a_message_is_news_once() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.failed("a", "no", now, 0.0));
        assert!(!backoff.failed("a", "no", now, 0.0));
        assert!(backoff.failed("a", "never", now, 0.0));
        backoff.succeeded(&"a");
        assert!(backoff.failed("a", "never", now, 0.0));
    }

    #[test]
    fn what_nobody_wants_is_forgotten() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.failed("a", "no", now, 0.0);
        backoff.retain(|key| *key == "b");
        assert_eq!(backoff.next(), None);
    }
}
