//! When to ping, and when to give a connection up.

use std::time::Duration;

use tokio::time::Instant;

/// The least a hurried check waits.
const MIN_CHECK: Duration = Duration::from_millis(500);
/// What a hurried check waits when the round trip is not known.
const BLIND_CHECK: Duration = Duration::from_secs(2);
const MISSES: u32 = 2;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send a ping with these bytes.
    Send([u8; 8]),
    /// Nothing before this instant.
    Wait(Instant),
    /// Nobody answers.
    Dead,
}

/// Decides on pings for one connection.
#[derive(Debug)]
pub(super) struct Pinger {
    interval: Duration,
    patience: Duration,
    next: Instant,
    outstanding: Option<Ping>,
    hurried: bool,
    missed: u32,
    heard: Instant,
    rtt: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    bytes: [u8; 8],
    sent: Instant,
    deadline: Instant,
}

impl Pinger {
    /// The first ping goes out at once.
    pub(super) fn new(now: Instant, interval: Duration, patience: Duration) -> Self {
        Self {
            interval,
            patience,
            next: now,
            outstanding: None,
            hurried: false,
            missed: 0,
            heard: now,
            rtt: None,
        }
    }

    /// What to do at `now`; `random` is new at each call.
    pub(super) fn poll(&mut self, now: Instant, random: u64) -> Step {
        if let Some(ping) = self.outstanding {
            if now < ping.deadline {
                return Step::Wait(ping.deadline);
            }
            self.outstanding = None;
            if self.give_up(ping) {
                return Step::Dead;
            }
            self.next = now;
        }
        if now < self.next {
            return Step::Wait(self.next);
        }
        self.send(now, random)
    }

    /// Something arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A pong arrived: the round trip, if it is the answer to our ping.
    pub(super) fn pong(&mut self, now: Instant, bytes: [u8; 8]) -> Option<Duration> {
        let ping = self.outstanding.take_if(|ping| ping.bytes == bytes)?;
        let rtt = now.saturating_duration_since(ping.sent);
        self.missed = 0;
        self.hurried = false;
        self.rtt = Some(rtt);
        // Proxies count from the last byte, so the interval does too.
        let jitter = f64::from(bytes[0]) / 255.0;
        self.next = now
            + self
                .interval
                .mul_f64(0.8 + 0.2 * jitter)
                .saturating_sub(rtt.min(self.interval / 2));
        Some(rtt)
    }

    /// Somebody doubts the connection: ping now, and wait for the answer no longer than three round trips.
    pub(super) fn check(&mut self, now: Instant) {
        self.hurried = true;
        self.next = now;
        let soon = now + self.hurry();
        if let Some(ping) = &mut self.outstanding {
            ping.deadline = ping.deadline.min(soon);
        }
    }

    /// Whether an unanswered ping means that the connection is dead. Anything that arrives after it says otherwise.
    fn give_up(&mut self, ping: Ping) -> bool {
        if self.heard > ping.sent {
            self.missed = 0;
            self.hurried = false;
            return false;
        }
        self.missed += 1;
        self.hurried || self.missed >= MISSES
    }

    fn send(&mut self, now: Instant, random: u64) -> Step {
        let patience = if self.hurried {
            self.hurry()
        } else {
            self.patience
        };
        let bytes = random.to_be_bytes();
        self.outstanding = Some(Ping {
            bytes,
            sent: now,
            deadline: now + patience,
        });
        Step::Send(bytes)
    }

    fn hurry(&self) -> Duration {
        self.rtt
            .map_or(BLIND_CHECK, |rtt| (3 * rtt).max(MIN_CHECK))
            .min(self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(25);
    const PATIENCE: Duration = Duration::from_secs(5);

    fn started() -> (Pinger, Instant) {
        let now = Instant::now();
        (Pinger::new(now, INTERVAL, PATIENCE), now)
    }

    fn answered(rtt: Duration) -> (Pinger, Instant) {
        let (mut pinger, now) = started();
        let Step::Send(bytes) = pinger.poll(now, 7) else {
            panic!("no ping")
        };
        pinger.heard(now + rtt);
        assert_eq!(pinger.pong(now + rtt, bytes), Some(rtt));
        (pinger, now + rtt)
    }

    #[test]
    fn pings_at_once_and_then_within_the_interval() {
        let (mut pinger, now) = answered(Duration::from_millis(20));
        let Step::Wait(next) = pinger.poll(now, 1) else {
            panic!("no wait")
        };
        assert!(next > now + INTERVAL.mul_f64(0.75) && next <= now + INTERVAL);
        assert_eq!(pinger.poll(next, 9), Step::Send(9_u64.to_be_bytes()));
    }

    #[test]
    fn two_misses_are_the_end() {
        let (mut pinger, now) = started();
        assert!(matches!(pinger.poll(now, 1), Step::Send(_)));
        assert_eq!(pinger.poll(now, 2), Step::Wait(now + PATIENCE));
        assert!(matches!(pinger.poll(now + PATIENCE, 3), Step::Send(_)));
        assert_eq!(pinger.poll(now + 2 * PATIENCE, 4), Step::Dead);
    }

    #[test]
    fn data_after_the_ping_counts_as_life() {
        let (mut pinger, now) = started();
        for round in 0..5 {
            let at = now + round * PATIENCE;
            assert!(matches!(pinger.poll(at, 1), Step::Send(_)), "{round}");
            pinger.heard(at + PATIENCE / 2);
        }
    }

    #[test]
    fn a_check_waits_three_round_trips() {
        let (mut pinger, now) = answered(Duration::from_millis(300));
        pinger.check(now);
        assert!(matches!(pinger.poll(now, 1), Step::Send(_)));
        let deadline = now + Duration::from_millis(900);
        assert_eq!(pinger.poll(now, 1), Step::Wait(deadline));
        assert_eq!(pinger.poll(deadline, 1), Step::Dead);
    }

    #[test]
    fn a_check_hurries_a_ping_that_is_out() {
        let (mut pinger, now) = answered(Duration::from_millis(1));
        let later = now + INTERVAL;
        assert!(matches!(pinger.poll(later, 1), Step::Send(_)));
        pinger.check(later);
        assert_eq!(pinger.poll(later, 1), Step::Wait(later + MIN_CHECK));
        assert_eq!(pinger.poll(later + MIN_CHECK, 1), Step::Dead);
    }

    #[test]
    fn other_pongs_mean_nothing() {
        let (mut pinger, now) = started();
        pinger.poll(now, 1);
        assert_eq!(pinger.pong(now, [9; 8]), None);
    }
}
