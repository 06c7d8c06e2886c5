//! Packets on their way to the relay.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock;
use crate::frame::{FrameType, HEADER_LEN, MAX_PACKET, Message, put_packet_header};
use crate::key::{KEY_LEN, NodeKey};

/// Bytes that may wait; the oldest batches give way.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of WireGuard handshakes and control frames that may wait.
const MAX_URGENT: usize = 64 << 10;
/// What has waited longer is worth nothing.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Takes batches of packets from any thread and never blocks.
///
/// Packets leave in the order in which they came, whole batches at a time; only WireGuard's handshake messages
/// (types 1 to 3) overtake. When 1 MiB or a second of them waits, the oldest batches are dropped and counted.
#[derive(Debug, Default)]
pub struct Outbox {
    lanes: Mutex<Lanes>,
    bell: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Lanes {
    urgent: Lane,
    data: Lane,
}

/// Encoded frames, one batch after the other.
#[derive(Debug, Default)]
struct Lane {
    bytes: Vec<u8>,
    /// Bytes at the front that have been dropped.
    head: usize,
    batches: VecDeque<Batch>,
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    length: usize,
    packets: u64,
    since: Instant,
}

impl Outbox {
    /// Queues a batch: packets of `segment_size` bytes, the last of which may be shorter. 0 means a single packet.
    pub fn push(&self, destination: &NodeKey, bytes: &[u8], segment_size: usize) {
        self.push_at(Instant::now(), destination, bytes, segment_size);
    }

    fn push_at(&self, now: Instant, destination: &NodeKey, bytes: &[u8], segment_size: usize) {
        let segment_size = if segment_size == 0 {
            bytes.len().max(1)
        } else {
            segment_size
        };
        let packets = u64::try_from(bytes.len().div_ceil(segment_size)).unwrap_or(u64::MAX);
        let length = encoded_length(bytes.len(), segment_size);
        if bytes.is_empty() || segment_size > MAX_PACKET || length > MAX_BYTES {
            self.count_drops(packets);
            return;
        }
        let mut lanes = lock(&self.lanes);
        let (lane, limit) = lanes.choose(bytes);
        let dropped = lane.make_room(length, limit);
        lane.push(
            Batch {
                length,
                packets,
                since: now,
            },
            |out| {
                for packet in bytes.chunks(segment_size) {
                    put_packet_header(out, FrameType::SendPacket, destination, packet.len());
                    out.extend_from_slice(packet);
                }
            },
        );
        drop(lanes);
        self.count_drops(dropped);
        self.bell.notify_one();
    }

    /// Packets that were dropped here since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Queues a frame that is not data.
    pub(super) fn push_control(&self, message: Message<'_>) {
        let frame = message.to_vec();
        let mut lanes = lock(&self.lanes);
        let dropped = lanes.urgent.make_room(frame.len(), MAX_URGENT);
        let batch = Batch {
            length: frame.len(),
            packets: 0,
            since: Instant::now(),
        };
        lanes
            .urgent
            .push(batch, |out| out.extend_from_slice(&frame));
        drop(lanes);
        self.count_drops(dropped);
        self.bell.notify_one();
    }

    /// Waits until there may be something to send.
    pub(super) async fn wait(&self) {
        self.bell.notified().await;
    }

    /// Moves everything that is not too old into `out`, which must be empty.
    pub(super) fn drain(&self, now: Instant, out: &mut Vec<u8>) {
        let oldest = now.checked_sub(MAX_AGE);
        let mut lanes = lock(&self.lanes);
        let dropped = oldest.map_or(0, |oldest| {
            lanes.urgent.expire(oldest) + lanes.data.expire(oldest)
        });
        lanes.urgent.take(out);
        lanes.data.take(out);
        drop(lanes);
        self.count_drops(dropped);
    }

    /// Drops control frames of a connection that is gone; they mean nothing on the next.
    pub(super) fn forget_control(&self) {
        let mut lanes = lock(&self.lanes);
        while lanes
            .urgent
            .batches
            .front()
            .is_some_and(|batch| batch.packets == 0)
        {
            lanes.urgent.drop_oldest();
        }
    }

    fn count_drops(&self, packets: u64) {
        if packets > 0 {
            self.dropped.fetch_add(packets, Ordering::Relaxed);
        }
    }
}

impl Lanes {
    fn choose(&mut self, bytes: &[u8]) -> (&mut Lane, usize) {
        if matches!(bytes, [1..=3, 0, 0, 0, ..]) {
            return (&mut self.urgent, MAX_URGENT);
        }
        (&mut self.data, MAX_BYTES)
    }
}

impl Lane {
    fn push(&mut self, batch: Batch, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.batches.push_back(batch);
    }

    /// Drops the oldest batches until `length` more bytes fit; says how many packets it cost.
    fn make_room(&mut self, length: usize, limit: usize) -> u64 {
        let mut dropped = 0;
        while !self.batches.is_empty() && self.held() + length > limit {
            dropped += self.drop_oldest();
        }
        self.compact();
        dropped
    }

    fn expire(&mut self, oldest: Instant) -> u64 {
        let mut dropped = 0;
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.since < oldest)
        {
            dropped += self.drop_oldest();
        }
        dropped
    }

    fn drop_oldest(&mut self) -> u64 {
        let Some(batch) = self.batches.pop_front() else {
            return 0;
        };
        self.head += batch.length;
        batch.packets
    }

    fn take(&mut self, out: &mut Vec<u8>) {
        self.batches.clear();
        if out.is_empty() && self.head == 0 {
            std::mem::swap(out, &mut self.bytes);
        } else {
            out.extend_from_slice(self.bytes.get(self.head..).unwrap_or_default());
        }
        self.bytes.clear();
        self.head = 0;
    }

    fn held(&self) -> usize {
        self.bytes.len() - self.head
    }

    fn compact(&mut self) {
        if self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }
}

fn encoded_length(bytes: usize, segment_size: usize) -> usize {
    bytes + bytes.div_ceil(segment_size) * (HEADER_LEN + KEY_LEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::FrameBuffer;
    use crate::key::NodeSecret;

    fn key(seed: u8) -> NodeKey {
        NodeSecret::from_bytes([seed; 32]).public()
    }

    fn drained(outbox: &Outbox) -> Vec<(NodeKey, Vec<u8>)> {
        drained_at(outbox, Instant::now())
    }

    fn drained_at(outbox: &Outbox, now: Instant) -> Vec<(NodeKey, Vec<u8>)> {
        let mut out = Vec::new();
        outbox.drain(now, &mut out);
        let mut buffer = FrameBuffer::with(out);
        let packets = buffer.frames().filter_map(|frame| {
            let Message::SendPacket {
                destination,
                packet,
            } = Message::decode(frame.unwrap()).unwrap()
            else {
                return None;
            };
            Some((destination, packet.to_vec()))
        });
        packets.collect()
    }

    #[test]
    fn batches_become_frames() {
        let outbox = Outbox::default();
        outbox.push(&key(1), &[4; 25], 10);
        outbox.push(&key(2), &[4; 3], 0);
        let sizes: Vec<_> = drained(&outbox)
            .into_iter()
            .map(|(key, packet)| (key, packet.len()))
            .collect();
        assert_eq!(
            sizes,
            [(key(1), 10), (key(1), 10), (key(1), 5), (key(2), 3)]
        );
    }

    #[test]
    fn handshakes_overtake() {
        let outbox = Outbox::default();
        outbox.push(&key(1), &[4, 0, 0, 0, 9], 0);
        outbox.push(&key(1), &[1, 0, 0, 0, 9], 0);
        let first: Vec<u8> = drained(&outbox)
            .into_iter()
            .map(|(_, packet)| packet[0])
            .collect();
        assert_eq!(first, [1, 4]);
    }

    #[test]
    fn the_oldest_batches_give_way_and_are_counted() {
        let outbox = Outbox::default();
        for index in 0..100_u8 {
            outbox.push(&key(1), &[index.max(4); 40_000], 1000);
        }
        let packets = drained(&outbox);
        assert!(packets.len() * 1037 <= MAX_BYTES);
        assert_eq!(packets.len() % 40, 0, "batches are dropped whole");
        assert_eq!(packets.last().unwrap().1[0], 99);
        assert_eq!(
            outbox.dropped(),
            4000 - u64::try_from(packets.len()).unwrap()
        );
    }

    #[test]
    fn what_cannot_be_sent_is_counted() {
        let outbox = Outbox::default();
        outbox.push(&key(1), &vec![4; MAX_PACKET + 1], 0);
        outbox.push(&key(1), &vec![4; MAX_BYTES + 1], 1000);
        assert!(drained(&outbox).is_empty());
        assert_eq!(outbox.dropped(), 1 + 1049);
    }

    #[test]
    fn what_is_old_is_dropped() {
        let outbox = Outbox::default();
        let now = Instant::now();
        let later = now + MAX_AGE + Duration::from_millis(1);
        outbox.push_at(now, &key(1), &[4; 10], 0);
        outbox.push_at(later, &key(1), &[5; 10], 0);
        assert_eq!(drained_at(&outbox, later), [(key(1), vec![5; 10])]);
        assert_eq!(outbox.dropped(), 1);
    }

    #[test]
    fn control_frames_do_not_outlive_their_connection() {
        let outbox = Outbox::default();
        outbox.push_control(Message::Ping([1; 8]));
        outbox.push(&key(1), &[1, 0, 0, 0], 0);
        outbox.forget_control();
        assert_eq!(drained(&outbox).len(), 1);
    }

    proptest! {
        #[test]
        fn order_holds_whatever_the_batches(
            batches in prop::collection::vec((1_usize..4000, 1_usize..1500, any::<bool>()), 1..60),
        ) {
            let outbox = Outbox::default();
            let mut sent = Vec::new();
            let mut seen = Vec::new();
            for (number, (length, segment, drain)) in batches.into_iter().enumerate() {
                let mut bytes = vec![0; length];
                for packet in bytes.chunks_mut(segment) {
                    packet.fill(4 + u8::try_from(number).unwrap());
                    sent.push(packet.to_vec());
                }
                outbox.push(&key(1), &bytes, segment);
                if drain {
                    seen.extend(drained(&outbox).into_iter().map(|(_, packet)| packet));
                }
            }
            seen.extend(drained(&outbox).into_iter().map(|(_, packet)| packet));
            prop_assert_eq!(seen, sent);
        }
    }
}
