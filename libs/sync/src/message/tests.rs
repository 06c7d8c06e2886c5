use derp::{KeyError, NodeKey, NodeSecret};
use proptest::prelude::*;

use super::*;

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

fn node(name: &str, prefixes: &[&str]) -> (NodeName, Arc<NodeRecord>) {
    let prefixes = prefixes.iter().map(|text| text.parse().unwrap()).collect();
    let relay = Some("https://relay.example.org".parse().unwrap());
    let record = NodeRecord::new(key(3), relay, prefixes, 7).unwrap();
    (name.parse().unwrap(), Arc::new(record))
}

fn decode(text: &str) -> Result<Message, DecodeError> {
    Message::decode(text.as_bytes())
}

fn messages() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            version: VERSION,
            cluster_name: "berlin".parse().unwrap(),
            generation: u64::MAX,
        }),
        Message::State(StatePart {
            sequence: 1,
            first: true,
            last: false,
            nodes: vec![node("a.b", &["10.1.0.0/24", "fd00:1::/64"]), node("c", &[])],
            refused: Vec::new(),
        }),
        Message::Delta(Delta {
            sequence: 2,
            nodes: vec![node("c", &["10.2.0.0/16"])],
            removed_nodes: vec!["a.b".parse().unwrap()],
            refused: Vec::new(),
        }),
        Message::Ack { sequence: 9 },
        Message::Membership {
            text: Some("eyJ2IjoxfQ".into()),
        },
        Message::Membership { text: None },
    ]
}

fn all_of(buffer: &mut MessageBuffer) -> Vec<Message> {
    std::iter::from_fn(|| buffer.next_message().unwrap()).collect()
}

#[test]
fn messages_survive_the_wire_however_it_is_cut() {
    let sent = messages();
    let stream: Vec<u8> = sent.iter().flat_map(|one| one.encode().unwrap()).collect();
    for size in [1, 2, 3, 7, 100, stream.len()] {
        let mut buffer = MessageBuffer::default();
        let mut received = Vec::new();
        for chunk in stream.chunks(size) {
            buffer.push(chunk);
            received.extend(all_of(&mut buffer));
        }
        assert_eq!(received, sent, "cut every {size} bytes");
    }
}

#[test]
fn unknown_kinds_and_fields_are_skipped() {
    let hello = decode(
        r#"{"hello": {"version": 3, "clusterName": "b", "generation": 1, "colour": [{"x": null}]}, "v": 9}"#,
    );
    let Message::Hello(hello) = hello.unwrap() else {
        panic!("not a hello")
    };
    assert_eq!((hello.version, hello.generation), (3, 1));
    let state = decode(&format!(
        r#"{{"state": {{"sequence": 1, "first": true, "last": true, "services": [1, {{}}],
            "nodes": [{{"name": "n", "publicKey": "{}", "zone": "eu"}}]}}}}"#,
        key(3)
    ));
    let Message::State(state) = state.unwrap() else {
        panic!("not a state")
    };
    assert_eq!(state.nodes.len(), 1);
    assert_eq!(state.refused, []);
    let deep = format!(r#"{{"x": {}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    for text in [
        "{}",
        r#"{"farewell": {"a": 1}}"#,
        r#"{"services": []}"#,
        &deep,
    ] {
        assert_eq!(decode(text).unwrap(), Message::Unknown, "{text}");
    }
}

#[test]
fn what_is_no_message_is_refused() {
    for text in [
        "",
        "[]",
        "7",
        "{",
        r#"{"hello": {}}"#,
        r#"{"hello": {"version": 0, "clusterName": "b", "generation": 1}}"#,
        r#"{"hello": {"version": 1, "clusterName": "B/../", "generation": 1}}"#,
        r#"{"hello": {"version": 1, "clusterName": "b", "generation": -1}}"#,
        r#"{"ack": {"sequence": "1"}}"#,
        r#"{"ack": {"sequence": 1}, "ack": {"sequence": 2}}"#,
        r#"{"state": {"sequence": 1, "nodes": []}}"#,
        r#"{"delta": {"sequence": 1, "nodes": [7]}}"#,
    ] {
        assert!(decode(text).is_err(), "{text}");
    }
}

#[test]
fn a_bad_record_harms_no_other_and_voids_what_was_said_of_it() {
    let good = key(3);
    let text = format!(
        r#"{{"delta": {{"sequence": 2, "removedNodes": ["gone", "b\u0000d"], "nodes": [
            {{"name": "ok", "publicKey": "{good}", "prefixes": ["10.0.0.0/8"]}},
            {{"name": "b\u000ad", "publicKey": "{good}"}},
            {{"name": "key", "publicKey": "AAAA"}},
            {{"name": "relay", "publicKey": "{good}", "homeRelay": "file:///etc"}},
            {{"name": "prefix", "publicKey": "{good}", "prefixes": ["10.0.0.0/8", "10.0.0.0/33"]}},
            {{"name": "many", "publicKey": "{good}", "prefixes": [{}]}}]}}}}"#,
        ["\"10.0.0.0/8\""; MAX_NODE_PREFIXES + 1].join(",")
    );
    let Message::Delta(delta) = decode(&text).unwrap() else {
        panic!("not a delta")
    };
    assert_eq!(delta.nodes.len(), 1);
    let errors: Vec<_> = delta.refused.iter().map(|one| one.error).collect();
    assert_eq!(
        errors,
        [
            RecordError::Name(NameError::Subdomain),
            RecordError::Key(KeyError::Form),
            RecordError::Relay(derp::UrlError::Scheme),
            RecordError::Prefix { index: 1 },
            RecordError::Prefixes,
        ]
    );
    assert_eq!(delta.refused[0].name, "b?d");
    let removed: Vec<_> = delta.removed_nodes.iter().map(NodeName::as_str).collect();
    assert_eq!(removed, ["gone", "key", "relay", "prefix", "many"]);
}

#[test]
fn a_text_that_is_no_membership_counts_as_none() {
    let long = "x".repeat(MAX_STATEMENT + 1);
    for text in ["", "a b", "{}", &long] {
        let text = format!(r#"{{"membership": {{"text": "{text}", "until": 7}}}}"#);
        assert_eq!(
            decode(&text).unwrap(),
            Message::Membership { text: None },
            "{text}"
        );
    }
    assert!(decode(r#"{"membership": {"text": 7}}"#).is_err());
}

#[test]
fn lists_are_capped() {
    let list = vec![r#""n""#; MAX_LIST + 1].join(",");
    let text = format!(r#"{{"delta": {{"sequence": 1, "removedNodes": [{list}]}}}}"#);
    assert!(matches!(decode(&text), Err(DecodeError::Json(_))));
    let list = vec![r#""n""#; MAX_LIST].join(",");
    let text = format!(r#"{{"delta": {{"sequence": 1, "removedNodes": [{list}]}}}}"#);
    assert!(decode(&text).is_ok());
}

#[test]
fn long_messages_are_refused_by_their_length_alone() {
    let mut buffer = MessageBuffer::default();
    buffer.push(&u32::try_from(MAX_MESSAGE + 1).unwrap().to_be_bytes());
    assert!(matches!(buffer.next_message(), Err(DecodeError::Long)));
    let name: NodeName = "n".parse().unwrap();
    let long = Message::Delta(Delta {
        removed_nodes: vec![name; MAX_MESSAGE / 4 + 1],
        ..Delta::default()
    });
    assert_eq!(long.encode(), None);
}

#[test]
fn codes_and_reasons_are_one_to_one() {
    for code in 0..20 {
        assert_eq!(CloseReason::from_code(code).code(), code);
    }
}

fn any_node() -> impl Strategy<Value = (NodeName, Arc<NodeRecord>)> {
    let prefix = prop_oneof![
        (any::<u32>(), 0..=32_u8).prop_map(|(address, length)| {
            ipnet::IpNet::new(std::net::Ipv4Addr::from(address).into(), length).unwrap()
        }),
        (any::<u128>(), 0..=128_u8).prop_map(|(address, length)| {
            ipnet::IpNet::new(std::net::Ipv6Addr::from(address).into(), length).unwrap()
        }),
    ];
    let relay = proptest::option::of(
        "https?://[a-z][a-z0-9]{0,60}(\\.[a-z]{1,60}){0,3}(:[1-9][0-9]{0,3})?",
    );
    let prefixes = prop::collection::vec(prefix, 0..=MAX_NODE_PREFIXES);
    (
        "[a-z0-9]{1,63}(\\.[a-z0-9]{1,60}){0,3}",
        1_u8..,
        relay,
        prefixes,
        any::<u64>(),
    )
        .prop_map(|(name, seed, relay, prefixes, generation)| {
            let relay = relay.map(|url| url.parse().unwrap());
            let record = NodeRecord::new(key(seed), relay, prefixes, generation).unwrap();
            (name.parse().unwrap(), Arc::new(record))
        })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = MessageBuffer::default();
        buffer.push(&bytes);
        while let Ok(Some(_)) = buffer.next_message() {}
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn no_change_of_a_message_panics(
        which in 0_usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = messages()[which].encode().unwrap();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let mut buffer = MessageBuffer::default();
        buffer.push(&bytes);
        if let Ok(Some(message)) = buffer.next_message() {
            let bounded = match message {
                Message::State(part) => part.nodes.len() + part.refused.len() <= MAX_LIST,
                Message::Delta(delta) => delta.nodes.len() + delta.refused.len() <= MAX_LIST,
                Message::Hello(hello) => hello.version > 0,
                Message::Membership { text } => text.is_none_or(|text| is_statement(&text)),
                Message::Ack { .. } | Message::Unknown => true,
            };
            prop_assert!(bounded);
        }
    }

    #[test]
    fn records_round_trip_and_never_outgrow_their_estimate(node in any_node()) {
        let estimate = encoded_length(&node.0, &node.1);
        let message = Message::State(StatePart { sequence: 1, nodes: vec![node], ..StatePart::default() });
        let bytes = message.encode().unwrap();
        let around = Message::State(StatePart { sequence: 1, ..StatePart::default() });
        prop_assert!(bytes.len() - around.encode().unwrap().len() < estimate);
        prop_assert_eq!(Message::decode(&bytes[LENGTH_BYTES..]).unwrap(), message);
    }
}
