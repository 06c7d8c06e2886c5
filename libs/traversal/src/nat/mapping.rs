//! What a set of answers says about the NAT.

use std::net::SocketAddr;

use super::{Mapping, NatProfile, Udp};

/// Public addresses published per family.
const MAX_REFLEXIVE: usize = 2;

/// What one server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// The address that was asked, and that answered.
    pub(super) server: SocketAddr,
    /// What it saw.
    pub(super) mapped: SocketAddr,
}

/// What is known while and after asking.
pub(super) struct Evidence<'a> {
    /// Answers of this round of asking.
    pub(super) answers: &'a [Answer],
    /// Addresses of the data socket on this host's own interfaces.
    pub(super) local: &'a [SocketAddr],
    /// What was known before this round.
    pub(super) before: &'a NatProfile,
    /// Everybody has answered or is taken for silent.
    pub(super) complete: bool,
}

impl Evidence<'_> {
    /// The profile; `filtering` is taken over as long as the public IP is the same.
    pub(super) fn profile(&self) -> NatProfile {
        if self.answers.is_empty() && self.complete {
            return NatProfile {
                udp: Udp::Blocked,
                ..NatProfile::default()
            };
        }
        let reflexive: Vec<_> = [true, false]
            .into_iter()
            .flat_map(|v4| self.reflexive(v4))
            .collect();
        let same_ip = self
            .before
            .reflexive
            .iter()
            .any(|old| reflexive.iter().any(|new| new.ip() == old.ip()));
        NatProfile {
            mapping: self.mapping(),
            filtering: if same_ip {
                self.before.filtering
            } else {
                Default::default()
            },
            udp: if self.answers.is_empty() {
                self.before.udp
            } else {
                Udp::Works
            },
            reflexive,
        }
    }

    fn family(&self, v4: bool) -> impl Iterator<Item = &Answer> {
        self.answers
            .iter()
            .filter(move |answer| answer.server.is_ipv4() == v4)
    }

    /// One address per public IP: of a NAT that is hard, any port is as good or bad as any other.
    fn reflexive(&self, v4: bool) -> Vec<SocketAddr> {
        let before = || {
            self.before
                .reflexive
                .iter()
                .copied()
                .filter(move |address| address.is_ipv4() == v4)
        };
        if self.family(v4).next().is_none() {
            return if self.complete {
                Vec::new()
            } else {
                before().collect()
            };
        }
        let seen = |address: &SocketAddr| self.family(v4).any(|answer| answer.mapped == *address);
        let mut kept: Vec<SocketAddr> = Vec::new();
        for address in before()
            .filter(seen)
            .chain(self.family(v4).map(|answer| answer.mapped))
        {
            if kept.len() < MAX_REFLEXIVE && kept.iter().all(|other| other.ip() != address.ip()) {
                kept.push(address);
            }
        }
        kept
    }

    /// IPv4 decides where it is there: that is where the NATs are.
    fn mapping(&self) -> Mapping {
        let v4 = self.family(true).next().is_some();
        let mut answers = self.family(v4);
        let Some(first) = answers.next() else {
            return self.before.mapping;
        };
        let rest: Vec<_> = answers.collect();
        let untouched = |answer: &Answer| self.local.contains(&answer.mapped);
        match rest.as_slice() {
            _ if self.family(v4).all(untouched) => Mapping::EndpointIndependent,
            [] if self.before.reflexive.contains(&first.mapped) => self.before.mapping,
            [] => Mapping::Unknown,
            rest if rest.iter().all(|other| other.mapped == first.mapped) => {
                Mapping::EndpointIndependent
            }
            _ => Mapping::EndpointDependent,
        }
    }
}
