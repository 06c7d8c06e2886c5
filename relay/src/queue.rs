//! What waits to be written to one receiver.
//!
//! Each sender has its own lane, so that the oldest frames of whoever floods give way to its own new ones and to
//! everybody else's. The lanes are drained in turn. WireGuard's handshake messages overtake data, control frames overtake
//! both.

mod chunk;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use derp::{FrameType, Message, NodeKey, put_packet_header};
use tokio::sync::Notify;

use chunk::Chunk;

/// Bytes of packets that may wait for one receiver.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// The same while too much waits for all receivers together: one write, so that the line of a reader stays busy.
const SCARCE_BYTES: usize = 64 << 10;
/// Bytes of handshake messages that may wait in one lane.
const MAX_URGENT: usize = 16 << 10;
/// Bytes of control frames that may wait for one receiver.
const MAX_CONTROL: usize = 64 << 10;
/// Bytes of one write: four full TLS records.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of handshake messages in one write, so that they cannot starve data.
const WRITE_URGENT: usize = 16 << 10;
/// Bytes of data that a lane gives when it is its turn.
const TURN_BYTES: usize = 16 << 10;
/// Bytes of handshake messages that a lane gives in one write.
const TURN_URGENT: usize = 2 << 10;

/// The queue of one receiver.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    bell: Notify,
    budget: Arc<Budget>,
}

/// Bytes of packets that may wait in all queues together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// What [`Queue::drain`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Nothing.
    Empty,
    /// Something to write.
    Frames,
    /// The last to write before the connection is closed.
    Last,
}

#[derive(Debug, Default)]
struct State {
    control: Vec<u8>,
    pong: Option<[u8; 8]>,
    lanes: HashMap<NodeKey, Lane>,
    /// Lanes that hold something, in the order of their turns.
    turns: VecDeque<NodeKey>,
    bytes: usize,
    spare: Vec<u8>,
    closing: bool,
}

#[derive(Debug, Default)]
struct Lane {
    urgent: Chunk,
    data: Chunk,
}

impl Queue {
    /// A queue that begins with these frames.
    pub(crate) fn new(first: Vec<u8>, budget: Arc<Budget>) -> Self {
        let state = State {
            control: first,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            bell: Notify::new(),
            budget,
        }
    }

    /// Adds packets of one sender, and says how many frames gave way.
    pub(crate) fn push(&self, source: &NodeKey, packets: &[&[u8]]) -> u64 {
        let mut state = self.lock();
        if state.closing {
            // Nobody will write them.
            return u64::try_from(packets.len()).unwrap_or(u64::MAX);
        }
        let limit = self.budget.limit_of_one();
        let before = state.bytes;
        let dropped = packets
            .iter()
            .map(|packet| state.push(source, packet, limit))
            .sum();
        self.budget.change(before, state.bytes);
        drop(state);
        self.bell.notify_one();
        dropped
    }

    /// Adds a control frame; too many of them are dropped.
    pub(crate) fn push_control(&self, message: Message<'_>) {
        let mut state = self.lock();
        if state.control.len() < MAX_CONTROL {
            message.encode(&mut state.control);
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Answers a ping. Pings that come faster than answers leave get one answer.
    pub(crate) fn push_pong(&self, bytes: [u8; 8]) {
        self.lock().pong = Some(bytes);
        self.bell.notify_one();
    }

    /// Ends the connection after this frame; packets that wait are forgotten. Says whether it was not ending already: the
    /// first reason counts.
    pub(crate) fn close(&self, last: Message<'_>) -> bool {
        let mut state = self.lock();
        let was_open = !std::mem::replace(&mut state.closing, true);
        if was_open {
            last.encode(&mut state.control);
        }
        drop(state);
        self.bell.notify_one();
        was_open
    }

    /// Whether [`close`](Self::close) has been called.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Moves what is to be written next into `out`, which must be empty.
    pub(crate) fn drain(&self, out: &mut Vec<u8>) -> Drained {
        let mut state = self.lock();
        let before = state.bytes;
        let drained = state.drain(out);
        self.budget.change(before, state.bytes);
        drained
    }

    /// Packets that wait, and will never be written if the connection is gone.
    pub(crate) fn packets(&self) -> u64 {
        let state = self.lock();
        let of_lane = |lane: &Lane| lane.urgent.frames() + lane.data.frames();
        state.lanes.values().map(of_lane).sum()
    }

    /// Waits until there may be something to drain.
    pub(crate) async fn wait(&self) {
        self.bell.notified().await;
    }

    /// Bytes of packets that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Gives memory back that is kept for the next burst.
    pub(crate) fn trim(&self) {
        self.lock().spare = Vec::new();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.budget.change(self.bytes(), 0);
    }
}

impl Budget {
    /// Nothing waits yet.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Bytes that may wait in one queue now.
    fn limit_of_one(&self) -> usize {
        if self.used.load(Ordering::Relaxed) < self.limit {
            MAX_BYTES
        } else {
            SCARCE_BYTES
        }
    }

    /// A queue that held `before` bytes holds `after`.
    fn change(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Adds a packet, and lets the oldest give way until `limit` bytes wait at most.
    fn push(&mut self, source: &NodeKey, packet: &[u8], limit: usize) -> u64 {
        let lane = match self.lanes.get_mut(source) {
            Some(lane) => lane,
            None => {
                self.turns.push_back(*source);
                self.lanes
                    .entry(*source)
                    .or_insert_with(|| Lane::with(std::mem::take(&mut self.spare)))
            }
        };
        let urgent = matches!(packet, [1..=3, 0, 0, 0, ..]);
        let chunk = if urgent {
            &mut lane.urgent
        } else {
            &mut lane.data
        };
        self.bytes += chunk.push(|out| {
            put_packet_header(out, FrameType::RecvPacket, source, packet.len());
            out.extend_from_slice(packet);
        });
        let mut dropped = 0;
        while lane.urgent.held() > MAX_URGENT {
            self.bytes -= lane.urgent.drop_oldest();
            dropped += 1;
        }
        // A limit that has just become smaller may be far below what waits.
        while self.bytes > limit {
            self.drop_one(source, limit);
            dropped += 1;
        }
        dropped
    }

    /// Drops the oldest frame of the sender if it has its share or more, else of whoever has most.
    fn drop_one(&mut self, source: &NodeKey, limit: usize) {
        let share = limit / self.lanes.len().max(1);
        let held = |lane: &Lane| lane.data.held() + lane.urgent.held();
        let greedy = self
            .lanes
            .get(source)
            .is_some_and(|lane| held(lane) >= share);
        let longest = || {
            self.lanes
                .iter()
                .max_by_key(|(_, lane)| held(lane))
                .map(|(key, _)| *key)
        };
        let victim = if greedy { Some(*source) } else { longest() };
        let Some(lane) = victim.and_then(|key| self.lanes.get_mut(&key)) else {
            return;
        };
        let freed = lane.data.drop_oldest();
        self.bytes -= if freed > 0 {
            freed
        } else {
            lane.urgent.drop_oldest()
        };
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Drained {
        if let Some(bytes) = self.pong.take() {
            Message::Pong(bytes).encode(&mut self.control);
        }
        out.append(&mut self.control);
        if self.closing {
            return Drained::Last;
        }
        self.drain_urgent(out);
        self.drain_data(out);
        if out.is_empty() {
            Drained::Empty
        } else {
            Drained::Frames
        }
    }

    fn drain_urgent(&mut self, out: &mut Vec<u8>) {
        let limit = out.len() + WRITE_URGENT;
        let mut served = 0;
        for key in &self.turns {
            let room = limit.saturating_sub(out.len()).min(TURN_URGENT);
            if room == 0 {
                break;
            }
            served += 1;
            if let Some(lane) = self.lanes.get_mut(key) {
                self.bytes -= lane.urgent.take(out, room);
            }
        }
        self.turns.rotate_left(served % self.turns.len().max(1));
    }

    fn drain_data(&mut self, out: &mut Vec<u8>) {
        let mut without_data = 0;
        while out.len() < WRITE_BYTES && without_data < self.turns.len() {
            let Some(key) = self.turns.pop_front() else {
                return;
            };
            let Some(lane) = self.lanes.get_mut(&key) else {
                continue;
            };
            let room = WRITE_BYTES - out.len();
            let turn = if self.turns.is_empty() {
                room
            } else {
                room.min(TURN_BYTES)
            };
            let taken = lane.data.take(out, turn);
            self.bytes -= taken;
            if lane.is_empty() {
                self.retire(&key);
                continue;
            }
            self.turns.push_back(key);
            without_data = if taken == 0 { without_data + 1 } else { 0 };
        }
    }

    fn retire(&mut self, key: &NodeKey) {
        let Some(lane) = self.lanes.remove(key) else {
            return;
        };
        let buffer = lane.data.into_buffer();
        if buffer.capacity() > self.spare.capacity() {
            self.spare = buffer;
        }
    }
}

impl Lane {
    fn with(buffer: Vec<u8>) -> Self {
        Self {
            urgent: Chunk::default(),
            data: Chunk::with(buffer),
        }
    }

    fn is_empty(&self) -> bool {
        self.urgent.held() == 0 && self.data.held() == 0
    }
}

#[cfg(test)]
mod tests;
