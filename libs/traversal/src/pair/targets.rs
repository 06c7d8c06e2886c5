//! Where an attempt may send: the peer's candidates as far as they are acceptable.

use std::net::{IpAddr, SocketAddr};

use super::ladder::BehindNat;
use super::reason::is_public;
use crate::control::Hello;
use crate::{Candidate, CandidateContext, CandidateKind, Filtering, Local, acceptable};

/// Open addresses of the peer, and those behind a NAT.
pub(super) fn targets(
    local: &Local,
    remote: &Hello,
    last: Option<SocketAddr>,
) -> (Vec<SocketAddr>, Vec<BehindNat>) {
    let context = CandidateContext {
        own_prefixes: &local.own_prefixes,
        connected: &local.connected,
        same_public_ip: same_public_ip(&local.candidates, &remote.candidates),
    };
    let is_own = |address: &SocketAddr| local.candidates.iter().any(|own| own.address == *address);
    let usable = |candidate: &&Candidate| {
        acceptable(candidate, &context).is_ok() && !is_own(&candidate.address)
    };
    let addresses = |open: bool| {
        let of_kind = move |candidate: &&Candidate| candidate.kind.is_open() == open;
        remote
            .candidates
            .iter()
            .filter(of_kind)
            .filter(usable)
            .map(|candidate| candidate.address)
    };
    let open: Vec<_> = addresses(true).collect();
    // An address that once worked need not be among those the peer knows of: some NATs show each of us another one.
    let last = last.map(|address| Candidate {
        kind: CandidateKind::PeerReflexive,
        address,
    });
    let last = last
        .iter()
        .filter(usable)
        .map(|candidate| candidate.address);
    let mut behind_nat: Vec<BehindNat> = Vec::new();
    for to in addresses(false).chain(last) {
        if !open.contains(&to) && behind_nat.iter().all(|known| known.to != to) {
            let opener = is_behind_nat(local, to.is_ipv4());
            let known = !opener
                || local
                    .profile
                    .reflexive
                    .iter()
                    .any(|own| own.is_ipv4() == to.is_ipv4());
            let expected = known || remote.filtering == Filtering::EndpointIndependent;
            behind_nat.push(BehindNat {
                to,
                opener,
                expected,
            });
        }
    }
    (open, behind_nat)
}

/// Whether packets of this family pass a NAT on their way out, as far as one knows.
fn is_behind_nat(local: &Local, v4: bool) -> bool {
    let host = |candidate: &&Candidate| {
        candidate.kind == CandidateKind::Host && candidate.address.is_ipv4() == v4
    };
    let mut hosts = local.candidates.iter().filter(host);
    let mut seen = local
        .profile
        .reflexive
        .iter()
        .filter(|address| address.is_ipv4() == v4)
        .peekable();
    if seen.peek().is_some() {
        let is_host = |address: &SocketAddr| hosts.clone().any(|host| host.address == *address);
        return !seen.all(is_host);
    }
    !hosts.any(is_public)
}

fn same_public_ip(ours: &[Candidate], theirs: &[Candidate]) -> bool {
    let public = |candidates: &[Candidate]| -> Vec<IpAddr> {
        let reflexive = candidates
            .iter()
            .filter(|candidate| candidate.kind == CandidateKind::Reflexive);
        reflexive.map(|candidate| candidate.address.ip()).collect()
    };
    let theirs = public(theirs);
    public(ours).iter().any(|ip| theirs.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NatProfile;

    fn candidate(kind: CandidateKind, text: &str) -> Candidate {
        Candidate {
            kind,
            address: text.parse().unwrap(),
        }
    }

    fn hello(candidates: Vec<Candidate>) -> Hello {
        Hello {
            epoch: 1,
            seq: 1,
            ack: None,
            mapping: Default::default(),
            filtering: Default::default(),
            udp: Default::default(),
            awake: true,
            wants_answer: false,
            candidates,
        }
    }

    fn local(host: &str, reflexive: &str) -> Local {
        let profile = NatProfile {
            reflexive: vec![reflexive.parse().unwrap()],
            ..NatProfile::default()
        };
        let candidates = vec![
            candidate(CandidateKind::Host, host),
            candidate(CandidateKind::Reflexive, reflexive),
        ];
        Local {
            profile,
            candidates,
            ..Local::default()
        }
    }

    #[test]
    fn public_host_is_open_even_if_seen_from_outside_too() {
        let remote = hello(vec![
            candidate(CandidateKind::Reflexive, "203.0.113.9:1"),
            candidate(CandidateKind::Host, "203.0.113.9:1"),
        ]);
        let (open, behind) = targets(&local("10.0.0.2:5", "198.51.100.1:5"), &remote, None);
        assert_eq!((open.len(), behind.len()), (1, 0));
    }

    #[test]
    fn own_nat_is_opened_and_a_missing_one_is_not() {
        let remote = hello(vec![candidate(CandidateKind::Reflexive, "203.0.113.9:1")]);
        let to = "203.0.113.9:1".parse().unwrap();
        let (_, behind) = targets(&local("10.0.0.2:5", "198.51.100.1:5"), &remote, None);
        assert_eq!(
            behind,
            [BehindNat {
                to,
                opener: true,
                expected: true
            }]
        );
        let (_, behind) = targets(&local("198.51.100.1:5", "198.51.100.1:5"), &remote, None);
        assert_eq!(
            behind,
            [BehindNat {
                to,
                opener: false,
                expected: true
            }]
        );
    }

    #[test]
    fn nobody_expects_packets_from_an_address_that_nobody_knows() {
        let mut here = local("10.0.0.2:5", "198.51.100.1:5");
        here.profile.reflexive.clear();
        let mut remote = hello(vec![candidate(CandidateKind::Reflexive, "203.0.113.9:1")]);
        assert!(!targets(&here, &remote, None).1[0].expected);
        remote.filtering = Filtering::EndpointIndependent;
        assert!(targets(&here, &remote, None).1[0].expected);
    }

    #[test]
    fn private_hosts_only_behind_the_same_public_address() {
        let here = local("10.0.0.2:5", "198.51.100.1:5");
        let near = hello(vec![
            candidate(CandidateKind::Host, "10.0.0.3:6"),
            candidate(CandidateKind::Reflexive, "198.51.100.1:6"),
        ]);
        assert_eq!(
            targets(&here, &near, None).0,
            ["10.0.0.3:6".parse().unwrap()]
        );
        let far = hello(vec![
            candidate(CandidateKind::Host, "10.0.0.3:6"),
            candidate(CandidateKind::Reflexive, "198.51.100.2:6"),
        ]);
        assert_eq!(targets(&here, &far, None).0, []);
    }

    #[test]
    fn an_address_that_worked_is_tried_behind_the_barrier() {
        let here = local("10.0.0.2:5", "198.51.100.1:5");
        let last = "203.0.113.9:7".parse().unwrap();
        let behind = targets(&here, &hello(Vec::new()), Some(last)).1;
        assert_eq!(
            behind,
            [BehindNat {
                to: last,
                opener: true,
                expected: true
            }]
        );
    }
}
