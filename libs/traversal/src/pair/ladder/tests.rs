//! The order of openers, barriers and probes.

use super::*;

const OPEN_ADDRESS: &str = "203.0.113.1:1";
const HIDDEN: &str = "198.51.100.1:1";

#[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn targets() -> Targets {
    Targets {
        open: vec![address(OPEN_ADDRESS)],
        behind_nat: vec![BehindNat {
            to: address(HIDDEN),
            opener: true,
            expected: true,
        }],
        seen: 1,
        must_see: 1,
        hopeless: false,
    }
}

fn barrier(round: u32) -> Barrier {
    Barrier { round, seen: 1 }
}

/// Steps of the next `millis`, and whether the attempt ended.
fn play(ladder: &mut Ladder, now: &mut Instant, millis: u64) -> (Vec<Step>, bool) {
    let end = *now + Duration::from_millis(millis);
    let (mut steps, mut over) = (Vec::new(), false);
    while let Some(due) = ladder.due().filter(|due| *due <= end) {
        *now = due.max(*now);
        while let Some(step) = ladder.take(*now) {
            steps.push(step);
        }
        over |= ladder.advance(*now);
    }
    *now = end;
    (steps, over)
}

fn to_hidden(steps: &[Step]) -> Vec<Option<u8>> {
    let of_hidden = |step: &Step| match step {
        Step::Probe { to, ttl, .. } if *to == address(HIDDEN) => Some(*ttl),
        Step::Probe { .. } | Step::Barrier { .. } => None,
    };
    steps.iter().filter_map(of_hidden).collect()
}

fn barriers(steps: &[Step]) -> Vec<u32> {
    let of_barrier = |step: &Step| match step {
        Step::Barrier { round, .. } => Some(*round),
        Step::Probe { .. } => None,
    };
    steps.iter().filter_map(of_barrier).collect()
}

#[test]
fn openers_come_before_the_barrier_and_nothing_follows_without_the_peers() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    let (steps, over) = play(&mut ladder, &mut now, 10_000);
    assert!(over);
    assert_eq!(to_hidden(&steps), [2, 2, 3, 3, 4, 4].map(Some));
    assert_eq!(barriers(&steps), [[1; 4], [2; 4], [3; 4]].concat());
    let first = steps
        .iter()
        .position(|step| matches!(step, Step::Barrier { .. }))
        .unwrap();
    assert_eq!(to_hidden(&steps[..first]), [Some(2), Some(2)]);
}

#[test]
fn every_open_address_is_probed_before_the_barrier() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    let open = vec![address(OPEN_ADDRESS), address("[2001:db8::1]:1")];
    ladder.begin(
        now,
        Targets {
            open: open.clone(),
            ..targets()
        },
    );
    let (steps, _) = play(&mut ladder, &mut now, 0);
    let first = steps
        .iter()
        .position(|step| matches!(step, Step::Barrier { .. }));
    for to in open {
        let probe = Step::Probe {
            to,
            ttl: None,
            behind_nat: false,
        };
        assert!(steps[..first.unwrap()].contains(&probe), "{to}");
    }
}

#[test]
fn full_time_to_live_after_both_barriers() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    play(&mut ladder, &mut now, 50);
    assert!(!ladder.handle_barrier(now, barrier(1)));
    let (steps, _) = play(&mut ladder, &mut now, 900);
    assert_eq!(to_hidden(&steps), [None; 7]);
}

#[test]
fn the_peers_barrier_may_come_first_but_openers_still_lead() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    assert!(ladder.handle_barrier(now, barrier(1)));
    ladder.follow(now, targets());
    let (steps, _) = play(&mut ladder, &mut now, 900);
    assert_eq!(to_hidden(&steps)[..3], [Some(2), Some(2), None]);
    assert_eq!(barriers(&steps), [1]);
}

#[test]
fn an_older_or_blind_barrier_opens_nothing() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    play(&mut ladder, &mut now, 1_700);
    ladder.handle_barrier(now, barrier(1));
    ladder.handle_barrier(now, Barrier { round: 2, seen: 0 });
    let (steps, _) = play(&mut ladder, &mut now, 1_000);
    assert!(to_hidden(&steps).iter().all(Option::is_some), "{steps:?}");
}

#[test]
fn a_barrier_too_old_opens_nothing() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    assert!(ladder.handle_barrier(now, barrier(1)));
    now += BARRIER_HOLDS;
    ladder.begin(now, targets());
    let (steps, _) = play(&mut ladder, &mut now, 1_000);
    assert!(to_hidden(&steps).iter().all(Option::is_some), "{steps:?}");
}

#[test]
fn a_higher_barrier_pulls_along() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    play(&mut ladder, &mut now, 200);
    assert!(ladder.handle_barrier(now, barrier(5)));
    ladder.follow(now, targets());
    let (steps, _) = play(&mut ladder, &mut now, 100);
    assert_eq!(to_hidden(&steps)[..3], [Some(3), Some(3), None]);
    assert_eq!(barriers(&steps), [5]);
    assert!(!ladder.handle_barrier(
        now,
        Barrier {
            round: MAX_ROUND + 1,
            seen: 1
        }
    ));
}

#[test]
fn a_repeated_barrier_is_answered_now_and_then() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    play(&mut ladder, &mut now, 50);
    let mut answers = 0;
    for _ in 0..50 {
        ladder.handle_barrier(now, barrier(1));
        answers += barriers(&play(&mut ladder, &mut now, 10).0).len();
    }
    assert!((3..=6).contains(&answers), "{answers}");
}

#[test]
fn attempts_begin_with_the_smallest_time_to_live() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    for _ in 0..4 {
        ladder.begin(now, targets());
        let (steps, _) = play(&mut ladder, &mut now, 1_700);
        assert_eq!(to_hidden(&steps)[..2], [Some(2), Some(2)]);
    }
}

#[test]
fn a_hopeless_attempt_is_one_round() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(
        now,
        Targets {
            hopeless: true,
            ..targets()
        },
    );
    let (steps, over) = play(&mut ladder, &mut now, 10_000);
    assert!(over);
    assert_eq!(to_hidden(&steps).len(), 2);
}

#[test]
fn success_ends_the_round_but_not_the_open_addresses() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    play(&mut ladder, &mut now, 60);
    ladder.settle();
    let (steps, _) = play(&mut ladder, &mut now, 5_000);
    assert_eq!(steps.len(), 4);
    assert!(to_hidden(&steps).is_empty() && barriers(&steps).is_empty());
}

#[test]
fn refused_addresses_are_skipped() {
    let (mut now, mut ladder) = (start(), Ladder::default());
    ladder.begin(now, targets());
    ladder.skip(address(OPEN_ADDRESS));
    let (steps, _) = play(&mut ladder, &mut now, 1_000);
    assert_eq!(
        to_hidden(&steps).len() + barriers(&steps).len(),
        steps.len()
    );
}
