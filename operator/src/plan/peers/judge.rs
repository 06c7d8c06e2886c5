//! Whether a Peer may be: who it is, and which ranges it may use.

use std::net::IpAddr;

use api::{MAX_ADMITTED_PEERS, MAX_ADMITTED_RANGES, Peer, check_prefix, overlap};
use derp::RelayUrl;
use ipnet::IpNet;
use kube::ResourceExt;
use sync::ClusterIdentity;

use crate::plan::draft::by_age;
use crate::plan::ground::Ground;
use crate::plan::relays::Site;

use super::keys::Keys;

/// Why a Peer may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// One CamelCase word.
    pub(crate) reason: &'static str,
    /// Which range, who stands against it, and what to do.
    pub(crate) message: String,
}

/// What is thought of a Peer.
#[derive(Clone, Debug)]
pub(crate) struct Verdict<'a> {
    /// The Peer.
    pub(crate) peer: &'a Peer,
    /// Its name.
    pub(crate) name: String,
    /// Who it is, if it says so and that may be.
    pub(crate) identity: Option<ClusterIdentity>,
    /// What it may use.
    pub(crate) allowed: Vec<IpNet>,
    /// What is wrong with the object itself.
    pub(crate) refused: Option<Problem>,
    /// What its ranges collide with.
    pub(crate) overlap: Option<Problem>,
}

impl Verdict<'_> {
    /// Whether it is one whom we speak to and whose nodes relays let in.
    pub(crate) fn is_admitted(&self) -> bool {
        self.refused.is_none()
    }

    /// Whether its nodes may be programmed.
    pub(crate) fn is_in_force(&self) -> bool {
        self.refused.is_none() && self.overlap.is_none()
    }
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Judges all Peers from the oldest to the youngest: of two that exclude each other the older one stays.
pub(crate) fn judge<'a>(ground: Ground<'a>, own: &[Site]) -> Vec<Verdict<'a>> {
    let mut verdicts: Vec<Verdict<'a>> = Vec::new();
    let mut keys = Keys::of_nodes(ground);
    let mut room = Room::default();
    for peer in by_age(&ground.world.peers) {
        let mut verdict = judge_one(ground, own, &verdicts, peer);
        if verdict.is_in_force() {
            verdict.refused = room.take(&verdict).or_else(|| keys.take_written(&verdict));
        }
        verdicts.push(verdict);
    }
    verdicts
}

/// What is left for Peers to be in force.
struct Room {
    peers: usize,
    ranges: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            peers: MAX_ADMITTED_PEERS,
            ranges: MAX_ADMITTED_RANGES,
        }
    }
}

impl Room {
    /// Makes place for a Peer, or says why there is none.
    fn take(&mut self, peer: &Verdict<'_>) -> Option<Problem> {
        let left = self
            .peers
            .checked_sub(1)
            .zip(self.ranges.checked_sub(peer.allowed.len()));
        let Some((peers, ranges)) = left else {
            let message = format!(
                "older Peers leave no room: {MAX_ADMITTED_PEERS} may be in force, with {MAX_ADMITTED_RANGES} ranges in all; delete some, or join ranges"
            );
            return Some(Problem::new("TooManyPeers", message));
        };
        *self = Self { peers, ranges };
        None
    }
}

/// What stands against a range, in words: our own ranges, addresses of nodes and relays, and Peers.
pub(crate) fn rival(
    ground: Ground<'_>,
    relays: &[Site],
    peers: &[Verdict<'_>],
    range: IpNet,
) -> Option<Problem> {
    of_ranges(ground, range)
        .or_else(|| of_nodes(ground, range))
        .or_else(|| of_servers(ground, range))
        .or_else(|| of_relays(relays, range))
        .or_else(|| of_peers(peers, range))
}

fn judge_one<'a>(
    ground: Ground<'a>,
    own: &[Site],
    older: &[Verdict<'a>],
    peer: &'a Peer,
) -> Verdict<'a> {
    let identity = identity(ground, older, peer);
    let allowed = allowed(peer);
    let mesh = check_mesh(ground, peer);
    let refused = [
        mesh.err(),
        identity.as_ref().err().cloned(),
        allowed.as_ref().err().cloned(),
    ];
    let allowed = allowed.unwrap_or_default();
    let relays: Vec<Site> = own.iter().cloned().chain(sites(peer)).collect();
    let overlap = allowed
        .iter()
        .find_map(|range| rival(ground, &relays, older, *range));
    Verdict {
        peer,
        name: peer.name_any(),
        identity: identity.ok().flatten(),
        allowed,
        refused: refused.into_iter().flatten().next(),
        overlap,
    }
}

fn check_mesh(ground: Ground<'_>, peer: &Peer) -> Result<(), Problem> {
    let own = ground.mesh_name();
    match &peer.spec.mesh_ref {
        Some(mesh) if *mesh != own => {
            let message = format!("meshRef names {mesh}, and the Mesh in force is {own}");
            Err(Problem::new("UnknownMesh", message))
        }
        Some(_) | None => Ok(()),
    }
}

fn identity(
    ground: Ground<'_>,
    older: &[Verdict<'_>],
    peer: &Peer,
) -> Result<Option<ClusterIdentity>, Problem> {
    let Some(text) = &peer.spec.identity else {
        return Ok(None);
    };
    let identity: ClusterIdentity = text
        .parse()
        .map_err(|error| Problem::new("BadIdentity", format!("spec.identity: {error}")))?;
    // On relays a cluster is known by the X25519 form, which two identities share.
    let address = identity.relay_key();
    if address == ground.identity().relay_key() {
        let message = "spec.identity is that of this very cluster; use the one that the other's Mesh shows in its status";
        return Err(Problem::new("OwnIdentity", message));
    }
    let same = older.iter().find(|other| {
        let other = other.identity.filter(|_| other.is_admitted());
        other.is_some_and(|other| other.relay_key() == address)
    });
    match same {
        Some(other) => {
            let message = format!("Peer {} has this identity already; delete one", other.name);
            Err(Problem::new("DuplicateIdentity", message))
        }
        None => Ok(Some(identity)),
    }
}

fn allowed(peer: &Peer) -> Result<Vec<IpNet>, Problem> {
    let check = |text: &String| {
        let prefix = check_prefix("spec.allowedCIDRs", text);
        prefix.map_err(|problem| Problem::new(problem.code.name(), problem.message))
    };
    peer.spec.allowed_cidrs.iter().map(check).collect()
}

fn sites(peer: &Peer) -> Vec<Site> {
    crate::plan::relays::known_sites(&[], &[peer])
}

fn of_ranges(ground: Ground<'_>, range: IpNet) -> Option<Problem> {
    let ranges = ground.ranges;
    let collides = |own: &&IpNet| overlap(**own, range);
    if let Some(own) = ranges.pods.iter().find(collides) {
        return Some(own_range(range, *own, "pods"));
    }
    let own = ranges.services.iter().find(collides)?;
    Some(own_range(range, *own, "Services"))
}

fn own_range(range: IpNet, own: IpNet, what: &str) -> Problem {
    let message = format!(
        "{range} overlaps {own}, which this cluster uses for {what}; one of the two clusters needs other ranges"
    );
    Problem::new("OverlapsOwn", message)
}

fn of_nodes(ground: Ground<'_>, range: IpNet) -> Option<Problem> {
    let mut addresses = ground.ranges.addresses.iter();
    let (address, node) = addresses.find(|(address, _)| range.contains(*address))?;
    let message = format!(
        "{range} holds {address}, the address of node {node} of this cluster; leave it out"
    );
    Some(Problem::new("OverlapsConnected", message))
}

fn of_servers(ground: Ground<'_>, range: IpNet) -> Option<Problem> {
    let mut servers = ground.ranges.servers.iter();
    let address = servers.find(|address| range.contains(*address))?;
    let message =
        format!("{range} holds {address}, the address of this cluster's API server; leave it out");
    Some(Problem::new("OverlapsConnected", message))
}

/// Packets to the relay would go into the tunnel that needs it.
fn of_relays(relays: &[Site], range: IpNet) -> Option<Problem> {
    let held = |address: &IpAddr| range.contains(address);
    let urls = relays.iter().flat_map(|relay| [&relay.url, &relay.dial]);
    let mut addresses = urls.flatten().filter_map(RelayUrl::address);
    let relay = addresses.find(held)?;
    let message = format!("{range} holds {relay}, the address of a relay; leave it out");
    Some(Problem::new("HoldsRelay", message))
}

fn of_peers(peers: &[Verdict<'_>], range: IpNet) -> Option<Problem> {
    let (peer, other) = peers
        .iter()
        .filter(|peer| peer.is_in_force())
        .find_map(|peer| {
            let mut allowed = peer.allowed.iter();
            let other = allowed.find(|other| overlap(**other, range))?;
            Some((&peer.name, *other))
        })?;
    let message = format!(
        "{range} overlaps {other} of Peer {peer}; take it away from one of them, the older one keeps it meanwhile"
    );
    Some(Problem::new("OverlapsPeer", message))
}
