use sync::{ClusterIdentity, DownReason, PeerView};

use crate::support::{Cluster, identity, relay};

/// The other identity with the same address on relays.
fn negated(identity: ClusterIdentity) -> ClusterIdentity {
    let mut bytes = *identity.as_bytes();
    bytes[31] ^= 0x80;
    ClusterIdentity::from_bytes(bytes).unwrap()
}

fn knows_nothing(view: &PeerView) -> bool {
    !view.is_up() && view.records.is_none() && view.refused.is_empty()
}

#[tokio::test]
async fn a_key_that_is_not_the_pinned_one_is_refused_whoever_dials() {
    // Once the impostor has the lower identity, once the other.
    for (ours, theirs) in [(1, 2), (2, 1)] {
        let relay = relay().await;
        let pinned = negated(identity(theirs));
        let a = Cluster::start(ours, &[&relay], &[pinned]);
        let impostor = Cluster::start(theirs, &[&relay], &[identity(ours)]);
        a.until_down(pinned, DownReason::WrongKey).await;
        impostor
            .until_down(a.identity, DownReason::RefusedKey)
            .await;
        assert!(knows_nothing(&a.view(pinned).unwrap()));
        assert!(knows_nothing(&impostor.view(a.identity).unwrap()));
    }
}

#[tokio::test]
async fn a_stranger_gets_no_answer() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    let stranger = Cluster::start(3, &[&relay], &[identity(1), identity(2)]);
    a.until_up(b.identity).await;
    for peer in [a.identity, b.identity] {
        stranger.until_down(peer, DownReason::Unreachable).await;
        assert!(knows_nothing(&stranger.view(peer).unwrap()));
    }
    assert_eq!(a.view(stranger.identity), None);
}

#[tokio::test]
async fn peers_that_cannot_be_told_apart_on_relays_are_not_tried() {
    let relay = relay().await;
    let (one, other) = (identity(2), negated(identity(2)));
    let (first, second) = (one.min(other), one.max(other));
    let a = Cluster::start(1, &[&relay], &[one, other, identity(1)]);
    a.until_down(second, DownReason::SameAddress).await;
    a.until_down(identity(1), DownReason::Ourselves).await;
    a.until_down(first, DownReason::Unreachable).await;
}
