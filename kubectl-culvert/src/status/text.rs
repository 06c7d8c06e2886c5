//! The status as tables, for people.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Found, report};
use crate::peers::{self, message_cell, path_cell, ready_cell, rtt};
use crate::table::{Cell, Table, Tone, paint};

/// Seconds after which an agent counts as silent.
const SILENT: i64 = 45;

/// All tables, and behind them what to do about what they show.
pub(super) fn text(found: &Found, now: Timestamp, colours: bool) -> String {
    let mut parts = vec![mesh(found).render(colours)];
    let relays = relays(found);
    let sections = [
        ("Relays", relays),
        (
            "Peers",
            (!found.peers.is_empty()).then(|| peers::table(&found.peers)),
        ),
        (
            "Nodes",
            (!found.nodes.is_empty()).then(|| nodes(found, now)),
        ),
        ("Paths", paths(found)),
    ];
    for (title, table) in sections {
        let body = table.map_or_else(
            || format!("{}\n", paint("none", Tone::Faint, colours)),
            |table| table.render(colours),
        );
        parts.push(format!("{title}\n{body}"));
    }
    let notes = notes(found);
    if !notes.is_empty() {
        parts.push(notes.into_iter().map(|note| format!("{note}\n")).collect());
    }
    parts.join("\n")
}

fn mesh(found: &Found) -> Table {
    let status = found.mesh.status.clone().unwrap_or_default();
    let ready = api::find_condition(&status.conditions, "Ready");
    let mut table = Table::new(&["CLUSTER", "READY", "PEERS", "NODES", "POD CIDRS", "MESSAGE"]);
    table.push(vec![
        Cell::plain(&found.mesh.spec.cluster_name),
        ready_cell(ready),
        Cell::maybe(status.peers),
        Cell::maybe(status.nodes),
        Cell::maybe(status.ranges.map(|ranges| ranges.pod_cidrs.join(","))),
        message_cell(ready),
    ]);
    table
}

fn relays(found: &Found) -> Option<Table> {
    let relays = &found.mesh.status.as_ref()?.relays;
    let managed = found.mesh.spec.relays.iter().flat_map(|all| &all.managed);
    let managed: BTreeSet<&str> = managed.map(|relay| relay.name.as_str()).collect();
    let mut table = Table::new(&["NAME", "URL", "INSIDE", "OUTSIDE", "STUN", "PROBLEM"]);
    for relay in relays {
        table.push(vec![
            Cell::plain(&relay.name),
            Cell::maybe(relay.url.as_ref()),
            works(relay.inside),
            outside(relay.outside, managed.contains(relay.name.as_str())),
            Cell::maybe(
                relay
                    .stun_port
                    .filter(|port| *port > 0)
                    .map(|port| port.to_string()),
            ),
            Cell::maybe(relay.problem.as_ref()),
        ]);
    }
    (!relays.is_empty()).then_some(table)
}

fn works(works: bool) -> Cell {
    if works {
        Cell::new("yes", Tone::Good)
    } else {
        Cell::new("no", Tone::Bad)
    }
}

/// Whether somebody comes over it from outside is looked at for relays that run here.
fn outside(seen: Option<bool>, is_managed: bool) -> Cell {
    match seen {
        Some(seen) => works(seen),
        None if is_managed => Cell::new("not seen", Tone::Faint),
        None => Cell::new("", Tone::Faint),
    }
}

fn nodes(found: &Found, now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "READY",
        "NAT",
        "HOME RELAY",
        "PREFIXES",
        "VERSION",
        "HEARD",
        "MESSAGE",
    ]);
    for node in &found.nodes {
        let status = node.status.clone().unwrap_or_default();
        let ready = api::find_condition(&status.conditions, "Ready");
        table.push(vec![
            Cell::plain(node.name_any()),
            ready_cell(ready),
            Cell::maybe(report::nat(&status)),
            Cell::maybe(status.home_relay.as_ref()),
            Cell::plain(node.spec.prefixes.join(",")),
            Cell::maybe(status.agent_version.as_ref()),
            heard_cell(status.heartbeat_at.as_ref(), now),
            message_cell(ready),
        ]);
    }
    table
}

/// How long ago the agent said that it is there, as far as the clocks of the two machines agree.
fn heard_cell(at: Option<&Time>, now: Timestamp) -> Cell {
    let Some(at) = at else {
        return Cell::new("", Tone::Faint);
    };
    let seconds = now.duration_since(at.0).as_secs().max(0);
    let tone = if seconds > SILENT {
        Tone::Bad
    } else {
        Tone::Plain
    };
    let ago = match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    };
    Cell::new(ago, tone)
}

/// Pairs of nodes, then what is idle.
fn paths(found: &Found) -> Option<Table> {
    let paths = report::paths(found);
    let idle = report::idle(found);
    let mut table = Table::new(&[
        "NODE",
        "PEER",
        "REMOTE NODE",
        "PATH",
        "RTT",
        "NAT",
        "REASON",
        "ENDPOINT",
    ]);
    for path in &paths {
        table.push(vec![
            Cell::plain(&path.node),
            Cell::plain(&path.peer),
            Cell::plain(&path.remote_node),
            path_cell(Some(path.path)),
            Cell::maybe(path.rtt_micros.map(rtt)),
            Cell::maybe(path.nat.as_ref()),
            Cell::maybe(path.reason.map(|reason| reason.to_string())),
            Cell::maybe(path.endpoint.as_ref()),
        ]);
    }
    for idle in &idle {
        table.push(vec![
            Cell::plain(&idle.node),
            Cell::plain(&idle.peer),
            Cell::new(format!("{} more", idle.remote_nodes), Tone::Faint),
            path_cell(Some(api::PathKind::Idle)),
        ]);
    }
    (!paths.is_empty() || !idle.is_empty()).then_some(table)
}

/// What to do about each reason, and what was refused.
fn notes(found: &Found) -> Vec<String> {
    let reasons: BTreeSet<_> = report::paths(found)
        .iter()
        .filter_map(|path| path.reason)
        .collect();
    let advice = reasons
        .into_iter()
        .map(|reason| format!("{reason}: {}", reason.advice()));
    let refused = found.peers.iter().flat_map(|peer| {
        let refused = peer.status.iter().flat_map(|status| &status.refused);
        refused.map(|claim| {
            let (peer, node) = (peer.name_any(), &claim.node);
            clean(format!(
                "{peer}, node {node}: refused ({}): {}",
                claim.code, claim.message
            ))
        })
    });
    let problems = found.nodes.iter().flat_map(|node| {
        let problems = report::problems(node).into_iter();
        problems.map(|problem| {
            let (node, peer) = (node.name_any(), &problem.peer);
            clean(format!(
                "{node}: peer {peer} is not in force: {}",
                problem.problem
            ))
        })
    });
    advice.chain(refused).chain(problems).collect()
}

/// A peer had a say in this text, so that it must not move the cursor.
fn clean(text: String) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::fixture;

    /// A second after the fixture's heartbeat.
    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).expect("a time")
    }

    #[test]
    fn silence_is_shown_whatever_the_clocks() {
        let at = Time(second(0));
        for (later, text) in [
            (-30, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            let mut table = Table::new(&["H"]);
            table.push(vec![heard_cell(Some(&at), second(later))]);
            assert_eq!(table.render(false), format!("H\n{text}\n"));
        }
    }

    #[test]
    fn tables_and_notes() {
        let expected = "\
CLUSTER   READY   PEERS   NODES   POD CIDRS     MESSAGE
berlin    True    1/1     1/2     10.1.0.0/16   -

Relays
NAME         URL                     INSIDE   OUTSIDE    STUN   PROBLEM
main         https://r.example.com   yes      not seen   -      nobody has come from outside yet
external-0   https://s.example.com   no       -          3478   -

Peers
PEER    READY   PATH     RTT     NODES   CIDRS         MESSAGE
tokyo   True    direct   5.0ms   3/3     10.2.0.0/16   -

Nodes
NAME       READY   NAT        HOME RELAY              PREFIXES      VERSION   HEARD   MESSAGE
worker-1   True    EDM/APDF   https://r.example.com   10.1.1.0/24   0.1.0     7s      -
worker-2   False   -          -                       -             -         -       TunMissing: words

Paths
NODE       PEER    REMOTE NODE   PATH     RTT      NAT        REASON         ENDPOINT
worker-1   tokyo   tokyo-1       direct   5.0ms    EDM/APDF   -              203.0.113.9:4000
worker-1   tokyo   tokyo-2       relay    41.0ms   EDM/APDF   BothNatsHard   https://r.example.com
worker-1   tokyo   1 more        idle

BothNatsHard: both NATs give every destination another port; forward the agent's UDP port on one of them, or stay on the relay
tokyo, node tokyo-9: refused (OutsideAllowed): 10.9.0.0/24 is not in allowedCIDRs
worker-2: peer tokyo is not in force: 10.2.0.0/16 is eth1's network
";
        assert_eq!(text(&fixture::found(), second(7), false), expected);
    }

    #[test]
    fn an_empty_cluster_has_sections_too() {
        let mut found = fixture::found();
        found.peers.clear();
        found.nodes.clear();
        found.mesh.status = None;
        let text = text(&found, second(0), false);
        assert!(text.starts_with("CLUSTER   READY"), "{text}");
        assert_eq!(text.matches("\nnone\n").count(), 4, "{text}");
    }
}
