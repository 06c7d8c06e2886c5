use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::key::NodeSecret;

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

fn node(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn owners(seeds: &[u8]) -> HashSet<ClusterIdentity> {
    seeds.iter().map(|seed| secret(*seed).identity()).collect()
}

/// Owner 1 admits cluster 2 until 2000.
fn membership(scope: Scope) -> Membership {
    Membership::issue(&secret(1), secret(2).identity(), scope, at(2000))
}

/// Cluster 2 admits node 3 until 1000.
fn chain(scope: Scope) -> Pass {
    Pass::issue(&secret(2), node(3), at(1000), Some(membership(scope))).unwrap()
}

fn own() -> Pass {
    Pass::issue(&secret(1), node(3), at(1000), None).unwrap()
}

fn deny_list(serial: u64) -> DenyList {
    let (nodes, clusters) = ([node(3), node(4)], [secret(2).identity()]);
    DenyList::issue(&secret(1), serial, nodes.into(), clusters.into()).unwrap()
}

#[test]
fn the_owner_admits_its_own_nodes() {
    let admitted = verify(&own().to_string(), &owners(&[1]), &node(3), at(999));
    assert_eq!(
        admitted,
        Ok(Admitted {
            owner: secret(1).identity(),
            cluster: secret(1).identity(),
            scope: Scope::Mesh,
            expires: at(1000),
        })
    );
}

#[test]
fn a_chain_of_two_admits_nodes_of_a_member() {
    let lobby_key = secret(2).identity().relay_key();
    for (scope, key) in [(Scope::Mesh, node(3)), (Scope::Lobby, lobby_key)] {
        let pass = Pass::issue(&secret(2), key, at(1000), Some(membership(scope))).unwrap();
        let admitted = verify(&pass.to_string(), &owners(&[1]), &key, at(999));
        assert_eq!(
            admitted,
            Ok(Admitted {
                owner: secret(1).identity(),
                cluster: secret(2).identity(),
                scope,
                expires: at(1000),
            })
        );
    }
}

#[test]
fn what_is_not_for_this_relay_key_and_time_is_refused() {
    let pass = chain(Scope::Mesh);
    for (seeds, key, now, error) in [
        (vec![2, 3], node(3), 0, PassError::UnknownOwner),
        (vec![1], node(4), 0, PassError::WrongKey),
        (vec![1], node(3), 1000, PassError::Expired),
    ] {
        assert_eq!(pass.verify(&owners(&seeds), &key, at(now)), Err(error));
    }
    assert_eq!(
        own().verify(&owners(&[2]), &node(3), at(0)),
        Err(PassError::UnknownOwner)
    );
}

#[test]
fn who_holds_an_invite_has_one_key_and_not_many() {
    let verified = chain(Scope::Lobby).verify(&owners(&[1]), &node(3), at(0));
    assert_eq!(verified, Err(PassError::WrongKey));
}

#[test]
fn the_first_link_that_ends_ends_the_chain() {
    let long = Pass::issue(&secret(2), node(3), at(9000), Some(membership(Scope::Mesh))).unwrap();
    assert_eq!(long.expires(), at(2000));
    let verified = long.verify(&owners(&[1]), &node(3), at(2000));
    assert_eq!(verified, Err(PassError::Expired));
}

#[test]
fn whose_membership_has_expired_may_come_back_to_the_lobby() {
    let (owner, returner) = (owners(&[1]), secret(2).identity().relay_key());
    let last = 2000 + RETURN.as_secs();
    let pass = |key, expires| {
        let membership = Some(membership(Scope::Mesh));
        Pass::issue(&secret(2), key, at(expires), membership).unwrap()
    };
    let fresh = pass(returner, last + 500);
    let scope = |pass: &Pass, now| pass.verify(&owner, &pass.key(), at(now));
    assert_eq!(scope(&fresh, 1999).unwrap().scope, Scope::Mesh);
    for now in [2000, last - 1] {
        let back = scope(&fresh, now).unwrap();
        assert_eq!((back.scope, back.expires), (Scope::Lobby, at(last)));
        assert_eq!(back.cluster, secret(2).identity());
    }
    assert_eq!(scope(&fresh, last), Err(PassError::Expired));
    let old = pass(returner, 3000);
    assert_eq!(scope(&old, 2999).unwrap().expires, at(3000));
    assert_eq!(scope(&old, 3000), Err(PassError::Expired), "its own word");
    let node = pass(node(3), last);
    assert_eq!(scope(&node, 2000), Err(PassError::Expired), "nodes wait");
    let invited = Pass::issue(
        &secret(2),
        returner,
        at(9000),
        Some(membership(Scope::Lobby)),
    );
    assert_eq!(scope(&invited.unwrap(), 2000), Err(PassError::Expired));
    let own = Pass::issue(&secret(1), secret(1).identity().relay_key(), at(1000), None);
    assert_eq!(scope(&own.unwrap(), 1000), Err(PassError::Expired));
    let others = fresh.verify(&owners(&[3]), &returner, at(2000));
    assert_eq!(others, Err(PassError::UnknownOwner));
}

#[test]
fn a_membership_is_for_one_cluster() {
    let stolen = Pass::issue(&secret(3), node(3), at(1000), Some(membership(Scope::Mesh)));
    assert_eq!(stolen, Err(PassError::OtherCluster));
    let given = membership(Scope::Mesh);
    let (one, two) = (secret(1).identity(), secret(2).identity());
    assert_eq!(given.verify(&one, &two, at(1999)), Ok(()));
    assert_eq!(
        given.verify(&two, &one, at(0)),
        Err(PassError::OtherCluster)
    );
    assert_eq!(given.verify(&one, &two, at(2000)), Err(PassError::Expired));
}

#[test]
fn nobody_signs_for_another() {
    let mut forged = chain(Scope::Mesh);
    forged.key = node(4);
    assert_eq!(
        forged.to_string().parse::<Pass>(),
        Err(PassError::Signature)
    );
    let mut wider = chain(Scope::Lobby);
    wider.membership.as_mut().unwrap().scope = Scope::Mesh;
    assert_eq!(wider.to_string().parse::<Pass>(), Err(PassError::Signature));
    let mut own_owner = own();
    own_owner.membership = Some(Membership::issue(
        &secret(1),
        secret(2).identity(),
        Scope::Mesh,
        at(2000),
    ));
    assert_eq!(
        own_owner.to_string().parse::<Pass>(),
        Err(PassError::Signature)
    );
}

#[test]
fn texts_of_one_kind_are_none_of_the_other() {
    let (pass, membership) = (own().to_string(), membership(Scope::Mesh).to_string());
    assert_eq!(pass.parse::<Membership>(), Err(PassError::Malformed));
    assert_eq!(membership.parse::<Pass>(), Err(PassError::Malformed));
}

#[test]
fn renewal_is_due_at_half_life() {
    let issued = at(1_800_000_000);
    let pass = Pass::issue(&secret(1), node(3), issued + LIFETIME, None).unwrap();
    assert_eq!(pass.renew_at(), issued + LIFETIME / 2);
    let member = Membership::issue(
        &secret(1),
        secret(2).identity(),
        Scope::Mesh,
        issued + LIFETIME,
    );
    assert_eq!(member.renew_at(), issued + LIFETIME / 2);
    assert_eq!(own().renew_at(), UNIX_EPOCH);
}

#[test]
fn times_beyond_what_can_be_written_are_cut() {
    let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
    let pass = Pass::issue(&secret(1), node(3), far, None).unwrap();
    assert_eq!(pass.expires(), at(253_402_300_799));
    let before = UNIX_EPOCH - Duration::from_secs(1);
    let pass = Pass::issue(&secret(1), node(3), before, None).unwrap();
    assert_eq!(pass.expires(), UNIX_EPOCH);
}

/// Other implementations, and later versions of this one, read these.
const OWN: &str = "EYqI4910CfGV_VLbLTy6XXLKZwm_HZQSG_N0iAG0D29cXf7dO2vUf2-ijuFdlp1bsOpTd01Ii9r53xxuASSz7yIAAAAAAAAD6DdeaJmrP8pH0qlscUcLyaxiloHbd7S47dH1gCWmbiTCYyKL6acaKjPNDNu02eUwU6ORFYpjenfpldF8rjZe5gk";
const CHAIN: &str = "EYE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOUXf7dO2vUf2-ijuFdlp1bsOpTd01Ii9r53xxuASSz7yIAAAAAAAAD6KAWJYKPri_ShIbrZYlNKXtTBZ9pwwvWRJgRBJOmGDonYVjcWiavZNT7j0PnFgTd5xJRpdI-IzWPMfivfGbjHwyKiOPddAnxlf1S2y08ul1yymcJvx2UEhvzdIgBtA9vXAIAAAAAAAAH0HjtQOGI66aW2MyxQGICdM5IxOqxhwHo8yTdqvf9PBqzQXZgcznWBrKnxjnarxAVkN2CkEl0iSw5_ZCCUowsGgs";
const MEMBERSHIP: &str = "IYqI4910CfGV_VLbLTy6XXLKZwm_HZQSG_N0iAG0D29cgTl3Dqh9F19Wo1Rmw0x-zMuNipG07jeiXfYPW4_Js5QBAAAAAAAAB9A2PiueRwQJu__XQYdg-PQICSH9oTjfe6B1zoaWWB3xhpDbfEUNm-qb9qqPVmeL7DoRBa29Glft37MdY2nvPeAO";
const DENY_LIST: &str = r#"{"serial":7,"owner":"cluster:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=","nodes":["Xf7dO2vUf2+ijuFdlp1bsOpTd01Ii9r53xxuASSz7yI=","rAGyIJ6GNU+4UyN7XeD0+rE8f8v0M6YcAZNpYX/s8Qs="],"clusters":["cluster:gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q="],"signature":"IjtRvKKWP0Cdyg282PPWtDu3q40s2OFPW5Fi-CSnwNrchXggpI6w83r36FwQcU5ywoxIiCaKB3ni6MfegL7XDQ"}"#;

#[test]
fn known_texts_are_written_and_read() {
    assert_eq!(own().to_string(), OWN);
    assert_eq!(OWN.parse(), Ok(own()));
    assert_eq!(chain(Scope::Lobby).to_string(), CHAIN);
    assert_eq!(CHAIN.parse(), Ok(chain(Scope::Lobby)));
    assert_eq!(CHAIN.len(), MAX_PASS_TEXT);
    assert_eq!(membership(Scope::Mesh).to_string(), MEMBERSHIP);
    assert_eq!(MEMBERSHIP.parse(), Ok(membership(Scope::Mesh)));
    assert_eq!(deny_list(7).to_json(), DENY_LIST);
    assert_eq!(DenyList::parse(DENY_LIST.as_bytes()).unwrap(), deny_list(7));
}

#[test]
fn they_are_texts_in_json_too() {
    let json = serde_json::to_string(&(membership(Scope::Mesh), own())).unwrap();
    let read: (Membership, Pass) = serde_json::from_str(&json).unwrap();
    assert_eq!(read, (membership(Scope::Mesh), own()));
}

#[test]
fn padding_and_length_are_refused() {
    for text in [
        String::new(),
        format!("{OWN}="),
        format!("{OWN}AAAA"),
        format!("{CHAIN}AAAA"),
        "A".repeat(1 << 20),
        CHAIN[..CHAIN.len() - 4].to_owned(),
    ] {
        assert_eq!(text.parse::<Pass>(), Err(PassError::Malformed));
    }
}

#[test]
fn a_deny_list_without_the_owners_signature_is_refused() {
    let json = deny_list(7).to_json();
    let unsigned: String = json.split(",\"signature\"").next().unwrap().to_owned() + "}";
    let higher = json.replace("\"serial\":7", "\"serial\":8");
    let fewer = json.replace(
        &format!("\"{}\",", deny_list(7).nodes().first().unwrap()),
        "",
    );
    assert_ne!(fewer, json);
    for text in [unsigned, higher, fewer] {
        let parsed = DenyList::parse(text.as_bytes());
        assert!(matches!(parsed, Err(DenyError::Signature)), "{parsed:?}");
    }
    let more = json.replace("\"serial\"", "\"more\":1,\"serial\"");
    assert!(matches!(
        DenyList::parse(more.as_bytes()),
        Err(DenyError::Malformed(_))
    ));
}

#[test]
fn whom_a_list_names_is_looked_at_only_when_its_owner_has_signed_it() {
    let not_a_point = format!("cluster:{}=", "A".repeat(43));
    let named = secret(2).identity().to_string();
    let forged = deny_list(7).to_json().replace(&named, &not_a_point);
    assert_ne!(forged, deny_list(7).to_json());
    let parsed = DenyList::parse(forged.as_bytes());
    assert!(matches!(parsed, Err(DenyError::Signature)), "{parsed:?}");
}

#[test]
fn deny_lists_are_bounded_and_the_largest_fits() {
    let nodes: BTreeSet<NodeKey> = (0..=MAX_DENIED_NODES)
        .filter_map(|number| {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            NodeKey::from_bytes(bytes).ok()
        })
        .collect();
    let clusters: BTreeSet<ClusterIdentity> = (1..=255)
        .map(|seed| secret(seed).identity())
        .chain([ClusterSecret::generate().unwrap().identity()])
        .collect();
    let refused = DenyList::issue(&secret(1), 1, nodes.clone(), clusters.clone());
    assert!(matches!(refused, Err(DenyError::TooLong)));
    let most = nodes.into_iter().take(MAX_DENIED_NODES).collect();
    let json = DenyList::issue(&secret(1), u64::MAX, most, clusters)
        .unwrap()
        .to_json();
    assert!(DenyList::parse(json.as_bytes()).is_ok());
    let clusters: Vec<String> = (0..=MAX_DENIED_CLUSTERS).map(|_| String::new()).collect();
    let many =
        json!({"serial": 1, "owner": secret(1).identity(), "nodes": [], "clusters": clusters});
    assert!(matches!(
        DenyList::parse(many.to_string().as_bytes()),
        Err(DenyError::TooLong)
    ));
    let larger = format!("{json}{}", " ".repeat(MAX_DENY_LIST - json.len() + 1));
    assert!(matches!(
        DenyList::parse(larger.as_bytes()),
        Err(DenyError::TooLong)
    ));
}

fn flipped(text: &str, bit: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let index = bit / 8 % bytes.len();
    bytes[index] ^= 1 << (bit % 8);
    bytes
}

#[test]
fn any_flipped_bit_of_a_pass_or_membership_is_refused() {
    let (chain, membership) = (
        chain(Scope::Lobby).to_string(),
        membership(Scope::Mesh).to_string(),
    );
    for bit in 0..chain.len() * 8 {
        let text = String::from_utf8(flipped(&chain, bit));
        assert!(
            text.map_or(true, |text| text.parse::<Pass>().is_err()),
            "{bit}"
        );
    }
    for bit in 0..membership.len() * 8 {
        let text = String::from_utf8(flipped(&membership, bit));
        assert!(
            text.map_or(true, |text| text.parse::<Membership>().is_err()),
            "{bit}"
        );
    }
}

#[test]
fn any_flipped_bit_of_a_deny_list_is_refused() {
    let json = deny_list(7).to_json();
    for bit in 0..json.len() * 8 {
        assert!(DenyList::parse(&flipped(&json, bit)).is_err(), "{bit}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,400}") {
        prop_assert!(text.parse::<Pass>().is_err());
        prop_assert!(text.parse::<Membership>().is_err());
        prop_assert!(DenyList::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn no_bytes_panic(tag in prop_oneof![Just(PASS_TAG), Just(MEMBERSHIP_TAG)], bytes in prop::collection::vec(any::<u8>(), 0..260)) {
        let text = wire::encode(&[&[tag], bytes.as_slice()].concat());
        prop_assert!(text.parse::<Pass>().is_err());
        prop_assert!(text.parse::<Membership>().is_err());
    }

    #[test]
    fn what_is_issued_is_read_back(cluster in 1_u8.., key in 1_u8.., seconds in 0_u64..1 << 37, member: bool, lobby: bool) {
        let scope = if lobby { Scope::Lobby } else { Scope::Mesh };
        let membership = Membership::issue(&secret(1), secret(cluster).identity(), scope, at(seconds));
        prop_assert_eq!(membership.to_string().parse(), Ok(membership));
        let pass = Pass::issue(&secret(cluster), node(key), at(seconds), member.then_some(membership)).unwrap();
        prop_assert_eq!(pass.to_string().parse(), Ok(pass));
    }
}
