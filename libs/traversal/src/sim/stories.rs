//! What happens to one pair over time.

use std::time::Duration;

use super::{Kind, Node, Settings, World};
use crate::{Path, PathState, Reason};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A pair that is direct with data flowing both ways.
fn direct(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.begin_data(millis(10));
    let took = world.until(settings.offset + millis(5_000), World::both_direct);
    assert!(took.is_some(), "not direct");
    world
}

/// Largest gap between two packets at either end from now on.
fn forget_gaps(world: &mut World) {
    for node in &mut world.nodes {
        node.stream.gap = Duration::ZERO;
    }
}

fn largest_gap(world: &World) -> Duration {
    world
        .nodes
        .iter()
        .map(|node| node.stream.gap)
        .max()
        .unwrap_or_default()
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the real time that a run takes is what is measured"
)]
fn from_relay_to_direct_in_under_100_ms_of_real_time() {
    let began = std::time::Instant::now();
    let mut world = World::new(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.begin_data(millis(10));
    let first = world.until(millis(1_000), |world| {
        world.nodes.iter().all(|node| node.stream.received > 0)
    });
    assert!(first.is_some());
    assert!(
        world
            .nodes
            .iter()
            .all(|node| node.status(world.now).state == PathState::Relay)
    );
    let took = world
        .until(millis(2_000), World::both_direct)
        .expect("direct");
    world.run_for(millis(1_000));
    for node in &world.nodes {
        let status = node.status(world.now);
        assert_eq!((status.state, status.reason), (PathState::Direct, None));
        assert!(
            status.rtt.is_some_and(|rtt| rtt <= millis(25)),
            "{:?}",
            status.rtt
        );
        assert_eq!(node.stream.reordered, 0);
        assert_eq!(node.uses.len(), 1);
    }
    world.check();
    let real = began.elapsed();
    println!("direct {took:?} after the first data; {real:?} of real time");
    assert!(real < millis(100), "{real:?}");
}

#[test]
fn nothing_is_lost_or_overtaken_on_promotion() {
    for relay in [5, 40, 150] {
        let mut settings = Settings::new(Kind::PortRestricted, Kind::PortRestricted);
        settings.relay_delay = millis(relay);
        let mut world = World::new(settings);
        world.begin_data(Duration::from_micros(500));
        world
            .until(millis(5_000), World::both_direct)
            .expect("direct");
        world.run_for(millis(1_000));
        world.end_data();
        world.run_for(millis(1_000));
        for (node, other) in [(0, 1), (1, 0)] {
            let stream = &world.nodes[node].stream;
            assert_eq!(
                (stream.reordered, stream.received),
                (0, world.nodes[other].next_seq),
                "relay {relay} ms"
            );
        }
    }
}

#[test]
fn a_cut_is_bridged_by_the_relay_and_healed() {
    for cut in [[true, true], [true, false], [false, true]] {
        let mut world = direct(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
        world.run_for(millis(5_000));
        forget_gaps(&mut world);
        world.cut = cut;
        let demoted = world.until(millis(2_000), |world| {
            world.nodes.iter().all(|node| !node.is_direct())
        });
        assert!(demoted.is_some(), "{cut:?}");
        world.run_for(millis(20_000));
        assert!(
            largest_gap(&world) <= millis(2_000),
            "{cut:?} {:?}",
            largest_gap(&world)
        );
        assert!(world.nodes.iter().all(|node| !node.is_direct()));
        world.cut = [false; 2];
        let healed = world.until(millis(30_000), World::both_direct);
        assert!(healed.is_some(), "{cut:?}");
        println!(
            "cut {cut:?}: demoted after {demoted:?}, gap {:?}, healed after {healed:?}",
            largest_gap(&world)
        );
        world.check();
    }
}

#[test]
fn an_error_of_the_system_demotes_at_once() {
    let mut world = direct(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    let now = world.now;
    let path = world.nodes[0].pair.path();
    world.nodes[0].pair.handle_send_error(now, path);
    assert_eq!(world.nodes[0].status(now).state, PathState::Relay);
    assert!(world.until(millis(5_000), World::both_direct).is_some());
}

#[test]
fn losing_the_relay_harms_nothing_while_direct() {
    let mut world = direct(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.run_for(millis(1_000));
    forget_gaps(&mut world);
    world.set_relay(false);
    world.run_for(Duration::from_secs(120));
    assert!(world.both_direct());
    assert!(
        largest_gap(&world) <= millis(50),
        "{:?}",
        largest_gap(&world)
    );
    world.cut = [true; 2];
    world.run_for(millis(10_000));
    assert!(world.both_direct(), "there is nothing else");
    for node in &world.nodes {
        let status = node.status(world.now);
        assert_eq!(
            (status.state, status.reason),
            (PathState::None, Some(Reason::RelayUnreachable))
        );
    }
    world.cut = [false; 2];
    forget_gaps(&mut world);
    world.run_for(millis(5_000));
    assert!(largest_gap(&world) <= millis(11_000));
    assert_eq!(world.nodes[0].uses.len(), 1);
}

#[test]
fn without_relay_and_direct_path_the_status_says_so() {
    let mut world = World::new(Settings::new(Kind::Symmetric, Kind::Symmetric));
    world.begin_data(millis(10));
    world.run_for(millis(5_000));
    world.set_relay(false);
    let status = world.nodes[0].status(world.now);
    assert_eq!(
        (status.state, status.reason),
        (PathState::None, Some(Reason::RelayUnreachable))
    );
    world.nodes[0].pair.handle_admission(true);
    assert_eq!(
        world.nodes[0].status(world.now).reason,
        Some(Reason::NotAdmitted)
    );
}

#[test]
fn a_restarted_peer_is_found_again() {
    for site in [0, 1] {
        let mut world = direct(Settings::new(Kind::PortRestricted, Kind::Poisoned));
        world.run_for(millis(10_000));
        forget_gaps(&mut world);
        world.restart(site);
        let forgotten = world.until(millis(200), |world| !world.nodes[1 - site].is_direct());
        assert!(forgotten.is_some());
        assert!(world.until(millis(3_000), World::both_direct).is_some());
        world.run_for(millis(1_000));
        assert!(
            largest_gap(&world) <= millis(3_000),
            "{:?}",
            largest_gap(&world)
        );
        world.check();
    }
}

#[test]
fn forgotten_nat_state_heals() {
    let mut world = direct(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.run_for(millis(5_000));
    forget_gaps(&mut world);
    world.nodes[1].nat.flush();
    world.run_for(millis(10_000));
    assert!(world.both_direct());
    assert!(
        largest_gap(&world) <= millis(2_000),
        "{:?}",
        largest_gap(&world)
    );
}

#[test]
fn another_public_address_heals() {
    for kind in [Kind::FullCone, Kind::PortRestricted] {
        let mut world = direct(Settings::new(Kind::PortRestricted, kind));
        world.run_for(millis(5_000));
        forget_gaps(&mut world);
        world.nodes[1].nat.wan = [192, 0, 2, 77].into();
        world.nodes[1].nat.flush();
        let healed = world.until(millis(5_000), |world| {
            let renewed = |node: &Node| match node.pair.path() {
                Path::Direct(to) => to.ip() == world.nodes[1].nat.wan,
                Path::Relay => false,
            };
            renewed(&world.nodes[0]) && world.nodes[1].is_direct()
        });
        println!("{kind:?} renumbered: healed after {healed:?}");
        assert!(healed.is_some());
        assert!(
            largest_gap(&world) <= millis(2_000),
            "{:?}",
            largest_gap(&world)
        );
        world.check();
    }
}

#[test]
fn a_poisoned_flow_is_waited_out() {
    let mut world = direct(Settings::new(Kind::Poisoned, Kind::Poisoned));
    world.run_for(millis(5_000));
    // What the other sends next is taken for a flow of the router itself.
    world.nodes[1].nat.flush();
    let lost = world.until(millis(3_000), |world| {
        world.nodes.iter().all(|node| !node.is_direct())
    });
    assert!(lost.is_some());
    world.run_for(millis(10_000));
    assert!(
        !world.both_direct(),
        "the simulated router is not as bad as it should be"
    );
    let healed = world.until(Duration::from_secs(180), World::both_direct);
    println!("healed after {healed:?}");
    assert!(healed.is_some());
    world.check();
}

#[test]
fn an_idle_path_stays_open_and_sleeps_in_the_end() {
    let mut world = direct(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.run_for(millis(2_000));
    world.end_data();
    world.run_for(millis(1_000));
    let before = world.nodes[0].watch.messages;
    world.run_for(Duration::from_secs(60));
    assert!(world.both_direct());
    let messages = world.nodes[0].watch.messages - before;
    assert!((5..40).contains(&messages), "{messages}");
    forget_gaps(&mut world);
    world.run_for(Duration::from_secs(130));
    for node in &world.nodes {
        let status = node.status(world.now);
        assert_eq!(
            (status.state, status.reason),
            (PathState::Idle, Some(Reason::Idle))
        );
        assert!(!node.pair.is_active(world.now) && !node.is_direct());
    }
    let asleep = world.nodes[0].watch.messages;
    world.run_for(Duration::from_secs(600));
    assert!(
        world.nodes[0].watch.messages <= asleep + 4,
        "{}",
        world.nodes[0].watch.messages - asleep
    );
    world.begin_data(millis(10));
    assert!(world.until(millis(3_000), World::both_direct).is_some());
    world.check();
}

#[test]
fn a_node_whose_address_never_settles_does_not_hammer() {
    let mut world = World::new(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.cut = [true; 2];
    world.begin_data(millis(10));
    world.run_for(Duration::from_secs(60));
    let before = [0, 1].map(|site: usize| world.nodes[site].watch.messages);
    for tick in 0..300_u16 {
        let address = std::net::SocketAddr::from(([198, 51, 100, 1], 30_000 + tick));
        world.nodes[0].announce_also(world.now, address);
        world.run_for(millis(200));
    }
    for (site, before) in [0, 1].into_iter().zip(before) {
        let messages = world.nodes[site].watch.messages - before;
        println!("site {site}: {messages} messages in a minute");
        assert!(messages < 1_500, "{messages} in a minute");
    }
    world.check();
}

#[test]
fn a_hopeless_pair_does_not_hammer() {
    let mut world = World::new(Settings::new(Kind::Symmetric, Kind::Symmetric));
    world.begin_data(millis(10));
    world.run_for(Duration::from_secs(30));
    let before = world.nodes[0].watch.messages;
    world.run_for(Duration::from_secs(600));
    let messages = world.nodes[0].watch.messages - before;
    assert!(messages < 400, "{messages} in ten minutes");
}
