//! Every kind of NAT against every other.

use std::time::Duration;

use super::{Kind, Settings, World};
use crate::{Filtering, Mapping, PathState, Reason, Udp};

const KINDS: [Kind; 8] = [
    Kind::Public,
    Kind::Firewalled,
    Kind::FullCone,
    Kind::AddressRestricted,
    Kind::PortRestricted,
    Kind::Poisoned,
    Kind::Symmetric,
    Kind::Blocked,
];

/// Why these two cannot be direct.
fn obstacle(one: Kind, other: Kind) -> Option<Reason> {
    let pair = [one, other];
    if pair.contains(&Kind::Blocked) {
        Some(Reason::UdpBlocked)
    } else if pair == [Kind::Symmetric; 2] {
        Some(Reason::BothNatsHard)
    } else if pair.contains(&Kind::Symmetric)
        && pair.iter().any(|kind| {
            matches!(
                kind,
                Kind::Firewalled | Kind::PortRestricted | Kind::Poisoned
            )
        })
    {
        Some(Reason::HardNatAgainstPortRestricted)
    } else {
        None
    }
}

#[test]
fn every_kind_against_every_other() {
    for one in KINDS {
        for other in KINDS {
            for offset in [0, 10_000] {
                check(one, other, Duration::from_millis(offset));
            }
        }
    }
}

fn check(one: Kind, other: Kind, offset: Duration) {
    let mut world = World::new(Settings {
        offset,
        ..Settings::new(one, other)
    });
    world.begin_data(Duration::from_millis(10));
    world.run_for(offset);
    match obstacle(one, other) {
        None => {
            let took = world.until(Duration::from_secs(2), World::both_direct);
            assert!(took.is_some(), "{one:?} {other:?} after {offset:?}");
            if offset.is_zero() {
                println!("{one:?} x {other:?}: {took:?}");
            }
            world.run_for(Duration::from_secs(5));
            assert!(world.both_direct(), "{one:?} {other:?} does not last");
            assert!(
                world
                    .nodes
                    .iter()
                    .all(|node| node.status(world.now).state == PathState::Direct)
            );
        }
        Some(reason) => {
            let same = |world: &World| {
                world.nodes.iter().all(|node| {
                    let status = node.status(world.now);
                    (status.state, status.reason) == (PathState::Relay, Some(reason))
                })
            };
            let took = world.until(Duration::from_secs(5), same);
            assert!(
                took.is_some(),
                "{one:?} {other:?}: {:?}",
                world.nodes[0].status(world.now)
            );
            world.run_for(Duration::from_secs(15));
            assert!(same(&world), "{one:?} {other:?}: the reason does not last");
        }
    }
    let reordered: u64 = world.nodes.iter().map(|node| node.stream.reordered).sum();
    assert_eq!(reordered, 0, "{one:?} {other:?}");
    world.check();
}

#[test]
fn nats_are_told_apart() {
    use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let easy = Mapping::EndpointIndependent;
    let cases = [
        (Kind::Public, easy, EndpointIndependent),
        (Kind::Firewalled, easy, AddressAndPortDependent),
        (Kind::FullCone, easy, EndpointIndependent),
        (Kind::AddressRestricted, easy, AddressDependent),
        (Kind::PortRestricted, easy, AddressAndPortDependent),
        (Kind::Poisoned, easy, AddressAndPortDependent),
        (
            Kind::Symmetric,
            Mapping::EndpointDependent,
            AddressAndPortDependent,
        ),
    ];
    for (kind, mapping, filtering) in cases {
        let mut world = World::new(Settings::new(kind, Kind::Public));
        world.run_for(Duration::from_secs(3));
        let profile = world.nodes[0].prober.profile();
        assert_eq!(
            (profile.mapping, profile.filtering, profile.udp),
            (mapping, filtering, Udp::Works),
            "{kind:?}"
        );
        assert_eq!(profile.reflexive.len(), 1);
    }
    let mut world = World::new(Settings::new(Kind::Blocked, Kind::Public));
    world.run_for(Duration::from_secs(3));
    assert_eq!(world.nodes[0].prober.profile().udp, Udp::Blocked);
}
