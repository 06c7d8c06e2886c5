//! What the conversation with a peer's operator shows.

use api::{ConditionStatus, Finding, find_condition};
use derp::{Refusal, RelayUrl};
use sync::{CloseReason, ClusterIdentity, DownReason, PeerState, PeerView};

use super::super::judge::Verdict;
use crate::plan::ground::Ground;

const KIND: &str = "Synced";
const NO_PEER: &str = "the other side has no Peer with this cluster's identity (any more); let it make one, or delete this Peer";
const NOT_ADMITTED: &str = "NotAdmitted";
const WRONG_KEY: &str = "WrongKey";
const REFUSED_KEY: &str = "RefusedKey";
const SAME_ADDRESS: &str = "SameAddress";

/// Whether both sides know all nodes of each other.
pub(super) fn synced(ground: Ground<'_>, peer: &Verdict<'_>) -> Finding {
    let Some(identity) = peer.identity else {
        let message = "its nodes are given by hand; there is nobody to speak to";
        return Finding::new(KIND, true, "Static", message);
    };
    let sync = &ground.world.sync;
    let view = sync.peers.get(&identity);
    let is_up = view.is_some_and(PeerView::is_up);
    if let Some(finding) = turned_away(ground, peer, identity, is_up) {
        return finding;
    }
    match view.map(|view| &view.state) {
        Some(PeerState::Up { .. })
            if view.is_some_and(|view| view.synced && view.records.is_some()) =>
        {
            Finding::new(KIND, true, "Synced", "both sides know all nodes")
        }
        Some(PeerState::Up { .. }) => {
            let message = "the operators speak, and have not told each other everything yet";
            Finding::new(KIND, false, "Syncing", message)
        }
        Some(PeerState::Down { reason }) => down(*reason, peer),
        None => remembered(peer).unwrap_or_else(|| {
            let (reason, message) = match sync.running {
                true => ("New", "not tried yet"),
                false => ("NotRunning", "this operator has only begun"),
            };
            Finding::new(KIND, ConditionStatus::Unknown, reason, message)
        }),
    }
}

/// What a peer calls itself, while it speaks to us.
pub(super) fn cluster_name(ground: Ground<'_>, peer: &Verdict<'_>) -> Option<String> {
    match &ground.world.sync.peers.get(&peer.identity?)?.state {
        PeerState::Up { cluster_name, .. } => Some(cluster_name.to_string()),
        PeerState::Down { .. } => None,
    }
}

/// Whether for this reason no packet is to be expected either.
pub(super) fn is_final(reason: &str) -> bool {
    matches!(
        reason,
        NOT_ADMITTED | WRONG_KEY | REFUSED_KEY | SAME_ADDRESS
    )
}

/// A peer's own relay that does not let us in says what the peer thinks of us, also when nobody is left to tell us.
fn turned_away(
    ground: Ground<'_>,
    peer: &Verdict<'_>,
    identity: ClusterIdentity,
    is_up: bool,
) -> Option<Finding> {
    let owner = identity.to_string();
    let own = peer.peer.spec.relays.iter();
    let own = own.filter(|relay| relay.owner.as_ref().is_none_or(|one| *one == owner));
    let refusals = own.filter_map(|relay| {
        let url: RelayUrl = relay.url.parse().ok()?;
        ground.world.sync.relays.get(&url)?.refusal.as_ref()
    });
    let final_ones = refusals.filter(|refusal| match refusal {
        Refusal::Denied => true,
        Refusal::NotAdmitted => !is_up,
        Refusal::PassExpired | Refusal::BadPass | Refusal::Other(_) => false,
    });
    final_ones.map(not_admitted).next()
}

fn not_admitted(refusal: &Refusal) -> Finding {
    let message = format!("the peer's relay does not let us in: {refusal}; {NO_PEER}");
    Finding::new(KIND, false, NOT_ADMITTED, message)
}

/// A peer that has sent us away does not answer afterwards. That is no news: what it said stands until it speaks again.
fn down(reason: DownReason, peer: &Verdict<'_>) -> Finding {
    let quiet = matches!(
        reason,
        DownReason::New | DownReason::NoRelay | DownReason::Unreachable | DownReason::Lost
    );
    remembered(peer)
        .filter(|_| quiet)
        .unwrap_or_else(|| Finding::new(KIND, false, name(reason), message(reason)))
}

/// That the peer has sent us away, if that is the last it said.
fn remembered(peer: &Verdict<'_>) -> Option<Finding> {
    let status = peer.peer.status.as_ref()?;
    let before = find_condition(&status.conditions, KIND)?;
    let sent_away = before.reason == NOT_ADMITTED;
    sent_away.then(|| Finding::new(KIND, false, NOT_ADMITTED, &*before.message))
}

fn message(reason: DownReason) -> String {
    match reason {
        DownReason::Told(CloseReason::NotAdmitted) => {
            NO_PEER.to_owned()
        }
        DownReason::Unreachable => {
            "the operator of the other side does not answer on any common relay; check that it runs, and that its Peer has this cluster's identity".to_owned()
        }
        DownReason::New
        | DownReason::NoRelay
        | DownReason::Lost
        | DownReason::WrongKey
        | DownReason::RefusedKey
        | DownReason::Told(_)
        | DownReason::Misbehaved(_)
        | DownReason::BadMessage
        | DownReason::Broken
        | DownReason::SameAddress
        | DownReason::Ourselves => reason.to_string(),
    }
}

fn name(reason: DownReason) -> &'static str {
    match reason {
        DownReason::New => "New",
        DownReason::NoRelay => "NoRelay",
        DownReason::Unreachable => "Unreachable",
        DownReason::Lost => "Lost",
        DownReason::WrongKey => WRONG_KEY,
        DownReason::RefusedKey => REFUSED_KEY,
        DownReason::Told(CloseReason::NotAdmitted) => NOT_ADMITTED,
        DownReason::Told(_) => "Closed",
        DownReason::Misbehaved(_) => "Misbehaved",
        DownReason::BadMessage => "BadMessage",
        DownReason::Broken => "Broken",
        DownReason::SameAddress | DownReason::Ourselves => SAME_ADDRESS,
    }
}
