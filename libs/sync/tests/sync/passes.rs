use std::collections::BTreeMap;

use std::time::{Duration, Instant, SystemTime};

use derp::Refusal;
use derp::pass::{Membership, Pass, Scope};
use sync::{DownReason, JoinError, JoinTiming, Relay};

use crate::joining;
use crate::support::{Cluster, HASTY, identity, pass, relay, relay_of, relay_owned_by, secret};

#[tokio::test]
async fn memberships_are_given_and_renewed_and_taken_back() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    let give = |text: &str| {
        let others = (identity(9), "for-somebody-else".to_owned());
        a.memberships
            .send_replace(BTreeMap::from([(b.identity, text.to_owned()), others]));
    };
    give("first");
    let has = |text: &'static str| {
        b.until(text, a.identity, move |view| {
            view.membership.as_deref() == Some(text)
        })
    };
    has("first").await;
    give("second");
    let view = has("second").await;
    assert!(view.is_up());
    assert_eq!(a.view(b.identity).unwrap().membership, None);
    a.memberships.send_replace(BTreeMap::new());
    b.until("taken back", a.identity, |view| view.membership.is_none())
        .await;
    give("third");
    has("third").await;
    drop(a);
    let view = b.until("down", identity(1), |view| !view.is_up()).await;
    assert_eq!(view.membership.as_deref(), Some("third"), "kept");
}

#[tokio::test]
async fn a_new_pass_ends_no_connection() {
    let relay = relay().await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    a.until_up(b.identity).await;
    b.until_up(a.identity).await;
    let (mut relays, mut peers) = (a.sync.relays(), a.sync.peers());
    relays.mark_unchanged();
    peers.mark_unchanged();
    let renewed = Relay {
        pass: Some("renewed".into()),
        ..relay_of(&relay)
    };
    a.relays.send_replace(vec![renewed]);
    let records = crate::support::records([7], 7);
    a.records.send_replace(records.clone());
    b.until_records(a.identity, &records).await;
    let mut ended = false;
    while relays.has_changed().unwrap() {
        ended |= !relays.borrow_and_update().values().all(|one| one.connected);
    }
    assert!(!ended);
    assert!(peers.borrow()[&b.identity].is_up());
    // Anything else that changes is a new connection.
    let elsewhere = Relay {
        dial: Some("http://127.0.0.1:1".parse().unwrap()),
        ..relay_of(&relay)
    };
    a.relays.send_replace(vec![elsewhere]);
    a.until_down(b.identity, DownReason::NoRelay).await;
}

fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(900)
}

#[tokio::test]
async fn a_pass_that_comes_late_opens_the_relay_at_once() {
    let (relay, _file) = relay_owned_by(identity(1)).await;
    let a = Cluster::start(1, &[&relay], &[identity(2)]);
    let b = Cluster::start(2, &[&relay], &[identity(1)]);
    let mut relays = b.sync.relays();
    let refused = relays.wait_for(|all| {
        let mut states = all.values();
        states.any(|one| one.refusal == Some(Refusal::NotAdmitted))
    });
    assert!(!refused.await.unwrap()[&relay_of(&relay).url].connected);
    let admitted = Relay {
        pass: Some(pass(1, 2, Scope::Mesh, soon())),
        ..relay_of(&relay)
    };
    let started = Instant::now();
    b.relays.send_replace(vec![admitted]);
    a.until_up(b.identity).await;
    println!("up with a pass in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(4));
    let state = b.sync.relays().borrow()[&relay_of(&relay).url].clone();
    assert!(state.connected);
    assert_eq!(state.refusal, None);
}

/// For cluster 2, from owner 1.
fn pass_with_membership_until(end: SystemTime) -> String {
    let membership = Membership::issue(&secret(1), identity(2), Scope::Mesh, end);
    let key = identity(2).relay_key();
    let pass = Pass::issue(&secret(2), key, soon(), Some(membership));
    pass.unwrap().to_string()
}

#[tokio::test]
async fn who_was_away_for_too_long_is_heard_by_the_owner_and_renewed() {
    let (relay, _file) = relay_owned_by(identity(1)).await;
    let past = SystemTime::now() - Duration::from_secs(7200);
    let with = |pass: String| Relay {
        pass: Some(pass),
        ..relay_of(&relay)
    };
    let owner = Cluster::start_with(1, 1, HASTY, vec![relay_of(&relay)], &[identity(2)]);
    let renewed = pass_with_membership_until(soon());
    let gift = [(identity(2), renewed.clone())];
    owner.memberships.send_replace(gift.into());
    let member = with(pass(1, 3, Scope::Mesh, soon()));
    let member = Cluster::start_with(3, 1, HASTY, vec![member], &[identity(2)]);
    let expired = with(pass_with_membership_until(past));
    let peers = [identity(1), identity(3)];
    let back = Cluster::start_with(2, 1, HASTY, vec![expired], &peers);
    back.until("renewed", identity(1), |view| {
        view.is_up() && view.membership.as_ref() == Some(&renewed)
    })
    .await;
    let url = relay_of(&relay).url;
    assert_eq!(back.sync.relay_of(&identity(1)), Some(url.clone()));
    let connection = |cluster: &Cluster| cluster.sync.relays().borrow()[&url].connection;
    let in_the_lobby = connection(&back);
    back.until_down(identity(3), DownReason::Unreachable).await;
    back.relays.send_replace(vec![with(renewed)]);
    back.until_up(identity(3)).await;
    member.until_up(identity(2)).await;
    assert_ne!(connection(&back), in_the_lobby);
}

#[tokio::test]
async fn the_lobby_is_enough_to_join_and_not_to_speak() {
    let (relay, _file) = relay_owned_by(identity(joining::INVITER)).await;
    let (_cluster, requests) = joining::inviter(&[&relay]);
    let (_tasks, _asked) = joining::first_come(requests);
    let lobby = pass(joining::INVITER, joining::INVITE, Scope::Lobby, soon());
    let mut token = joining::token_for(&relay);
    token.pass.clone_from(&lobby);
    let outcome = joining::ask(&token, 2, JoinTiming::default()).await;
    assert_eq!(outcome.unwrap(), joining::welcome());
    // Another member, who would take the holder of the invite for a peer.
    let member = Relay {
        pass: Some(pass(joining::INVITER, 3, Scope::Mesh, soon())),
        ..relay_of(&relay)
    };
    let invite = identity(joining::INVITE);
    let member = Cluster::start_with(3, 1, HASTY, vec![member], &[invite]);
    let guest = Relay {
        pass: Some(lobby),
        ..relay_of(&relay)
    };
    let guest = Cluster::start_with(joining::INVITE, 1, HASTY, vec![guest], &[identity(3)]);
    guest.until_down(identity(3), DownReason::Unreachable).await;
    member.until_down(invite, DownReason::Unreachable).await;
}

#[tokio::test]
async fn a_pass_that_the_relay_does_not_take_ends_joining_at_once() {
    let (relay, _file) = relay_owned_by(identity(joining::INVITER)).await;
    let (_cluster, _requests) = joining::inviter(&[&relay]);
    let past = SystemTime::now() - Duration::from_secs(7200);
    let invite = joining::INVITE;
    for (pass, expected) in [
        (
            pass(joining::INVITER, invite, Scope::Lobby, past),
            Refusal::PassExpired,
        ),
        (
            pass(joining::INVITER, 9, Scope::Lobby, soon()),
            Refusal::BadPass,
        ),
        (pass(9, invite, Scope::Lobby, soon()), Refusal::NotAdmitted),
    ] {
        let mut token = joining::token_for(&relay);
        token.pass = pass;
        let started = Instant::now();
        let error = joining::ask(&token, 2, JoinTiming::default()).await;
        let error = error.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(3), "{error}");
        assert!(!error.may_pass(), "{error}");
        let JoinError::RelayUnreachable { url, refusal, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(url, relay_of(&relay).url);
        assert_eq!(refusal, Some(expected));
    }
}
