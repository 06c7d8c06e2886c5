//! What the other side has told.

use std::sync::Arc;

use super::SessionError;
use crate::message::{Delta, NodeName, NodeRecord, Records, Refusal, StatePart, TooMuch};

/// Refusals that are remembered.
const MAX_REFUSED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Of the last part or delta that was taken over.
    sequence: u64,
    acked: u64,
    current: Told,
    /// A state whose last part has not come.
    building: Option<Told>,
    complete: bool,
}

/// Nodes, and what was meant to be one.
#[derive(Debug, Default)]
struct Told {
    records: Records,
    refused: Vec<Refusal>,
}

impl Incoming {
    /// Takes a part of the full state; says whether it was the last.
    pub(super) fn handle_state(&mut self, part: StatePart) -> Result<bool, SessionError> {
        self.count(part.sequence)?;
        let mut told = match (part.first, self.building.take()) {
            (true, _) => Told::default(),
            (false, Some(told)) => told,
            (false, None) => return Err(SessionError::State),
        };
        told.add(part.nodes, part.refused)?;
        if part.last {
            self.current = told;
            self.complete = true;
        } else {
            self.building = Some(told);
        }
        Ok(part.last)
    }

    /// Takes a change of the full state.
    pub(super) fn handle_delta(&mut self, delta: Delta) -> Result<(), SessionError> {
        self.count(delta.sequence)?;
        if !self.complete || self.building.is_some() {
            return Err(SessionError::State);
        }
        for name in &delta.removed_nodes {
            self.current.records.remove(name.as_str());
            self.current.forget_refusal(name);
        }
        self.current.add(delta.nodes, delta.refused)
    }

    /// The sequence number to acknowledge, if there is a new one.
    pub(super) fn take_ack(&mut self) -> Option<u64> {
        if self.acked == self.sequence {
            return None;
        }
        self.acked = self.sequence;
        Some(self.sequence)
    }

    /// Everything that has been told.
    pub(super) fn snapshot(&self) -> (Arc<Records>, Arc<[Refusal]>) {
        (
            Arc::new(self.current.records.clone()),
            self.current.refused.as_slice().into(),
        )
    }

    fn count(&mut self, got: u64) -> Result<(), SessionError> {
        let expected = self.sequence.saturating_add(1);
        if got != expected {
            return Err(SessionError::Sequence { expected, got });
        }
        self.sequence = got;
        Ok(())
    }
}

impl Told {
    fn add(
        &mut self,
        nodes: Vec<(NodeName, Arc<NodeRecord>)>,
        refused: Vec<Refusal>,
    ) -> Result<(), SessionError> {
        for (name, record) in nodes {
            self.forget_refusal(&name);
            self.records
                .insert(name, record)
                .map_err(|TooMuch| SessionError::TooMuch)?;
        }
        self.refused.extend(refused);
        let surplus = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..surplus);
        Ok(())
    }

    fn forget_refusal(&mut self, name: &NodeName) {
        self.refused.retain(|refusal| refusal.name != name.as_str());
    }
}
