//! The status for people.

use api::{
    Filtering, ManifestStatus, Mapping, PathReport, PeerReport, Reason, RelayReport, Status,
};
use jiff::Timestamp;

/// Renders the status as it is at `now`.
pub(crate) fn text(status: &Status, now: Timestamp) -> String {
    let mut lines = head(status, now);
    lines.push(String::new());
    lines.extend(peers(&status.peers, now));
    let refused = refusals(&status.manifests);
    if !refused.is_empty() {
        lines.push(String::new());
        lines.extend(refused);
    }
    lines.join("\n") + "\n"
}

fn head(status: &Status, now: Timestamp) -> Vec<String> {
    let node = &status.node;
    let reflexive: Vec<String> = node.nat.reflexive.iter().map(ToString::to_string).collect();
    let seen = if reflexive.is_empty() {
        "not known".to_owned()
    } else {
        reflexive.join(", ")
    };
    let mut lines = vec![
        format!(
            "agent     {}, up {}",
            status.agent.version,
            ago(status.agent.started_at, now)
        ),
        format!("key       {}", node.public_key),
        format!("port      {}/udp", node.listen_port),
    ];
    lines.extend(relays(&status.relays));
    lines.extend([
        format!(
            "NAT       {}, {}",
            mapping(node.nat.mapping),
            filtering(node.nat.filtering)
        ),
        format!("seen as   {seen}"),
    ]);
    lines
}

fn relays(relays: &[RelayReport]) -> Vec<String> {
    if relays.is_empty() {
        return vec!["relay     none: no Mesh in force names one".to_owned()];
    }
    let line = |relay: &RelayReport| {
        let problem = relay.problem.as_deref();
        match (relay.connected, relay.rtt_micros) {
            (true, Some(micros)) => format!("relay     {}, {}", relay.url, rtt(micros)),
            (true, None) => format!("relay     {}", relay.url),
            (false, _) => format!(
                "relay     {}, not connected: {}",
                relay.url,
                problem.unwrap_or("connecting")
            ),
        }
    };
    relays.iter().map(line).collect()
}

fn peers(peers: &[PeerReport], now: Timestamp) -> Vec<String> {
    if peers.is_empty() {
        return vec![
            "no peers: neither a Mesh nor a Peer without the other does anything".to_owned(),
        ];
    }
    let mut rows = vec![
        [
            "PEER", "NODE", "PATH", "RTT", "SINCE", "RECEIVED", "SENT", "ENDPOINT", "REASON",
        ]
        .map(str::to_owned),
    ];
    for peer in peers {
        rows.extend(peer.nodes.iter().map(|node| row(&peer.name, node, now)));
    }
    let mut lines = align(&rows);
    lines.extend(advice(peers));
    lines
}

fn row(peer: &str, node: &PathReport, now: Timestamp) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        peer.to_owned(),
        node.name.clone(),
        node.path.to_string(),
        or_dash(node.rtt_micros.map(rtt)),
        or_dash(node.path_since.map(|since| ago(since, now))),
        bytes(node.rx_bytes),
        bytes(node.tx_bytes),
        or_dash(node.endpoint.clone()),
        or_dash(node.reason.map(|reason| reason.to_string())),
    ]
}

/// One line for every reason that occurs.
fn advice(peers: &[PeerReport]) -> Vec<String> {
    let nodes = peers.iter().flat_map(|peer| &peer.nodes);
    let mut reasons: Vec<Reason> = nodes.filter_map(|node| node.reason).collect();
    reasons.sort();
    reasons.dedup();
    reasons
        .iter()
        .map(|reason| format!("  {reason}: {}", reason.advice()))
        .collect()
}

fn refusals(manifests: &[ManifestStatus]) -> Vec<String> {
    let mut lines = Vec::new();
    for manifest in manifests.iter().filter(|manifest| !manifest.accepted) {
        let kind = manifest.kind.as_deref().unwrap_or("manifest");
        let name = manifest.name.as_deref().unwrap_or_default();
        lines.push(format!("refused: {}", format!("{kind} {name}").trim_end()));
        for error in &manifest.errors {
            let field = if error.field.is_empty() { "" } else { " " };
            lines.push(format!(
                "  {}[{}]{field}{}: {}: {}",
                error.file, error.document, error.field, error.code, error.message
            ));
        }
    }
    lines
}

fn align(rows: &[[String; 9]]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let line = |row: &[String; 9]| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or_default();
            format!("{cell:<width$}")
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn mapping(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::EndpointIndependent => "easy (one public port for all destinations)",
        Mapping::EndpointDependent => "hard (another public port for every destination)",
        Mapping::Unknown => "mapping not known",
    }
}

fn filtering(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::EndpointIndependent => "lets everybody in",
        Filtering::AddressDependent => "lets in whom this node has written to",
        Filtering::AddressAndPortDependent => "lets in the ports this node has written to",
        Filtering::Unknown => "filtering not known",
    }
}

fn rtt(micros: u64) -> String {
    let (millis, rest) = (micros / 1000, micros % 1000);
    if millis < 100 {
        format!("{millis}.{} ms", rest / 100)
    } else {
        format!("{millis} ms")
    }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = count.saturating_mul(10) / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while tenths >= 10_240 {
        let Some(next) = units.next() else { break };
        unit = Some(next);
        tenths /= 1024;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, unit.unwrap_or(&"KiB"))
}

#[cfg(test)]
mod tests {
    use api::{AgentReport, Code, ManifestError, NatReport, NodeReport, PathKind};

    use super::*;

    #[test]
    fn figures() {
        assert_eq!(
            [
                bytes(0),
                bytes(1023),
                bytes(1024),
                bytes(1 << 20),
                bytes(1536 << 20),
                bytes(u64::MAX)
            ],
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.0 MiB",
                "1.5 GiB",
                "1677721.5 TiB"
            ]
        );
        assert_eq!(
            [rtt(1234), rtt(99_999), rtt(250_000)],
            ["1.2 ms", "99.9 ms", "250 ms"]
        );
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let before = |seconds: i64| {
            ago(
                Timestamp::from_second(1_000_000 - seconds).expect("in range"),
                now,
            )
        };
        assert_eq!(
            [
                before(-5),
                before(59),
                before(61),
                before(7260),
                before(90_000)
            ],
            ["0s", "59s", "1m1s", "2h1m", "1d1h"]
        );
    }

    #[test]
    fn a_whole_status() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let key = format!("nodekey:{}", "5a".repeat(32))
            .parse()
            .expect("a key");
        let status = Status {
            agent: AgentReport {
                version: "0.1.0".to_owned(),
                started_at: now,
            },
            node: NodeReport {
                public_key: key,
                listen_port: 20443,
                home_relay: None,
                nat: NatReport::default(),
            },
            relays: vec![
                RelayReport {
                    url: "http://203.0.113.20:8080".to_owned(),
                    connected: true,
                    rtt_micros: Some(400),
                    problem: None,
                },
                RelayReport {
                    url: "https://relay.example".to_owned(),
                    connected: false,
                    rtt_micros: None,
                    problem: Some("not admitted".to_owned()),
                },
            ],
            manifests: vec![ManifestStatus {
                kind: Some("Peer".to_owned()),
                name: Some("osaka".to_owned()),
                accepted: false,
                errors: vec![ManifestError {
                    file: "peers.yaml".to_owned(),
                    document: 1,
                    field: "spec.nodes[0].publicKey".to_owned(),
                    code: Code::BadKey,
                    message: "no".to_owned(),
                }],
            }],
            peers: vec![PeerReport {
                name: "tokyo".to_owned(),
                nodes: vec![PathReport {
                    name: "tokyo-1".to_owned(),
                    public_key: key,
                    path: PathKind::Relay,
                    reason: Some(Reason::UdpBlocked),
                    endpoint: Some("http://203.0.113.20:8080".to_owned()),
                    rtt_micros: Some(1234),
                    path_since: Some(now),
                    last_handshake: None,
                    rx_bytes: 2048,
                    tx_bytes: 0,
                    mtu: 1280,
                }],
            }],
        };
        let text = text(&status, now);
        for part in [
            "tokyo  tokyo-1  relay  1.2 ms  0s     2.0 KiB   0 B   http://203.0.113.20:8080  UdpBlocked\n",
            "relay     http://203.0.113.20:8080, 0.4 ms\n",
            "relay     https://relay.example, not connected: not admitted\n",
            "  UdpBlocked: one side can send no UDP",
            "refused: Peer osaka\n  peers.yaml[1] spec.nodes[0].publicKey: BadKey: no\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
