//! Pairs that are kept up and probed without data.

use std::time::Duration;

use super::{Kind, Settings, World};
use crate::{PathState, Reason};

const SECOND: Duration = Duration::from_secs(1);
/// An answer is due this often, with the time it takes.
const PROVEN: Duration = Duration::from_millis(10_500);

/// A pair without any data, kept by its first node alone.
fn kept(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.run_for(Duration::from_millis(1));
    keep(&mut world, true);
    world
}

fn keep(world: &mut World, kept: bool) {
    let now = world.now;
    world.nodes[0].pair.handle_kept(now, kept);
}

/// How long ago the first node's last probe was answered.
fn age(world: &World) -> Option<Duration> {
    let proven = world.nodes[0].status(world.now).proven;
    proven.map(|proven| world.now - proven)
}

fn state(world: &World, node: usize) -> (PathState, Option<Reason>) {
    let status = world.nodes[node].status(world.now);
    (status.state, status.reason)
}

/// The oldest proof there was at any second of `time`.
fn oldest(world: &mut World, time: Duration) -> Duration {
    let mut oldest = Duration::ZERO;
    for _ in 0..time.as_secs() {
        world.run_for(SECOND);
        oldest = oldest.max(age(world).expect("proven"));
    }
    oldest
}

#[test]
fn a_kept_pair_gets_direct_and_proves_itself_every_ten_seconds() {
    let mut world = kept(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    let took = world.until(5 * SECOND, World::both_direct);
    assert!(took.is_some(), "not direct without data");
    let before = world.nodes.each_ref().map(|node| node.watch.messages);
    let oldest = oldest(&mut world, 1_200 * SECOND);
    assert!(oldest <= PROVEN, "{oldest:?}");
    assert_eq!(state(&world, 0), (PathState::Direct, None));
    assert_eq!(state(&world, 1), (PathState::Idle, Some(Reason::Idle)));
    assert_eq!(world.nodes[0].uses.len(), 1, "the path flapped");
    for (node, before) in world.nodes.iter().zip(before) {
        let messages = node.watch.messages - before;
        assert!((100..300).contains(&messages), "{messages}");
    }
    world.check();
}

#[test]
fn a_kept_pair_that_stays_relayed_is_probed_through_the_relay() {
    let mut world = kept(Settings::new(Kind::Symmetric, Kind::Symmetric));
    world.run_for(5 * SECOND);
    let oldest = oldest(&mut world, 1_200 * SECOND);
    assert!(oldest <= PROVEN, "{oldest:?}");
    assert_eq!(
        state(&world, 0),
        (PathState::Relay, Some(Reason::BothNatsHard))
    );
    assert!(world.nodes[0].uses.is_empty() && world.nodes[0].doubts.is_empty());
    let rtt = world.nodes[0].status(world.now).rtt;
    assert_eq!(rtt, Some(Duration::from_millis(40)));
}

#[test]
fn lost_probes_do_not_move_a_path() {
    let mut settings = Settings::new(Kind::PortRestricted, Kind::PortRestricted);
    (settings.loss, settings.relay_loss) = (15, 5);
    let mut world = kept(settings);
    assert!(world.until(30 * SECOND, World::both_direct).is_some());
    let oldest = oldest(&mut world, 1_200 * SECOND);
    assert!(oldest <= PROVEN + SECOND, "{oldest:?}");
    assert_eq!(world.nodes[0].uses.len(), 1, "the path flapped");
}

#[test]
fn silence_is_told_and_ends_with_the_first_answer() {
    let mut world = kept(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    assert!(world.until(5 * SECOND, World::both_direct).is_some());
    world.run_for(300 * SECOND);
    (world.cut, world.relay_up) = ([true; 2], false);
    world.run_for(25 * SECOND);
    let gone = (PathState::None, Some(Reason::PeerUnreachable));
    assert_eq!(state(&world, 0), gone);
    assert!(age(&world) >= Some(25 * SECOND));
    assert_eq!(world.nodes[0].doubts.len(), 1, "once per silence");
    (world.cut, world.relay_up) = ([false; 2], true);
    world.run_for(5 * SECOND);
    assert!(age(&world) <= Some(5 * SECOND));
    assert_ne!(state(&world, 0), gone);
    let healed = world.until(60 * SECOND, |world| world.nodes[0].is_direct());
    assert!(healed.is_some(), "not direct again");
    world.check();
}

#[test]
fn a_restarted_peer_is_proven_at_once() {
    for kind in [Kind::PortRestricted, Kind::Symmetric] {
        let mut world = kept(Settings::new(kind, kind));
        world.run_for(300 * SECOND);
        world.restart(1);
        let restarted = world.now;
        let proven = world.until(SECOND, |world| {
            world.nodes[0].status(world.now).proven > Some(restarted)
        });
        assert!(proven.is_some(), "{kind:?}");
    }
}

#[test]
fn a_pair_is_kept_from_sleep_or_let_go_at_any_time() {
    let mut world = World::new(Settings::new(Kind::PortRestricted, Kind::PortRestricted));
    world.run_for(200 * SECOND);
    assert_eq!(state(&world, 0), (PathState::Idle, Some(Reason::Idle)));
    keep(&mut world, true);
    assert!(
        world
            .until(SECOND, |world| age(world) < Some(SECOND))
            .is_some()
    );
    let direct = world.until(60 * SECOND, |world| world.nodes[0].is_direct());
    assert!(direct.is_some(), "the peer sleeps, and answers");
    world.run_for(300 * SECOND);
    assert!(world.nodes[0].is_direct());
    keep(&mut world, false);
    assert_eq!(state(&world, 0), (PathState::Idle, Some(Reason::Idle)));
    let asleep = world.nodes[0].watch.messages;
    world.run_for(300 * SECOND);
    assert!(world.nodes[0].watch.messages <= asleep + 4);
    world.check();
}

#[test]
fn a_relay_that_dies_without_a_word_is_doubted_within_seconds_of_data() {
    let mut world = World::new(Settings::new(Kind::Symmetric, Kind::Symmetric));
    world.begin_data(Duration::from_millis(20));
    world.run_for(33 * SECOND);
    assert!(world.nodes.iter().all(|node| node.doubts.is_empty()));
    world.relay_up = false;
    let doubted = world.until(5 * SECOND, |world| {
        world.nodes.iter().all(|node| !node.doubts.is_empty())
    });
    println!("doubted after {doubted:?}");
    assert!(doubted.is_some());
    world.run_for(60 * SECOND);
    assert!(world.nodes.iter().all(|node| node.doubts.len() == 1));
}
