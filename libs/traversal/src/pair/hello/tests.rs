//! Two exchanges that talk to each other.

use super::*;
use crate::{Candidate, CandidateKind, Mapping};

#[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn local(addresses: &[&str]) -> Local {
    let candidate = |text: &&str| Candidate {
        kind: CandidateKind::Host,
        address: text.parse().unwrap(),
    };
    Local {
        candidates: addresses.iter().map(candidate).collect(),
        ..Local::default()
    }
}

/// Carries everything across until both are quiet; how many hellos that took.
fn settle(now: Instant, one: &mut Exchange, other: &mut Exchange) -> usize {
    for count in 0..20 {
        if let Some(hello) = one.take(now) {
            other.handle(now, hello);
        } else if let Some(hello) = other.take(now) {
            one.handle(now, hello);
        } else {
            return count;
        }
    }
    panic!("they never come to rest");
}

fn pair() -> (Instant, Exchange, Exchange) {
    let now = start();
    let mut one = Exchange::new(1, &local(&["203.0.113.1:1"]));
    let mut other = Exchange::new(2, &local(&[]));
    one.announce(now);
    other.announce(now);
    (now, one, other)
}

#[test]
fn both_know_each_other_after_few_hellos() {
    let (now, mut one, mut other) = pair();
    let count = settle(now, &mut one, &mut other);
    assert!(count <= 3, "{count}");
    assert!(one.sides().is_some() && other.sides().is_some());
    assert_eq!((one.due(), other.due()), (None, None));
    assert_eq!(
        other.remote().unwrap().candidates,
        local(&["203.0.113.1:1"]).candidates
    );
    let (ours, theirs) = one.sides().unwrap();
    assert_eq!(
        other.sides(),
        Some((theirs, ours)),
        "the same two sides at both ends"
    );
}

#[test]
fn repeats_until_acknowledged_at_growing_intervals() {
    let (now, mut one, _) = pair();
    let mut times = Vec::new();
    while let Some(due) = one.due().filter(|due| *due < now + Duration::from_secs(60)) {
        times.push((due - now).as_millis());
        assert!(one.take(due).unwrap().wants_answer);
        assert_eq!(one.take(due), None);
    }
    assert_eq!(times[..5], [0, 150, 450, 1_050, 2_050]);
    assert!(times.len() < 15);
}

#[test]
fn a_change_is_told_and_named() {
    let (now, mut one, mut other) = pair();
    settle(now, &mut one, &mut other);
    let seq = one.candidates_seq();
    let mut changed = local(&["203.0.113.1:1"]);
    changed.profile.mapping = Mapping::EndpointIndependent;
    assert!(one.offer(now, &changed, true));
    assert_eq!(one.candidates_seq(), seq, "candidates are the same");
    assert_eq!(other.handle(now, one.take(now).unwrap()), News::Profile);
    assert!(one.offer(now, &local(&["203.0.113.2:1"]), true));
    assert!(one.candidates_seq() > seq);
    assert_eq!(other.handle(now, one.take(now).unwrap()), News::Candidates);
    assert!(
        !one.offer(now, &local(&["203.0.113.2:1"]), true),
        "nothing new"
    );
    settle(now, &mut one, &mut other);
    assert_eq!(one.due(), None);
}

#[test]
fn old_hellos_are_stale_and_another_epoch_is_a_restart() {
    let (now, mut one, mut other) = pair();
    let old = one.take(now).unwrap();
    one.offer(now, &local(&["203.0.113.9:1"]), true);
    let new = one.take(now).unwrap();
    assert_eq!(other.handle(now, new.clone()), News::Candidates);
    assert_eq!(other.handle(now, old), News::Stale);
    assert_eq!(other.handle(now, new.clone()), News::Nothing);
    assert_eq!(
        other.handle(
            now,
            Hello {
                epoch: 9,
                seq: 1,
                ..new
            }
        ),
        News::Restart
    );
    assert_eq!(other.remote().unwrap().epoch, 9);
}

#[test]
fn acknowledgements_of_another_life_do_not_count() {
    let (now, mut one, mut other) = pair();
    let mut hello = other.take(now).unwrap();
    hello.ack = Some(Ack { epoch: 77, seq: 1 });
    one.handle(now, hello.clone());
    assert!(one.due().is_some() && one.sides().is_none());
    hello.ack = Some(Ack { epoch: 1, seq: 400 });
    one.handle(now, hello);
    assert!(one.due().is_some() && one.sides().is_none());
}

#[test]
fn candidates_age() {
    let (now, mut one, mut other) = pair();
    settle(now, &mut one, &mut other);
    assert!(
        other
            .fresh_remote(now + FRESH - Duration::from_millis(1))
            .is_some()
    );
    assert!(other.fresh_remote(now + FRESH).is_none());
    assert!(other.remote().is_some());
}
