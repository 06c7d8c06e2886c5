//! What the other side is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SessionError;
use crate::message::{
    Delta, MAX_LIST, Message, NodeName, NodeRecord, PART_BYTES, Records, StatePart, encoded_length,
};

/// Parts and deltas that may be unacknowledged.
const WINDOW: usize = 4;
/// A name in JSON: quotes and comma.
const NAME_FRAME: usize = 3;

#[derive(Debug)]
pub(super) struct Outgoing {
    local: Arc<Records>,
    /// The full state, until all of it is sent.
    full: Option<Full>,
    /// What the other side has been told, once the full state is sent.
    told: Records,
    /// The full state is sent, and `local` differs from what was told.
    dirty: bool,
    sequence: u64,
    /// When each of what is not acknowledged was sent; the last is `sequence`.
    unacked: VecDeque<Instant>,
    /// When the next delta may go.
    next_delta: Option<Instant>,
}

/// A full state on its way.
#[derive(Debug)]
struct Full {
    records: Arc<Records>,
    /// The last node that was sent.
    after: Option<NodeName>,
}

/// How much fits into one message still.
struct Room {
    items: usize,
    bytes: usize,
}

impl Outgoing {
    pub(super) fn new(local: Arc<Records>) -> Self {
        Self {
            full: Some(Full {
                records: Arc::clone(&local),
                after: None,
            }),
            local,
            told: Records::default(),
            dirty: false,
            sequence: 0,
            unacked: VecDeque::new(),
            next_delta: None,
        }
    }

    pub(super) fn set_local(&mut self, local: Arc<Records>) {
        if let Some(full) = self.full.as_mut().filter(|full| full.after.is_none()) {
            full.records = Arc::clone(&local);
        }
        self.local = local;
        self.compare();
    }

    /// Takes an acknowledgement. One that says nothing new is ignored.
    pub(super) fn handle_ack(&mut self, sequence: u64) -> Result<(), SessionError> {
        let left = self
            .sequence
            .checked_sub(sequence)
            .ok_or(SessionError::Ack)?;
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let acked = self.unacked.len().saturating_sub(left);
        self.unacked.drain(..acked);
        Ok(())
    }

    /// Whether the other side has everything.
    pub(super) fn is_synced(&self) -> bool {
        self.unacked.is_empty() && self.full.is_none() && !self.dirty
    }

    /// Since when the oldest of what is not acknowledged waits.
    pub(super) fn unacked_since(&self) -> Option<Instant> {
        self.unacked.front().copied()
    }

    /// When the next delta may go, if there is one and only time is missing.
    pub(super) fn next_delta(&self) -> Option<Instant> {
        let waits = self.dirty && self.full.is_none() && self.unacked.len() < WINDOW;
        self.next_delta.filter(|_| waits)
    }

    pub(super) fn poll(&mut self, now: Instant, interval: Duration) -> Option<Message> {
        if self.unacked.len() >= WINDOW {
            return None;
        }
        let message = match self.full.take() {
            Some(full) => Message::State(self.state_part(full)),
            None => Message::Delta(self.delta(now, interval)?),
        };
        self.unacked.push_back(now);
        Some(message)
    }

    fn state_part(&mut self, full: Full) -> StatePart {
        let first = full.after.is_none();
        let mut room = Room::default();
        let rest = full.records.after(full.after.as_ref());
        let fits = rest.take_while(|(name, record)| room.take(encoded_length(name, record)));
        let nodes: Vec<_> = fits.map(owned).collect();
        let after = nodes.last().map(|(name, _)| name.clone()).or(full.after);
        let last = full.records.after(after.as_ref()).next().is_none();
        if last {
            self.told = Records::clone(&full.records);
            self.compare();
        } else {
            self.full = Some(Full {
                records: full.records,
                after,
            });
        }
        self.sequence += 1;
        StatePart {
            sequence: self.sequence,
            first,
            last,
            nodes,
            refused: Vec::new(),
        }
    }

    fn delta(&mut self, now: Instant, interval: Duration) -> Option<Delta> {
        if !self.dirty || self.next_delta.is_some_and(|next| now < next) {
            return None;
        }
        let mut room = Room::default();
        let removed_nodes = self.removed(&mut room);
        let nodes = self.changed(&mut room);
        self.note(&removed_nodes, &nodes);
        // What did not fit goes without a pause.
        self.next_delta = (!self.dirty).then(|| now + interval);
        self.sequence += 1;
        Some(Delta {
            sequence: self.sequence,
            nodes,
            removed_nodes,
            refused: Vec::new(),
        })
    }

    fn removed(&self, room: &mut Room) -> Vec<NodeName> {
        let names = self.told.iter().map(|(name, _)| name);
        names
            .filter(|name| self.local.find(name.as_str()).is_none())
            .take_while(|name| room.take(name.as_str().len() + NAME_FRAME))
            .cloned()
            .collect()
    }

    fn changed(&self, room: &mut Room) -> Vec<(NodeName, Arc<NodeRecord>)> {
        self.local
            .iter()
            .filter(|(name, record)| self.told.find(name.as_str()) != Some(*record))
            .take_while(|(name, record)| room.take(encoded_length(name, record)))
            .map(owned)
            .collect()
    }

    fn note(&mut self, removed: &[NodeName], changed: &[(NodeName, Arc<NodeRecord>)]) {
        for name in removed {
            self.told.remove(name.as_str());
        }
        for (name, record) in changed {
            // Half way between two good states there may be too much. The other side finds that too, and starts anew.
            let _ = self.told.insert(name.clone(), Arc::clone(record));
        }
        self.compare();
    }

    fn compare(&mut self) {
        self.dirty = self.full.is_none() && *self.local != self.told;
    }
}

impl Default for Room {
    fn default() -> Self {
        Self {
            items: MAX_LIST,
            bytes: PART_BYTES,
        }
    }
}

impl Room {
    /// Takes room for something of that many bytes. After the first that does not fit nothing does.
    fn take(&mut self, bytes: usize) -> bool {
        match (self.items.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(items), Some(bytes)) => {
                *self = Self { items, bytes };
                true
            }
            (None, _) | (_, None) => {
                *self = Self { items: 0, bytes: 0 };
                false
            }
        }
    }
}

fn owned((name, record): (&NodeName, &Arc<NodeRecord>)) -> (NodeName, Arc<NodeRecord>) {
    (name.clone(), Arc::clone(record))
}
