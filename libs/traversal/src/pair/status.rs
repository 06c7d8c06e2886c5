//! How the pair stands, in words that users know.

use std::time::{Duration, Instant};

use super::reason::reason;
use super::{Pair, PairStatus, PathState, Reason};

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
        PairStatus { state, reason, endpoint: direct.map(|direct| direct.address), rtt, since: Some(self.since) }
    }

    /// Why the two NATs keep the pair from being direct: the same at both ends, as soon as each has heard the other.
    pub(super) fn pair_reason(&self) -> Reason {
        self.exchange.sides().map_or(Reason::Probing, |(ours, theirs)| reason(ours, theirs))
    }

    fn state(&self, now: Instant) -> (PathState, Option<Reason>) {
        if self.direct.is_some() {
            (PathState::Direct, None)
        } else if !self.session && self.relay.peer_missing {
            (PathState::None, Some(Reason::PeerUnreachable))
        } else if self.traffic.asleep || self.session && self.is_asleep(now) {
            (PathState::Idle, Some(Reason::Idle))
        } else if !self.relay.up {
            let refused = if self.relay.refused { Reason::NotAdmitted } else { Reason::RelayUnreachable };
            (PathState::None, Some(refused))
        } else if self.session {
            (PathState::Relay, Some(self.pair_reason()))
        } else if now >= self.since + PATIENCE {
            (PathState::None, Some(Reason::PeerUnreachable))
        } else {
            (PathState::None, Some(Reason::Probing))
        }
    }
}
