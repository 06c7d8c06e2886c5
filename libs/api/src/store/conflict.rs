//! What a Peer may not be in conflict with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use derp::RelayUrl;
use ipnet::IpNet;

use super::Environment;
use crate::check::{overlap, too_small_for_v6};
use crate::{Code, MeshConfig, PeerConfig, Problem};

/// Why a Peer may not be in force on this node, whatever its document says.
pub(super) fn bars(environment: &Environment, peer: &PeerConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(mesh) = &environment.mesh {
        problems.extend(wrong_mesh(mesh, peer));
    }
    for (index, &allowed) in peer.allowed_cidrs.iter().enumerate() {
        let field = format!("spec.allowedCIDRs[{index}]");
        let mesh = environment.mesh.as_ref();
        let broken = [
            mesh.and_then(|mesh| touches_own(mesh, allowed)),
            touches_connected(&environment.connected, allowed),
            touches_reserved(&environment.reserved, allowed),
            holds_relay(&environment.relays, allowed),
            mesh.and_then(|mesh| too_big_for(mesh, allowed)),
        ];
        let broken = broken.into_iter().flatten();
        problems.extend(broken.map(|(code, message)| Problem::new(&field, code, message)));
    }
    problems
}

/// Nodes whose `homeRelay` the Mesh does not have.
pub(super) fn unknown_relays(environment: &Environment, peer: &PeerConfig) -> Vec<Problem> {
    let Some(mesh) = &environment.mesh else {
        return Vec::new();
    };
    let nodes = peer.nodes.iter().enumerate();
    let unknown = nodes.filter_map(|(index, node)| {
        let url = node.home_relay.as_ref()?;
        let mut relays = mesh.relays.iter().chain(&peer.relays);
        let known = relays.any(|relay| relay.url == *url);
        let message = || {
            let urls: Vec<String> = mesh
                .relays
                .iter()
                .map(|relay| relay.url.to_string())
                .collect();
            format!(
                "{url} is no relay of the Mesh; use one of [{}], or leave homeRelay out",
                urls.join(", ")
            )
        };
        (!known).then(|| {
            Problem::new(
                format!("spec.nodes[{index}].homeRelay"),
                Code::UnknownRelay,
                message(),
            )
        })
    });
    unknown.collect()
}

/// The Peer as the Mesh lets it be: a relay that the Mesh no longer has is nobody's home.
pub(super) fn without_unknown_relays(environment: &Environment, peer: &PeerConfig) -> PeerConfig {
    let mut peer = peer.clone();
    let relays = environment.mesh.iter().flat_map(|mesh| &mesh.relays);
    let relays = relays.chain(&peer.relays);
    let known: Vec<RelayUrl> = relays.map(|relay| relay.url.clone()).collect();
    for node in &mut peer.nodes {
        node.home_relay = node.home_relay.take().filter(|url| known.contains(url));
    }
    peer
}

/// What a Peer claims that another has already.
pub(super) fn between(peer: &PeerConfig, other: &PeerConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, &mine) in peer.allowed_cidrs.iter().enumerate() {
        if let Some(theirs) = other
            .allowed_cidrs
            .iter()
            .find(|theirs| overlap(mine, **theirs))
        {
            let message = format!(
                "{mine} overlaps with {theirs} of Peer {}; a prefix belongs to one Peer, so shrink one of them",
                other.name
            );
            problems.push(Problem::new(
                format!("spec.allowedCIDRs[{index}]"),
                Code::OverlapsPeer,
                message,
            ));
        }
    }
    let keys: BTreeMap<_, _> = other
        .nodes
        .iter()
        .map(|node| (node.public_key, &node.name))
        .collect();
    for (index, node) in peer.nodes.iter().enumerate() {
        if let Some(name) = keys.get(&node.public_key) {
            let message = format!(
                "node {name} of Peer {} has this key too; every node makes its own with keygen",
                other.name
            );
            problems.push(Problem::new(
                format!("spec.nodes[{index}].publicKey"),
                Code::DuplicateKey,
                message,
            ));
        }
    }
    problems
}

fn wrong_mesh(mesh: &MeshConfig, peer: &PeerConfig) -> Option<Problem> {
    let wrong = peer.mesh_ref.as_ref().filter(|name| **name != mesh.name)?;
    let message = format!(
        "there is no Mesh {wrong}; write {}, or leave meshRef out",
        mesh.name
    );
    Some(Problem::new("spec.meshRef", Code::UnknownMesh, message))
}

fn touches_own(mesh: &MeshConfig, allowed: IpNet) -> Option<(Code, String)> {
    let own = mesh.own_prefixes().find(|own| overlap(*own, allowed))?;
    let message = format!(
        "{allowed} overlaps with {own}, which this site serves itself; a Peer may have only what lies elsewhere"
    );
    Some((Code::OverlapsOwn, message))
}

fn touches_connected(connected: &[IpNet], allowed: IpNet) -> Option<(Code, String)> {
    let network = connected
        .iter()
        .find(|network| overlap(**network, allowed))?;
    let message = format!(
        "{allowed} overlaps with {network}, to which this node is directly connected; shrink it, or renumber one of them"
    );
    Some((Code::OverlapsConnected, message))
}

fn touches_reserved(reserved: &[IpNet], allowed: IpNet) -> Option<(Code, String)> {
    let range = reserved.iter().find(|range| overlap(**range, allowed))?;
    let message = format!(
        "{allowed} overlaps with {range} of this cluster; a Peer may have only what lies elsewhere"
    );
    Some((Code::OverlapsOwn, message))
}

fn holds_relay(relays: &[IpAddr], allowed: IpNet) -> Option<(Code, String)> {
    let relay = relays.iter().find(|relay| allowed.contains(*relay))?;
    let message = format!(
        "{allowed} holds {relay}, the address of a relay, which must stay reachable outside the mesh; leave that range out"
    );
    Some((Code::HoldsRelay, message))
}

fn too_big_for(mesh: &MeshConfig, allowed: IpNet) -> Option<(Code, String)> {
    let broken = matches!(allowed, IpNet::V6(_)) && too_small_for_v6(mesh.mtu);
    let message =
        || format!("{allowed} is IPv6, which needs an MTU of at least 1280; raise mtu in the Mesh");
    broken.then(|| (Code::BadMtu, message()))
}
