//! A connection to one relay as the data path sees it, and the queue on which relayed packets reach the crypto.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use derp::client::{Frame, Inbox, Outbox};
use derp::{NodeKey, RelayUrl};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Bytes of memory that relayed packets may take while they wait for the receiving thread; the oldest give way.
const QUEUE_BYTES: usize = 8 << 20;
/// What a batch takes besides its bytes and frames, allocations included.
const BATCH_COST: usize = 128;

/// A relay of the mesh.
pub(crate) struct RelayLink {
    pub(crate) id: u64,
    pub(crate) url: RelayUrl,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) connected: AtomicBool,
}

impl RelayLink {
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }
}

/// All frames of one read from a relay connection, in order.
pub(crate) struct Relayed {
    pub(crate) relay: u64,
    bytes: Vec<u8>,
    frames: Vec<(NodeKey, usize)>,
}

impl Relayed {
    /// Memory that this takes: also frames without content take some.
    fn cost(&self) -> usize {
        BATCH_COST + self.bytes.len() + self.frames.len() * size_of::<(NodeKey, usize)>()
    }

    /// Every frame with the key the relay vouches for.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (NodeKey, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.frames.iter().filter_map(move |&(key, len)| {
            let (frame, tail) = rest.split_at_checked(len)?;
            rest = tail;
            Some((key, frame))
        })
    }
}

/// Relayed batches on their way to the receiving thread, which polls the descriptor beside its sockets.
pub(crate) struct RelayQueue {
    waiting: Mutex<Waiting>,
    bell: EventFd,
    /// Frames that gave way to newer ones.
    pub(crate) dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Relayed>,
    cost: usize,
}

impl RelayQueue {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::default(),
            bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            dropped: AtomicU64::new(0),
        })
    }

    /// Wakes the receiving thread.
    pub(crate) fn ring(&self) {
        // A full counter means that the thread has been woken already.
        let _ = self.bell.write(1);
    }

    /// Takes all that waits.
    pub(crate) fn drain(&self) -> VecDeque<Relayed> {
        // An empty counter only means that nobody rang.
        let _ = self.bell.read();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).batches
    }

    fn push(&self, batch: Relayed) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.cost += batch.cost();
        waiting.batches.push_back(batch);
        while waiting.cost > QUEUE_BYTES && waiting.batches.len() > 1 {
            let Some(oldest) = waiting.batches.pop_front() else {
                break;
            };
            waiting.cost -= oldest.cost();
            self.dropped.fetch_add(
                u64::try_from(oldest.frames.len()).unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
        }
        drop(waiting);
        self.ring();
    }
}

impl AsFd for RelayQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// The inbox of one relay connection.
pub(crate) struct RelayInbox {
    pub(crate) relay: u64,
    pub(crate) queue: Arc<RelayQueue>,
}

impl Inbox for RelayInbox {
    fn receive(&self, frames: &[Frame<'_>]) {
        let mut batch = Relayed {
            relay: self.relay,
            bytes: Vec::new(),
            frames: Vec::with_capacity(frames.len()),
        };
        for frame in frames {
            batch.bytes.extend_from_slice(frame.bytes);
            batch.frames.push((frame.source, frame.bytes.len()));
        }
        self.queue.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> NodeKey {
        derp::NodeSecret::from_bytes([seed; 32]).public()
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let queue = Arc::new(RelayQueue::new().unwrap());
        let inbox = RelayInbox {
            relay: 3,
            queue: Arc::clone(&queue),
        };
        inbox.receive(&[
            Frame {
                source: key(1),
                bytes: &[1; 10],
            },
            Frame {
                source: key(2),
                bytes: &[2; 5],
            },
        ]);
        let drained = queue.drain();
        let frames: Vec<_> = drained.iter().flat_map(Relayed::frames).collect();
        assert_eq!(frames, [(key(1), &[1_u8; 10][..]), (key(2), &[2; 5][..])]);
        assert_eq!(drained[0].relay, 3);
        assert!(queue.drain().is_empty());
    }

    #[test]
    fn the_oldest_batches_give_way_when_nobody_reads() {
        let queue = Arc::new(RelayQueue::new().unwrap());
        let inbox = RelayInbox {
            relay: 0,
            queue: Arc::clone(&queue),
        };
        let big = vec![0; 60_000];
        (0..200).for_each(|_| {
            inbox.receive(&[Frame {
                source: key(1),
                bytes: &big,
            }])
        });
        let kept = queue.drain().len();
        assert!(kept * 60_000 <= QUEUE_BYTES, "{kept} batches kept");
        assert_eq!(
            queue.dropped.load(Ordering::Relaxed),
            200 - u64::try_from(kept).unwrap()
        );
    }

    #[test]
    fn frames_without_content_are_bounded_too() {
        let queue = Arc::new(RelayQueue::new().unwrap());
        let inbox = RelayInbox {
            relay: 0,
            queue: Arc::clone(&queue),
        };
        let empty = Frame {
            source: key(1),
            bytes: &[],
        };
        (0..200_000).for_each(|_| inbox.receive(&[empty]));
        assert!(queue.drain().len() <= QUEUE_BYTES / BATCH_COST);
        assert!(queue.dropped.load(Ordering::Relaxed) > 0);
    }
}
