use std::time::{Duration, Instant};

use sync::{DownReason, PeerState, Relay};

use crate::support::{Cluster, HASTY, Wire, identity, records, relay, relay_at, relay_of};

#[tokio::test]
async fn after_a_long_outage_of_the_relay_everything_is_told_again() {
    let relay = relay().await;
    let address = relay.address();
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    b.records.send_replace(records(0..20, 1));
    a.until_records(b.identity, &records(0..20, 1)).await;
    drop(relay);
    a.until_down(b.identity, DownReason::NoRelay).await;
    b.until_down(a.identity, DownReason::NoRelay).await;
    assert_eq!(a.view(b.identity).unwrap().records, Some(records(0..20, 1)));
    let changed = records(10..30, 2);
    b.records.send_replace(changed.clone());
    let _relay = relay_at(address).await;
    let started = Instant::now();
    a.until_records(b.identity, &changed).await;
    println!(
        "told again {:?} after the relay's return",
        started.elapsed()
    );
    b.until_up(a.identity).await;
}

#[tokio::test]
async fn a_relay_that_restarts_at_once_is_hardly_noticed() {
    let relay = relay().await;
    let address = relay.address();
    let timing = sync::Timing::default();
    let a = Cluster::start_as(1, 1, timing, &[&relay], &[identity(2)]);
    let b = Cluster::start_as(2, 1, timing, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    let watched = a.sync.peers();
    drop(relay);
    let _relay = relay_at(address).await;
    let started = Instant::now();
    let changed = records([5], 2);
    b.records.send_replace(changed.clone());
    a.until_records(b.identity, &changed).await;
    println!("a delta over a restart in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(8));
    assert!(matches!(
        watched.borrow()[&b.identity].state,
        PeerState::Up { .. }
    ));
}

#[tokio::test]
async fn of_two_relays_one_may_die() {
    let (one, two) = (relay().await, relay().await);
    let timing = sync::Timing::default();
    let a = Cluster::start_as(1, 1, timing, &[&one, &two], &[identity(2)]);
    let b = Cluster::start_as(2, 1, timing, &[&one, &two], &[identity(1)]);
    a.until_up(b.identity).await;
    b.until_up(a.identity).await;
    drop(one);
    let started = Instant::now();
    let changed = records([5], 2);
    b.records.send_replace(changed.clone());
    a.until_records(b.identity, &changed).await;
    println!("a delta without its relay in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn without_any_relay_that_is_what_is_shown() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    a.until_down(identity(2), DownReason::Unreachable).await;
    drop(relay);
    a.until_down(identity(2), DownReason::NoRelay).await;
    let relays = a.sync.relays();
    let state = relays.borrow().values().next().cloned().unwrap();
    assert!(!state.connected);
    assert!(state.problem.is_some());
}

#[tokio::test]
async fn a_relay_that_only_seems_to_work_stops_nothing() {
    let (one, two) = (relay().await, relay().await);
    let wire = Wire::to(one.address()).await;
    let frozen = Relay::new(wire.url());
    let a = Cluster::start_with(1, 1, HASTY, vec![frozen.clone()], &[identity(2)]);
    let b = Cluster::start_with(2, 1, HASTY, vec![frozen.clone()], &[identity(1)]);
    a.until_up(b.identity).await;
    b.until_up(a.identity).await;
    for cluster in [&a, &b] {
        cluster
            .relays
            .send_replace(vec![frozen.clone(), relay_of(&two)]);
        let mut relays = cluster.sync.relays();
        let connected =
            relays.wait_for(|all| all.values().filter(|one| one.connected).count() == 2);
        connected.await.unwrap();
    }
    let mut watched = a.sync.peers();
    watched.mark_unchanged();
    wire.freeze();
    let changed = records([5], 2);
    let started = Instant::now();
    b.records.send_replace(changed.clone());
    let mut was_down = false;
    while watched.borrow_and_update()[&b.identity].records.as_ref() != Some(&changed) {
        was_down |= !watched.borrow()[&b.identity].is_up();
        watched.changed().await.unwrap();
    }
    println!("around a dead relay in {:?}", started.elapsed());
    assert!(!was_down, "the connection lives on");
    assert!(started.elapsed() < HASTY.idle);
    let relays = a.sync.relays();
    assert!(relays.borrow()[&frozen.url].connected, "nobody has noticed");
}

#[tokio::test]
async fn a_relay_may_be_dialled_elsewhere_than_at_its_url() {
    let relay = relay().await;
    let inside = Relay {
        dial: Some(relay_of(&relay).url),
        ..Relay::new("https://relay.example.org".parse().unwrap())
    };
    let a = Cluster::start_with(1, 1, HASTY, vec![inside.clone()], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    assert!(a.sync.relays().borrow()[&inside.url].connected);
}
