//! Which of several connections to one peer lives.

use std::time::{Duration, Instant};

use crate::message::CloseReason;

/// How long two dials at the same time may take to meet. A later one means that its side has lost the connection.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the last generation is remembered after its connection is gone.
const MEMORY: Duration = Duration::from_secs(60);

/// Who made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialler {
    /// This side.
    Us,
    /// The peer.
    Them,
}

/// What becomes of a connection whose peer has greeted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one.
    Keep,
    /// It is the one; another is to be closed.
    Replace {
        /// The other.
        old: u64,
        /// What its far end is told.
        reason: CloseReason,
    },
    /// It is to be closed.
    Refuse(CloseReason),
}

/// Keeps one connection to a peer: of the newest generation; of the same generation the one that the side with the lower
/// identity has dialled, or, once connections have settled, the newest, because nobody dials who has one.
#[derive(Debug)]
pub struct Arbiter {
    preferred: Dialler,
    live: Option<Live>,
    /// The generation that was live last, and until when.
    ended: Option<(u64, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    id: u64,
    generation: u64,
    dialler: Dialler,
    since: Instant,
}

impl Arbiter {
    /// For a peer; `preferred` is the side with the lower identity.
    #[must_use]
    pub fn new(preferred: Dialler) -> Self {
        Self {
            preferred,
            live: None,
            ended: None,
        }
    }

    /// Decides on a connection. `id` is its own and not used again.
    pub fn hello(&mut self, now: Instant, id: u64, generation: u64, dialler: Dialler) -> Verdict {
        if generation < self.newest(now) {
            return Verdict::Refuse(CloseReason::Superseded);
        }
        let verdict = match &self.live {
            None => Verdict::Keep,
            Some(live) if live.generation < generation => Verdict::Replace {
                old: live.id,
                reason: CloseReason::Superseded,
            },
            Some(live) if self.yields(now, live, dialler) => Verdict::Replace {
                old: live.id,
                reason: CloseReason::Duplicate,
            },
            Some(_) => return Verdict::Refuse(CloseReason::Duplicate),
        };
        self.live = Some(Live {
            id,
            generation,
            dialler,
            since: now,
        });
        verdict
    }

    /// A connection is gone; says whether it was the live one.
    pub fn closed(&mut self, now: Instant, id: u64) -> bool {
        let Some(live) = self.live.take_if(|live| live.id == id) else {
            return false;
        };
        self.ended = Some((live.generation, now));
        true
    }

    /// Whether a connection lives.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Whether this connection is the one.
    #[must_use]
    pub fn is_live_one(&self, id: u64) -> bool {
        self.live.is_some_and(|live| live.id == id)
    }

    fn newest(&self, now: Instant) -> u64 {
        let ended = self.ended.filter(|(_, at)| now < *at + MEMORY);
        match (&self.live, ended) {
            (Some(live), _) => live.generation,
            (None, Some((generation, _))) => generation,
            (None, None) => 0,
        }
    }

    fn yields(&self, now: Instant, live: &Live, newcomer: Dialler) -> bool {
        newcomer == self.preferred || newcomer == live.dialler || now >= live.since + SETTLED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn of_two_dials_at_once_both_sides_keep_the_same() {
        let now = Instant::now();
        // Connection 1 is dialled by the lower side, connection 2 by the other; they greet in any order.
        for order in [[1, 2], [2, 1]] {
            for preferred in [Dialler::Us, Dialler::Them] {
                let mut arbiter = Arbiter::new(preferred);
                let other = match preferred {
                    Dialler::Us => Dialler::Them,
                    Dialler::Them => Dialler::Us,
                };
                let verdicts = order.map(|id| {
                    let dialler = if id == 1 { preferred } else { other };
                    arbiter.hello(now, id, 5, dialler)
                });
                let reason = CloseReason::Duplicate;
                let second = match order {
                    [1, _] => Verdict::Refuse(reason),
                    _ => Verdict::Replace { old: 2, reason },
                };
                assert_eq!(verdicts, [Verdict::Keep, second]);
            }
        }
    }

    #[test]
    fn a_later_dial_of_either_side_takes_over() {
        let now = Instant::now();
        let mut arbiter = Arbiter::new(Dialler::Us);
        assert_eq!(arbiter.hello(now, 1, 5, Dialler::Us), Verdict::Keep);
        let reason = CloseReason::Duplicate;
        assert_eq!(
            arbiter.hello(now + after(4), 2, 5, Dialler::Them),
            Verdict::Refuse(reason)
        );
        assert_eq!(
            arbiter.hello(now + after(5), 3, 5, Dialler::Them),
            Verdict::Replace { old: 1, reason }
        );
        assert_eq!(
            arbiter.hello(now + after(6), 4, 5, Dialler::Them),
            Verdict::Replace { old: 3, reason }
        );
        assert!(!arbiter.closed(now + after(6), 3));
        assert!(arbiter.is_live());
        assert!(arbiter.closed(now + after(6), 4));
        assert!(!arbiter.is_live());
    }

    #[test]
    fn the_newer_generation_wins_whoever_dials() {
        let now = Instant::now();
        for dialler in [Dialler::Us, Dialler::Them] {
            let mut arbiter = Arbiter::new(Dialler::Us);
            let reason = CloseReason::Superseded;
            assert_eq!(arbiter.hello(now, 1, 5, Dialler::Us), Verdict::Keep);
            assert_eq!(
                arbiter.hello(now, 2, 6, dialler),
                Verdict::Replace { old: 1, reason }
            );
            assert_eq!(arbiter.hello(now, 3, 5, dialler), Verdict::Refuse(reason));
        }
    }

    #[test]
    fn an_older_generation_may_return_a_minute_after_the_newer() {
        let now = Instant::now();
        let mut arbiter = Arbiter::new(Dialler::Us);
        assert_eq!(arbiter.hello(now, 1, 6, Dialler::Us), Verdict::Keep);
        assert!(arbiter.closed(now, 1));
        assert_eq!(
            arbiter.hello(now + after(59), 2, 5, Dialler::Us),
            Verdict::Refuse(CloseReason::Superseded)
        );
        assert_eq!(
            arbiter.hello(now + after(60), 3, 5, Dialler::Us),
            Verdict::Keep
        );
    }
}
