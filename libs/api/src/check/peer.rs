//! Rules of a Peer by itself.

use std::collections::{BTreeMap, BTreeSet};

use derp::{NodeKey, RelayUrl};
use ipnet::IpNet;

use super::prefix::{self, Listed};
use super::{Findings, check_name, quote};
use crate::{Code, NodeSpec, PeerConfig, PeerNode, PeerSpec, Problem};

/// Checks a Peer by itself; `own_key` is that of this node.
pub(crate) fn check_peer(
    name: &str,
    spec: &PeerSpec,
    own_key: NodeKey,
) -> Result<PeerConfig, Vec<Problem>> {
    let mut found = Findings::default();
    if let Some(mesh) = &spec.mesh_ref {
        found.take(check_name("spec.meshRef", mesh));
    }
    let identity = spec.identity.as_deref();
    let identity = identity
        .and_then(|identity| found.take(super::mesh::check_identity("spec.identity", identity)));
    let relays = super::mesh::check_relays(&mut found, "spec.relays", &spec.relays);
    let allowed_cidrs = prefix::check_list(&mut found, "spec.allowedCIDRs", &spec.allowed_cidrs);
    let allowed_cidrs = prefix::without_places(&allowed_cidrs);
    let mut check = NodeCheck {
        found,
        own_key,
        allowed: &allowed_cidrs,
        // A broken allow-list would make every prefix look outside.
        allowed_known: allowed_cidrs.len() == spec.allowed_cidrs.len(),
        names: BTreeSet::new(),
        keys: BTreeMap::new(),
        prefixes: BTreeMap::new(),
    };
    let nodes = spec.nodes.iter().enumerate();
    let nodes = nodes
        .filter_map(|(index, node)| check.node(index, node))
        .collect();
    let found = check.found;
    found.finish(PeerConfig {
        name: name.to_owned(),
        mesh_ref: spec.mesh_ref.clone(),
        identity,
        relays,
        allowed_cidrs,
        nodes,
    })
}

/// What came of nodes that a Peer told.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Those that may be in force, without the prefixes that may not.
    pub(crate) accepted: Vec<PeerNode>,
    /// What may not, by the name of the node.
    pub(crate) refused: Vec<(String, Problem)>,
}

/// Holds nodes that a Peer told against what it may use and against its nodes so far, by the rules of written ones. A
/// bad name or key costs the node, a bad prefix itself only; a home relay is but a hint. `rival` names the other Peer
/// that has a key already.
pub(crate) fn accept_nodes<'a>(
    peer: &PeerConfig,
    told: &[NodeSpec],
    own_key: NodeKey,
    rival: impl Fn(NodeKey) -> Option<&'a str>,
) -> Outcome {
    let written = || peer.nodes.iter();
    let mut check = NodeCheck {
        found: Findings::default(),
        own_key,
        allowed: &peer.allowed_cidrs,
        allowed_known: true,
        names: written().map(|node| node.name.as_str()).collect(),
        keys: written()
            .map(|node| (node.public_key, node.name.as_str()))
            .collect(),
        prefixes: written()
            .flat_map(|node| {
                node.prefixes
                    .iter()
                    .map(|prefix| (*prefix, node.name.as_str()))
            })
            .collect(),
    };
    let mut outcome = Outcome::default();
    for (index, node) in told.iter().enumerate() {
        let accepted = check.told(&format!("nodes[{index}]"), node, &rival);
        let problems = std::mem::take(&mut check.found).into_problems();
        let refused = problems
            .into_iter()
            .map(|problem| (node.name.clone(), problem));
        outcome.refused.extend(refused);
        outcome.accepted.extend(accepted);
    }
    outcome
}

/// What the nodes of a Peer seen so far have claimed.
struct NodeCheck<'a> {
    found: Findings,
    own_key: NodeKey,
    allowed: &'a [IpNet],
    allowed_known: bool,
    names: BTreeSet<&'a str>,
    keys: BTreeMap<NodeKey, &'a str>,
    prefixes: BTreeMap<IpNet, &'a str>,
}

impl<'a> NodeCheck<'a> {
    fn node(&mut self, index: usize, node: &'a NodeSpec) -> Option<PeerNode> {
        let field = format!("spec.nodes[{index}]");
        self.name(&field, node);
        let public_key = self.key(&field, node);
        let home_relay = self.home_relay(&field, node);
        let prefixes = self.prefixes(&field, node);
        Some(PeerNode {
            name: node.name.clone(),
            public_key: public_key?,
            home_relay,
            prefixes,
        })
    }

    /// A node that was told: what is wrong with its prefixes costs only these.
    fn told<'b>(
        &mut self,
        field: &str,
        node: &'a NodeSpec,
        rival: impl Fn(NodeKey) -> Option<&'b str>,
    ) -> Option<PeerNode> {
        self.name(field, node);
        let public_key = self.key(field, node)?;
        if let Some(rival) = rival(public_key) {
            let message =
                format!("Peer {rival} has a node with this key already; every node makes its own");
            self.found
                .add(format!("{field}.publicKey"), Code::DuplicateKey, message);
        }
        if !self.found.is_empty() {
            return None;
        }
        let prefixes = node.prefixes.iter().enumerate();
        let prefixes = prefixes.filter_map(|(index, text)| {
            let field = format!("{field}.prefixes[{index}]");
            let prefix = self.found.take(prefix::check_prefix(&field, text))?;
            self.claim(&field, prefix, node).then_some(prefix)
        });
        Some(PeerNode {
            name: node.name.clone(),
            public_key,
            prefixes: prefixes.collect::<BTreeSet<IpNet>>().into_iter().collect(),
            home_relay: node.home_relay.as_deref().and_then(|url| url.parse().ok()),
        })
    }

    fn name(&mut self, field: &str, node: &'a NodeSpec) {
        let field = format!("{field}.name");
        self.found.take(check_name(&field, &node.name));
        if !self.names.insert(&node.name) {
            let message = format!(
                "two nodes are named {}; give each its own name",
                quote(&node.name)
            );
            self.found.add(field, Code::DuplicateName, message);
        }
    }

    fn key(&mut self, field: &str, node: &'a NodeSpec) -> Option<NodeKey> {
        let field = format!("{field}.publicKey");
        let Ok(key) = node.public_key.parse() else {
            let message = format!(
                "{} is not a usable public key; paste the 44 characters that culvert-agent keygen prints on that node",
                quote(&node.public_key)
            );
            self.found.add(field, Code::BadKey, message);
            return None;
        };
        if key == self.own_key {
            let message = "this is the key of this very node; paste the one that keygen prints on the remote node";
            self.found.add(field, Code::OwnKey, message);
        } else if let Some(other) = self.keys.insert(key, &node.name) {
            let message = format!(
                "node {} has this key too; every node makes its own with keygen",
                quote(other)
            );
            self.found.add(field, Code::DuplicateKey, message);
        }
        Some(key)
    }

    fn home_relay(&mut self, field: &str, node: &NodeSpec) -> Option<RelayUrl> {
        let url = node.home_relay.as_deref()?;
        self.found
            .take(super::mesh::check_url(&format!("{field}.homeRelay"), url))
    }

    fn prefixes(&mut self, field: &str, node: &'a NodeSpec) -> Vec<IpNet> {
        let field = format!("{field}.prefixes");
        let listed = prefix::check_list(&mut self.found, &field, &node.prefixes);
        for Listed { index, prefix } in &listed {
            self.claim(&format!("{field}[{index}]"), *prefix, node);
        }
        prefix::without_places(&listed)
    }

    /// Notes who claims a prefix; `true` if it may.
    fn claim(&mut self, field: &str, prefix: IpNet, node: &'a NodeSpec) -> bool {
        if self.allowed_known && !self.allowed.iter().any(|allowed| allowed.contains(&prefix)) {
            let message =
                format!("{prefix} lies outside allowedCIDRs; correct it, or allow it there");
            self.found.add(field, Code::PrefixOutsideAllowed, message);
            return false;
        }
        let owner = *self.prefixes.entry(prefix).or_insert(&node.name);
        if owner != node.name {
            let message = format!(
                "node {} has {prefix} too; a longer prefix inside it may go to another node, the same may not",
                quote(owner)
            );
            self.found.add(field, Code::DuplicatePrefix, message);
        }
        owner == node.name
    }
}
