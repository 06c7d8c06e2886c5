use std::sync::Arc;

use serde_json::json;

use super::fixture::{Fixture, condition, down, key, secret, up};
use super::names::{DENY_MAP, IDENTITY_SECRET};
use super::plan;
use crate::action::{Action, Kind, Object};
use crate::plan::draft::find;
use crate::world::World;
use k8s_openapi::api::core::v1::ConfigMap;
use sync::{CloseReason, DownReason};

/// `berlin` with a relay at a public address, linked to `tokyo`, whose identity is number 2.
pub(crate) fn linked() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.mesh(json!({
        "clusterName": "berlin",
        "podCIDRs": ["10.1.0.0/16"],
        "relays": {"managed": [{"name": "main", "exposure": {"type": "NodePort", "host": "203.0.113.1", "port": 443}}]},
    }));
    fixture.peer(
        "tokyo",
        json!({"identity": secret(2).identity().to_string(), "allowedCIDRs": ["10.2.0.0/16"]}),
    );
    fixture.settle();
    fixture.connect();
    fixture.agents_ready();
    let tokyo = up(
        "tokyo",
        &[("t1", 20, &["10.2.1.0/24"]), ("t2", 21, &["10.2.2.0/24"])],
    );
    fixture.view(secret(2).identity(), tokyo);
    fixture.come_over_relays();
    fixture.settle();
    fixture
}

/// Reports that the node that probes `tokyo` has had an answer so many seconds ago.
pub(crate) fn probed(fixture: &mut Fixture, path: &str, seconds_ago: i64) {
    let nodes = fixture.world.mesh_nodes.iter();
    let prober = nodes
        .filter(|node| node.spec.probes.contains(&"tokyo".to_owned()))
        .map(|node| (node.metadata.name.clone(), node.status.clone()))
        .next();
    let (name, status) = prober.expect("somebody probes");
    let mut status = serde_json::to_value(status).expect("JSON");
    let at = super::draft::later(fixture.now(), -seconds_ago).to_string();
    let reason = if path == "direct" {
        json!(null)
    } else {
        json!("BothNatsHard")
    };
    status["peers"] = json!([{
        "name": "tokyo", "accepted": true, "probedAt": at, "nodeCount": 2,
        "nodes": [{"name": "t1", "path": path, "reason": reason, "rttMicros": 1250}],
    }]);
    fixture.report(&name.expect("a name"), status);
}

fn kinds(world: &World) -> Vec<Kind> {
    let applied = |action: Action| match action {
        Action::Apply(object) | Action::Swap(object) | Action::Create(object) => {
            Some(object.kind())
        }
        Action::Certify(_) => Some(Kind::Secret),
        Action::ApplyStatus(_) | Action::Redeem(_) | Action::Delete(_) | Action::Event(_) => None,
    };
    plan(world)
        .actions
        .into_iter()
        .filter_map(applied)
        .collect()
}

#[test]
fn the_identity_is_made_first_and_once() {
    let mut fixture = Fixture::new();
    fixture.world.owned.secrets.clear();
    let mut first = plan(&fixture.world);
    assert!(first.sync.is_none());
    let Some(Action::Create(Object::Secret(made))) = first.actions.pop() else {
        panic!("a Secret");
    };
    assert!(first.actions.is_empty());
    assert_eq!(made.metadata.name.as_deref(), Some(IDENTITY_SECRET));
    fixture.carry_out(vec![Action::Create((*made).into())]);
    fixture.settle();
    let identity = fixture.mesh_status().identity.expect("an identity");
    assert_eq!(identity, secret(201).identity().to_string());
}

#[test]
fn a_broken_identity_is_nobodys_to_overwrite() {
    let mut fixture = Fixture::new();
    let broken = &mut fixture.world.owned.secrets[0];
    Arc::make_mut(broken).data = None;
    let plan = fixture.settle();
    assert!(plan.sync.is_none());
    let conditions = fixture.mesh_status().conditions;
    assert_eq!(
        condition(&conditions, "Ready"),
        ("False", "BadIdentitySecret")
    );
}

#[test]
fn without_a_mesh_nothing_is_left() {
    let mut fixture = linked();
    fixture.invite("one", json!({}));
    fixture.settle();
    fixture.world.meshes.clear();
    let plan = fixture.settle();
    assert!(plan.sync.is_none());
    let world = &fixture.world;
    assert!(world.slices.is_empty() && world.mesh_nodes.is_empty());
    assert!(world.owned.deployments.is_empty() && world.owned.services.is_empty());
    assert!(find(&world.owned.secrets, IDENTITY_SECRET).is_some());
    let peer = fixture.peer_status("tokyo");
    assert_eq!(
        condition(&peer.conditions, "Ready"),
        ("False", "UnknownMesh")
    );
    fixture.world.invites.clear();
    fixture.settle();
}

#[test]
fn of_two_meshes_the_older_one_counts() {
    let mut fixture = Fixture::new();
    let mut second = (*fixture.world.meshes[0]).clone();
    second.metadata.name = Some("a-second".to_owned());
    second.metadata.creation_timestamp = second.metadata.creation_timestamp.map(|time| {
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(super::draft::later(time.0, 5))
    });
    fixture.world.meshes.insert(0, Arc::new(second));
    fixture.settle();
    let status = |index: usize| {
        fixture.world.meshes[index]
            .status
            .clone()
            .expect("a status")
    };
    assert_eq!(
        condition(&status(0).conditions, "Accepted"),
        ("False", "SecondMesh")
    );
    assert_eq!(
        condition(&status(1).conditions, "Accepted"),
        ("True", "Accepted")
    );
}

#[test]
fn a_linked_cluster_settles_and_says_so() {
    let mut fixture = linked();
    probed(&mut fixture, "relay", 5);
    let plan = fixture.settle();
    let sync = plan.sync.expect("conversations");
    assert_eq!(sync.peers, [secret(2).identity()].into());
    assert_eq!(sync.records.len(), 2);
    assert!(sync.relays[0].pass.is_none(), "our own relay knows us");
    let membership = sync.memberships[&secret(2).identity()];
    assert_eq!(membership.owner(), secret(1).identity());

    let peer = fixture.peer_status("tokyo");
    assert_eq!(peer.nodes.as_deref(), Some("2/2"));
    assert_eq!(peer.rtt.as_deref(), Some("1.2ms"));
    assert_eq!(condition(&peer.conditions, "Ready"), ("True", "Probed"));
    assert_eq!(condition(&peer.conditions, "Direct"), ("False", "Relayed"));
    assert_eq!(condition(&peer.conditions, "Synced"), ("True", "Synced"));

    let mesh = fixture.mesh_status();
    assert_eq!(condition(&mesh.conditions, "Ready"), ("True", "Ready"));
    assert_eq!(mesh.peers.as_deref(), Some("1/1"));
    assert_eq!(mesh.nodes.as_deref(), Some("2/2"));
    assert_eq!(mesh.relay_summary.as_deref(), Some("1/1"));
    assert_eq!(mesh.relays[0].outside, Some(true));
    assert_eq!(mesh.relays[0].url.as_deref(), Some("https://203.0.113.1"));
    assert_eq!(mesh.relays[0].dial.as_deref(), Some("https://10.96.0.7"));
    assert!(
        mesh.relays[0]
            .ca_bundle
            .as_ref()
            .is_some_and(|pem| pem.contains("BEGIN"))
    );
}

#[test]
fn that_a_relay_is_reached_from_outside_is_shown_by_peers_and_forgotten() {
    let mut fixture = linked();
    let reachable = |fixture: &mut Fixture| {
        let plan = fixture.settle();
        let status = fixture.mesh_status();
        let (said, reason) = condition(&status.conditions, "RelayReachable");
        let said = (said.to_owned(), reason.to_owned());
        (said, status.relays[0].outside, plan.wake_after)
    };
    let is = |said: &str, reason: &str| (said.to_owned(), reason.to_owned());
    let (said, outside, wake) = reachable(&mut fixture);
    assert_eq!((said, outside), (is("True", "PeerConnected"), Some(true)));
    assert!(wake.expect("another look").as_secs() <= 601);
    fixture.pass_seconds(599);
    assert_eq!(reachable(&mut fixture).0, is("True", "PeerConnected"));
    fixture.pass_seconds(1);
    let (said, outside, _) = reachable(&mut fixture);
    assert_eq!((said, outside), (is("Unknown", "NotSeen"), None));
    fixture.come_over_relays();
    assert_eq!(reachable(&mut fixture).1, Some(true));
    fixture.world.sync.used.clear();
    assert_eq!(reachable(&mut fixture).0, is("Unknown", "NotSeen"));
    let conditions = fixture.mesh_status().conditions;
    assert_ne!(condition(&conditions, "Ready").1, "NotSeen");
}

#[test]
fn nothing_changes_while_nothing_happens() {
    let mut fixture = linked();
    probed(&mut fixture, "direct", 1);
    fixture.settle();
    fixture.pass_seconds(20);
    assert_eq!(kinds(&fixture.world), []);
    assert!(plan(&fixture.world).actions.is_empty());
}

#[test]
fn an_old_probe_says_nothing() {
    let mut fixture = linked();
    probed(&mut fixture, "direct", 0);
    let wake = fixture.settle().wake_after.expect("another look");
    assert_eq!(wake.as_secs(), 31);
    fixture.pass_seconds(31);
    fixture.settle();
    let peer = fixture.peer_status("tokyo");
    assert_eq!(
        condition(&peer.conditions, "Ready"),
        ("Unknown", "StaleProbe")
    );
    assert_eq!((peer.path, peer.rtt), (None, None));
    let mesh = fixture.mesh_status();
    assert_eq!(mesh.peers.as_deref(), Some("0/1"));
}

#[test]
fn a_peer_that_sends_us_away_is_not_ready_until_it_speaks_again() {
    let mut fixture = linked();
    probed(&mut fixture, "direct", 0);
    let told = DownReason::Told(CloseReason::NotAdmitted);
    for (reason, expected) in [
        (told, ("False", "NotAdmitted")),
        (DownReason::Unreachable, ("False", "NotAdmitted")),
    ] {
        fixture.view(secret(2).identity(), down(reason));
        fixture.settle();
        let peer = fixture.peer_status("tokyo");
        assert_eq!(condition(&peer.conditions, "Ready"), expected);
    }
    assert_eq!(fixture.world.slices.len(), 1, "what it said stays");
    fixture.view(
        secret(2).identity(),
        up("tokyo", &[("t1", 20, &["10.2.1.0/24"])]),
    );
    fixture.settle();
    fixture.view(secret(2).identity(), down(DownReason::Unreachable));
    fixture.settle();
    let peer = fixture.peer_status("tokyo");
    assert_eq!(
        condition(&peer.conditions, "Synced"),
        ("False", "Unreachable")
    );
    assert_eq!(condition(&peer.conditions, "Ready"), ("True", "Probed"));
}

#[test]
fn a_deleted_peer_is_denied_at_every_relay_until_it_is_back() {
    let mut fixture = linked();
    assert!(plan(&fixture.world).denylists.is_empty());
    let peer = fixture.world.peers.pop().expect("a Peer");
    let gone = fixture.settle();
    assert!(fixture.world.slices.is_empty());
    assert!(gone.sync.expect("conversations").peers.is_empty());
    let [push] = gone.denylists.as_slice() else {
        panic!("one relay: {:?}", gone.denylists);
    };
    let list = derp::pass::DenyList::parse(push.json.as_bytes()).expect("a list");
    assert!(list.clusters().contains(&secret(2).identity()));
    assert!(list.nodes().contains(&secret(2).identity().relay_key()));
    assert!(list.serial() > 0 && list.serial() == push.serial);
    assert_eq!(push.dial.to_string(), "https://10.96.0.7");

    fixture.world.denied.insert(push.relay.clone(), push.serial);
    assert!(fixture.settle().denylists.is_empty());
    fixture.world.denied.clear();
    assert_eq!(fixture.settle().denylists.len(), 1, "the relay began anew");

    fixture.world.peers.push(peer);
    let back = fixture.settle();
    let list = derp::pass::DenyList::parse(back.denylists[0].json.as_bytes()).expect("a list");
    assert!(list.clusters().is_empty() && list.serial() > push.serial);
}

#[test]
fn nodes_given_by_hand_are_in_the_admit_file_and_need_no_conversation() {
    let mut fixture = linked();
    fixture.peer(
        "host",
        json!({"allowedCIDRs": ["10.99.0.1/32"], "nodes": [{"name": "h", "publicKey": key(60).to_string(), "prefixes": ["10.99.0.1/32"]}]}),
    );
    fixture.settle();
    let map: &ConfigMap =
        find(&fixture.world.owned.config_maps, "culvert-relay-main-admit").expect("a map");
    let admit = map.data.as_ref().expect("data")["admit"].clone();
    let mut keys = [key(60), secret(2).identity().relay_key()];
    keys.sort();
    let [first, second] = keys;
    let owner = secret(1).identity();
    assert_eq!(admit, format!("{owner}\nnode:{first}\nnode:{second}\n"));
    let peer = fixture.peer_status("host");
    assert_eq!(condition(&peer.conditions, "Synced"), ("True", "Static"));
    assert_eq!(peer.nodes.as_deref(), Some("1/1"));

    fixture.world.peers.pop();
    let plan = fixture.settle();
    let list = derp::pass::DenyList::parse(plan.denylists[0].json.as_bytes()).expect("a list");
    assert!(list.nodes().contains(&key(60)));
    assert!(find::<ConfigMap>(&fixture.world.owned.config_maps, DENY_MAP).is_some());
}

#[test]
fn a_relay_that_turns_us_away_speaks_for_its_owner() {
    let mut fixture = linked();
    probed(&mut fixture, "direct", 0);
    let url = "https://relay.tokyo.example";
    let relays = json!([{"url": url, "owner": secret(2).identity().to_string()}]);
    let peer = Arc::make_mut(&mut fixture.world.peers[0]);
    peer.spec.relays = serde_json::from_value(relays).expect("relays");
    let mut refusing = |refusal: Option<derp::Refusal>| {
        let state = sync::RelayState {
            refusal,
            ..sync::RelayState::default()
        };
        fixture
            .world
            .sync
            .relays
            .insert(url.parse().expect("a URL"), state);
        fixture.settle();
        let conditions = fixture.peer_status("tokyo").conditions;
        let (status, reason) = condition(&conditions, "Ready");
        (status.to_owned(), reason.to_owned())
    };
    let is = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    assert_eq!(refusing(None), is("True", "Probed"));
    assert_eq!(
        refusing(Some(derp::Refusal::NotAdmitted)),
        is("True", "Probed"),
        "it speaks to us"
    );
    assert_eq!(
        refusing(Some(derp::Refusal::Denied)),
        is("False", "NotAdmitted")
    );
    assert_eq!(refusing(None), is("True", "Probed"));
}
