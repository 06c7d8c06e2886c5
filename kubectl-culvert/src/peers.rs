//! `kubectl culvert peers`.

use anyhow::Context;
use api::{PathKind, Peer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::args::{ConnectionArgs, PeersArgs};
use crate::cluster::{Cluster, explain};
use crate::output::{self, Format, Terminal};
use crate::status::report;
use crate::table::{Cell, Table, Tone};

/// Prints the peers.
pub(crate) async fn run(
    connection: &ConnectionArgs,
    args: &PeersArgs,
    terminal: Terminal,
) -> anyhow::Result<()> {
    let cluster = Cluster::connect(connection).await?;
    let peers = list(&cluster).await?;
    if args.output == Format::Json {
        return output::print_json(&report::peers(&peers));
    }
    if peers.is_empty() {
        output::hint("No peers yet. Invite one: kubectl culvert invite --output FILE");
        return Ok(());
    }
    output::print(&table(&peers).render(terminal.colours))
}

/// All Peers, by name.
pub(crate) async fn list(cluster: &Cluster) -> anyhow::Result<Vec<Peer>> {
    let peers = Api::<Peer>::all(cluster.client.clone());
    let mut found = peers
        .list(&ListParams::default())
        .await
        .map_err(explain)
        .context("cannot list the peers")?
        .items;
    found.sort_by_key(ResourceExt::name_any);
    Ok(found)
}

/// One row a Peer.
pub(crate) fn table(peers: &[Peer]) -> Table {
    let mut table = Table::new(&["PEER", "READY", "PATH", "RTT", "NODES", "CIDRS", "MESSAGE"]);
    for peer in peers {
        let status = peer.status.clone().unwrap_or_default();
        let ready = api::find_condition(&status.conditions, "Ready");
        table.push(vec![
            Cell::plain(peer.name_any()),
            ready_cell(ready),
            path_cell(status.path),
            Cell::maybe(status.rtt_micros.map(rtt)),
            Cell::maybe(status.nodes),
            Cell::plain(peer.spec.allowed_cidrs.join(",")),
            message_cell(ready),
        ]);
    }
    table
}

/// Whether it is ready.
pub(crate) fn ready_cell(ready: Option<&Condition>) -> Cell {
    match ready.map(|condition| condition.status.as_str()) {
        Some("True") => Cell::new("True", Tone::Good),
        Some("False") => Cell::new("False", Tone::Bad),
        _ => Cell::new("Unknown", Tone::Middling),
    }
}

/// Why it is not ready; nothing if it is.
pub(crate) fn message_cell(ready: Option<&Condition>) -> Cell {
    let wanting = ready.filter(|condition| condition.status != "True");
    Cell::maybe(wanting.map(|condition| format!("{}: {}", condition.reason, condition.message)))
}

/// The path that data uses.
pub(crate) fn path_cell(path: Option<PathKind>) -> Cell {
    let tone = match path {
        Some(PathKind::Direct) => Tone::Good,
        Some(PathKind::Relay) => Tone::Middling,
        Some(PathKind::None) => Tone::Bad,
        Some(PathKind::Idle) | None => Tone::Faint,
    };
    Cell::new(path.map(|path| path.to_string()).unwrap_or_default(), tone)
}

/// A round trip for people: `850us`, `12.3ms`, `1.2s`.
pub(crate) fn rtt(micros: i64) -> String {
    let (whole, unit, name) = match micros {
        ..1_000 => return format!("{micros}us"),
        1_000..1_000_000 => (micros, 1_000, "ms"),
        _ => (micros, 1_000_000, "s"),
    };
    format!("{}.{}{name}", whole / unit, whole % unit * 10 / unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_how_a_peer_is_reached() {
        let peers: Vec<Peer> = serde_json::from_value(json!([
            {"apiVersion": api::API_VERSION, "kind": "Peer", "metadata": {"name": "tokyo"},
             "spec": {"allowedCIDRs": ["10.2.0.0/16", "fd00:2::/64"]},
             "status": {"path": "direct", "rttMicros": 12_345, "nodes": "3/3", "conditions": [
                {"type": "Ready", "status": "True", "reason": "Connected", "message": "well",
                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]}},
            {"apiVersion": api::API_VERSION, "kind": "Peer", "metadata": {"name": "lima"},
             "spec": {"allowedCIDRs": ["10.3.0.0/16"]},
             "status": {"path": "none", "conditions": [
                {"type": "Ready", "status": "Unknown", "reason": "StaleProbe", "message": "no answer for 40 s",
                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]}},
            {"apiVersion": api::API_VERSION, "kind": "Peer", "metadata": {"name": "new"},
             "spec": {"allowedCIDRs": ["10.4.0.0/16"]}},
        ]))
        .expect("Peers");
        let expected = "\
PEER    READY     PATH     RTT      NODES   CIDRS                     MESSAGE
tokyo   True      direct   12.3ms   3/3     10.2.0.0/16,fd00:2::/64   -
lima    Unknown   none     -        -       10.3.0.0/16               StaleProbe: no answer for 40 s
new     Unknown   -        -        -       10.4.0.0/16               -
";
        assert_eq!(table(&peers).render(false), expected);
    }

    #[test]
    fn round_trips() {
        for (micros, text) in [
            (0, "0us"),
            (999, "999us"),
            (1_000, "1.0ms"),
            (12_399, "12.3ms"),
            (999_999, "999.9ms"),
            (1_250_000, "1.2s"),
        ] {
            assert_eq!(rtt(micros), text);
        }
    }
}
