use std::sync::Arc;

use api::Peer;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use sync::{Audience, JoinAnswer, RefusedCode, Token, Welcome};

use super::answer;
use crate::action::{Action, JoinOrder, Kind, Object};
use crate::plan::draft::find;
use crate::plan::fixture::{Fixture, condition, object, secret};
use crate::plan::names::{JOIN_SECRET, JOINED};
use crate::plan::plan;
use crate::plan::tests::linked;
use crate::world::{JoinAsk, JoinCode, JoinFailure, JoinOutcome};

/// `berlin`, linked to `tokyo`, with an open invite.
fn inviting(spec: serde_json::Value) -> Fixture {
    let mut fixture = linked();
    fixture.invite("one", spec);
    fixture.settle();
    fixture
}

/// `paris`, whose identity is number 3, asks with that invite.
fn ask(fixture: &Fixture, cidr: &str) -> JoinAsk {
    let status = fixture.world.invites[0].status.clone().expect("a status");
    JoinAsk {
        invite: status
            .identity
            .expect("an identity")
            .parse()
            .expect("an identity"),
        identity: secret(3).identity(),
        audience: Some(Audience::Cluster),
        cluster_name: "paris".parse().expect("a name"),
        cidrs: vec![cidr.parse().expect("a prefix")],
    }
}

fn code(fixture: &Fixture, ask: &JoinAsk) -> (RefusedCode, String) {
    let (answer, actions) = answer(&fixture.world, ask);
    assert!(!answer.redeems);
    let writes = actions
        .iter()
        .filter(|action| !matches!(action, Action::Event(_)));
    assert_eq!(writes.count(), 0, "a refusal writes nothing");
    match answer.reply {
        JoinAnswer::Refused(refused) => (refused.code, refused.message),
        JoinAnswer::Welcome(welcome) => panic!("{welcome:?}"),
    }
}

fn welcome(fixture: &Fixture, ask: &JoinAsk) -> (Welcome, bool, Vec<Action>) {
    let (answer, actions) = answer(&fixture.world, ask);
    match answer.reply {
        JoinAnswer::Welcome(welcome) => (welcome, answer.redeems, actions),
        JoinAnswer::Refused(refused) => panic!("{refused}"),
    }
}

#[test]
fn one_that_may_join_gets_a_peer_and_a_membership_once() {
    let mut fixture = inviting(json!({}));
    let ask = ask(&fixture, "10.3.0.0/16");
    let (first, redeems, actions) = welcome(&fixture, &ask);
    assert!(redeems);
    let Some(Action::Redeem(redemption)) = actions.first() else {
        panic!("the invite is used first: {actions:?}");
    };
    let version = fixture.world.invites[0].metadata.resource_version.clone();
    assert_eq!(Some(&redemption.resource_version), version.as_ref());
    assert_eq!(
        condition(&redemption.status.conditions, "Ready"),
        ("False", "Used")
    );
    assert_eq!(first.cluster_name.as_str(), "berlin");
    assert_eq!(first.cidrs[0].to_string(), "10.1.0.0/16");
    assert_eq!(first.accepted, ask.cidrs);
    let membership: derp::pass::Membership =
        first.membership.clone().expect("one").parse().expect("one");
    assert_eq!(
        (membership.owner(), membership.cluster()),
        (secret(1).identity(), secret(3).identity())
    );

    fixture.carry_out(actions);
    fixture.settle();
    let peer: &Peer = find(&fixture.world.peers, "paris").expect("a Peer");
    assert_eq!(peer.spec.allowed_cidrs, ["10.3.0.0/16"]);
    assert_eq!(peer.spec.identity, Some(secret(3).identity().to_string()));
    assert!(find::<Secret>(&fixture.world.owned.secrets, "culvert-invite-one").is_none());

    let (again, redeems, actions) = welcome(&fixture, &ask);
    assert_eq!(again, first);
    assert!(!redeems && actions.is_empty());
    let other = JoinAsk {
        identity: secret(4).identity(),
        ..ask.clone()
    };
    assert_eq!(code(&fixture, &other).0, RefusedCode::Used);

    fixture
        .world
        .peers
        .retain(|peer| peer.metadata.name.as_deref() != Some("paris"));
    let (_, _, actions) = welcome(&fixture, &ask);
    assert!(
        matches!(actions.as_slice(), [Action::Create(Object::Peer(_))]),
        "it was never written"
    );
    fixture.pass_seconds(121);
    assert_eq!(
        code(&fixture, &ask).0,
        RefusedCode::Used,
        "a person has deleted it"
    );
}

#[test]
fn who_was_let_in_and_then_sent_away_does_not_come_back_with_its_token() {
    let mut fixture = inviting(json!({}));
    let ask = ask(&fixture, "10.3.0.0/16");
    let (_, _, actions) = welcome(&fixture, &ask);
    fixture.carry_out(actions);
    fixture.settle();
    fixture
        .world
        .peers
        .retain(|peer| peer.metadata.name.as_deref() != Some("paris"));
    fixture.settle();
    assert_eq!(code(&fixture, &ask).0, RefusedCode::Used);
}

#[test]
fn a_public_range_is_for_a_person_to_name() {
    let fixture = inviting(json!({}));
    let (refused, message) = code(&fixture, &ask(&fixture, "126.0.0.0/8"));
    assert_eq!(refused, RefusedCode::NotAllowed);
    assert!(message.contains("--cidrs 126.0.0.0/8"), "{message}");
    let named = inviting(json!({"cidrs": ["126.0.0.0/8"]}));
    let (welcome, _, _) = welcome(&named, &ask(&named, "126.0.0.0/8"));
    assert_eq!(welcome.accepted[0].to_string(), "126.0.0.0/8");
}

#[test]
fn refusals_say_what_is_wrong() {
    let mut fixture = inviting(json!({"cidrs": ["10.0.0.0/8", "fd03::/48"]}));
    let good = ask(&fixture, "10.3.0.0/16");
    for (cidr, expected, word) in [
        ("10.1.128.0/17", RefusedCode::Overlap, "10.1.0.0/16"),
        ("10.2.3.0/24", RefusedCode::Overlap, "Peer tokyo"),
        ("11.0.0.0/16", RefusedCode::NotAllowed, "fd03::/48"),
        ("127.0.0.0/16", RefusedCode::NotAllowed, "127.0.0.0"),
    ] {
        let (code, message) = code(&fixture, &ask(&fixture, cidr));
        assert_eq!(code, expected, "{cidr}: {message}");
        assert!(message.contains(word), "{message}");
    }
    for name in ["berlin", "tokyo"] {
        let taken = JoinAsk {
            cluster_name: name.parse().expect("a name"),
            ..good.clone()
        };
        let (code, message) = code(&fixture, &taken);
        assert_eq!(code, RefusedCode::NameTaken);
        assert!(message.contains("another clusterName"), "{message}");
    }
    let nothing = JoinAsk {
        cidrs: Vec::new(),
        ..good.clone()
    };
    assert_eq!(code(&fixture, &nothing).0, RefusedCode::NotAllowed);
    let own = JoinAsk {
        identity: secret(1).identity(),
        ..good.clone()
    };
    assert_eq!(code(&fixture, &own).0, RefusedCode::NotAllowed);
    let unknown = JoinAsk {
        invite: secret(9).identity(),
        ..good.clone()
    };
    assert_eq!(code(&fixture, &unknown).0, RefusedCode::Expired);
    let (_, actions) = answer(&fixture.world, &ask(&fixture, "10.2.3.0/24"));
    let Some(Action::Event(note)) = actions.first() else {
        panic!("people are told: {actions:?}");
    };
    assert!(note.warning && note.note.contains("Peer tokyo"), "{note:?}");
    assert_eq!(
        (note.about.kind.as_deref(), note.reason),
        (Some("Invite"), "Overlap")
    );
    fixture.pass_seconds(901);
    assert_eq!(code(&fixture, &good).0, RefusedCode::Expired);
}

#[test]
fn a_host_is_left_to_say_how_it_gets_another_name() {
    let fixture = inviting(json!({"type": "Host"}));
    for name in ["berlin", "tokyo"] {
        let host = JoinAsk {
            audience: Some(Audience::Host),
            cluster_name: name.parse().expect("a name"),
            ..ask(&fixture, "10.99.0.7/32")
        };
        let (code, message) = code(&fixture, &host);
        assert_eq!(code, RefusedCode::NameTaken);
        assert!(message.contains(name), "{message}");
        assert!(!message.contains("clusterName"), "{message}");
    }
}

#[test]
fn an_invite_is_for_one_kind_of_joiner() {
    for (kind, is) in [("Cluster", Audience::Cluster), ("Host", Audience::Host)] {
        let fixture = inviting(json!({"type": kind}));
        for audience in [None, Some(Audience::Cluster), Some(Audience::Host)] {
            let ask = JoinAsk {
                audience,
                ..ask(&fixture, "10.3.0.0/16")
            };
            // An older joiner does not say what it is.
            if audience.is_none_or(|said| said == is) {
                assert!(welcome(&fixture, &ask).1);
                continue;
            }
            assert_eq!(code(&fixture, &ask).0, RefusedCode::WrongAudience);
            let (_, actions) = answer(&fixture.world, &ask);
            let [Action::Event(note)] = actions.as_slice() else {
                panic!("people are told: {actions:?}");
            };
            assert!(note.warning && note.reason == "WrongAudience", "{note:?}");
        }
    }
}

#[test]
fn who_joins_is_remembered_before_it_has_a_membership() {
    let mut fixture = inviting(json!({}));
    let ask = ask(&fixture, "10.3.0.0/16");
    let (_, _, actions) = welcome(&fixture, &ask);
    let [
        Action::Redeem(_),
        Action::Create(Object::Peer(_)),
        Action::Swap(Object::ConfigMap(register)),
        Action::Event(_),
    ] = actions.as_slice()
    else {
        panic!("the Peer, and then the register: {actions:?}");
    };
    let admitted = &register.data.as_ref().expect("data")["admitted"];
    assert!(admitted.contains(&ask.identity.to_string()), "{admitted}");
    assert!(admitted.contains(&secret(2).identity().to_string()));
    fixture.carry_out(actions);
    let sync = fixture.settle().sync.expect("conversations");
    assert!(sync.memberships.contains_key(&ask.identity));
}

#[test]
fn a_known_peer_joins_again_within_what_its_peer_allows() {
    let fixture = inviting(json!({}));
    let tokyo = |cidr: &str| JoinAsk {
        identity: secret(2).identity(),
        cluster_name: "tokyo".parse().expect("a name"),
        ..ask(&fixture, cidr)
    };
    assert_eq!(
        code(&fixture, &tokyo("10.3.0.0/16")).0,
        RefusedCode::NotAllowed
    );
    let (welcome, redeems, actions) = welcome(&fixture, &tokyo("10.2.4.0/24"));
    assert!(redeems);
    assert_eq!(welcome.accepted[0].to_string(), "10.2.0.0/16");
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::Create(_)))
    );
}

#[test]
fn a_cluster_that_is_not_ready_says_so() {
    let mut fixture = inviting(json!({}));
    let ask = ask(&fixture, "10.3.0.0/16");
    fixture.world.meshes.clear();
    assert_eq!(code(&fixture, &ask).0, RefusedCode::Busy);
}

/// `paris` with a token of `berlin`.
fn joining() -> Fixture {
    let inviter = inviting(json!({}));
    let token =
        find::<Secret>(&inviter.world.owned.secrets, "culvert-invite-one").expect("a Secret");
    let mut fixture = Fixture::new();
    let seed = secret(3).to_base64();
    let identity = Arc::make_mut(&mut fixture.world.owned.secrets[0]);
    let bytes = k8s_openapi::ByteString(seed.as_bytes().to_vec());
    identity.data = Some([("seed".to_owned(), bytes)].into());
    fixture.mesh(json!({"clusterName": "paris", "podCIDRs": ["10.3.0.0/16"]}));
    let mut join: Secret = object(json!({"metadata": {"name": JOIN_SECRET, "uid": "j"}}));
    join.data.clone_from(&token.data);
    fixture.world.owned.secrets.push(Arc::new(join));
    fixture
}

fn order(fixture: &mut Fixture) -> Option<JoinOrder> {
    fixture.settle().join
}

fn joined(fixture: &Fixture) -> (String, String) {
    let status = fixture.mesh_status();
    let (status, reason) = condition(&status.conditions, "Joined");
    (status.to_owned(), reason.to_owned())
}

fn is(fixture: &Fixture, status: &str, reason: &str) {
    assert_eq!(joined(fixture), (status.to_owned(), reason.to_owned()));
}

fn outcome(fixture: &mut Fixture, result: Result<Welcome, JoinCode>, failures: u32) {
    let order = order(fixture).expect("an attempt");
    fixture.world.join = Some(JoinOutcome {
        attempt: order.attempt,
        at: fixture.now(),
        failures,
        result: result.map_err(|code| JoinFailure {
            code,
            message: "because".to_owned(),
        }),
    });
}

fn berlin(cidr: &str, fixture: &Fixture) -> Welcome {
    let end = std::time::SystemTime::from(fixture.now()) + derp::pass::LIFETIME;
    let scope = derp::pass::Scope::Mesh;
    let membership = derp::pass::Membership::issue(&secret(1), secret(3).identity(), scope, end);
    Welcome {
        cluster_name: "berlin".parse().expect("a name"),
        cidrs: vec![cidr.parse().expect("a prefix")],
        accepted: Vec::new(),
        membership: Some(membership.to_string()),
    }
}

#[test]
fn a_token_leads_to_a_peer_and_is_not_used_again() {
    let mut fixture = joining();
    let order = order(&mut fixture).expect("an attempt");
    assert_eq!(order.attempt.cluster_name.as_str(), "paris");
    let token: Token = order.token.parse().expect("a token");
    assert_eq!(token.inviter, secret(1).identity());
    is(&fixture, "Unknown", "Joining");
    let welcome = berlin("10.1.0.0/16", &fixture);
    outcome(&mut fixture, Ok(welcome), 0);
    let plan = fixture.settle();
    assert!(plan.join.is_none());
    is(&fixture, "True", "Joined");
    let peer: &Peer = find(&fixture.world.peers, "berlin").expect("a Peer");
    assert_eq!(peer.spec.identity, Some(secret(1).identity().to_string()));
    assert_eq!(peer.spec.allowed_cidrs, ["10.1.0.0/16"]);
    assert_eq!(peer.spec.relays[0].url, "https://203.0.113.1");
    assert_eq!(peer.spec.relays[0].owner, peer.spec.identity);
    let join: &Secret = find(&fixture.world.owned.secrets, JOIN_SECRET).expect("the Secret");
    assert_eq!(
        join.metadata.annotations.as_ref().expect("annotations")[JOINED],
        "berlin"
    );
    assert!(join.data.is_some());
    let sync = plan.sync.expect("conversations");
    assert!(
        sync.relays[0].pass.is_some(),
        "with the inviter's membership"
    );

    fixture.world.join = None;
    assert!(fixture.settle().join.is_none(), "also after a restart");
    assert!(
        fixture.settle().sync.expect("conversations").relays[0]
            .pass
            .is_some()
    );
}

#[test]
fn whoever_cannot_have_the_inviter_as_a_peer_does_not_use_the_token() {
    let mut fixture = joining();
    let first = order(&mut fixture).expect("an attempt");
    let token: Token = first.token.parse().expect("a token");
    assert_eq!(token.cidrs[0].to_string(), "10.1.0.0/16");
    for (rival, range, reason) in [
        ("oslo", "10.1.7.0/24", "Overlap"),
        ("berlin", "10.5.0.0/16", "NameTaken"),
    ] {
        fixture.peer(rival, json!({"allowedCIDRs": [range]}));
        assert!(order(&mut fixture).is_none());
        is(&fixture, "False", reason);
        fixture.world.peers.clear();
        assert!(order(&mut fixture).is_some(), "it is good still");
        is(&fixture, "Unknown", "Joining");
    }
    for (name, range) in [("paris", "10.1.128.0/17"), ("berlin", "10.3.0.0/16")] {
        fixture.mesh(json!({"clusterName": name, "podCIDRs": [range]}));
        let asks = order(&mut fixture).is_some();
        assert!(asks, "the inviter refuses it, and says so on its side");
    }
}

#[test]
fn a_used_token_that_is_put_in_again_is_asked_for_again() {
    let mut fixture = joining();
    let welcome = berlin("10.1.0.0/16", &fixture);
    outcome(&mut fixture, Ok(welcome), 0);
    fixture.settle();
    fixture.world.peers.clear();
    fixture.settle();
    assert!(
        find::<Peer>(&fixture.world.peers, "berlin").is_none(),
        "what a person has deleted stays away"
    );
    let status = fixture.mesh_status();
    let said = api::find_condition(&status.conditions, "Joined").expect("said");
    assert!(said.message.contains("a new token"), "{}", said.message);

    let put_in = fixture.world.owned.secrets.iter_mut();
    let mut put_in = put_in.filter(|one| one.metadata.name.as_deref() == Some(JOIN_SECRET));
    let secret = Arc::make_mut(put_in.next().expect("the Secret"));
    secret.metadata.uid = Some("k".to_owned());
    secret.metadata.annotations = None;
    assert!(order(&mut fixture).is_some(), "the inviter has to say it");
    assert!(find::<Peer>(&fixture.world.peers, "berlin").is_none());
}

#[test]
fn a_failure_says_what_to_do() {
    let url: derp::RelayUrl = "http://192.0.2.1:80".parse().expect("a URL");
    let unreachable = |refusal| sync::JoinError::RelayUnreachable {
        url: url.clone(),
        problem: "no answer".to_owned(),
        refusal,
    };
    let refused = |code| sync::JoinError::Refused(sync::Refused::new(code, ""));
    for (error, word) in [
        (unreachable(None), "outbound TCP"),
        (unreachable(Some(derp::Refusal::PassExpired)), "a new token"),
        (refused(RefusedCode::Used), "a new token"),
        (refused(RefusedCode::Expired), "a new token"),
    ] {
        let failure = JoinFailure::from(&error);
        assert!(failure.message.contains(word), "{}", failure.message);
    }
}

#[test]
fn failures_are_said_and_tried_again_where_that_can_help() {
    for (code, wait) in [
        (JoinCode::RelayUnreachable, Some(5)),
        (JoinCode::InviterUnreachable, Some(5)),
        (JoinCode::Busy, Some(5)),
        (JoinCode::NameTaken, Some(60)),
        (JoinCode::Overlap, Some(60)),
        (JoinCode::Used, None),
        (JoinCode::Expired, None),
        (JoinCode::BadProof, None),
    ] {
        let mut fixture = joining();
        outcome(&mut fixture, Err(code), 1);
        assert!(order(&mut fixture).is_none(), "{code:?}");
        is(&fixture, "False", code.reason());
        fixture.pass_seconds(wait.unwrap_or(300) - 1);
        assert!(order(&mut fixture).is_none(), "{code:?}");
        fixture.pass_seconds(1);
        assert_eq!(order(&mut fixture).is_some(), wait.is_some(), "{code:?}");
        fixture.pass_seconds(3600);
        assert!(order(&mut fixture).is_none(), "the token is over");
    }
    assert_eq!(JoinCode::Busy.wait(3), Some(20));
    assert_eq!(JoinCode::Busy.wait(1000), Some(60));
}

#[test]
fn other_words_are_worth_another_try_at_once() {
    let mut fixture = joining();
    outcome(&mut fixture, Err(JoinCode::Overlap), 1);
    assert!(order(&mut fixture).is_none());
    fixture.mesh(json!({"clusterName": "paris", "podCIDRs": ["10.30.0.0/16"]}));
    assert!(order(&mut fixture).is_some());
}

#[test]
fn what_the_inviter_claims_is_checked_here() {
    let mut fixture = joining();
    let welcome = berlin("10.1.0.0/16", &fixture);
    outcome(&mut fixture, Ok(welcome), 0);
    fixture.peer("oslo", json!({"allowedCIDRs": ["10.1.7.0/24"]}));
    fixture.settle();
    is(&fixture, "False", "Overlap");
    assert!(find::<Peer>(&fixture.world.peers, "berlin").is_none());
    fixture.world.peers.clear();
    fixture.settle();
    is(&fixture, "True", "Joined");
}

#[test]
fn an_inviter_takes_no_public_range() {
    let mut fixture = joining();
    let welcome = berlin("126.0.0.0/8", &fixture);
    outcome(&mut fixture, Ok(welcome), 0);
    fixture.settle();
    is(&fixture, "False", "NotAllowed");
    assert!(find::<Peer>(&fixture.world.peers, "berlin").is_none());
}

#[test]
fn a_token_that_is_none_or_over_is_not_tried() {
    let mut fixture = joining();
    fixture.pass_seconds(900);
    assert!(order(&mut fixture).is_none());
    is(&fixture, "False", "Expired");
    let join = fixture.world.owned.secrets.last_mut().expect("the Secret");
    let text = k8s_openapi::ByteString(b"cvt1.nonsense".to_vec());
    Arc::make_mut(join).data = Some([("token".to_owned(), text)].into());
    assert!(order(&mut fixture).is_none());
    is(&fixture, "False", "BadToken");
}

#[test]
fn the_secret_is_only_annotated() {
    let mut fixture = joining();
    let welcome = berlin("10.1.0.0/16", &fixture);
    outcome(&mut fixture, Ok(welcome), 0);
    let first = plan(&fixture.world).actions;
    fixture.carry_out(first);
    let applied = plan(&fixture.world)
        .actions
        .into_iter()
        .find_map(|action| match action {
            Action::Apply(object) if object.kind() == Kind::Secret => Some(object),
            Action::Apply(_)
            | Action::Swap(_)
            | Action::Create(_)
            | Action::Certify(_)
            | Action::ApplyStatus(_)
            | Action::Redeem(_)
            | Action::Delete(_)
            | Action::Event(_) => None,
        });
    let secrets: Vec<_> = applied
        .into_iter()
        .map(|object| object.to_value())
        .collect();
    let annotated = secrets
        .iter()
        .find(|secret| secret["metadata"]["name"] == JOIN_SECRET);
    let annotated = annotated.expect("the Secret");
    assert_eq!(annotated["metadata"]["uid"], "j");
    assert!(annotated.get("data").is_none());
}
