//! The status of Peers: what is true of each, from what agents measured and what the conversations show.

mod probe;
mod talk;

use api::{ConditionStatus, Finding, PathKind, PeerStatus, conditions};
use kube::ResourceExt;

use super::judge::Verdict;
use super::slices::Outcome;
use crate::action::StatusOf;
use crate::plan::draft::Draft;
use crate::plan::ground::Ground;
use crate::world::World;
use probe::Probe;

const ACCEPTED: &str = "Accepted";
const READY: &str = "Ready";

/// Writes the status of every Peer; says how many are ready.
pub(crate) fn statuses(
    ground: Ground<'_>,
    peers: &[Verdict<'_>],
    outcomes: Vec<Outcome>,
    draft: &mut Draft,
) -> usize {
    let mut ready = 0;
    for (peer, outcome) in peers.iter().zip(outcomes) {
        let status = status(ground, peer, outcome, draft);
        ready += usize::from(api::is_true(&status.conditions, READY));
        let write = StatusOf::Peer(peer.name.clone(), Box::new(status.clone()));
        draft.status(&status, peer.peer.status.as_ref(), write);
    }
    ready
}

/// Writes the status of every Peer while there is no Mesh.
pub(crate) fn without_mesh(world: &World, draft: &mut Draft) {
    for peer in &world.peers {
        let message = "there is no Mesh";
        let findings =
            [ACCEPTED, READY].map(|kind| Finding::new(kind, false, "UnknownMesh", message));
        let before = peer.status.clone().unwrap_or_default();
        let generation = peer.metadata.generation;
        let status = PeerStatus {
            cluster_name: before.cluster_name.clone(),
            conditions: conditions(&findings, &before.conditions, generation, draft.now()),
            ..PeerStatus::default()
        };
        let write = StatusOf::Peer(peer.name_any(), Box::new(status.clone()));
        draft.status(&status, peer.status.as_ref(), write);
    }
}

fn status(
    ground: Ground<'_>,
    peer: &Verdict<'_>,
    outcome: Outcome,
    draft: &mut Draft,
) -> PeerStatus {
    let before = peer.peer.status.clone().unwrap_or_default();
    let probe = Probe::of(ground, peer);
    if let Some(stale) = probe.as_ref().and_then(Probe::stale_at) {
        draft.wake_at(stale);
    }
    let findings = findings(ground, peer, probe.as_ref());
    let shown = probe.filter(|probe| !probe.is_stale(ground.now));
    let rtt_micros = shown.as_ref().and_then(Probe::rtt_micros);
    PeerStatus {
        cluster_name: talk::cluster_name(ground, peer).or(before.cluster_name),
        path: shown.as_ref().and_then(Probe::path),
        rtt_micros,
        rtt: rtt_micros.map(readable),
        nodes: Some(format!("{}/{}", outcome.in_force, outcome.of)),
        refused: outcome.refused,
        conditions: conditions(
            &findings,
            &before.conditions,
            peer.peer.metadata.generation,
            ground.now,
        ),
    }
}

fn findings(ground: Ground<'_>, peer: &Verdict<'_>, probe: Option<&Probe<'_>>) -> Vec<Finding> {
    let accepted = match &peer.refused {
        Some(problem) => Finding::new(ACCEPTED, false, problem.reason, &*problem.message),
        None => Finding::new(ACCEPTED, true, "Accepted", "the Peer may be"),
    };
    let no_overlap = match &peer.overlap {
        Some(problem) => Finding::new("NoOverlap", false, problem.reason, &*problem.message),
        None => Finding::new("NoOverlap", true, "NoOverlap", "its ranges are free here"),
    };
    let connected = probe::connected(probe, ground.now);
    let synced = talk::synced(ground, peer);
    let ready = ready(&accepted, &no_overlap, &connected, &synced);
    let direct = direct(&connected, probe);
    vec![accepted, no_overlap, connected, direct, synced, ready]
}

/// That operators do not speak is no reason against it while packets come through, unless the other side sends us away.
fn ready(
    accepted: &Finding,
    no_overlap: &Finding,
    connected: &Finding,
    synced: &Finding,
) -> Finding {
    let against = [accepted, no_overlap]
        .into_iter()
        .find(|finding| finding.status != ConditionStatus::True);
    let sent_away = Some(synced).filter(|synced| talk::is_final(synced.reason));
    let decisive = against.or(sent_away).unwrap_or(connected);
    Finding::new(READY, decisive.status, decisive.reason, &*decisive.message)
}

/// A path through a relay is no fault.
fn direct(connected: &Finding, probe: Option<&Probe<'_>>) -> Finding {
    const KIND: &str = "Direct";
    let Some(probe) = probe.filter(|_| connected.status == ConditionStatus::True) else {
        let message = "nothing is known of the path";
        return Finding::new(KIND, ConditionStatus::Unknown, connected.reason, message);
    };
    match probe.path() {
        Some(PathKind::Direct) => Finding::new(KIND, true, "Direct", "from node to node"),
        Some(PathKind::Relay) => Finding::new(KIND, false, "Relayed", probe.advice()),
        Some(PathKind::Idle | PathKind::None) | None => Finding::new(
            KIND,
            ConditionStatus::Unknown,
            "Idle",
            "there is no path now",
        ),
    }
}

fn readable(micros: i64) -> String {
    format!("{}.{}ms", micros / 1000, micros % 1000 / 100)
}
