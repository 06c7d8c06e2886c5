use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::plan::fixture::{Fixture, condition, key, secret};
use crate::plan::tests::linked;
use crate::plan::{draft::later, plan};
use crate::world::JoinAsk;
use derp::pass::DenyList;

fn list(push: &DenyPush) -> DenyList {
    DenyList::parse(push.json.as_bytes()).expect("a list")
}

fn with_external(owner: Option<u8>) -> Fixture {
    let mut fixture = Fixture::new();
    let mut relay = json!({"url": "https://relay.example"});
    if let Some(owner) = owner {
        relay["owner"] = secret(owner).identity().to_string().into();
    }
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "relays": {"external": [relay]},
    }));
    fixture.peer(
        "tokyo",
        json!({"identity": secret(2).identity().to_string(), "allowedCIDRs": ["10.2.0.0/16"]}),
    );
    fixture.settle();
    fixture.connect();
    fixture.agents_ready();
    fixture.settle();
    fixture
}

fn without_tokyo(mut fixture: Fixture) -> (Fixture, Vec<DenyPush>) {
    fixture.world.peers.clear();
    let pushes = fixture.settle().denylists;
    (fixture, pushes)
}

fn trouble(fixture: &mut Fixture, fault: DenyFault, times: u32) {
    let problem = DenyProblem {
        fault,
        message: "the relay answers 500".to_owned(),
        times,
    };
    let relay = fixture.world.sync.relays.keys().next().expect("a relay");
    fixture.world.undenied.insert(relay.clone(), problem);
}

#[test]
fn the_key_of_a_node_that_is_gone_is_denied_until_its_pass_is_over() {
    let mut fixture = linked();
    assert!(fixture.settle().denylists.is_empty());
    let gone = fixture.world.nodes.remove(0);
    let pushes = fixture.settle().denylists;
    let [push] = pushes.as_slice() else {
        panic!("one relay: {pushes:?}");
    };
    assert_eq!(list(push).nodes(), &BTreeSet::from([key(100)]));
    assert!(list(push).clusters().is_empty());

    fixture.world.nodes.push(gone);
    fixture.settle();
    fixture.agents_ready();
    let pushes = fixture.settle().denylists;
    assert!(list(&pushes[0]).nodes().is_empty(), "it is back");
}

#[test]
fn a_key_that_an_agent_has_replaced_is_denied() {
    let mut fixture = linked();
    fixture.report("n1", json!({"publicKey": key(77).to_string()}));
    let pushes = fixture.settle().denylists;
    assert_eq!(list(&pushes[0]).nodes(), &BTreeSet::from([key(100)]));
}

#[test]
fn nobody_has_a_pass_before_it_is_written_down() {
    let mut fixture = linked();
    let passes = |fixture: &Fixture| {
        let relays = fixture.world.mesh_nodes.iter();
        let relays = relays.flat_map(|node| &node.spec.relays);
        relays.filter(|relay| relay.pass.is_some()).count()
    };
    assert_eq!(passes(&fixture), 2, "one relay, two nodes");
    let given = |fixture: &Fixture| plan(&fixture.world).sync.expect("sync").memberships;
    assert!(given(&fixture).contains_key(&secret(2).identity()));

    fixture.peer(
        "paris",
        json!({"identity": secret(3).identity().to_string(), "allowedCIDRs": ["10.3.0.0/16"]}),
    );
    fixture.report("n1", json!({"publicKey": key(77).to_string()}));
    let first = plan(&fixture.world);
    let sync = first.sync.as_ref().expect("sync");
    assert!(sync.peers.contains(&secret(3).identity()));
    assert!(!sync.memberships.contains_key(&secret(3).identity()));
    assert!(sync.memberships.contains_key(&secret(2).identity()));
    fixture.carry_out(first.actions);
    assert_eq!(passes(&fixture), 1);
    assert!(given(&fixture).contains_key(&secret(3).identity()));
    fixture.settle();
    assert_eq!(passes(&fixture), 2);
}

/// `paris`, number 3, has just joined, and the watch shows everything but its Peer; with what creates that.
fn let_in() -> (Fixture, Vec<Action>) {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    fixture.settle();
    let invite = fixture.world.invites[0].status.as_ref();
    let invite = invite.and_then(|status| status.identity.as_ref());
    let ask = JoinAsk {
        invite: invite.expect("a token").parse().expect("an identity"),
        identity: secret(3).identity(),
        audience: None,
        cluster_name: "paris".parse().expect("a name"),
        cidrs: vec!["10.3.0.0/16".parse().expect("a prefix")],
    };
    let (_, actions) = crate::join::answer(&fixture.world, &ask);
    let (create, others) = actions
        .into_iter()
        .partition(|action| matches!(action, Action::Create(_)));
    fixture.carry_out(others);
    (fixture, create)
}

#[test]
fn who_was_just_let_in_is_kept_until_its_peer_is_seen() {
    let (mut fixture, create) = let_in();
    for _ in 0..2 {
        let plan = fixture.settle();
        assert!(plan.denylists.is_empty(), "{:?}", plan.denylists);
        assert!(
            remembered(&fixture.world)
                .clusters
                .contains(&secret(3).identity())
        );
        let wake = plan.wake_after.expect("another look");
        assert!(wake <= Duration::from_secs(120), "{wake:?}");
        fixture.pass_seconds(59);
    }
    fixture.carry_out(create);
    let sync = fixture.settle().sync.expect("conversations");
    assert!(sync.memberships.contains_key(&secret(3).identity()));

    fixture
        .world
        .peers
        .retain(|peer| peer.metadata.name.as_deref() != Some("paris"));
    let pushes = fixture.settle().denylists;
    let denied = list(&pushes[0]);
    assert_eq!(denied.clusters(), &BTreeSet::from([secret(3).identity()]));
}

#[test]
fn who_was_let_in_is_not_waited_for_without_end() {
    let (mut fixture, _) = let_in();
    fixture.settle();
    fixture.pass_seconds(120);
    let pushes = fixture.settle().denylists;
    let denied = list(&pushes[0]);
    assert_eq!(denied.clusters(), &BTreeSet::from([secret(3).identity()]));
    let (denied, before) = (read(&fixture.world), fixture.now());
    fixture.world.now = later(before, -60);
    fixture.settle();
    assert_eq!(read(&fixture.world).denied, denied.denied, "it stays so");
}

#[test]
fn the_register_is_written_over_what_was_looked_at_only() {
    let mut fixture = linked();
    fixture.world.peers.clear();
    let actions = plan(&fixture.world).actions;
    let swap = actions.iter().find_map(|action| match action {
        Action::Swap(object) => Some(object.metadata().clone()),
        Action::Apply(_)
        | Action::Create(_)
        | Action::Certify(_)
        | Action::ApplyStatus(_)
        | Action::Redeem(_)
        | Action::Delete(_)
        | Action::Event(_) => None,
    });
    let swap = swap.expect("the register");
    let found = find::<ConfigMap>(&fixture.world.owned.config_maps, DENY_MAP).expect("a register");
    assert_eq!(swap.name.as_deref(), Some(DENY_MAP));
    assert!(swap.resource_version.is_some());
    assert_eq!(swap.resource_version, found.metadata.resource_version);
}

#[test]
fn a_relay_that_has_another_list_gets_a_newer_one() {
    let (mut fixture, pushes) = without_tokyo(linked());
    let serial = pushes[0].serial;
    trouble(
        &mut fixture,
        DenyFault::Stale {
            in_force: serial + 5,
        },
        1,
    );
    let next = fixture.settle().denylists;
    assert_eq!(next[0].serial, serial + 6);
    assert!(list(&next[0]).clusters().contains(&secret(2).identity()));
    let conditions = fixture.mesh_status().conditions;
    assert_eq!(condition(&conditions, "RelaysReady").0, "True");

    trouble(&mut fixture, DenyFault::Stale { in_force: u64::MAX }, 1);
    assert_eq!(fixture.settle().denylists[0].serial, serial + 6);
    let conditions = fixture.mesh_status().conditions;
    assert_eq!(
        condition(&conditions, "RelaysReady"),
        ("False", "DenyListNotTaken"),
        "no serial is above that one"
    );
}

#[test]
fn that_a_relay_takes_no_list_is_told_with_what_to_do() {
    for (fault, times, advice) in [
        (DenyFault::NotOwner, 1, Some("add the line cluster:")),
        (DenyFault::Unsupported, 1, Some("PUT /denylist")),
        (DenyFault::Other, TELLING, Some("the relay answers 500")),
        (DenyFault::Other, TELLING - 1, None),
    ] {
        let (mut fixture, _) = without_tokyo(with_external(Some(1)));
        trouble(&mut fixture, fault, times);
        let pushes = fixture.settle().denylists;
        assert_eq!(pushes.len(), 1, "it is tried on");
        let status = fixture.mesh_status();
        let (told, reason) = condition(&status.conditions, "RelaysReady");
        let problem = status.relays[0].problem.as_deref();
        match advice {
            Some(advice) => {
                assert_eq!((told, reason), ("False", "DenyListNotTaken"));
                assert!(
                    problem.is_some_and(|text| text.contains(advice)),
                    "{problem:?}"
                );
            }
            None => assert_eq!((told, problem), ("True", None)),
        }
    }
}

#[test]
fn relays_of_others_are_told_nothing() {
    let (_, pushes) = without_tokyo(with_external(Some(9)));
    assert!(pushes.is_empty());
    let (_, pushes) = without_tokyo(with_external(Some(1)));
    assert_eq!(pushes.len(), 1);
    assert_eq!(pushes[0].question, None, "it is ours");

    let (mut fixture, pushes) = without_tokyo(with_external(None));
    let question = pushes[0].question.as_ref().expect("a question");
    let question = DenyList::parse(question.as_bytes()).expect("a list");
    assert!(question.nodes().is_empty() && question.clusters().is_empty());
    trouble(&mut fixture, DenyFault::NotOwner, 1);
    assert!(fixture.settle().denylists.is_empty(), "it is not ours");
    let conditions = fixture.mesh_status().conditions;
    assert_eq!(condition(&conditions, "RelaysReady").0, "True");
}

#[test]
fn without_a_mesh_relays_elsewhere_let_nobody_in_any_more() {
    let mut fixture = with_external(Some(1));
    fixture.world.meshes.clear();
    fixture.world.sync.relays.clear();
    let gone = fixture.settle();
    assert!(gone.sync.is_none());
    let [push] = gone.denylists.as_slice() else {
        panic!("one relay: {:?}", gone.denylists);
    };
    let denied = list(push);
    assert!(denied.clusters().contains(&secret(2).identity()));
    assert!(denied.nodes().is_superset(&[key(100), key(101)].into()));
    let taken = BTreeMap::from([(push.relay.clone(), push.serial)]);
    fixture.world.denied = taken;
    assert!(fixture.settle().denylists.is_empty());
    fixture.world.denied.clear();
    fixture.pass_seconds(FAREWELL - 1);
    assert_eq!(fixture.settle().denylists.len(), 1);
    fixture.pass_seconds(1);
    assert!(
        fixture.settle().denylists.is_empty(),
        "nobody tries for ever"
    );
}

#[test]
fn a_register_that_is_over_is_empty() {
    let (mut fixture, _) = without_tokyo(linked());
    fixture.world.now = later(fixture.now(), 98 * 24 * 3600);
    fixture.settle();
    let register = read(&fixture.world);
    assert!(register.denied.is_empty() && register.admitted.len() == 2);
}
