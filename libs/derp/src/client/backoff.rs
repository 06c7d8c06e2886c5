//! How long to wait before the next dial.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// At once, then 100 ms and twice as long each time up to 5 s, all of them jittered.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `random` is from 0 to 1.
    pub(super) fn next_delay(&mut self, random: f64) -> Duration {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        match failures.checked_sub(1) {
            None => FIRST.mul_f64(random),
            Some(doublings) => {
                let base = SECOND.saturating_mul(1 << doublings.min(10)).min(LONGEST);
                base.mul_f64(0.5 + random)
            }
        }
    }

    /// The last connection worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_from_nothing_to_five_seconds() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..9)
            .map(|_| backoff.next_delay(0.5).as_millis())
            .collect();
        assert_eq!(delays, [25, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert!(backoff.next_delay(1.0) <= Duration::from_millis(50));
    }

    #[test]
    fn is_jittered_and_bounded() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.next_delay(0.0), Duration::from_millis(2500));
        assert_eq!(backoff.next_delay(1.0), Duration::from_millis(7500));
    }
}
