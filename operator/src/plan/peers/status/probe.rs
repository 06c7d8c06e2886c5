//! What the node that probes a Peer for all others has measured.

use api::{ConditionStatus, Finding, NodePath, NodePeer, PathKind, Reason};
use jiff::Timestamp;

use crate::plan::draft::later;
use crate::plan::ground::Ground;

/// How old an answered probe may be, in seconds.
const FRESH: i64 = 30;

/// The report of a node that probes a Peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    node: &'a str,
    report: &'a NodePeer,
}

impl<'a> Probe<'a> {
    /// The report of the node that is to probe the Peer; of two, while one takes over from the other, the newest.
    pub(super) fn of(ground: Ground<'a>, peer: &str) -> Option<Self> {
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
            Some(Self { node, report })
        });
        reports.max_by_key(|probe| probe.probed_at())
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
        Some(later(self.probed_at()?, FRESH + 1))
    }

    /// Whether the last answer is too old to say anything.
    pub(super) fn is_stale(&self, now: Timestamp) -> bool {
        self.stale_at().is_some_and(|stale| stale <= now)
    }

    fn probed_at(&self) -> Option<Timestamp> {
        self.report.probed_at.as_ref().map(|time| time.0)
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
    const KIND: &str = "Connected";
    let unknown =
        |reason, message: String| Finding::new(KIND, ConditionStatus::Unknown, reason, message);
    let Some(probe) = probe else {
        return unknown(
            "NoProbe",
            "no node has reported on this Peer yet".to_owned(),
        );
    };
    if !probe.report.accepted {
        let problem = probe
            .report
            .problem
            .as_deref()
            .unwrap_or("not programmed yet");
        let message = format!("node {}: {problem}", probe.node);
        return Finding::new(KIND, false, "NotProgrammed", message);
    }
    let reason = probe.best().and_then(|path| path.reason);
    match probe.probed_at() {
        Some(_) if !probe.is_stale(now) => {
            let message = format!("node {} gets answers through the tunnel", probe.node);
            Finding::new(KIND, true, "Probed", message)
        }
        Some(_) => unknown(
            "StaleProbe",
            format!(
                "node {} has had no answer through the tunnel for more than {FRESH} s{}",
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
