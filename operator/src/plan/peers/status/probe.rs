//! What the node that probes a Peer for all others has measured.

use api::{Code, ConditionStatus, Finding, NodePath, NodePeer, PathKind, Reason, is_true};
use jiff::Timestamp;

use super::super::judge::Verdict;
use crate::heard::Sign;
use crate::plan::draft::later;
use crate::plan::ground::Ground;

const CONNECTED: &str = "Connected";
/// How old an answered probe may be, in seconds.
const FRESH: i64 = 30;

/// The report of a node that probes a Peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    node: &'a str,
    report: &'a NodePeer,
    /// When it was last answered, by our own clock.
    answered: Option<Sign>,
    /// Whether that counts although it was not seen to happen: the operator before this one has said so.
    is_vouched: bool,
    /// Whether the node's agent says nothing any more.
    is_silent: bool,
}

impl<'a> Probe<'a> {
    /// The report of the node that is to probe the Peer; of two, while one takes over from the other, the newest.
    pub(super) fn of(ground: Ground<'a>, peer: &Verdict<'_>) -> Option<Self> {
        let (world, peer, status) = (ground.world, peer.name.as_str(), &peer.peer.status);
        let before = status.as_ref().map_or(&[][..], |status| &status.conditions);
        let is_vouched = is_true(before, CONNECTED);
        let nodes = ground.world.mesh_nodes.iter();
        let probing = nodes.filter(|node| node.spec.probes.iter().any(|probed| probed == peer));
        let reports = probing.filter_map(|node| {
            let report = node
                .status
                .as_ref()?
                .peers
                .iter()
                .find(|report| report.name == peer)?;
            let node = node.metadata.name.as_deref()?;
            Some(Self {
                node,
                report,
                answered: world.heard.probe(node, peer),
                is_vouched,
                is_silent: world.heard.is_silent(node, ground.now),
            })
        });
        reports.max_by_key(|probe| probe.answered.map(|answered| answered.since))
    }

    /// The path of the nodes that are not idle; the best one.
    pub(super) fn path(&self) -> Option<PathKind> {
        self.best().map(|path| path.path)
    }

    /// Its round trip.
    pub(super) fn rtt_micros(&self) -> Option<i64> {
        self.best()?.rtt_micros
    }

    /// Why it is not direct, and what to do.
    pub(super) fn advice(&self) -> String {
        match self.best().and_then(|path| path.reason) {
            Some(reason) => format!("{reason}: {}", reason.advice()),
            None => "through a relay".to_owned(),
        }
    }

    /// When the report will be too old to say anything.
    pub(super) fn stale_at(&self) -> Option<Timestamp> {
        Some(later(self.answered?.since, FRESH + 1))
    }

    /// Whether there was an answer, and it is too old to say anything, or may be.
    pub(super) fn is_stale(&self, now: Timestamp) -> bool {
        self.answered.is_some() && !self.is_fresh(now)
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        let counts = self
            .answered
            .is_some_and(|it| it.has_changed || self.is_vouched);
        counts && self.stale_at().is_some_and(|stale| now < stale)
    }

    /// Whether the agent has yet to see that the Peer is admitted.
    fn is_awaited(&self) -> bool {
        let problem = self.report.problem.as_deref().unwrap_or_default();
        problem.starts_with(Code::NotAdmitted.name())
    }

    fn best(&self) -> Option<&'a NodePath> {
        let rank = |path: &&NodePath| match path.path {
            PathKind::Direct => 0,
            PathKind::Relay => 1,
            PathKind::None => 2,
            PathKind::Idle => 3,
        };
        let nodes = self.report.nodes.iter();
        nodes.min_by_key(|path| (rank(path), path.rtt_micros.unwrap_or(i64::MAX)))
    }
}

/// Whether packets come through, as far as that is known now.
pub(super) fn connected(probe: Option<&Probe<'_>>, now: Timestamp) -> Finding {
    let unknown = |reason, message: String| {
        Finding::new(CONNECTED, ConditionStatus::Unknown, reason, message)
    };
    let Some(probe) = probe else {
        return unknown(
            "NoProbe",
            "no node has reported on this Peer yet".to_owned(),
        );
    };
    if !probe.report.accepted && probe.is_awaited() {
        let message = format!("node {} has yet to take up this Peer", probe.node);
        return unknown("NoProbe", message);
    }
    if !probe.report.accepted {
        let problem = probe
            .report
            .problem
            .as_deref()
            .unwrap_or("not programmed yet");
        let message = format!("node {}: {problem}", probe.node);
        return Finding::new(CONNECTED, false, "NotProgrammed", message);
    }
    let reason = probe.best().and_then(|path| path.reason);
    match probe.answered {
        Some(_) if probe.is_fresh(now) => {
            let message = format!("node {} gets answers through the tunnel", probe.node);
            Finding::new(CONNECTED, true, "Probed", message)
        }
        Some(_) if probe.is_silent => {
            let message = format!(
                "the agent of node {} is silent; look at its pod",
                probe.node
            );
            unknown("StaleProbe", message)
        }
        Some(_) => unknown(
            "StaleProbe",
            format!(
                "node {} has had no answer through the tunnel for {FRESH} s, or none that this operator has seen{}",
                probe.node,
                told(reason)
            ),
        ),
        None => {
            let message = format!(
                "node {} has had no answer through the tunnel yet{}",
                probe.node,
                told(reason)
            );
            unknown(reason.map_or("NoProbe", name), message)
        }
    }
}

fn told(reason: Option<Reason>) -> String {
    let told = reason.map(|reason| format!("; {reason}: {}", reason.advice()));
    told.unwrap_or_default()
}

fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Probing => "Probing",
        Reason::BothNatsHard => "BothNatsHard",
        Reason::HardNatAgainstPortRestricted => "HardNatAgainstPortRestricted",
        Reason::UdpBlocked => "UdpBlocked",
        Reason::NoReflexiveAddress => "NoReflexiveAddress",
        Reason::PeerUnreachable => "PeerUnreachable",
        Reason::RelayUnreachable => "RelayUnreachable",
        Reason::NotAdmitted => "NotAdmitted",
        Reason::GuessingDisabled => "GuessingDisabled",
        Reason::BudgetSpent => "BudgetSpent",
        Reason::Idle => "Idle",
    }
}
