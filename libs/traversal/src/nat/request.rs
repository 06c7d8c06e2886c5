//! One Binding request with its repetitions.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{StunSocket, StunTransmit};
use crate::Entropy;
use crate::stun::{self, Change, TransactionId};

/// When a request is sent, after its start.
const SENDS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1_300),
];
/// When it counts as unanswered.
const GIVE_UP: Duration = Duration::from_millis(2_000);

/// How a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    Answered,
    Failed,
}

/// A request to one address from one socket.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: TransactionId,
    pub(super) socket: StunSocket,
    pub(super) to: SocketAddr,
    pub(super) change: Change,
    pub(super) state: State,
    started: Instant,
    sent: usize,
}

impl Request {
    pub(super) fn new(
        now: Instant,
        entropy: &mut dyn Entropy,
        socket: StunSocket,
        to: SocketAddr,
        change: Change,
    ) -> Self {
        let mut id = [0; 12];
        entropy.fill(&mut id);
        Self {
            id: TransactionId(id),
            socket,
            to,
            change,
            state: State::Pending,
            started: now,
            sent: 0,
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.state == State::Pending
    }

    /// The next moment at which [`Self::advance`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let after = SENDS.get(self.sent).unwrap_or(&GIVE_UP);
        self.is_pending().then(|| self.started + *after)
    }

    /// The repetition that is due, if any; gives up in the end.
    pub(super) fn advance(&mut self, now: Instant) -> Option<StunTransmit> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        if self.sent == SENDS.len() {
            self.state = State::Failed;
            return None;
        }
        self.sent += 1;
        Some(StunTransmit {
            socket: self.socket,
            to: self.to,
            bytes: stun::request(self.id, self.change),
        })
    }
}
