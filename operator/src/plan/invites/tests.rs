use std::collections::HashSet;
use std::time::SystemTime;

use derp::pass::Scope;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use sync::{Audience, Token};

use crate::action::Action;
use crate::plan::draft::find;
use crate::plan::fixture::{Fixture, condition, secret};
use crate::plan::plan;
use crate::plan::tests::linked;

const SECRET: &str = "culvert-invite-one";

fn ready(fixture: &Fixture) -> (String, String) {
    let status = fixture.world.invites[0].status.clone().expect("a status");
    let (status, reason) = condition(&status.conditions, "Ready");
    (status.to_owned(), reason.to_owned())
}

fn is(fixture: &Fixture, status: &str, reason: &str) {
    assert_eq!(ready(fixture), (status.to_owned(), reason.to_owned()));
}

fn token(fixture: &Fixture) -> Token {
    let found = find::<Secret>(&fixture.world.owned.secrets, SECRET).expect("a Secret");
    let text = super::read_token(found).expect("a text");
    text.parse().expect("a token")
}

#[test]
fn a_token_has_all_that_a_joiner_needs() {
    let mut fixture = linked();
    fixture.invite("one", json!({"ttl": "1h", "type": "Host"}));
    let heard = fixture.settle().sync.expect("conversations").invites;
    is(&fixture, "True", "Pending");
    let token = token(&fixture);
    assert_eq!(token.inviter, secret(1).identity());
    assert_eq!(token.audience, Audience::Host);
    assert_eq!(token.cluster_name.as_str(), "berlin");
    assert_eq!(token.relays[0].url.to_string(), "https://203.0.113.1");
    assert!(token.relays[0].ca_bundle.is_some());
    assert_eq!(token.relays[0].stun_port, None);
    let end = SystemTime::from(fixture.now()) + std::time::Duration::from_secs(3600);
    assert_eq!(token.expires, end);
    assert_eq!(heard, [token.secret.identity()].into());
    let owners = HashSet::from([secret(1).identity()]);
    let key = token.secret.identity().relay_key();
    let now = SystemTime::from(fixture.now());
    let admitted = derp::pass::verify(&token.pass, &owners, &key, now).expect("admitted");
    assert_eq!((admitted.scope, admitted.expires), (Scope::Lobby, end));
    let status = fixture.world.invites[0].status.clone().expect("a status");
    assert_eq!(status.secret_name.as_deref(), Some(SECRET));
}

#[test]
fn without_a_relay_there_is_no_token_yet() {
    let mut fixture = Fixture::new();
    fixture.invite("one", json!({}));
    fixture.settle();
    is(&fixture, "False", "NoRelay");
    assert!(find::<Secret>(&fixture.world.owned.secrets, SECRET).is_none());
}

#[test]
fn an_invite_ends_and_whoever_comes_too_late_is_told_so_for_a_while() {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    let wake = fixture.settle().wake_after.expect("another look");
    assert!(wake.as_secs() <= 900);
    fixture.pass_seconds(900);
    let events = |fixture: &Fixture| {
        let actions = plan(&fixture.world).actions.into_iter();
        let notes = actions.filter_map(|action| match action {
            Action::Event(note) => Some((note.about.kind, note.reason)),
            Action::Apply(_)
            | Action::Swap(_)
            | Action::Create(_)
            | Action::Certify(_)
            | Action::ApplyStatus(_)
            | Action::Redeem(_)
            | Action::Delete(_) => None,
        });
        notes.collect::<Vec<_>>()
    };
    assert_eq!(
        events(&fixture),
        [(Some("Invite".to_owned()), "Expired")],
        "whoever has invited is told"
    );
    let heard = fixture.settle().sync.expect("conversations").invites;
    is(&fixture, "False", "Expired");
    assert!(events(&fixture).is_empty(), "once");
    assert!(find::<Secret>(&fixture.world.owned.secrets, SECRET).is_none());
    assert_eq!(heard.len(), 1);
    fixture.pass_seconds(600);
    assert!(
        plan(&fixture.world)
            .sync
            .expect("conversations")
            .invites
            .is_empty()
    );
}

#[test]
fn a_status_is_written_over_what_was_looked_at_only() {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    let version = fixture.world.invites[0].metadata.resource_version.clone();
    let actions = plan(&fixture.world).actions.into_iter();
    let written = actions.filter_map(|action| match action {
        Action::ApplyStatus(crate::action::StatusOf::Invite(name, version, _)) => {
            Some((name, version))
        }
        Action::Apply(_)
        | Action::Swap(_)
        | Action::Create(_)
        | Action::Certify(_)
        | Action::ApplyStatus(_)
        | Action::Redeem(_)
        | Action::Delete(_)
        | Action::Event(_) => None,
    });
    let written: Vec<_> = written.collect();
    assert!(version.is_some());
    assert_eq!(written, [("one".to_owned(), version)]);
}

#[test]
fn two_invites_have_two_keys() {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    fixture.invite("two", json!({}));
    let first = plan(&fixture.world).actions;
    fixture.carry_out(first);
    fixture.world.fresh.invite = secret(203);
    let heard = fixture.settle().sync.expect("conversations").invites;
    assert_eq!(heard.len(), 2);
}

#[test]
fn a_time_that_is_none_makes_no_token() {
    let mut fixture = linked();
    fixture.invite("one", json!({"ttl": "1000h"}));
    fixture.settle();
    is(&fixture, "False", "BadTtl");
    assert!(find::<Secret>(&fixture.world.owned.secrets, SECRET).is_none());
}

#[test]
fn a_token_goes_with_its_invite() {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    fixture.settle();
    assert!(find::<Secret>(&fixture.world.owned.secrets, SECRET).is_some());
    fixture.world.invites.clear();
    fixture.settle();
    assert!(find::<Secret>(&fixture.world.owned.secrets, SECRET).is_none());
}
