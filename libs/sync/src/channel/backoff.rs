//! How long to wait before the next dial of a peer.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);

/// From a quarter of a second, twice as long each time up to a bound, jittered by half.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            failures: 0,
            longest,
        }
    }

    /// The next wait; `random` is from 0 to 1.
    pub(crate) fn next_delay(&mut self, random: f64) -> Duration {
        let base = FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        base.min(self.longest).mul_f64(0.5 + random)
    }

    /// The last connection worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(3));
        let delays: Vec<u128> = (0..6)
            .map(|_| backoff.next_delay(0.5).as_millis())
            .collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 3000, 3000]);
        assert_eq!(backoff.next_delay(0.0), Duration::from_millis(1500));
        assert_eq!(backoff.next_delay(1.0), Duration::from_millis(4500));
        backoff.reset();
        assert_eq!(backoff.next_delay(0.5), FIRST);
    }
}
