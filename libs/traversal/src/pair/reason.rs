//! Why a pair is not direct: a pure, symmetric function of what both sides know of themselves.

use std::fmt;

use crate::candidate::is_private;
use crate::control::Hello;
use crate::{Candidate, Filtering, Mapping, Udp};

/// Why a pair is not direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Trying, or between two attempts. Nothing to do.
    Probing,
    /// Both NATs pick a new port per destination. Give one side an open port or a port mapping.
    BothNatsHard,
    /// One NAT picks a new port per destination, the other lets only known ports in. Open a port on either side.
    HardNatAgainstPortRestricted,
    /// UDP gets nowhere on one side. Allow outbound UDP there.
    UdpBlocked,
    /// One side does not know any public address of its own. Give its relay a STUN port.
    NoReflexiveAddress,
    /// The peer is not on any relay. See whether its agent runs.
    PeerUnreachable,
    /// No relay is connected. See whether outbound TCP to it works.
    RelayUnreachable,
    /// The relay does not admit this node. Have its owner admit the key.
    NotAdmitted,
    /// Only guessing could help, and it is turned off.
    GuessingDisabled,
    /// Only guessing could help, and its budget is spent.
    BudgetSpent,
    /// Nothing to send.
    Idle,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Reason {
    /// As far as the NATs are understood, no packet will ever get through.
    pub(super) fn is_hopeless(self) -> bool {
        match self {
            Self::BothNatsHard
            | Self::HardNatAgainstPortRestricted
            | Self::UdpBlocked
            | Self::NoReflexiveAddress => true,
            Self::Probing
            | Self::PeerUnreachable
            | Self::RelayUnreachable
            | Self::NotAdmitted
            | Self::GuessingDisabled
            | Self::BudgetSpent
            | Self::Idle => false,
        }
    }
}

/// What one side knows of itself, as both sides have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    mapping: Mapping,
    filtering: Filtering,
    udp: Udp,
    /// Has an address that means something outside its own network.
    reachable: bool,
    /// Has such an address on an interface of its own, or a mapped port.
    public: bool,
}

impl Side {
    pub(super) fn new(hello: &Hello) -> Self {
        let public = hello.candidates.iter().any(is_public);
        let reflexive = hello
            .candidates
            .iter()
            .any(|candidate| !candidate.kind.is_open());
        Self {
            mapping: hello.mapping,
            filtering: hello.filtering,
            udp: hello.udp,
            reachable: public || reflexive,
            public,
        }
    }

    fn is_hard(self) -> bool {
        self.mapping == Mapping::EndpointDependent
    }

    /// Lets in only the port that was sent to, as far as one knows.
    fn is_port_restricted(self) -> bool {
        match self.filtering {
            Filtering::AddressAndPortDependent => true,
            Filtering::EndpointIndependent | Filtering::AddressDependent => false,
            Filtering::Unknown => self.mapping == Mapping::EndpointIndependent && !self.public,
        }
    }
}

/// An address of the node itself, or opened for it, that means something everywhere.
pub(super) fn is_public(candidate: &Candidate) -> bool {
    candidate.kind.is_open() && !is_private(candidate.address.ip())
}

/// Why these two are not direct; the same with the sides exchanged.
pub(super) fn reason(one: Side, other: Side) -> Reason {
    let sides = [one, other];
    if sides.iter().any(|side| side.udp == Udp::Blocked) {
        Reason::UdpBlocked
    } else if sides.iter().any(|side| !side.reachable) {
        Reason::NoReflexiveAddress
    } else if one.is_hard() && other.is_hard() {
        Reason::BothNatsHard
    } else if [(one, other), (other, one)]
        .iter()
        .any(|(hard, easy)| hard.is_hard() && easy.is_port_restricted())
    {
        Reason::HardNatAgainstPortRestricted
    } else {
        Reason::Probing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EASY: Side = Side {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressAndPortDependent,
        udp: Udp::Works,
        reachable: true,
        public: false,
    };
    const HARD: Side = Side {
        mapping: Mapping::EndpointDependent,
        ..EASY
    };
    const CONE: Side = Side {
        filtering: Filtering::EndpointIndependent,
        ..EASY
    };
    const UNSURE: Side = Side {
        filtering: Filtering::Unknown,
        ..EASY
    };
    const PUBLIC: Side = Side {
        public: true,
        ..UNSURE
    };
    const BLOCKED: Side = Side {
        udp: Udp::Blocked,
        reachable: false,
        mapping: Mapping::Unknown,
        ..UNSURE
    };
    const NOWHERE: Side = Side {
        udp: Udp::Unknown,
        ..BLOCKED
    };

    #[test]
    fn table() {
        let cases = [
            (EASY, EASY, Reason::Probing),
            (EASY, HARD, Reason::HardNatAgainstPortRestricted),
            (UNSURE, HARD, Reason::HardNatAgainstPortRestricted),
            (CONE, HARD, Reason::Probing),
            (PUBLIC, HARD, Reason::Probing),
            (HARD, HARD, Reason::BothNatsHard),
            (BLOCKED, HARD, Reason::UdpBlocked),
            (BLOCKED, PUBLIC, Reason::UdpBlocked),
            (NOWHERE, EASY, Reason::NoReflexiveAddress),
            (NOWHERE, BLOCKED, Reason::UdpBlocked),
        ];
        for (one, other, expected) in cases {
            assert_eq!(reason(one, other), expected, "{one:?} {other:?}");
        }
    }

    fn side() -> impl Strategy<Value = Side> {
        let picks = vec![EASY, HARD, CONE, UNSURE, PUBLIC, BLOCKED, NOWHERE];
        (prop::sample::select(picks), any::<bool>(), any::<bool>()).prop_map(
            |(side, reachable, public)| Side {
                reachable,
                public,
                ..side
            },
        )
    }

    proptest! {
        #[test]
        fn both_ends_say_the_same(one in side(), other in side()) {
            prop_assert_eq!(reason(one, other), reason(other, one));
        }
    }
}
