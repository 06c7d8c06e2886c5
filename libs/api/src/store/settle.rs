//! Settles which of several Peers come into force when they contradict each other.

use std::collections::BTreeMap;

use super::{Environment, Held, conflict};
use crate::{ObjectId, Problem};

/// A Peer that wants to be in force.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) id: ObjectId,
    /// As it would be.
    pub(super) proposed: Held,
    /// As it is, if it is in force.
    pub(super) held: Option<Held>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) in_force: BTreeMap<ObjectId, Held>,
    pub(super) problems: BTreeMap<ObjectId, Vec<Problem>>,
}

/// Settles. Who is in force keeps its ground; among newcomers the earlier one wins.
pub(super) fn settle(environment: &Environment, mut proposals: Vec<Proposal>) -> Settled {
    let mut settled = Settled::default();
    proposals.retain(|proposal| {
        let problems = problems_alone(environment, proposal);
        let passes = problems.is_empty();
        if !passes {
            fall_back(environment, proposal, problems, &mut settled);
        }
        passes
    });
    // Stable, so that newcomers keep the order of files and documents.
    proposals.sort_by_key(Proposal::rank);
    loop {
        let Some(beaten) = pass(&proposals, &mut settled) else {
            return settled;
        };
        // What it falls back to was in force, so everything admitted in this pass has to be looked at again.
        let proposal = proposals.remove(beaten.index);
        settled = beaten.before;
        fall_back(environment, &proposal, beaten.problems, &mut settled);
    }
}

impl Proposal {
    /// Unchanged ones first, then changed ones, then newcomers.
    fn rank(&self) -> u8 {
        match &self.held {
            Some(held) if held.config == self.proposed.config => 0,
            Some(_) => 1,
            None => 2,
        }
    }
}

fn problems_alone(environment: &Environment, proposal: &Proposal) -> Vec<Problem> {
    let Some(peer) = proposal.proposed.peer() else {
        return Vec::new();
    };
    let mut problems = conflict::bars(environment, peer);
    problems.extend(conflict::unknown_relays(environment, peer));
    problems
}

/// Refuses a proposal; what was in force stays, unless this node's surroundings bar it.
fn fall_back(
    environment: &Environment,
    proposal: &Proposal,
    problems: Vec<Problem>,
    settled: &mut Settled,
) {
    settled
        .problems
        .entry(proposal.id.clone())
        .or_default()
        .extend(problems);
    let standing = proposal.held.as_ref().filter(|held| {
        held.peer()
            .is_some_and(|peer| conflict::bars(environment, peer).is_empty())
    });
    if let Some(held) = standing {
        settled.in_force.insert(proposal.id.clone(), held.clone());
    }
}

/// A proposal that lost although an older state of it is in force.
struct Beaten {
    index: usize,
    problems: Vec<Problem>,
    before: Settled,
}

/// Admits proposals in order. Stops at the first that loses and has something to fall back to.
fn pass(proposals: &[Proposal], settled: &mut Settled) -> Option<Beaten> {
    let mut admitted = Settled {
        in_force: settled.in_force.clone(),
        problems: settled.problems.clone(),
    };
    for (index, proposal) in proposals.iter().enumerate() {
        let problems = if proposal.rank() == 0 {
            // Both were in force side by side, so neither contradicts the other.
            Vec::new()
        } else {
            problems_with_others(&admitted.in_force, proposal)
        };
        if problems.is_empty() {
            admitted
                .in_force
                .insert(proposal.id.clone(), proposal.proposed.clone());
        } else if proposal.held.is_some() {
            let before = std::mem::take(settled);
            return Some(Beaten {
                index,
                problems,
                before,
            });
        } else {
            admitted.problems.insert(proposal.id.clone(), problems);
        }
    }
    *settled = admitted;
    None
}

fn problems_with_others(in_force: &BTreeMap<ObjectId, Held>, proposal: &Proposal) -> Vec<Problem> {
    let Some(peer) = proposal.proposed.peer() else {
        return Vec::new();
    };
    let others = in_force.values().filter_map(Held::peer);
    others
        .flat_map(|other| conflict::between(peer, other))
        .collect()
}
