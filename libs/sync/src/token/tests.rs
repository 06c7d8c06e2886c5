use proptest::prelude::*;

use super::*;

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

fn bundle(der: &[&[u8]]) -> String {
    der.iter()
        .map(|der| pem(&STANDARD.encode(der)).unwrap())
        .collect()
}

fn relay(url: &str, ca_bundle: Option<String>) -> TokenRelay {
    TokenRelay {
        url: url.parse().unwrap(),
        stun_port: Some(3478),
        ca_bundle,
    }
}

fn token() -> Token {
    Token {
        inviter: secret(1).identity(),
        secret: secret(2),
        pass: "eyJ2IjoxfQ".into(),
        relays: vec![
            relay("https://relay.example.org", None),
            TokenRelay {
                stun_port: None,
                ..relay("https://203.0.113.7:8443", Some(bundle(&[&[0x30; 100]])))
            },
        ],
        expires: UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        audience: Audience::Cluster,
        cluster_name: "berlin".parse().unwrap(),
        cidrs: vec!["10.1.0.0/16".parse().unwrap()],
    }
}

/// Everything in a token, in a form that can be compared.
fn parts(token: &Token) -> impl PartialEq + fmt::Debug + use<> {
    (
        token.inviter,
        token.secret.to_base64().to_string(),
        token.pass.clone(),
        token.relays.clone(),
        (token.expires, token.audience),
        (token.cluster_name.clone(), token.cidrs.clone()),
    )
}

fn encoded(json: &str) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
}

fn error(text: &str) -> TokenError {
    text.parse::<Token>().unwrap_err()
}

#[test]
fn the_text_round_trips_with_white_space_around_it() {
    let text = token().to_text().unwrap();
    assert!(text.starts_with("cvt1."));
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
    for text in [
        text.to_string(),
        format!("{}\n", *text),
        format!("  \t{}\r\n\n", *text),
    ] {
        assert_eq!(parts(&text.parse().unwrap()), parts(&token()));
    }
}

#[test]
fn ranges_are_bounded_and_may_be_missing() {
    let with = |count: usize| Token {
        cidrs: vec!["fd00:1234:5678:9abc:def0:1234:5678::/112".parse().unwrap(); count],
        ..token()
    };
    let read: Token = with(MAX_PREFIXES).to_text().unwrap().parse().unwrap();
    assert_eq!(read.cidrs.len(), MAX_PREFIXES);
    assert!(with(MAX_PREFIXES + 1).to_text().is_err());
    let read: Token = with(0).to_text().unwrap().parse().unwrap();
    assert_eq!(read.cidrs, []);
    let text = with(0).to_text().unwrap();
    let json = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
    assert!(!String::from_utf8(json).unwrap().contains("podCIDRs"));
}

#[test]
fn the_json_is_what_the_description_says() {
    let text = token().to_text().unwrap();
    let json = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["inviter"], secret(1).identity().to_string());
    assert_eq!(json["podCIDRs"], serde_json::json!(["10.1.0.0/16"]));
    assert_eq!(json["secret"], *secret(2).to_base64());
    assert_eq!(json["expires"], 1_790_000_000);
    assert_eq!(json["kind"], "Cluster");
    assert_eq!(json["clusterName"], "berlin");
    assert_eq!(json["relays"][0]["stunPort"], 3478);
    assert_eq!(json["relays"][0].get("ca"), None);
    assert_eq!(json["relays"][1]["ca"][0], STANDARD.encode([0x30; 100]));
}

#[test]
fn fields_that_are_newer_are_skipped() {
    let text = token().to_text().unwrap();
    let json = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
    let json = String::from_utf8(json).unwrap();
    let newer = json.replacen('{', r#"{"colour": [1, {}], "#, 1);
    assert_eq!(parts(&encoded(&newer).parse().unwrap()), parts(&token()));
}

#[test]
fn errors_say_what_to_do() {
    let text = token().to_text().unwrap();
    assert_eq!(error(""), TokenError::Empty);
    assert_eq!(error(" \n"), TokenError::Empty);
    assert_eq!(error("hello"), TokenError::Form);
    assert_eq!(error("cvt2.abc"), TokenError::Version);
    assert_eq!(error("cvt.abc"), TokenError::Form);
    assert_eq!(error(&format!("{} x", *text)), TokenError::Changed);
    assert_eq!(error(&text.replacen("e", "?", 1)), TokenError::Changed);
    assert_eq!(error(&"x".repeat(MAX_TOKEN + 1)), TokenError::Long);
    assert_eq!(error(&encoded("{}")), TokenError::Content);
    for end in 1..text.len() {
        assert_eq!(error(&text[..end]), TokenError::CutOff, "{end}");
    }
}

/// A name, what changes, what comes of it.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Token), TokenError);

#[test]
fn fields_are_checked_on_the_way_out_and_in() {
    let long = "x".repeat(5000);
    let many = vec![relay("https://a.example.org", None); MAX_TOKEN_RELAYS + 1];
    let no_pem = vec![relay("https://a.example.org", Some("no PEM".into()))];
    let big = relay(
        "https://a.example.org",
        Some(bundle(&[[0x30; 2000].as_slice(); 8])),
    );
    let cases: [Case<'_>; 6] = [
        (
            "pass",
            &|token| token.pass = "a b".into(),
            TokenError::Content,
        ),
        (
            "long pass",
            &|token| token.pass.clone_from(&long),
            TokenError::Content,
        ),
        (
            "no relay",
            &|token| token.relays.clear(),
            TokenError::Relays,
        ),
        (
            "many",
            &|token| token.relays.clone_from(&many),
            TokenError::Relays,
        ),
        (
            "no PEM",
            &|token| token.relays.clone_from(&no_pem),
            TokenError::CaBundle,
        ),
        (
            "too much",
            &|token| token.relays = vec![big.clone()],
            TokenError::Long,
        ),
    ];
    for (name, change, expected) in cases {
        let mut changed = token();
        change(&mut changed);
        assert_eq!(changed.to_text().unwrap_err(), expected, "{name}");
    }
    let text = token().to_text().unwrap();
    let json = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
    let json = String::from_utf8(json).unwrap();
    for (from, to, expected) in [
        ("1790000000", "18446744073709551615", TokenError::Content),
        ("1790000000", "-1", TokenError::Content),
        ("\"Cluster\"", "\"Moon\"", TokenError::Content),
        ("eyJ2IjoxfQ", "a b", TokenError::Content),
        ("https:", "file:", TokenError::Content),
        ("berlin", "../berlin", TokenError::Content),
        ("\"MDAw", "\"?DAw", TokenError::CaBundle),
    ] {
        assert!(json.contains(from), "{from}");
        assert_eq!(error(&encoded(&json.replace(from, to))), expected, "{to}");
    }
    let secret = secret(2).to_base64();
    for seed in ["", "AAAA", &STANDARD.encode([0; 32])] {
        let changed = json.replace(secret.as_str(), seed);
        assert_eq!(error(&encoded(&changed)), TokenError::Content);
    }
}

#[test]
fn certificates_keep_their_bytes_and_lose_what_is_around_them() {
    let clean = bundle(&[&[0x30; 47], &[0x30; 48], &[0x30; 200]]);
    assert!(clean.lines().all(|line| line.len() <= PEM_LINE));
    let mut token = token();
    token.relays[0].ca_bundle = Some(format!("# a note\n{}", clean.replace('\n', "\r\n")));
    let read: Token = token.to_text().unwrap().parse().unwrap();
    assert_eq!(read.relays[0].ca_bundle.as_ref(), Some(&clean));
}

#[test]
fn it_ends_when_it_ends() {
    let token = token();
    assert!(!token.is_expired(token.expires - Duration::from_secs(1)));
    assert!(token.is_expired(token.expires));
}

#[test]
fn nothing_secret_is_printed() {
    let token = token();
    let printed = format!("{token:?}");
    assert!(printed.contains("berlin"));
    assert!(!printed.contains(token.secret.to_base64().as_str()));
    assert!(!printed.contains(&token.pass));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = text.parse::<Token>();
        let _ = encoded(&text).parse::<Token>();
    }

    #[test]
    fn no_json_of_the_right_shape_panics(
        seed in ".{0,50}", pass in ".{0,50}", url in ".{0,50}", name in ".{0,20}", ca in ".{0,50}", expires: u64,
    ) {
        let json = serde_json::json!({
            "inviter": secret(1).identity().to_string(), "secret": seed, "pass": pass, "expires": expires,
            "kind": "Host", "clusterName": name, "relays": [{"url": url, "ca": [ca]}],
        });
        let _ = encoded(&json.to_string()).parse::<Token>();
    }

    #[test]
    fn every_token_round_trips(
        seeds in (1_u8.., 1_u8..),
        pass in "[a-zA-Z0-9._=+/-]{1,1000}",
        hosts in prop::collection::vec(("[a-z]{1,60}", any::<Option<u16>>(), prop::collection::vec(any::<u8>(), 0..300)), 1..=8),
        expires in 0_u64..1 << 40,
        name in "[a-z0-9]{1,63}",
        is_host: bool,
    ) {
        let relays = hosts.into_iter().map(|(host, stun_port, der)| TokenRelay {
            url: format!("https://{host}.example.org").parse().unwrap(),
            stun_port,
            ca_bundle: (!der.is_empty()).then(|| bundle(&[&der])),
        });
        let token = Token {
            inviter: secret(seeds.0).identity(),
            secret: secret(seeds.1),
            pass,
            relays: relays.collect(),
            expires: UNIX_EPOCH + Duration::from_secs(expires),
            audience: if is_host { Audience::Host } else { Audience::Cluster },
            cluster_name: name.parse().unwrap(),
            cidrs: Vec::new(),
        };
        let text = token.to_text().unwrap();
        prop_assert_eq!(parts(&text.parse().unwrap()), parts(&token));
    }
}
