//! What leaves, and the limit on it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Path, Transmit};
use crate::control::Control;

/// Messages that may leave at once after a pause.
const BURST: u32 = 100;
/// Time that earns one more: with the burst, at most 500 messages in any second.
const PER_MESSAGE: Duration = Duration::from_micros(2_500);

/// Messages to send. What exceeds the limit is dropped: everything here is repeated anyway.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: VecDeque<Transmit>,
    credit: u32,
    credited: Instant,
}

impl Outbox {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            credit: BURST,
            credited: now,
        }
    }

    /// Queues a message; `false` if the limit is reached.
    pub(super) fn push(
        &mut self,
        now: Instant,
        via: Path,
        ttl: Option<u8>,
        message: Control,
    ) -> bool {
        self.earn(now);
        let Some(left) = self.credit.checked_sub(1) else {
            return false;
        };
        self.credit = left;
        self.queue.push_back(Transmit { via, ttl, message });
        true
    }

    pub(super) fn pop(&mut self) -> Option<Transmit> {
        self.queue.pop_front()
    }

    fn earn(&mut self, now: Instant) {
        let earned =
            now.saturating_duration_since(self.credited).as_micros() / PER_MESSAGE.as_micros();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if self.credit + earned >= BURST {
            (self.credit, self.credited) = (BURST, now.max(self.credited));
        } else {
            self.credit += earned;
            self.credited += PER_MESSAGE * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
    fn no_second_holds_more_than_five_hundred() {
        let start = Instant::now();
        let mut outbox = Outbox::new(start);
        let sent: Vec<u32> = (0..20_000)
            .filter(|tick| {
                outbox.push(
                    start + Duration::from_micros(100) * *tick,
                    Path::Relay,
                    None,
                    Control::Bye,
                )
            })
            .collect();
        assert!(sent.len() > 800, "{}", sent.len());
        for first in &sent {
            let within = sent
                .iter()
                .filter(|tick| (*first..first + 10_000).contains(tick))
                .count();
            assert!(within <= 500, "{within}");
        }
    }
}
