//! `PeerSlices`: what a peer proposes and may be programmed, as objects of at most 100 nodes. A node stays in its slice, so
//! that a change of one node touches one slice.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    Code, Finding, MAX_SLICE_NODES, NodeSpec, PeerSlice, PeerSliceSpec, PeerSliceStatus,
    conditions as conditions_of,
};
use derp::{NodeKey, RelayUrl};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sync::{NodeRecord, PeerView, Records};

use super::claims::{self, Claims};
use super::judge::Verdict;
use super::keys::Keys;
use crate::action::{Kind, StatusOf};
use crate::plan::draft::Draft;
use crate::plan::ground::Ground;
use crate::plan::names;
use crate::plan::relays::Site;

/// Sees to the slices of all Peers; says what became of each Peer's proposals, in the order of the Peers.
pub(crate) fn write(
    ground: Ground<'_>,
    sites: &[Site],
    peers: &[Verdict<'_>],
    draft: &mut Draft,
) -> Vec<Outcome> {
    let known: BTreeSet<RelayUrl> = sites.iter().filter_map(|site| site.url.clone()).collect();
    let told: Vec<Told<'_>> = peers.iter().map(|peer| Told::of(ground, peer)).collect();
    let mut keys = taken_keys(ground, peers, &told);
    let mut outcomes = Vec::new();
    for (peer, told) in peers.iter().zip(&told) {
        let claims = claims_of(peer, told, &known, &mut keys);
        let wanted = distribute(&claims.accepted, &told.found);
        write_one(ground, peer, &told.found, wanted, draft);
        outcomes.push(Outcome::new(peer, claims));
    }
    delete_orphans(ground, peers, draft);
    outcomes
}

/// Deletes all slices.
pub(crate) fn delete_all(world: &crate::world::World, draft: &mut Draft) {
    for slice in &world.slices {
        draft.delete(Kind::PeerSlice, slice.as_ref());
    }
}

/// How many nodes of a Peer are in force, and what was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(super) in_force: usize,
    pub(super) of: usize,
    pub(super) refused: Vec<api::RefusedClaim>,
}

impl Outcome {
    fn new(peer: &Verdict<'_>, claims: Claims) -> Self {
        let written = peer.peer.spec.nodes.len();
        let in_force = if peer.is_in_force() {
            written + claims.accepted.len()
        } else {
            0
        };
        Self {
            in_force,
            of: written + claims.proposed,
            refused: claims.refused,
        }
    }
}

/// What a Peer tells of its nodes.
struct Told<'a> {
    /// What it told before, and is in force.
    found: BTreeMap<String, &'a PeerSlice>,
    view: Option<&'a PeerView>,
    /// What it tells now. While it has said nothing since this operator began, that is what it told before. Empty as long as
    /// it may not be in force.
    proposals: Vec<NodeSpec>,
}

impl<'a> Told<'a> {
    fn of(ground: Ground<'a>, peer: &Verdict<'_>) -> Self {
        let found = slices_of(ground, &peer.name);
        let identity = peer.identity.filter(|_| peer.is_in_force());
        let view = identity.and_then(|identity| ground.world.sync.peers.get(&identity));
        let records = view.and_then(|view| view.records.as_deref());
        let proposals = match identity {
            Some(_) => records.map_or_else(|| kept(&found), proposals),
            None => Vec::new(),
        };
        Self {
            found,
            view,
            proposals,
        }
    }

    /// Keys that it told before and tells still.
    fn kept_keys(&self) -> impl Iterator<Item = NodeKey> {
        let key = |node: &NodeSpec| node.public_key.parse().ok();
        let now: BTreeSet<NodeKey> = self.proposals.iter().filter_map(key).collect();
        let before = self.found.values().flat_map(|slice| &slice.spec.nodes);
        before.filter_map(key).filter(move |key| now.contains(key))
    }
}

/// Keys of our nodes and of nodes given by hand, which come before all that peers propose; then who had a key keeps it,
/// however old the others are.
fn taken_keys(ground: Ground<'_>, peers: &[Verdict<'_>], told: &[Told<'_>]) -> Keys {
    let mut keys = Keys::of_nodes(ground);
    for peer in peers.iter().filter(|peer| peer.is_in_force()) {
        // Whose keys are taken is not in force.
        let _ = keys.take_written(peer);
    }
    for (peer, told) in peers.iter().zip(told) {
        for key in told.kept_keys() {
            keys.keep(key, &peer.name);
        }
    }
    keys
}

fn claims_of(
    peer: &Verdict<'_>,
    told: &Told<'_>,
    known: &BTreeSet<RelayUrl>,
    keys: &mut Keys,
) -> Claims {
    if !peer.is_in_force() {
        return Claims::default();
    }
    let written = claims::check_written(peer, keys);
    let mut claims = claims::check(peer, &told.proposals, known, keys, written);
    if let Some(view) = told.view {
        unreadable(view, &mut claims);
    }
    claims
}

fn unreadable(view: &PeerView, claims: &mut Claims) {
    for refusal in view.refused.iter() {
        let code = match refusal.error {
            sync::RecordError::Name(_) => Code::BadName,
            sync::RecordError::Key(_) => Code::BadKey,
            sync::RecordError::Relay(_) => Code::BadUrl,
            sync::RecordError::Prefix { .. } => Code::BadCidr,
            sync::RecordError::Prefixes => Code::TooMany,
        };
        claims.proposed += 1;
        claims.refuse(&refusal.name, code.name(), refusal.error.to_string());
    }
}

fn proposals(records: &Records) -> Vec<NodeSpec> {
    let spec = |(name, record): (&sync::NodeName, &std::sync::Arc<NodeRecord>)| NodeSpec {
        name: name.to_string(),
        public_key: record.public_key().to_string(),
        home_relay: record.home_relay().map(RelayUrl::to_string),
        prefixes: record.prefixes().iter().map(ToString::to_string).collect(),
    };
    records.iter().map(spec).collect()
}

fn kept(found: &BTreeMap<String, &PeerSlice>) -> Vec<NodeSpec> {
    let nodes = found.values().flat_map(|slice| &slice.spec.nodes);
    let mut nodes: Vec<NodeSpec> = nodes.cloned().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

fn slices_of<'a>(ground: Ground<'a>, peer: &str) -> BTreeMap<String, &'a PeerSlice> {
    let slices = ground.world.slices.iter();
    slices
        .filter(|slice| slice.spec.peer == peer)
        .map(|slice| (slice.name_any(), slice.as_ref()))
        .collect()
}

/// Puts each node where it was, and new ones where there is room. A place is a slice's name, or the number of a new one.
fn distribute<'a>(
    nodes: &'a [NodeSpec],
    found: &BTreeMap<String, &PeerSlice>,
) -> Vec<(Option<String>, Vec<&'a NodeSpec>)> {
    let mut homes = BTreeMap::new();
    for (slice, object) in found {
        for node in &object.spec.nodes {
            homes.entry(node.name.as_str()).or_insert(slice.as_str());
        }
    }
    let mut places: BTreeMap<&str, Vec<&NodeSpec>> = found
        .keys()
        .map(|name| (name.as_str(), Vec::new()))
        .collect();
    let mut homeless = Vec::new();
    for node in nodes {
        let home = homes.get(node.name.as_str());
        match home.and_then(|home| places.get_mut(home)) {
            Some(place) if place.len() < MAX_SLICE_NODES => place.push(node),
            Some(_) | None => homeless.push(node),
        }
    }
    let mut homeless = homeless.into_iter().peekable();
    for place in places.values_mut() {
        // An empty slice is only kept if there is nothing better to do with its name.
        while place.len() < MAX_SLICE_NODES && homeless.peek().is_some() {
            place.extend(homeless.next());
        }
    }
    let mut all: Vec<(Option<String>, Vec<&NodeSpec>)> = places
        .into_iter()
        .map(|(name, nodes)| (Some(name.to_owned()), nodes))
        .collect();
    let rest: Vec<&NodeSpec> = homeless.collect();
    let chunks = rest.chunks(MAX_SLICE_NODES);
    all.extend(chunks.map(|chunk| (None, chunk.to_vec())));
    all
}

fn write_one(
    ground: Ground<'_>,
    peer: &Verdict<'_>,
    found: &BTreeMap<String, &PeerSlice>,
    wanted: Vec<(Option<String>, Vec<&NodeSpec>)>,
    draft: &mut Draft,
) {
    let mut fresh = (0..)
        .map(|number: usize| names::joined("", &peer.name, &number.to_string()))
        .filter(|name| is_free(ground, name));
    for (name, mut nodes) in wanted {
        let before = name.as_ref().and_then(|name| found.get(name)).copied();
        match (before, nodes.is_empty()) {
            (Some(slice), true) => draft.delete(Kind::PeerSlice, slice),
            (None, true) => {}
            (_, false) => {
                let Some(name) = name.or_else(|| fresh.next()) else {
                    continue;
                };
                nodes.sort_by(|a, b| a.name.cmp(&b.name));
                draft.apply(slice(peer, name, nodes), before);
                if let Some(slice) = before {
                    status(slice, draft);
                }
            }
        }
    }
}

/// A slice is ready once it is there: whole, or not at all.
fn status(slice: &PeerSlice, draft: &mut Draft) {
    let before = slice.status.as_ref();
    let ready = Finding::new("Ready", true, "Complete", "written by the operator");
    let conditions = before.map(|before| before.conditions.as_slice());
    let generation = slice.metadata.generation;
    let status = PeerSliceStatus {
        conditions: conditions_of(
            &[ready],
            conditions.unwrap_or_default(),
            generation,
            draft.now(),
        ),
    };
    let write = StatusOf::PeerSlice(slice.name_any(), Box::new(status.clone()));
    draft.status(&status, before, write);
}

fn is_free(ground: Ground<'_>, name: &str) -> bool {
    let mut slices = ground.world.slices.iter();
    !slices.any(|slice| slice.metadata.name.as_deref() == Some(name))
}

fn slice(peer: &Verdict<'_>, name: String, nodes: Vec<&NodeSpec>) -> PeerSlice {
    let metadata = ObjectMeta {
        name: Some(name),
        labels: names::peer_label(&peer.name).map(|label| [label].into()),
        owner_references: names::owner_reference(peer.peer).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    PeerSlice {
        metadata,
        spec: PeerSliceSpec {
            peer: peer.name.clone(),
            nodes: nodes.into_iter().cloned().collect(),
        },
        status: None,
    }
}

/// Slices of Peers that are gone.
fn delete_orphans(ground: Ground<'_>, peers: &[Verdict<'_>], draft: &mut Draft) {
    let names: BTreeSet<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    for slice in &ground.world.slices {
        if !names.contains(slice.spec.peer.as_str()) {
            draft.delete(Kind::PeerSlice, slice.as_ref());
        }
    }
}
