use api::{ManifestError, NatReport, PeerReport, RelayReport, find_condition, is_true};

use super::*;

fn key(number: u8) -> NodeKey {
    format!("nodekey:{number:02x}{}", "5a".repeat(31))
        .parse()
        .expect("a key")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn node(number: u8, path: PathKind, rtt: Option<u64>) -> PathReport {
    PathReport {
        name: format!("n{number}"),
        public_key: key(number),
        path,
        reason: None,
        endpoint: None,
        rtt_micros: rtt,
        path_since: None,
        last_handshake: None,
        rx_bytes: 0,
        tx_bytes: 0,
        mtu: 1280,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        listen_port: Some(20_443),
        home_relay: Some("https://r.example".to_owned()),
        relays: vec![RelayReport {
            url: "https://r.example".to_owned(),
            connected: true,
            rtt_micros: None,
            problem: None,
        }],
        nat: NatReport {
            mapping: Mapping::EndpointIndependent,
            ..NatReport::default()
        },
        peers: vec![PeerReport {
            name: "p".to_owned(),
            nodes: vec![
                node(2, PathKind::Direct, Some(1000)),
                node(1, PathKind::Relay, Some(9000)),
                node(3, PathKind::Idle, None),
            ],
        }],
        probed: BTreeMap::from([(key(3), at(50)), (key(2), at(70))]),
        host: HostReport {
            programmed: Some(true),
            ..HostReport::default()
        },
    }
}

fn manifest(kind: &str, name: &str, error: Option<Code>) -> ManifestStatus {
    let error = error.map(|code| ManifestError {
        file: format!("{kind}/{name}"),
        document: 0,
        field: "spec".to_owned(),
        code,
        message: "10.1.0.0/16 overlaps".to_owned(),
    });
    ManifestStatus {
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        accepted: error.is_none(),
        errors: error.into_iter().collect(),
    }
}

fn of(snapshot: &Snapshot, manifests: &[ManifestStatus]) -> MeshNodeStatus {
    let facts = Facts {
        public_key: key(9),
        port: 12_345,
        snapshot,
        manifests,
        generation: Some(4),
    };
    status(&facts, &MeshNodeStatus::default(), at(100))
}

fn reason<'a>(status: &'a MeshNodeStatus, kind: &str) -> &'a str {
    &find_condition(&status.conditions, kind)
        .expect("there")
        .reason
}

fn with_condition(code: ConditionCode) -> MeshNodeStatus {
    let mut snapshot = snapshot();
    snapshot.host.conditions = vec![Condition {
        code,
        message: "do this".to_owned(),
    }];
    of(&snapshot, &[])
}

#[test]
fn a_node_that_is_well() {
    let status = of(
        &snapshot(),
        &[
            manifest("Mesh", "default", None),
            manifest("Peer", "p", None),
        ],
    );
    assert_eq!(status.public_key, Some(key(9).to_string()));
    assert_eq!(status.listen_port, Some(20_443));
    assert_eq!(status.connected_relays, ["https://r.example"]);
    for kind in ["Ready", "DataPlane", "NATClassified", "FirewallOpen"] {
        assert!(is_true(&status.conditions, kind), "{kind}: {status:?}");
    }
    let peer = &status.peers[0];
    assert!(peer.accepted && peer.problem.is_none());
    assert_eq!((peer.node_count, &peer.probed_at), (3, &Some(Time(at(70)))));
    let nodes: Vec<_> = peer
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.rtt_micros))
        .collect();
    assert_eq!(nodes, [("n1", Some(9000)), ("n2", Some(1000))]);
    assert!(
        status
            .conditions
            .iter()
            .all(|one| one.observed_generation == Some(4))
    );
}

#[test]
fn before_anything_is_programmed_the_key_is_there() {
    let status = of(&Snapshot::default(), &[]);
    assert_eq!(status.public_key, Some(key(9).to_string()));
    assert_eq!(
        (status.listen_port, reason(&status, "Ready")),
        (Some(12_345), "Starting")
    );
    assert_eq!(reason(&status, "NATClassified"), "NotMeasured");
}

#[test]
fn a_refused_peer_says_why_and_a_refused_mesh_is_not_ready() {
    let manifests = [
        manifest("Mesh", "default", None),
        manifest("Peer", "q", Some(Code::OverlapsOwn)),
    ];
    let status = of(&snapshot(), &manifests);
    assert!(is_true(&status.conditions, "Ready"));
    let names: Vec<_> = status
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), peer.accepted))
        .collect();
    assert_eq!(names, [("p", true), ("q", false)]);
    let problem = status.peers[1].problem.as_deref();
    assert_eq!(problem, Some("OverlapsOwn: 10.1.0.0/16 overlaps"));
    let status = of(
        &snapshot(),
        &[manifest("Mesh", "default", Some(Code::BadUrl))],
    );
    assert_eq!(reason(&status, "Ready"), "MeshRefused");
    let waiting = of(
        &snapshot(),
        &[manifest("Mesh", "default", Some(Code::NotReadYet))],
    );
    assert!(
        is_true(&waiting.conditions, "Ready"),
        "goes on with what it knows"
    );
}

#[test]
fn every_condition_of_the_host_has_a_place() {
    for (code, kind, ready) in [
        (ConditionCode::DeviceMissing, "DataPlane", false),
        (ConditionCode::ForwardingOff, "DataPlane", false),
        (ConditionCode::NftMissing, "DataPlane", false),
        (ConditionCode::ForeignDrop, "FirewallOpen", false),
        (ConditionCode::IptablesMissing, "FirewallOpen", false),
        (ConditionCode::OldFlows, "DataPlane", true),
        (ConditionCode::DeviceSysctl, "DataPlane", true),
    ] {
        let status = with_condition(code);
        assert_eq!(reason(&status, kind), code.as_str());
        assert_eq!(is_true(&status.conditions, "Ready"), ready, "{code}");
        let message = &find_condition(&status.conditions, kind)
            .expect("there")
            .message;
        assert_eq!(message, "do this");
    }
}

#[test]
fn without_a_relay_or_a_programmed_host_it_is_not_ready() {
    let mut without = snapshot();
    without.relays[0].connected = false;
    without.relays[0].problem = Some("connection refused".to_owned());
    let status = of(&without, &[]);
    assert_eq!(reason(&status, "Ready"), "RelayUnreachable");
    assert!(is_true(&status.conditions, "DataPlane"));
    let mut failed = snapshot();
    failed.host.programmed = Some(false);
    assert_eq!(reason(&of(&failed, &[]), "Ready"), "ApplyFailed");
    let mut idle = snapshot();
    idle.listen_port = None;
    assert_eq!(reason(&of(&idle, &[]), "DataPlane"), "NoMesh");
}

#[test]
fn everything_is_bounded() {
    let mut big = snapshot();
    let many = |peer: usize| PeerReport {
        name: format!("p{peer:04}"),
        nodes: (0..200)
            .map(|number| PathReport {
                name: format!("n{number:03}"),
                ..node(1, PathKind::None, None)
            })
            .collect(),
    };
    big.peers = (0..MAX_REPORTED_PEERS).map(many).collect();
    let refused: Vec<_> = (0..50)
        .map(|number| manifest("Peer", &format!("a{number}"), Some(Code::OverlapsOwn)))
        .collect();
    let status = of(&big, &refused);
    assert_eq!(status.peers.len(), MAX_REPORTED_PEERS);
    assert!(
        status
            .peers
            .iter()
            .all(|peer| peer.accepted && !peer.nodes.is_empty()),
        "those in force come first, each with a path"
    );
    let ready = find_condition(&status.conditions, "Ready").expect("there");
    assert!(ready.message.ends_with(LEFT_OUT), "{ready:?}");
    assert!(
        status
            .peers
            .iter()
            .all(|peer| peer.nodes.len() <= MAX_REPORTED_NODES && peer.node_count == 200)
    );
    let paths: usize = status.peers.iter().map(|peer| peer.nodes.len()).sum();
    assert_eq!(paths, MAX_PATHS);
    assert!(serde_json::to_vec(&status).expect("serialises").len() < 400_000);
}

#[test]
fn times_of_conditions_come_from_the_status_before() {
    let first = of(&snapshot(), &[]);
    let (snapshot, facts_key) = (snapshot(), key(9));
    let facts = Facts {
        public_key: facts_key,
        port: 1,
        snapshot: &snapshot,
        manifests: &[],
        generation: Some(5),
    };
    let second = status(&facts, &first, at(200));
    assert_eq!(second.conditions[0].last_transition_time, Time(at(100)));
    assert_eq!(second.conditions[0].observed_generation, Some(5));
}

#[test]
fn paths_are_told_at_once_and_times_now_and_then() {
    let written = of(&snapshot(), &[]);
    let seconds = Duration::from_secs;
    let later = MeshNodeStatus {
        heartbeat_at: Some(Time(at(114))),
        ..written.clone()
    };
    assert!(!is_due(&written, &later, seconds(14)) && is_due(&written, &later, seconds(15)));

    let mut moved = snapshot();
    moved.peers[0].nodes[1].path = PathKind::Direct;
    let moved = of(&moved, &[]);
    assert!(!is_due(&written, &moved, Duration::from_millis(999)));
    assert!(is_due(&written, &moved, seconds(1)));

    let mut probed = snapshot();
    probed.probed.insert(key(2), at(80));
    let probed = of(&probed, &[]);
    assert!(!is_due(&written, &probed, seconds(9)) && is_due(&written, &probed, seconds(10)));
}

#[test]
fn round_trips_change_now_and_then_and_only_when_it_matters() {
    let written = of(&snapshot(), &[]);
    let damped = |rtt: Option<u64>, second| {
        let mut later = snapshot();
        later.peers[0].nodes[0].rtt_micros = rtt;
        let mut later = of(&later, &[]);
        damp(&written, &mut later, Duration::from_secs(second));
        round_trips(&later)
    };
    let before = [Some(9000), Some(1000)];
    assert_eq!(damped(Some(1201), 29), before);
    assert_eq!(damped(Some(1201), 30), [Some(9000), Some(1201)]);
    assert_eq!(damped(Some(1200), 100), before);
    assert_eq!(damped(None, 29), before);
    assert_eq!(damped(None, 30), [Some(9000), None]);
    let mut moved = snapshot();
    moved.peers[0].nodes[0].path = PathKind::Relay;
    moved.peers[0].nodes[0].rtt_micros = Some(1001);
    let mut moved = of(&moved, &[]);
    damp(&written, &mut moved, Duration::ZERO);
    assert_eq!(round_trips(&moved)[1], Some(1001), "another path");
}
