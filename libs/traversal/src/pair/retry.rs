//! When to try again to get direct.

use std::time::{Duration, Instant};

use crate::Entropy;
use crate::entropy;

/// From the start of one attempt to the next, while the pair is in use.
const GAPS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(12)];
/// How long attempts are frequent.
const EAGER: Duration = Duration::from_secs(300);
/// Traffic this recent keeps attempts frequent.
const USED: Duration = Duration::from_secs(60);
/// After that, and for hopeless pairs: doubling up to the last.
const SLOW: Duration = Duration::from_secs(30);
const SLOWEST: Duration = Duration::from_secs(3_600);
/// Least time between two attempts, whatever happens.
const LEAST: Duration = Duration::from_millis(250);
/// Pause after the loss of a direct path.
const BREATHER: Duration = Duration::from_secs(1);
/// Both sides' NATs forget a flow without answer in this time. One that was taken for a flow of the router itself
/// stands in the way of the next until then.
const SILENCE: Duration = Duration::from_secs(36);
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
    started: Option<Instant>,
    /// Since when the schedule runs.
    since: Option<Instant>,
    eager: usize,
    slow: u32,
}

impl Retry {
    /// Something has changed: try now, or as soon as the last attempt is not too recent, and begin the schedule anew.
    pub(super) fn event(&mut self, now: Instant) {
        (self.since, self.eager, self.slow) = (Some(now), 0, 0);
        let earliest = self.started.map_or(now, |started| (started + LEAST).max(now));
        self.next = Some(self.next.map_or(earliest, |next| next.min(earliest)));
    }

    /// A direct path was lost: try in a second.
    pub(super) fn lost(&mut self, now: Instant) {
        (self.since, self.eager, self.slow) = (Some(now), 1, 0);
        self.next = Some(now + BREATHER);
    }

    /// An attempt begins.
    pub(super) fn started(&mut self, now: Instant) {
        (self.started, self.next) = (Some(now), None);
        self.since.get_or_insert(now);
    }

    /// Something has changed, but what exactly will only be known in a moment.
    pub(super) fn event_soon(&mut self, now: Instant) {
        self.event(now);
        self.next = self.next.map(|next| next.max(now + MOMENT));
    }

    /// The attempt has ended without success; `outlook` is what is to be hoped for from more of the same.
    pub(super) fn failed(&mut self, now: Instant, used: Instant, outlook: Outlook, random: &mut dyn Entropy) {
        let eager = self.since.is_some_and(|since| now < since + EAGER) && now < used + USED;
        let gap = if outlook == Outlook::Silence {
            self.next.get_or_insert(now + SILENCE);
            return;
        } else if eager && outlook == Outlook::Good {
            let gap = GAPS.get(self.eager).or(GAPS.last()).copied().unwrap_or(SLOW);
            self.eager += 1;
            gap
        } else {
            let gap = SLOW.saturating_mul(1 << self.slow.min(16)).min(SLOWEST);
            self.slow += 1;
            // A quarter is left to chance, so that many pairs do not try together.
            gap - (gap / 1_024) * u32::try_from(entropy::id(random) % 256).unwrap_or_default()
        };
        let from = self.started.unwrap_or(now);
        self.next.get_or_insert((from + gap).max(now + REST));
    }

    /// A direct path is in use.
    pub(super) fn stop(&mut self) {
        *self = Self { started: self.started, ..Self::default() };
    }

    /// When to try next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next
    }
}
