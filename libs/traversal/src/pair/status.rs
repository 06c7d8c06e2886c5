//! How the pair stands, in words that users know.

use std::time::{Duration, Instant};

use super::reason::reason;
use super::{Liveness, Pair, PairStatus, PathState, Reason};

/// How long a session may take before the peer counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(5);

impl Pair {
    /// How things stand.
    pub fn status(&self, now: Instant) -> PairStatus {
        let (state, reason) = self.state(now);
        let direct = self.direct.as_ref().filter(|_| state == PathState::Direct);
        let rtt = match (direct, state) {
            (Some(direct), _) => self.probes.rtt(direct.address),
            (None, PathState::Relay) => self.relay_rtt(),
            (None, PathState::Direct | PathState::Idle | PathState::None) => None,
        };
        PairStatus {
            state,
            reason,
            endpoint: direct.map(|direct| direct.address),
            rtt,
            since: Some(self.since),
            proven: self.proven,
        }
    }

    /// Why the two NATs keep the pair from being direct: the same at both ends, as soon as each has heard the other.
    pub(super) fn pair_reason(&self) -> Reason {
        self.exchange
            .sides()
            .map_or(Reason::Probing, |(ours, theirs)| reason(ours, theirs))
    }

    fn state(&self, now: Instant) -> (PathState, Option<Reason>) {
        // Without a relay a dead path is kept, because there is no other.
        let works = |direct: &Liveness| self.relay.up || !direct.is_dead(now);
        if self.direct.as_ref().is_some_and(works) {
            (PathState::Direct, None)
        } else if !self.session && self.relay.peer_missing {
            (PathState::None, Some(Reason::PeerUnreachable))
        } else if self.traffic.asleep || self.session && self.is_asleep(now) {
            (PathState::Idle, Some(Reason::Idle))
        } else if !self.relay.up {
            let refused = if self.relay.refused {
                Reason::NotAdmitted
            } else {
                Reason::RelayUnreachable
            };
            (PathState::None, Some(refused))
        } else if self.session && self.is_relay_silent(now) {
            (PathState::None, Some(Reason::PeerUnreachable))
        } else if self.session {
            (PathState::Relay, Some(self.pair_reason()))
        } else if now >= self.since + PATIENCE {
            (PathState::None, Some(Reason::PeerUnreachable))
        } else {
            (PathState::None, Some(Reason::Probing))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Random;
    use crate::{Local, Path};

    #[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
    fn pair() -> (Pair, Instant) {
        let now = Instant::now();
        (Pair::new(now, Box::new(Random(5)), Local::default()), now)
    }

    fn state(pair: &Pair, now: Instant) -> (PathState, Option<Reason>) {
        let status = pair.status(now);
        (status.state, status.reason)
    }

    #[test]
    fn what_is_wanted_and_not_to_be_had() {
        let (mut pair, now) = pair();
        assert_eq!(
            state(&pair, now),
            (PathState::None, Some(Reason::RelayUnreachable))
        );
        pair.handle_admission(true);
        assert_eq!(
            state(&pair, now),
            (PathState::None, Some(Reason::NotAdmitted))
        );
        pair.handle_admission(false);
        pair.handle_relay(now, true, None);
        assert_eq!(state(&pair, now), (PathState::None, Some(Reason::Probing)));
        assert_eq!(
            state(&pair, now + PATIENCE),
            (PathState::None, Some(Reason::PeerUnreachable))
        );
        pair.handle_unreachable(now, true);
        assert_eq!(
            state(&pair, now),
            (PathState::None, Some(Reason::PeerUnreachable))
        );
        pair.handle_session(now);
        assert_eq!(state(&pair, now), (PathState::Relay, Some(Reason::Probing)));
        assert!(pair.is_active(now));
        pair.handle_session_lost(now);
        assert_eq!(
            state(&pair, now + PATIENCE),
            (PathState::None, Some(Reason::PeerUnreachable))
        );
    }

    #[test]
    fn without_a_session_nothing_is_sent_and_nothing_is_due() {
        let (mut pair, now) = pair();
        pair.handle_relay(now, true, None);
        pair.handle_timeout(now + PATIENCE);
        assert_eq!((pair.poll_transmit(), pair.poll_timeout()), (None, None));
        assert_eq!((pair.poll_event(), pair.path()), (None, Path::Relay));
    }

    #[test]
    fn round_trip_of_the_relay_is_shown() {
        let (mut pair, now) = pair();
        let rtt = Duration::from_millis(42);
        pair.handle_relay(now, true, Some(rtt));
        pair.handle_session(now);
        assert_eq!(pair.status(now).rtt, Some(rtt));
    }

    #[test]
    fn a_relay_through_which_nothing_comes_is_no_path() {
        let (mut pair, start) = pair();
        pair.handle_relay(start, true, None);
        pair.handle_session(start);
        let mut seen = Vec::new();
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            pair.handle_traffic(now, true, None);
            while pair.poll_transmit().is_some() {}
            seen.push(state(&pair, now));
        }
        assert_eq!(seen[5], (PathState::Relay, Some(Reason::Probing)));
        let gone = (PathState::None, Some(Reason::PeerUnreachable));
        assert!(seen[10..].iter().all(|state| *state == gone), "{seen:?}");
        let now = start + Duration::from_secs(20);
        pair.handle_traffic(now, false, Some(Path::Relay));
        assert_eq!(state(&pair, now), (PathState::Relay, Some(Reason::Probing)));
    }
}
