//! Asking the servers: when, whom, and what follows from the answers.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::filtering::FilteringTest;
use super::mapping::{Answer, Evidence};
use super::request::{Request, State};
use super::{Filtering, Mapping, NatEvent, NatProfile, StunSocket, StunTransmit, Udp};
use crate::Entropy;
use crate::candidate::{Candidate, CandidateContext, CandidateKind, acceptable};
use crate::stun::{self, Change, Response};

/// How often to ask while some tunnel is in use: it also keeps the mapping alive.
const ACTIVE: Duration = Duration::from_secs(25);
/// How often to ask while none is.
const QUIET: Duration = Duration::from_secs(120);
/// How soon to ask again when nobody answered.
const BLOCKED: Duration = Duration::from_secs(10);
/// How soon to ask again when too few answered to tell the mapping, and how often.
const INCOMPLETE: (Duration, u32) = (Duration::from_secs(2), 3);
/// Least time between two rounds of asking.
const LEAST: Duration = Duration::from_secs(1);
/// How long a filtering test holds.
const FILTERING_HOLDS: Duration = Duration::from_secs(300);
/// Least time between two filtering tests of one public IP.
const FILTERING_LEAST: Duration = Duration::from_secs(10);
/// How long a profile outlives the last server.
const ORPHANED: Duration = Duration::from_secs(60);
/// Addresses asked at most, including those that servers named.
const MAX_TARGETS: usize = 32;

/// Asks STUN servers what this host looks like from outside.
///
/// Every server, and every second address that a server names, is asked from the data socket; two answers tell the
/// mapping. A server with a second IP also tells the filtering, from a fresh socket. The profile is published with the
/// first answer and again with whatever later ones add; it is final within 3 s of the start.
pub struct NatProber {
    entropy: Box<dyn Entropy>,
    targets: BTreeMap<SocketAddr, Target>,
    local: Vec<SocketAddr>,
    active: bool,
    filtering: Option<FilteringTest>,
    filtering_done: Option<Instant>,
    round: Round,
    /// Profile before this round of asking.
    before: NatProfile,
    profile: NatProfile,
    transmits: VecDeque<StunTransmit>,
    events: VecDeque<NatEvent>,
}

/// When the servers were asked, and when to ask again.
#[derive(Debug, Default)]
struct Round {
    started: Option<Instant>,
    /// Earlier than the usual interval.
    again: Option<Instant>,
    incomplete: u32,
    /// Everybody has answered or been given up.
    complete: bool,
    /// When the last server went.
    orphaned: Option<Instant>,
}

struct Target {
    request: Request,
    mapped: Option<SocketAddr>,
    /// The server that named this address.
    named_by: Option<SocketAddr>,
    /// A second address with another IP, for the filtering test.
    second_ip: bool,
}

impl NatProber {
    /// A prober without servers.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            entropy,
            targets: BTreeMap::new(),
            local: Vec::new(),
            active: true,
            filtering: None,
            filtering_done: None,
            round: Round::default(),
            before: NatProfile::default(),
            profile: NatProfile::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The STUN servers to ask; may be empty, which forgets the profile after a minute.
    pub fn set_servers(&mut self, now: Instant, servers: Vec<SocketAddr>) {
        self.targets.retain(|address, target| {
            servers.contains(target.named_by.as_ref().unwrap_or(address))
        });
        for server in servers {
            if let Some(target) = self.targets.get_mut(&server) {
                target.named_by = None;
            } else {
                self.ask(now, server, None);
            }
        }
        self.round.orphaned = self
            .targets
            .is_empty()
            .then(|| self.round.orphaned.unwrap_or(now));
        self.advance(now);
    }

    /// Addresses of the data socket on this host's own interfaces: seen from outside unchanged, there is no NAT.
    pub fn set_local(&mut self, now: Instant, local: &[SocketAddr]) {
        if self.local != local {
            let first = std::mem::replace(&mut self.local, local.to_vec()).is_empty();
            if first {
                self.evaluate();
            } else {
                self.refresh(now);
            }
        }
    }

    /// Asks again now, at most once a second: the network has changed, a relay is back, or a path was lost.
    pub fn refresh(&mut self, now: Instant) {
        let earliest = self
            .round
            .started
            .map_or(now, |started| (started + LEAST).max(now));
        self.round.again = Some(
            self.round
                .again
                .map_or(earliest, |again| again.min(earliest)),
        );
        self.filtering_done = self
            .filtering_done
            .filter(|done| now < *done + FILTERING_LEAST);
        self.advance(now);
    }

    /// Ask every 25 s, because some tunnel is in use; otherwise every 120 s.
    pub fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    /// A STUN message arrived; `true` if it answers one of ours.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        socket: StunSocket,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Ok(response) = stun::parse_response(bytes) else {
            return false;
        };
        let known = match socket {
            StunSocket::Data => self.handle_answer(now, from, &response),
            StunSocket::Fresh => self
                .filtering
                .as_mut()
                .is_some_and(|test| test.handle(from, &response)),
        };
        if known {
            self.advance(now);
        }
        known
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    /// The next request to send.
    pub fn poll_transmit(&mut self) -> Option<StunTransmit> {
        self.transmits.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<NatEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let requests = self
            .targets
            .values()
            .filter_map(|target| target.request.due());
        let filtering = self.filtering.as_ref().and_then(FilteringTest::due);
        let orphaned = self.round.orphaned.map(|since| since + ORPHANED);
        requests
            .chain(filtering)
            .chain(self.next_round())
            .chain(orphaned)
            .min()
    }

    /// What is known now.
    pub fn profile(&self) -> &NatProfile {
        &self.profile
    }

    fn handle_answer(&mut self, now: Instant, from: SocketAddr, response: &Response) -> bool {
        let Some(target) = self.targets.get_mut(&from) else {
            return false;
        };
        if !target.request.is_pending() || target.request.id != response.transaction {
            return false;
        }
        target.request.state = State::Answered;
        target.mapped = Some(response.mapped);
        let named = target.named_by;
        if let Some(other) = response
            .other
            .filter(|other| named.is_none() && may_ask(from, *other))
        {
            target.second_ip = other.ip() != from.ip();
            self.ask(now, other, Some(from));
        }
        self.evaluate();
        self.test_filtering(now, from);
        true
    }

    /// Begins to ask one more address.
    fn ask(&mut self, now: Instant, to: SocketAddr, named_by: Option<SocketAddr>) {
        if self.targets.contains_key(&to) || self.targets.len() >= MAX_TARGETS {
            return;
        }
        let request = Request::new(
            now,
            self.entropy.as_mut(),
            StunSocket::Data,
            to,
            Change::Nothing,
        );
        self.targets.insert(
            to,
            Target {
                request,
                mapped: None,
                named_by,
                second_ip: false,
            },
        );
        if self.round.complete || self.round.started.is_none() {
            (self.round.started, self.round.complete) = (Some(now), false);
        }
    }

    fn test_filtering(&mut self, now: Instant, server: SocketAddr) {
        let holds = if self.profile.filtering == Filtering::Unknown {
            FILTERING_LEAST
        } else {
            FILTERING_HOLDS
        };
        let decided = self.filtering_done.is_some_and(|done| now < done + holds);
        let suitable = self
            .targets
            .get(&server)
            .is_some_and(|target| target.second_ip);
        if suitable && !decided && self.filtering.is_none() {
            self.filtering = Some(FilteringTest::new(now, self.entropy.as_mut(), server));
        }
    }

    fn advance(&mut self, now: Instant) {
        if self
            .round
            .orphaned
            .is_some_and(|since| now >= since + ORPHANED)
        {
            self.round = Round::default();
            self.before = NatProfile::default();
            self.publish(NatProfile::default());
        }
        if self.next_round().is_some_and(|due| now >= due) {
            self.ask_all(now);
        }
        self.transmits.extend(
            self.targets
                .values_mut()
                .filter_map(|target| target.request.advance(now)),
        );
        if let Some(test) = &mut self.filtering {
            self.transmits.extend(test.advance(now));
        }
        self.finish_filtering(now);
        self.finish_round(now);
    }

    fn ask_all(&mut self, now: Instant) {
        self.before = self.profile.clone();
        self.round = Round {
            started: Some(now),
            incomplete: self.round.incomplete,
            ..Round::default()
        };
        for (&to, target) in &mut self.targets {
            target.request = Request::new(
                now,
                self.entropy.as_mut(),
                StunSocket::Data,
                to,
                Change::Nothing,
            );
            target.mapped = None;
        }
    }

    fn finish_filtering(&mut self, now: Instant) {
        let Some(filtering) = self.filtering.as_ref().and_then(FilteringTest::verdict) else {
            return;
        };
        self.filtering = None;
        self.filtering_done = Some(now);
        self.events.push_back(NatEvent::FreshSocketDone);
        self.before.filtering = filtering;
        self.publish(NatProfile {
            filtering,
            ..self.profile.clone()
        });
    }

    fn finish_round(&mut self, now: Instant) {
        let pending = self
            .targets
            .values()
            .any(|target| target.request.is_pending());
        if self.round.complete || pending || self.targets.is_empty() {
            return;
        }
        self.round.complete = true;
        self.evaluate();
        self.before = self.profile.clone();
        let (pause, tries) = INCOMPLETE;
        let undecided = self.profile.mapping == Mapping::Unknown && self.could_tell();
        match self.profile.udp {
            Udp::Blocked => self.round.again = Some(now + BLOCKED),
            Udp::Unknown | Udp::Works if undecided && self.round.incomplete < tries => {
                self.round.incomplete += 1;
                self.round.again = Some(now + pause);
            }
            Udp::Unknown | Udp::Works if undecided => {}
            Udp::Unknown | Udp::Works => self.round.incomplete = 0,
        }
    }

    /// Two addresses of one family were asked.
    fn could_tell(&self) -> bool {
        let v4 = self
            .targets
            .keys()
            .filter(|address| address.is_ipv4())
            .count();
        v4 >= 2 || self.targets.len() - v4 >= 2
    }

    fn evaluate(&mut self) {
        let answers: Vec<_> = self
            .targets
            .iter()
            .filter_map(|(&server, target)| {
                Some(Answer {
                    server,
                    mapped: target.mapped?,
                })
            })
            .collect();
        if answers.is_empty() && !self.round.complete {
            return;
        }
        let evidence = Evidence {
            answers: &answers,
            local: &self.local,
            before: &self.before,
            complete: self.round.complete,
        };
        let mut profile = evidence.profile();
        // What the test has found since this round began holds for the IP seen in it.
        let same_ip = profile.reflexive.iter().any(|new| {
            self.profile
                .reflexive
                .iter()
                .any(|old| old.ip() == new.ip())
        });
        if same_ip {
            profile.filtering = self.profile.filtering;
        } else {
            self.filtering_done = None;
        }
        self.publish(profile);
    }

    fn publish(&mut self, profile: NatProfile) {
        if self.profile != profile {
            self.profile = profile.clone();
            self.events.push_back(NatEvent::ProfileChanged(profile));
        }
    }

    fn next_round(&self) -> Option<Instant> {
        let started = self.round.started.filter(|_| !self.targets.is_empty())?;
        let usual = started + if self.active { ACTIVE } else { QUIET };
        let due = self.round.again.map_or(usual, |again| again.min(usual));
        // A round that still waits for answers is only cut short by a wish to ask anew.
        (self.round.complete || self.round.again.is_some()).then_some(due)
    }
}

/// A second address is asked only if it is one that a server can have.
fn may_ask(server: SocketAddr, other: SocketAddr) -> bool {
    let context = CandidateContext {
        own_prefixes: &[],
        connected: &[],
        same_public_ip: true,
    };
    let candidate = Candidate {
        kind: CandidateKind::Reflexive,
        address: other,
    };
    other != server
        && other.is_ipv4() == server.is_ipv4()
        && acceptable(&candidate, &context).is_ok()
}
