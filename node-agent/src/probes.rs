//! Which remote nodes are probed: of every Peer that this node probes, one.
//!
//! A probe tells that the Peer can be reached though nobody sends anything. It goes to a node with a session if there is
//! one, so that a tunnel less has to be kept up, and else to the first by name; one that does not answer gives way to
//! another.

use std::collections::{BTreeMap, BTreeSet};

use api::{Accepted, PathKind, PeerConfig};
use derp::NodeKey;
use jiff::{SignedDuration, Timestamp};

use crate::Snapshot;

/// How long an answer counts. Probes go every ten seconds.
const FRESH: SignedDuration = SignedDuration::from_secs(25);
/// How long a node has for its first answer: a handshake over the relay is part of it.
const PATIENCE: SignedDuration = SignedDuration::from_secs(15);

/// The choice so far.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    chosen: BTreeMap<String, Choice>,
}

#[derive(Clone, Copy, Debug)]
struct Choice {
    key: NodeKey,
    since: Timestamp,
}

impl Probes {
    /// The nodes to probe now, one of each Peer in `peers` that has any.
    pub(crate) fn choose(
        &mut self,
        peers: &[String],
        accepted: &Accepted,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> BTreeSet<NodeKey> {
        self.chosen.retain(|name, _| peers.contains(name));
        let in_force = accepted.peers.iter();
        for peer in in_force.filter(|peer| peers.contains(&peer.name)) {
            let before = self.chosen.get(&peer.name).copied();
            let choice = match before.filter(|choice| keeps(*choice, peer, snapshot, now)) {
                Some(choice) => Some(choice),
                None => next(peer, before, snapshot).map(|key| Choice { key, since: now }),
            };
            match choice {
                Some(choice) => self.chosen.insert(peer.name.clone(), choice),
                None => self.chosen.remove(&peer.name),
            };
        }
        let names: BTreeSet<&str> = accepted
            .peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect();
        self.chosen.retain(|name, _| names.contains(name.as_str()));
        self.chosen.values().map(|choice| choice.key).collect()
    }
}

/// Whether a choice stands: the node is there, and answers or still has time.
fn keeps(choice: Choice, peer: &PeerConfig, snapshot: &Snapshot, now: Timestamp) -> bool {
    let there = peer.nodes.iter().any(|node| node.public_key == choice.key);
    let answered = snapshot.probed.get(&choice.key);
    let fresh = answered.is_some_and(|at| now.duration_since(*at) < FRESH);
    there && (fresh || now.duration_since(choice.since) < PATIENCE)
}

/// A node with a session, but for the one that has just failed; else the one behind that by name, all around.
fn next(peer: &PeerConfig, failed: Option<Choice>, snapshot: &Snapshot) -> Option<NodeKey> {
    let failed = failed.map(|choice| choice.key);
    let report = snapshot
        .peers
        .iter()
        .find(|report| report.name == peer.name);
    let in_use = report.into_iter().flat_map(|report| &report.nodes);
    let mut in_use = in_use.filter(|node| matches!(node.path, PathKind::Direct | PathKind::Relay));
    let known = |key: &NodeKey| peer.nodes.iter().any(|node| node.public_key == *key);
    if let Some(node) =
        in_use.find(|node| Some(node.public_key) != failed && known(&node.public_key))
    {
        return Some(node.public_key);
    }
    let mut nodes: Vec<_> = peer.nodes.iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let place = nodes
        .iter()
        .position(|node| Some(node.public_key) == failed);
    let following = place.map_or(0, |place| place + 1);
    let node = nodes.get(following).or_else(|| nodes.first())?;
    Some(node.public_key)
}

#[cfg(test)]
mod tests {
    use api::{PathReport, PeerNode, PeerReport};

    use super::*;

    fn key(number: u8) -> NodeKey {
        format!("nodekey:{number:02x}{}", "5a".repeat(31))
            .parse()
            .expect("a key")
    }

    fn accepted(nodes: &[u8]) -> Accepted {
        let node = |number: &u8| PeerNode {
            name: format!("n{number}"),
            public_key: key(*number),
            home_relay: None,
            prefixes: Vec::new(),
        };
        Accepted {
            mesh: None,
            peers: vec![PeerConfig {
                name: "p".to_owned(),
                mesh_ref: None,
                identity: None,
                relays: Vec::new(),
                allowed_cidrs: Vec::new(),
                nodes: nodes.iter().map(node).collect(),
            }],
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// `session` and `answered` are nodes; the answer came at a second.
    fn snapshot(session: Option<u8>, answered: Option<(u8, i64)>) -> Snapshot {
        let report = |number: u8| PathReport {
            name: format!("n{number}"),
            public_key: key(number),
            path: PathKind::Relay,
            reason: None,
            endpoint: None,
            rtt_micros: None,
            path_since: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            mtu: 1280,
        };
        Snapshot {
            peers: vec![PeerReport {
                name: "p".to_owned(),
                nodes: session.map(report).into_iter().collect(),
            }],
            probed: answered
                .map(|(number, second)| (key(number), at(second)))
                .into_iter()
                .collect(),
            ..Snapshot::default()
        }
    }

    fn only(number: u8) -> BTreeSet<NodeKey> {
        BTreeSet::from([key(number)])
    }

    #[test]
    fn a_node_with_a_session_is_preferred_else_the_first() {
        let names = ["p".to_owned()];
        let all = accepted(&[2, 1, 3]);
        let mut probes = Probes::default();
        let quiet = snapshot(None, None);
        assert_eq!(probes.choose(&names, &all, &quiet, at(0)), only(1));
        let mut probes = Probes::default();
        let busy = snapshot(Some(3), None);
        assert_eq!(probes.choose(&names, &all, &busy, at(0)), only(3));
        assert!(probes.choose(&[], &all, &busy, at(1)).is_empty());
        assert!(
            Probes::default()
                .choose(&names, &accepted(&[]), &busy, at(0))
                .is_empty()
        );
    }

    #[test]
    fn one_that_does_not_answer_gives_way() {
        let names = ["p".to_owned()];
        let all = accepted(&[1, 2]);
        let mut probes = Probes::default();
        let mut choose =
            |snapshot: &Snapshot, second| probes.choose(&names, &all, snapshot, at(second));
        assert_eq!(choose(&snapshot(None, None), 0), only(1));
        assert_eq!(choose(&snapshot(None, None), 14), only(1));
        assert_eq!(
            choose(&snapshot(Some(1), None), 15),
            only(2),
            "a session that does not answer"
        );
        assert_eq!(choose(&snapshot(None, Some((2, 30))), 31), only(2));
        assert_eq!(choose(&snapshot(None, Some((2, 30))), 54), only(2));
        assert_eq!(
            choose(&snapshot(None, Some((2, 30))), 55),
            only(1),
            "around"
        );
    }

    #[test]
    fn a_node_or_peer_that_is_gone_is_not_probed() {
        let names = ["p".to_owned()];
        let mut probes = Probes::default();
        let quiet = snapshot(None, None);
        assert_eq!(
            probes.choose(&names, &accepted(&[1, 2]), &quiet, at(0)),
            only(1)
        );
        assert_eq!(
            probes.choose(&names, &accepted(&[2]), &quiet, at(1)),
            only(2)
        );
        assert!(
            probes
                .choose(&names, &Accepted::default(), &quiet, at(2))
                .is_empty()
        );
    }
}
