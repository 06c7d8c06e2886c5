use proptest::prelude::*;

use super::*;

const HEAD: usize = 4;

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

fn identity(seed: u8) -> ClusterIdentity {
    secret(seed).identity()
}

fn offer() -> JoinOffer {
    JoinOffer {
        audience: Audience::Host,
        cluster_name: "tokyo".parse().unwrap(),
        cidrs: vec![
            "10.2.0.0/16".parse().unwrap(),
            "fd00:2::/48".parse().unwrap(),
        ],
    }
}

/// Cluster 3 asks cluster 1 with invite 2.
fn ask() -> Ask {
    Ask::new(&secret(3), offer(), identity(1), identity(2))
}

fn welcome() -> Welcome {
    Welcome {
        cluster_name: "berlin".parse().unwrap(),
        cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        accepted: Vec::new(),
        membership: Some("eyJ2IjoxfQ".into()),
    }
}

#[test]
fn messages_survive_the_wire() {
    let bytes = ask().encode().unwrap();
    assert_eq!(Ask::decode(&bytes[HEAD..]).unwrap(), ask());
    for answer in [
        JoinAnswer::Welcome(welcome()),
        JoinAnswer::Refused(Refused::new(RefusedCode::NameTaken, "tokyo")),
    ] {
        let bytes = answer.clone().encode().unwrap();
        assert_eq!(JoinAnswer::decode(&bytes[HEAD..]).unwrap(), answer);
    }
}

#[test]
fn who_does_not_say_what_it_is_may_be_either() {
    let bytes = ask().encode().unwrap();
    let text = std::str::from_utf8(&bytes[HEAD..]).unwrap();
    let said = Ask::decode(text.as_bytes()).unwrap().kind;
    assert_eq!(said, Some(Audience::Host));
    let without = text.replace("\"kind\":\"Host\",", "");
    assert_ne!(without, text);
    let ask = Ask::decode(without.as_bytes()).unwrap();
    assert_eq!(ask.kind, None);
}

#[test]
fn a_proof_holds_for_one_inviter_one_invite_and_one_joiner() {
    assert!(ask().is_proved(identity(1), identity(2)));
    assert!(!ask().is_proved(identity(4), identity(2)));
    assert!(!ask().is_proved(identity(1), identity(4)));
    assert!(!ask().is_proved(identity(2), identity(1)));
    let other = Ask {
        identity: identity(4),
        ..ask()
    };
    assert!(!other.is_proved(identity(1), identity(2)));
    let mut changed = ask();
    changed.signature.0[0] ^= 1;
    assert!(!changed.is_proved(identity(1), identity(2)));
    // Neither the inviter nor the invite joins.
    for seed in [1, 2] {
        let ask = Ask::new(&secret(seed), offer(), identity(1), identity(2));
        assert!(!ask.is_proved(identity(1), identity(2)));
    }
}

#[test]
fn what_is_newer_is_skipped() {
    let text = r#"{"refused": {"code": "MoonPhase", "message": "x", "until": 7}, "trace": {}}"#;
    let refused = Refused::new(RefusedCode::Other, "x");
    assert_eq!(
        JoinAnswer::decode(text.as_bytes()).unwrap(),
        JoinAnswer::Refused(refused)
    );
    let text = r#"{"welcome": {"clusterName": "berlin", "membership": "{not one}"}}"#;
    let JoinAnswer::Welcome(welcome) = JoinAnswer::decode(text.as_bytes()).unwrap() else {
        panic!("not a welcome")
    };
    assert_eq!((welcome.cidrs, welcome.membership), (Vec::new(), None));
}

#[test]
fn what_is_no_message_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"later": 1}"#,
        r#"{"welcome": {}}"#,
        r#"{"welcome": {"clusterName": "../x"}}"#,
        r#"{"welcome": {"clusterName": "b", "podCIDRs": ["10.0.0.0/33"]}}"#,
        r#"{"refused": {"code": 7}}"#,
    ] {
        assert!(JoinAnswer::decode(text.as_bytes()).is_err(), "{text}");
        assert!(Ask::decode(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn lists_are_bounded_on_both_sides() {
    let mut long = offer();
    long.cidrs = vec![long.cidrs[0]; MAX_PREFIXES];
    let most = Ask::new(&secret(3), long.clone(), identity(1), identity(2));
    let bytes = most.encode().unwrap();
    assert!(Ask::decode(&bytes[HEAD..]).is_ok());
    long.cidrs.push(long.cidrs[0]);
    let more = Ask::new(&secret(3), long.clone(), identity(1), identity(2));
    assert_eq!(more.clone().encode(), None);
    let bytes = frame(&AskEnvelope { join: more }, MAX_BYTES).unwrap();
    assert!(Ask::decode(&bytes[HEAD..]).is_err());
    let accepted = Welcome {
        accepted: long.cidrs,
        ..welcome()
    };
    assert_eq!(JoinAnswer::Welcome(accepted).encode(), None);
}

#[test]
fn the_text_of_a_refusal_is_harmless_wherever_it_comes_from() {
    let text = "\u{1b}[31m\n".repeat(100);
    let answer = JoinAnswer::Refused(Refused {
        code: RefusedCode::Overlap,
        message: text.clone(),
    });
    let long = format!(
        r#"{{"refused": {{"code": "Overlap", "message": "{}"}}}}"#,
        text.escape_unicode()
    );
    assert!(
        JoinAnswer::decode(long.as_bytes()).is_err(),
        "no JSON escape"
    );
    let json = serde_json::to_string(&text).unwrap();
    let raw = format!(r#"{{"refused": {{"code": "Overlap", "message": {json}}}}}"#);
    for bytes in [answer.encode().unwrap()[HEAD..].to_vec(), raw.into_bytes()] {
        let JoinAnswer::Refused(refused) = JoinAnswer::decode(&bytes).unwrap() else {
            panic!("not a refusal")
        };
        assert_eq!(refused.message.chars().count(), 256);
        assert!(!refused.message.chars().any(char::is_control));
        assert!(refused.to_string().starts_with("a range is in use there: "));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Ask::decode(&bytes);
        let _ = JoinAnswer::decode(&bytes);
    }

    #[test]
    fn no_change_of_a_request_is_proved_unless_it_says_the_same(
        index in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut bytes = ask().encode().unwrap().split_off(HEAD);
        let index = index.index(bytes.len());
        bytes[index] = byte;
        if let Ok(changed) = Ask::decode(&bytes)
            && changed.is_proved(identity(1), identity(2))
        {
            prop_assert_eq!(changed.identity, identity(3));
            prop_assert_eq!(changed.signature, ask().signature);
        }
    }
}
