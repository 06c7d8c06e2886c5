//! The exchange of hellos: each side repeats its own until the other has it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::reason::Side;
use crate::Local;
use crate::candidate::{CandidateContext, acceptable, capped};
use crate::control::{Ack, Hello};

/// Pauses between repetitions; the last one goes on.
const PAUSES: [Duration; 7] = [
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// Own hellos remembered until one is acknowledged.
const REMEMBERED: usize = 8;
/// Candidates older than this are not probed.
const FRESH: Duration = Duration::from_secs(60);

/// Our hello and the peer's.
#[derive(Debug)]
pub(super) struct Exchange {
    current: Hello,
    /// Number of the hello in which the candidates were last changed.
    candidates_seq: u32,
    /// What was sent and not yet acknowledged, oldest first.
    unacked: VecDeque<(u32, Side)>,
    acked: Option<Side>,
    remote: Option<Remote>,
    /// When to send, and how often it was sent since it was last news.
    due: Option<Instant>,
    sent: usize,
    /// Owed to the peer, which asked.
    answer: bool,
}

/// The peer's newest hello.
#[derive(Debug)]
struct Remote {
    hello: Hello,
    heard: Instant,
}

/// What a hello of the peer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// An older one than we have.
    Stale,
    /// Nothing new.
    Nothing,
    /// Something changed, but not its candidates.
    Profile,
    /// The first one, or other candidates.
    Candidates,
    /// The peer has begun anew.
    Restart,
}

impl Exchange {
    pub(super) fn new(epoch: u64, local: &Local) -> Self {
        let mut current = Hello {
            epoch,
            seq: 1,
            ack: None,
            mapping: Default::default(),
            filtering: Default::default(),
            udp: Default::default(),
            awake: true,
            wants_answer: true,
            candidates: Vec::new(),
        };
        offer(&mut current, local, true);
        let unacked = VecDeque::from([(1, Side::new(&current))]);
        Self {
            current,
            candidates_seq: 1,
            unacked,
            acked: None,
            remote: None,
            due: None,
            sent: 0,
            answer: false,
        }
    }

    /// Takes over what this node has to offer now; `true` if that changes what is said.
    pub(super) fn offer(&mut self, now: Instant, local: &Local, awake: bool) -> bool {
        let mut next = self.current.clone();
        offer(&mut next, local, awake);
        if next == self.current {
            return false;
        }
        next.seq = self.current.seq.saturating_add(1);
        if next.candidates != self.current.candidates {
            self.candidates_seq = next.seq;
        }
        self.current = next;
        if self.unacked.len() == REMEMBERED {
            self.unacked.pop_front();
        }
        self.unacked
            .push_back((self.current.seq, Side::new(&self.current)));
        self.announce(now);
        true
    }

    /// Says it (again), and repeats until it is acknowledged.
    pub(super) fn announce(&mut self, now: Instant) {
        (self.due, self.sent) = (Some(now), 0);
    }

    /// Stops repeating.
    pub(super) fn pause(&mut self) {
        (self.due, self.answer) = (None, false);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The hello that is due, or owed.
    pub(super) fn take(&mut self, now: Instant) -> Option<Hello> {
        let repeat = self.due.is_some_and(|due| now >= due);
        if !repeat && !self.answer {
            return None;
        }
        self.answer = false;
        let wants_answer = self.due.is_some();
        if let (Some(due), [.., last]) = (&mut self.due, &PAUSES) {
            *due = now + *PAUSES.get(self.sent).unwrap_or(last);
            self.sent += 1;
        }
        let ack = self.remote.as_ref().map(|remote| Ack {
            epoch: remote.hello.epoch,
            seq: remote.hello.seq,
        });
        Some(Hello {
            ack,
            wants_answer,
            ..self.current.clone()
        })
    }

    /// The peer's hello arrived.
    pub(super) fn handle(&mut self, now: Instant, hello: Hello) -> News {
        let news = self
            .remote
            .as_ref()
            .map_or(News::Candidates, |remote| compare(&remote.hello, &hello));
        self.answer |= hello.wants_answer;
        if let Some(ack) = hello
            .ack
            .filter(|ack| ack.epoch == self.current.epoch && ack.seq <= self.current.seq)
        {
            self.handle_ack(ack.seq);
        }
        if news != News::Stale {
            self.remote = Some(Remote { hello, heard: now });
        }
        news
    }

    fn handle_ack(&mut self, seq: u32) {
        while let Some(&(acked, side)) = self.unacked.front().filter(|(sent, _)| *sent <= seq) {
            if acked == seq {
                self.acked = Some(side);
            }
            self.unacked.pop_front();
        }
        if seq == self.current.seq {
            self.due = None;
        }
    }

    /// The peer's newest hello.
    pub(super) fn remote(&self) -> Option<&Hello> {
        self.remote.as_ref().map(|remote| &remote.hello)
    }

    /// The peer's newest hello, if its candidates are recent enough to be probed.
    pub(super) fn fresh_remote(&self, now: Instant) -> Option<&Hello> {
        self.remote
            .as_ref()
            .filter(|remote| now < remote.heard + FRESH)
            .map(|remote| &remote.hello)
    }

    /// Both sides as both know them.
    pub(super) fn sides(&self) -> Option<(Side, Side)> {
        Some((self.acked?, Side::new(self.remote()?)))
    }

    /// The hello of ours that a barrier has to have seen to cover all our candidates.
    pub(super) fn candidates_seq(&self) -> u32 {
        self.candidates_seq
    }

    pub(super) fn epoch(&self) -> u64 {
        self.current.epoch
    }
}

fn compare(old: &Hello, new: &Hello) -> News {
    if old.epoch != new.epoch {
        News::Restart
    } else if new.seq < old.seq {
        News::Stale
    } else if new.seq == old.seq {
        News::Nothing
    } else if new.candidates != old.candidates || (new.awake && !old.awake) {
        News::Candidates
    } else {
        News::Profile
    }
}

/// Fills in what can be of use to somebody else.
fn offer(hello: &mut Hello, local: &Local, awake: bool) {
    let anywhere = CandidateContext {
        own_prefixes: &[],
        connected: &[],
        same_public_ip: true,
    };
    let sane: Vec<_> = local
        .candidates
        .iter()
        .filter(|candidate| acceptable(candidate, &anywhere).is_ok())
        .copied()
        .collect();
    hello.candidates = capped(&sane);
    hello.mapping = local.profile.mapping;
    hello.filtering = local.profile.filtering;
    hello.udp = local.profile.udp;
    hello.awake = awake;
}

#[cfg(test)]
mod tests;
