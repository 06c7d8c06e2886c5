//! When agents were last heard, by this operator's own clock. The clocks of nodes may be wrong, so what counts is that a value
//! of theirs changes, and never what it is.

use std::collections::{BTreeMap, BTreeSet};

use api::MeshNode;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

/// How long an agent may say nothing: three times what it takes to say something.
const SILENCE: SignedDuration = SignedDuration::from_secs(45);
/// Most Peers of a node that are remembered although it no longer reports on them.
const MAX_PROBES: usize = 512;

/// When agents were last heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether what there was at the beginning has been noted.
    begun: bool,
    nodes: BTreeMap<String, OfNode>,
}

/// A value that changes as long as somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sign {
    value: Timestamp,
    /// When it has last changed; if it has not, when it was first seen.
    pub(crate) since: Timestamp,
    /// Whether it has been seen to change. One that was there before this operator may be of any age.
    pub(crate) has_changed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfNode {
    heartbeat: Option<Sign>,
    /// By the name of the Peer.
    probes: BTreeMap<String, Sign>,
}

impl Heard {
    /// Notes what a node's agent says now. `true` if it was silent before.
    pub fn note(&mut self, node: &MeshNode, now: Timestamp) -> bool {
        let name = node.name_any();
        let was_silent = self.is_silent(&name, now);
        let begun = self.begun;
        let of = self.nodes.entry(name.clone()).or_default();
        let status = node.status.as_ref();
        let heartbeat = status.and_then(|status| status.heartbeat_at.as_ref());
        if let Some(at) = heartbeat {
            of.heartbeat = Some(Sign::next(of.heartbeat, at.0, begun, now));
        }
        let peers = status.into_iter().flat_map(|status| &status.peers);
        for peer in peers.clone() {
            if let Some(at) = &peer.probed_at {
                let before = of.probes.get(&peer.name).copied();
                let sign = Sign::next(before, at.0, begun, now);
                of.probes.insert(peer.name.clone(), sign);
            }
        }
        if of.probes.len() > MAX_PROBES {
            let told: BTreeSet<&str> = peers.map(|peer| peer.name.as_str()).collect();
            of.probes.retain(|peer, _| told.contains(peer.as_str()));
        }
        was_silent && !self.is_silent(&name, now)
    }

    /// From now on what was not there before is new. Forgets nodes that are gone.
    pub fn begin(&mut self, nodes: &[std::sync::Arc<MeshNode>]) {
        let names: BTreeSet<String> = nodes.iter().map(|node| node.name_any()).collect();
        self.nodes.retain(|name, _| names.contains(name));
        self.begun = true;
    }

    /// Whether an agent has been silent for too long. One that has never said that it is there is not judged by this.
    pub(crate) fn is_silent(&self, node: &str, now: Timestamp) -> bool {
        self.silent_at(node).is_some_and(|at| at <= now)
    }

    /// When an agent will have been silent for too long.
    pub(crate) fn silent_at(&self, node: &str) -> Option<Timestamp> {
        let since = self.nodes.get(node)?.heartbeat?.since;
        since.checked_add(SILENCE).ok()
    }

    /// What is known of a node's probe of a Peer.
    pub(crate) fn probe(&self, node: &str, peer: &str) -> Option<Sign> {
        self.nodes.get(node)?.probes.get(peer).copied()
    }
}

impl Sign {
    fn next(before: Option<Self>, value: Timestamp, begun: bool, now: Timestamp) -> Self {
        match before {
            Some(before) if before.value == value => before,
            Some(_) => Self {
                value,
                since: now,
                has_changed: true,
            },
            None => Self {
                value,
                since: now,
                has_changed: begun,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// `heartbeat` and `probed` by the node's own clock.
    fn node(heartbeat: Option<i64>, probed: Option<i64>) -> MeshNode {
        let text = |second: Option<i64>| second.map(|second| at(second).to_string());
        let peer = json!({"name": "p", "accepted": true, "probedAt": text(probed)});
        let status = json!({"heartbeatAt": text(heartbeat), "peers": [peer]});
        let node = json!({"metadata": {"name": "n"}, "spec": {}, "status": status});
        serde_json::from_value(node).expect("a MeshNode")
    }

    fn begun() -> Heard {
        let mut heard = Heard::default();
        heard.begin(&[]);
        heard
    }

    #[test]
    fn a_wrong_clock_makes_nobody_silent_and_nobody_loud() {
        for skew in [-100_000, 0, 100_000] {
            let mut heard = begun();
            heard.note(&node(Some(skew), None), at(1000));
            heard.note(&node(Some(skew), None), at(1044));
            assert!(!heard.is_silent("n", at(1044)) && heard.is_silent("n", at(1045)));
            assert!(heard.note(&node(Some(skew + 1), None), at(1050)), "back");
            assert!(!heard.note(&node(Some(skew + 2), None), at(1051)));
            assert_eq!(heard.silent_at("n"), Some(at(1096)));
            // Also when the clock is set back.
            heard.note(&node(Some(skew - 50), None), at(1060));
            assert_eq!(heard.silent_at("n"), Some(at(1105)));
        }
    }

    #[test]
    fn who_never_says_that_it_is_there_is_not_judged() {
        let mut heard = begun();
        assert!(!heard.note(&node(None, None), at(0)));
        assert!(!heard.is_silent("n", at(1_000_000)) && !heard.is_silent("m", at(0)));
    }

    #[test]
    fn what_was_there_before_may_be_of_any_age() {
        let mut heard = Heard::default();
        heard.note(&node(Some(5), Some(5)), at(100));
        heard.begin(&[std::sync::Arc::new(node(None, None))]);
        heard.note(&node(Some(5), Some(5)), at(110));
        let sign = heard.probe("n", "p").expect("noted");
        assert_eq!((sign.since, sign.has_changed), (at(100), false));
        assert_eq!(
            heard.silent_at("n"),
            Some(at(145)),
            "from when it was first seen"
        );
        heard.note(&node(Some(5), Some(6)), at(120));
        let sign = heard.probe("n", "p").expect("noted");
        assert_eq!((sign.since, sign.has_changed), (at(120), true));

        let mut heard = begun();
        heard.note(&node(Some(5), None), at(100));
        heard.note(&node(Some(5), Some(7)), at(110));
        assert!(heard.probe("n", "p").expect("noted").has_changed, "new");
        // A report that is left out and comes back is no news.
        heard.note(&node(Some(5), None), at(120));
        heard.note(&node(Some(5), Some(7)), at(130));
        assert_eq!(heard.probe("n", "p").expect("noted").since, at(110));
        heard.begin(&[]);
        assert_eq!(heard.probe("n", "p"), None, "the node is gone");
    }
}
