use std::time::{Duration, Instant};

use sync::{CloseReason, DownReason, PeerState};
use tokio::time::timeout;

use crate::support::{Cluster, HASTY, identity, records, relay, relay_of};

#[tokio::test]
async fn two_clusters_tell_each_other_their_nodes_and_what_changes() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    let started = Instant::now();
    let view = a.until_up(b.identity).await;
    b.until_up(a.identity).await;
    println!("up in {:?}", started.elapsed());
    assert_eq!(view.records, Some(records([2], 1)));
    assert_eq!(
        view.state,
        PeerState::Up {
            cluster_name: "cluster-2".parse().unwrap(),
            generation: 1,
            version: sync::VERSION,
        }
    );
    for generation in 2..6 {
        let started = Instant::now();
        let changed = records([2, 3], generation);
        b.records.send_replace(changed.clone());
        a.until_records(b.identity, &changed).await;
        println!("a delta in {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    let fewer = records([3], 9);
    b.records.send_replace(fewer.clone());
    a.until_records(b.identity, &fewer).await;
    assert_eq!(b.view(a.identity).unwrap().records, Some(records([1], 1)));
    assert_eq!(a.sync.dropped() + b.sync.dropped(), 0);
}

#[tokio::test]
async fn three_clusters_speak_in_pairs() {
    let relay = relay().await;
    let clusters = [1, 2, 3].map(|seed| {
        let others: Vec<_> = [1, 2, 3]
            .into_iter()
            .filter(|other| *other != seed)
            .map(identity)
            .collect();
        Cluster::start(seed, &[&relay], &others)
    });
    for (cluster, seed) in clusters.iter().zip([1, 2, 3_u8]) {
        for (other, other_seed) in clusters.iter().zip([1, 2, 3_u8]) {
            if seed != other_seed {
                let wanted = records([usize::from(other_seed)], 1);
                cluster.until_records(other.identity, &wanted).await;
            }
        }
    }
    clusters[0].records.send_replace(records([7], 2));
    for other in &clusters[1..] {
        other
            .until_records(clusters[0].identity, &records([7], 2))
            .await;
    }
}

#[tokio::test]
async fn a_thousand_nodes_and_then_ten_of_them() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    let thousand = records(0..1000, 1);
    b.records.send_replace(thousand.clone());
    let started = Instant::now();
    a.until_records(b.identity, &thousand).await;
    println!("1,000 nodes in {:?}", started.elapsed());
    let other = records((0..990).chain(2000..2010), 1);
    let started = Instant::now();
    b.records.send_replace(other.clone());
    a.until_records(b.identity, &other).await;
    println!("20 of 1,000 changed in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(1));
    b.until("acknowledged", a.identity, |view| view.synced)
        .await;
}

#[tokio::test]
async fn whoever_comes_late_is_awaited() {
    let relay = relay().await;
    let timing = sync::Timing {
        retry: Duration::from_secs(60),
        ..sync::Timing::default()
    };
    let a = Cluster::start_as(1, 1, timing, &[&relay], &[identity(2)]);
    a.until_down(identity(2), DownReason::Unreachable).await;
    let started = Instant::now();
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    println!("a late peer is up in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_peer_that_is_removed_is_told_and_may_come_back() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    let started = Instant::now();
    a.peers.send_replace([].into());
    b.until_down(a.identity, DownReason::Told(CloseReason::NotAdmitted))
        .await;
    println!("told in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(a.view(b.identity), None);
    // Long enough for dials that nobody answers.
    let mut views = b.sync.peers();
    let changes = views.wait_for(|views| {
        let told = DownReason::Told(CloseReason::NotAdmitted);
        views[&a.identity].state != PeerState::Down { reason: told }
    });
    assert!(
        timeout(HASTY.handshake * 3, changes).await.is_err(),
        "silence is no better reason"
    );
    assert!(b.view(a.identity).unwrap().records.is_some(), "kept");
    a.peers.send_replace([b.identity].into());
    a.until_up(b.identity).await;
    b.until_up(a.identity).await;
}

#[tokio::test]
async fn whoever_goes_away_says_so() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    b.sync.close().await;
    a.until_down(identity(2), DownReason::Told(CloseReason::Shutdown))
        .await;
}

#[tokio::test]
async fn a_newer_process_takes_over_and_the_older_is_told() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let older = Cluster::start_as(2, 4, HASTY, &[&relay], &[identity(1)]);
    a.until_up(older.identity).await;
    let newer = Cluster::start_as(2, 5, HASTY, &[&relay], &[identity(1)]);
    newer.records.send_replace(records([55], 1));
    a.until_records(identity(2), &records([55], 1)).await;
    older
        .until_down(a.identity, DownReason::Told(CloseReason::Superseded))
        .await;
    newer.until_up(a.identity).await;
    let view = a.until_up(identity(2)).await;
    assert!(matches!(view.state, PeerState::Up { generation: 5, .. }));
    newer.records.send_replace(records([56], 1));
    a.until_records(identity(2), &records([56], 1)).await;
}

#[tokio::test]
async fn of_two_processes_with_one_generation_the_first_hears_of_the_other() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let one = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(one.identity).await;
    let _two = Cluster::start(2, &[&relay], &[identity(1)]);
    one.until_relay_says("the same key").await;
}

#[tokio::test]
async fn relays_come_and_go_while_we_speak() {
    let (one, two) = (relay().await, relay().await);
    let a = Cluster::start(1, &[&one], &[identity(2)]);
    let b = Cluster::start(2, &[&two], &[identity(1)]);
    a.until_down(identity(2), DownReason::Unreachable).await;
    a.relays.send_replace(vec![relay_of(&one), relay_of(&two)]);
    a.until_up(b.identity).await;
    b.relays.send_replace(vec![relay_of(&one)]);
    let changed = records([8], 2);
    b.records.send_replace(changed.clone());
    a.until_records(b.identity, &changed).await;
    assert_eq!(b.sync.relays().borrow().len(), 1);
}
