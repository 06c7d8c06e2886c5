use derp::{FrameBuffer, NodeSecret};
use proptest::prelude::*;

use super::*;

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

/// Source and packet of every frame of one drain.
fn drain(queue: &Queue) -> Vec<(NodeKey, Vec<u8>)> {
    let mut out = Vec::new();
    queue.drain(&mut out);
    let mut buffer = FrameBuffer::with(out);
    let packets = buffer.frames().filter_map(|frame| {
        let Message::RecvPacket { source, packet } = Message::decode(frame.unwrap()).unwrap()
        else {
            return None;
        };
        Some((source, packet.to_vec()))
    });
    packets.collect()
}

fn drain_all(queue: &Queue) -> Vec<(NodeKey, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let some = drain(queue);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn plenty() -> Arc<Budget> {
    Arc::new(Budget::new(usize::MAX))
}

fn empty() -> Queue {
    Queue::new(Vec::new(), plenty())
}

#[test]
fn frames_come_out_in_order_and_in_bounded_writes() {
    let queue = empty();
    for number in 0..200_u8 {
        queue.push(&key(1), &[&[number; 1400]]);
    }
    let mut out = Vec::new();
    assert_eq!(queue.drain(&mut out), Drained::Frames);
    assert!(out.len() <= WRITE_BYTES + 1437);
    let rest = drain_all(&queue);
    let first = out.len() / 1437;
    let numbers: Vec<u8> = rest.iter().map(|(_, packet)| packet[0]).collect();
    assert_eq!(
        numbers,
        (u8::try_from(first).unwrap()..200).collect::<Vec<_>>()
    );
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn a_flood_drops_only_its_own_frames() {
    let queue = empty();
    for _ in 0..20 {
        queue.push(&key(2), &[&[9; 1000]]);
    }
    let flood: Vec<&[u8]> = std::iter::repeat_n(&[8; 1400][..], 100).collect();
    let dropped: u64 = (0..100).map(|_| queue.push(&key(1), &flood)).sum();
    for _ in 0..20 {
        queue.push(&key(2), &[&[9; 1000]]);
    }
    assert!(queue.bytes() <= MAX_BYTES);
    assert!(dropped > 9000);
    let all = drain_all(&queue);
    assert_eq!(
        all.iter().filter(|(source, _)| *source == key(2)).count(),
        40
    );
}

#[test]
fn senders_take_turns() {
    let queue = empty();
    for source in [1, 2] {
        let packets: Vec<&[u8]> = std::iter::repeat_n(&[4; 1000][..], 100).collect();
        queue.push(&key(source), &packets);
    }
    let first = drain(&queue);
    let of_one = first.iter().filter(|(source, _)| *source == key(1)).count();
    assert!((25..=40).contains(&of_one), "{of_one} of {}", first.len());
}

#[test]
fn handshakes_overtake_but_do_not_starve() {
    let queue = empty();
    let data: Vec<&[u8]> = std::iter::repeat_n(&[4; 1000][..], 200).collect();
    queue.push(&key(1), &data);
    let mut initiation = [0; 148];
    initiation[0] = 1;
    let flood: Vec<&[u8]> = std::iter::repeat_n(&initiation[..], 500).collect();
    let dropped = queue.push(&key(2), &flood);
    assert!(dropped > 300);
    let first = drain(&queue);
    assert_eq!(first[0].1[0], 1);
    assert!(first.iter().filter(|(_, packet)| packet[0] == 4).count() > 30);
}

#[test]
fn handshakes_alone_are_drained() {
    let queue = empty();
    let initiation = [1, 0, 0, 0, 5];
    for source in 1..200 {
        queue.push(&key(source), &[&initiation[..]; 20]);
    }
    assert_eq!(drain_all(&queue).len(), 199 * 20);
    assert!(queue.lock().lanes.is_empty());
}

#[test]
fn control_frames_come_first_and_are_bounded() {
    let queue = Queue::new(Message::KeepAlive.to_vec(), plenty());
    queue.push(&key(1), &[b"x"]);
    let key = key(1);
    for _ in 0..100_000 {
        queue.push_control(Message::PeerGone {
            key,
            reason: derp::PeerGoneReason::NotHere,
        });
    }
    let mut out = Vec::new();
    queue.drain(&mut out);
    assert_eq!(out[0], 6);
    assert!(out.len() < MAX_CONTROL + 200);
}

#[test]
fn many_pings_get_one_answer() {
    let queue = empty();
    (0..9).for_each(|number| queue.push_pong([number; 8]));
    let mut out = Vec::new();
    queue.drain(&mut out);
    assert_eq!(out, Message::Pong([8; 8]).to_vec());
}

#[test]
fn closing_forgets_packets() {
    let queue = empty();
    queue.push(&key(1), &[b"x"]);
    queue.close(Message::Health("bye"));
    let mut out = Vec::new();
    assert_eq!(queue.drain(&mut out), Drained::Last);
    assert_eq!(out, Message::Health("bye").to_vec());
}

#[test]
fn who_is_to_be_closed_gets_no_more_packets() {
    let queue = empty();
    queue.close(Message::Health("bye"));
    assert_eq!(queue.push(&key(1), &[b"x", b"y"]), 2);
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn all_queues_together_are_bounded_and_none_is_starved() {
    const LIMIT: usize = 4 << 20;
    let budget = Arc::new(Budget::new(LIMIT));
    let queues: Vec<Queue> = (0..20)
        .map(|_| Queue::new(Vec::new(), Arc::clone(&budget)))
        .collect();
    let sender = key(1);
    for _ in 0..1000 {
        for queue in &queues {
            queue.push(&sender, &[&[4; 1400]]);
        }
    }
    let waiting: usize = queues.iter().map(Queue::bytes).sum();
    assert!(waiting > LIMIT / 2);
    assert!(waiting <= LIMIT + queues.len() * SCARCE_BYTES, "{waiting}");
    for queue in &queues {
        assert!(queue.bytes() > SCARCE_BYTES / 2);
    }
    assert_eq!(budget.used.load(Ordering::Relaxed), waiting);
    let first = &queues[0];
    drain_all(first);
    assert_eq!(first.bytes(), 0);
    drop(queues);
    assert_eq!(budget.used.load(Ordering::Relaxed), 0, "all is given back");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_pushed_the_order_per_sender_holds_and_memory_is_bounded(
        pushes in prop::collection::vec((0_usize..4, 1_usize..3000, 1_usize..60, any::<bool>()), 1..40),
    ) {
        let keys = [1, 2, 3, 4].map(key);
        let queue = empty();
        let mut number = 0_u32;
        let mut last = HashMap::new();
        let mut pushed = 0;
        let mut dropped = 0;
        let mut seen = 0;
        let check = |all: Vec<(NodeKey, Vec<u8>)>, last: &mut HashMap<NodeKey, u32>, seen: &mut u64| {
            for (source, packet) in all {
                let number = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
                let before = last.insert(source, number);
                assert!(before.is_none_or(|before| before < number));
                *seen += 1;
            }
        };
        for (source, length, count, drain_now) in pushes {
            for _ in 0..count {
                let mut packet = vec![4; length + 8];
                packet[4..8].copy_from_slice(&number.to_be_bytes());
                number += 1;
                dropped += queue.push(&keys[source], &[&packet]);
                pushed += 1;
            }
            prop_assert!(queue.bytes() <= MAX_BYTES);
            if drain_now {
                check(drain(&queue), &mut last, &mut seen);
            }
        }
        check(drain_all(&queue), &mut last, &mut seen);
        prop_assert_eq!(seen + dropped, pushed);
        prop_assert_eq!(queue.bytes(), 0);
    }
}

#[test]
fn the_first_reason_to_close_is_the_last_frame() {
    let queue = empty();
    assert!(queue.close(Message::Health("first")));
    assert!(!queue.close(Message::Health("second")));
    let mut out = Vec::new();
    assert_eq!(queue.drain(&mut out), Drained::Last);
    assert_eq!(out, Message::Health("first").to_vec());
}
