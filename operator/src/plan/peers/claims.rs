//! What a peer proposes, held against what it may use. Nothing else is ever programmed.

use std::collections::{BTreeMap, BTreeSet};

use api::{Code, NodeSpec, RefusedClaim, check_prefix};
use derp::{NodeKey, RelayUrl};
use ipnet::IpNet;

use super::judge::Verdict;
use super::keys::Keys;

/// Refused claims that are shown.
const MAX_SHOWN: usize = 16;
/// Most text of one.
const MAX_MESSAGE: usize = 1024;

/// What became of a peer's proposals.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// What may be programmed, by name.
    pub(super) accepted: Vec<NodeSpec>,
    /// What may not; the first 16.
    pub(super) refused: Vec<RefusedClaim>,
    /// How many nodes were proposed that serve anything.
    pub(super) proposed: usize,
}

impl Claims {
    /// Notes that something was refused.
    pub(super) fn refuse(&mut self, node: &str, code: &str, message: impl Into<String>) {
        if self.refused.len() < MAX_SHOWN {
            let message: String = message.into();
            self.refused.push(RefusedClaim {
                node: node.chars().take(253).collect(),
                code: code.to_owned(),
                message: message.chars().take(MAX_MESSAGE).collect(),
            });
        }
    }

    fn refuse_outside(&mut self, peer: &Verdict<'_>, node: &str, prefix: IpNet) {
        let message = format!(
            "{prefix} lies outside allowedCIDRs of Peer {}; allow it there if it is right",
            peer.name
        );
        self.refuse(node, Code::PrefixOutsideAllowed.name(), message);
    }
}

/// Refuses prefixes of nodes that are given by hand: agents leave out those that the Peer itself does not allow. Tells of
/// keys that a node of this cluster calls its own, too.
pub(super) fn check_written(peer: &Verdict<'_>, keys: &Keys) -> Claims {
    let mut claims = Claims::default();
    for node in &peer.peer.spec.nodes {
        let key = node.public_key.parse().ok();
        if let Some(own) = key.and_then(|key| keys.own(key)) {
            let message =
                format!("{own} says that this public key is its own; every node makes its own");
            claims.refuse(&node.name, Code::DuplicateKey.name(), message);
        }
        let prefixes = node.prefixes.iter().filter_map(|text| text.parse().ok());
        for prefix in prefixes.filter(|prefix| !is_allowed(peer, *prefix)) {
            claims.refuse_outside(peer, &node.name, prefix);
        }
    }
    claims
}

/// Holds proposals, sorted by name, against what the Peer may use, and adds what comes of it to `claims`. `known` are the relays of this cluster.
pub(super) fn check(
    peer: &Verdict<'_>,
    proposals: &[NodeSpec],
    known: &BTreeSet<RelayUrl>,
    keys: &mut Keys,
    claims: Claims,
) -> Claims {
    let mut check = Check {
        peer,
        known,
        keys,
        names: peer
            .peer
            .spec
            .nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect(),
        prefixes: written_prefixes(peer),
        claims,
    };
    for node in proposals.iter().filter(|node| !node.prefixes.is_empty()) {
        check.node(node);
    }
    check.claims
}

struct Check<'a> {
    peer: &'a Verdict<'a>,
    known: &'a BTreeSet<RelayUrl>,
    keys: &'a mut Keys,
    /// Of nodes given by hand, which come first.
    names: BTreeSet<&'a str>,
    prefixes: BTreeMap<IpNet, String>,
    claims: Claims,
}

impl Check<'_> {
    fn node(&mut self, node: &NodeSpec) {
        self.claims.proposed += 1;
        if self.names.contains(node.name.as_str()) {
            let message = "a node of this name is given in spec.nodes, which counts";
            return self
                .claims
                .refuse(&node.name, Code::DuplicateName.name(), message);
        }
        let Ok(key) = node.public_key.parse::<NodeKey>() else {
            let message = "its public key is none";
            return self.claims.refuse(&node.name, Code::BadKey.name(), message);
        };
        if let Err(other) = self.keys.take(key, &node.name, &self.peer.name) {
            let message = format!("its public key is that of {other}");
            return self
                .claims
                .refuse(&node.name, Code::DuplicateKey.name(), message);
        }
        let prefixes: Vec<String> = node
            .prefixes
            .iter()
            .filter_map(|text| self.prefix(&node.name, text))
            .map(|prefix| prefix.to_string())
            .collect();
        if !prefixes.is_empty() {
            self.claims.accepted.push(NodeSpec {
                name: node.name.clone(),
                public_key: key.to_string(),
                home_relay: self.home_relay(node),
                prefixes,
            });
        }
    }

    fn prefix(&mut self, node: &str, text: &str) -> Option<IpNet> {
        let prefix = match check_prefix("", text) {
            Ok(prefix) => prefix,
            Err(problem) => {
                self.claims
                    .refuse(node, problem.code.name(), problem.message);
                return None;
            }
        };
        if !is_allowed(self.peer, prefix) {
            self.claims.refuse_outside(self.peer, node, prefix);
            return None;
        }
        if let Some(other) = self.prefixes.get(&prefix).filter(|other| *other != node) {
            let message = format!("{prefix} is node {other}'s already");
            self.claims
                .refuse(node, Code::DuplicatePrefix.name(), message);
            return None;
        }
        self.prefixes.insert(prefix, node.to_owned());
        Some(prefix)
    }

    /// Only a relay that is known here: another is not dialled because a peer says so.
    fn home_relay(&self, node: &NodeSpec) -> Option<String> {
        let url: RelayUrl = node.home_relay.as_ref()?.parse().ok()?;
        self.known.contains(&url).then(|| url.to_string())
    }
}

fn is_allowed(peer: &Verdict<'_>, prefix: IpNet) -> bool {
    peer.allowed.iter().any(|allowed| allowed.contains(&prefix))
}

fn written_prefixes(peer: &Verdict<'_>) -> BTreeMap<IpNet, String> {
    let nodes = peer.peer.spec.nodes.iter();
    let of_node = |node: &NodeSpec| {
        let name = node.name.clone();
        let prefixes = node.prefixes.iter().filter_map(|text| text.parse().ok());
        prefixes
            .map(move |prefix| (prefix, name.clone()))
            .collect::<Vec<_>>()
    };
    nodes.flat_map(of_node).collect()
}
