use std::collections::VecDeque;

use derp::NodeSecret;
use proptest::prelude::*;

use super::*;
use crate::message::{Delta, NodeName, NodeRecord, RecordError, StatePart, VERSION};

fn name(number: usize) -> NodeName {
    format!("n{number}").parse().unwrap()
}

fn record(seed: u8) -> Arc<NodeRecord> {
    let key = NodeSecret::from_bytes([seed; 32]).public();
    Arc::new(NodeRecord::new(key, None, Vec::new(), seed.into()).unwrap())
}

fn records(numbers: impl IntoIterator<Item = (usize, u8)>) -> Arc<Records> {
    let mut records = Records::default();
    for (number, seed) in numbers {
        records.insert(name(number), record(seed)).unwrap();
    }
    Arc::new(records)
}

fn hello(generation: u64) -> Hello {
    Hello {
        version: VERSION,
        cluster_name: "berlin".parse().unwrap(),
        generation,
    }
}

fn session(now: Instant, local: Arc<Records>) -> Session {
    Session::new(now, Limits::default(), hello(1), local)
}

/// A session whose other side has greeted.
fn greeted(now: Instant) -> Session {
    let mut session = session(now, Arc::default());
    session
        .handle_message(now, Message::Hello(hello(2)))
        .unwrap();
    assert_eq!(session.poll_event(), Some(Event::Hello(hello(2))));
    session
}

fn state(sequence: u64, first: bool, last: bool, nodes: &[usize]) -> Message {
    Message::State(StatePart {
        sequence,
        first,
        last,
        nodes: nodes.iter().map(|one| (name(*one), record(1))).collect(),
        refused: Vec::new(),
    })
}

fn delta(sequence: u64, nodes: &[usize], removed: &[usize]) -> Message {
    Message::Delta(Delta {
        sequence,
        nodes: nodes.iter().map(|one| (name(*one), record(1))).collect(),
        removed_nodes: removed.iter().map(|one| name(*one)).collect(),
        refused: Vec::new(),
    })
}

fn transmits(session: &mut Session, now: Instant) -> Vec<Message> {
    std::iter::from_fn(|| session.poll_transmit(now)).collect()
}

/// The last thing that the other side proposed.
fn proposed(session: &mut Session) -> Option<Arc<Records>> {
    let mut last = None;
    while let Some(event) = session.poll_event() {
        if let Event::Records { records, .. } = event {
            last = Some(records);
        }
    }
    last
}

/// Two sessions and the wires between them.
struct Pair {
    now: Instant,
    ends: [Session; 2],
    wires: [VecDeque<Vec<u8>>; 2],
    proposed: [Option<Arc<Records>>; 2],
    longest: usize,
}

impl Pair {
    fn new(now: Instant, local: [Arc<Records>; 2]) -> Self {
        Self {
            now,
            ends: local.map(|local| session(now, local)),
            wires: Default::default(),
            proposed: [None, None],
            longest: 0,
        }
    }

    /// Writes and reads everything, through the bytes of the wire.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for end in 0..2 {
                let sent = transmits(&mut self.ends[end], self.now);
                for message in sent {
                    let bytes = message.encode().unwrap();
                    self.longest = self.longest.max(bytes.len());
                    self.wires[1 - end].push_back(bytes);
                    moved = true;
                }
                while let Some(bytes) = self.wires[end].pop_front() {
                    let message = Message::decode(&bytes[4..]).unwrap();
                    self.ends[end].handle_message(self.now, message).unwrap();
                    moved = true;
                }
                let new = proposed(&mut self.ends[end]);
                if new.is_some() {
                    self.proposed[end] = new;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.handle_timeout(self.now).unwrap();
        }
        self.settle();
    }
}

#[test]
fn both_sides_get_everything_and_then_what_changes() {
    let (a, b) = (records([(1, 1), (2, 1)]), records([(7, 7)]));
    let mut pair = Pair::new(Instant::now(), [a.clone(), b.clone()]);
    pair.settle();
    assert_eq!(pair.proposed, [Some(b.clone()), Some(a)]);
    assert!(pair.ends.iter().all(Session::is_synced));
    let changed = records([(2, 9), (3, 1)]);
    pair.ends[0].set_local(changed.clone());
    assert!(!pair.ends[0].is_synced());
    pair.settle();
    assert_eq!(pair.proposed, [Some(b), Some(changed)]);
    assert!(pair.ends[0].is_synced());
}

#[test]
fn a_large_state_comes_in_parts_and_counts_when_it_is_whole() {
    let large = records((0..5000).map(|number| (number, 1)));
    let now = Instant::now();
    let mut sender = session(now, large.clone());
    sender
        .handle_message(now, Message::Hello(hello(2)))
        .unwrap();
    let mut receiver = greeted(now);
    let mut parts = 0;
    loop {
        let sent = transmits(&mut sender, now);
        assert!(sent.len() <= 5, "the window holds: {}", sent.len());
        for message in sent
            .into_iter()
            .filter(|one| !matches!(one, Message::Hello(_)))
        {
            assert_eq!(proposed(&mut receiver), None, "not whole yet");
            assert!(message.encode().unwrap().len() < 256 << 10);
            receiver.handle_message(now, message).unwrap();
            parts += 1;
        }
        if sender.is_synced() {
            break;
        }
        for message in transmits(&mut receiver, now) {
            if matches!(message, Message::Ack { .. }) {
                sender.handle_message(now, message).unwrap();
            }
        }
    }
    assert_eq!(parts, 5);
    assert_eq!(proposed(&mut receiver), Some(large));
}

#[test]
fn a_thousand_changes_at_once_are_one_delta_and_later_ones_wait_their_turn() {
    let now = Instant::now();
    let mut pair = Pair::new(now, [records([]), records([])]);
    pair.settle();
    for seed in 1..=20 {
        pair.ends[0].set_local(records((0..1000).map(|number| (number, seed))));
    }
    let first = transmits(&mut pair.ends[0], now);
    assert_eq!(first.len(), 1, "the latest only");
    pair.ends[0].set_local(records([(1, 1)]));
    assert_eq!(transmits(&mut pair.ends[0], now), []);
    let due = now + Limits::default().delta_interval;
    assert_eq!(pair.ends[0].poll_timeout(), Some(due));
    assert_eq!(transmits(&mut pair.ends[0], due).len(), 1);
    assert_eq!(transmits(&mut pair.ends[0], due), []);
}

#[test]
fn a_change_that_is_taken_back_in_time_is_not_sent() {
    let now = Instant::now();
    let mut pair = Pair::new(now, [records([]), records([])]);
    pair.ends[0].set_local(records([(1, 1)]));
    pair.settle();
    pair.ends[0].set_local(records([(1, 2)]));
    pair.settle();
    pair.ends[0].set_local(records([(1, 3)]));
    pair.ends[0].set_local(records([(1, 2)]));
    assert!(pair.ends[0].is_synced());
    assert_eq!(
        transmits(&mut pair.ends[0], now + Duration::from_secs(1)),
        []
    );
}

#[test]
fn a_new_conversation_starts_with_everything() {
    let local = records([(1, 1), (2, 1)]);
    let now = Instant::now();
    let mut pair = Pair::new(now, [local.clone(), records([])]);
    pair.settle();
    let mut again = Pair::new(now, [local.clone(), records([])]);
    again.settle();
    assert_eq!(again.proposed[1], Some(local));
    let sent = transmits(&mut session(now, records([])), now);
    assert_eq!(
        sent,
        [Message::Hello(hello(1))],
        "nothing before the greeting"
    );
}

#[test]
fn memberships_are_told_once_and_renewed_and_taken_back() {
    let now = Instant::now();
    let mut session = session(now, Arc::default());
    session.set_membership(Some("one"));
    assert_eq!(transmits(&mut session, now), [Message::Hello(hello(1))]);
    session
        .handle_message(now, Message::Hello(hello(2)))
        .unwrap();
    let told = |session: &mut Session| {
        let sent = transmits(session, now).into_iter();
        sent.filter(|one| matches!(one, Message::Membership { .. }))
            .collect::<Vec<_>>()
    };
    let membership = |text: Option<&str>| Message::Membership {
        text: text.map(str::to_owned),
    };
    assert_eq!(told(&mut session), [membership(Some("one"))]);
    session.set_membership(Some("one"));
    assert_eq!(told(&mut session), []);
    session.set_membership(Some("two"));
    session.set_membership(Some("three"));
    assert_eq!(told(&mut session), [membership(Some("three"))]);
    session.set_membership(Some("not fit to be sent"));
    assert_eq!(told(&mut session), [membership(None)]);
    session.set_membership(None);
    assert_eq!(told(&mut session), []);
}

#[test]
fn of_the_memberships_that_arrive_the_last_counts() {
    let now = Instant::now();
    let mut session = greeted(now);
    for text in [Some("one"), None, Some("two")] {
        let text = text.map(str::to_owned);
        session
            .handle_message(now, Message::Membership { text })
            .unwrap();
    }
    let last = Event::Membership(Some("two".into()));
    assert_eq!(session.poll_event(), Some(last));
    assert_eq!(session.poll_event(), None);
}

#[test]
fn a_number_that_is_missing_or_twice_ends_it() {
    let now = Instant::now();
    for (message, got) in [
        (state(2, true, true, &[]), 2),
        (state(0, true, true, &[]), 0),
    ] {
        let expected = 1;
        assert_eq!(
            greeted(now).handle_message(now, message),
            Err(SessionError::Sequence { expected, got })
        );
    }
    let mut session = greeted(now);
    session
        .handle_message(now, state(1, true, true, &[1]))
        .unwrap();
    session.handle_message(now, delta(2, &[2], &[])).unwrap();
    let error = session
        .handle_message(now, delta(2, &[3], &[]))
        .unwrap_err();
    assert_eq!(
        error,
        SessionError::Sequence {
            expected: 3,
            got: 2
        }
    );
    assert_eq!(error.reason(), CloseReason::Protocol);
}

#[test]
fn parts_need_a_beginning_and_deltas_a_state() {
    let now = Instant::now();
    for message in [state(1, false, true, &[1]), delta(1, &[1], &[])] {
        assert_eq!(
            greeted(now).handle_message(now, message),
            Err(SessionError::State)
        );
    }
    let mut session = greeted(now);
    session
        .handle_message(now, state(1, true, false, &[1]))
        .unwrap();
    assert_eq!(
        session.handle_message(now, delta(2, &[1], &[])),
        Err(SessionError::State)
    );
}

#[test]
fn a_second_state_replaces_the_first_when_it_is_whole() {
    let now = Instant::now();
    let mut session = greeted(now);
    session
        .handle_message(now, state(1, true, true, &[1, 2]))
        .unwrap();
    assert_eq!(proposed(&mut session), Some(records([(1, 1), (2, 1)])));
    session
        .handle_message(now, state(2, true, false, &[3]))
        .unwrap();
    assert_eq!(proposed(&mut session), None);
    session
        .handle_message(now, state(3, false, true, &[4]))
        .unwrap();
    assert_eq!(proposed(&mut session), Some(records([(3, 1), (4, 1)])));
    session
        .handle_message(now, delta(4, &[5], &[3, 9]))
        .unwrap();
    assert_eq!(proposed(&mut session), Some(records([(4, 1), (5, 1)])));
    assert_eq!(session.poll_transmit(now), Some(Message::Hello(hello(1))));
    assert_eq!(
        session.poll_transmit(now),
        Some(Message::Ack { sequence: 4 })
    );
}

#[test]
fn the_greeting_is_first_and_once() {
    let now = Instant::now();
    for message in [
        Message::Ack { sequence: 0 },
        state(1, true, true, &[]),
        delta(1, &[], &[]),
        Message::Membership { text: None },
    ] {
        assert_eq!(
            session(now, Arc::default()).handle_message(now, message),
            Err(SessionError::Greeting)
        );
    }
    assert_eq!(
        greeted(now).handle_message(now, Message::Hello(hello(2))),
        Err(SessionError::Greeting)
    );
    assert_eq!(
        session(now, Arc::default()).handle_message(now, Message::Unknown),
        Ok(())
    );
}

#[test]
fn silence_ends_it() {
    let now = Instant::now();
    let limits = Limits::default();
    let mut quiet = session(now, Arc::default());
    assert_eq!(quiet.poll_timeout(), Some(now + limits.hello_timeout));
    let late = now + limits.hello_timeout;
    assert_eq!(quiet.handle_timeout(late), Err(SessionError::NoHello));
    let mut session = greeted(now);
    assert_eq!(transmits(&mut session, now).len(), 2, "hello and state");
    let late = now + limits.ack_timeout;
    assert_eq!(session.poll_timeout(), Some(late));
    assert_eq!(session.handle_timeout(late), Err(SessionError::NoAck));
    session
        .handle_message(now, Message::Ack { sequence: 1 })
        .unwrap();
    assert_eq!(session.handle_timeout(late), Ok(()));
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn what_was_not_sent_cannot_be_acknowledged() {
    let now = Instant::now();
    let mut session = greeted(now);
    transmits(&mut session, now);
    session
        .handle_message(now, Message::Ack { sequence: 0 })
        .unwrap();
    assert!(!session.is_synced());
    session
        .handle_message(now, Message::Ack { sequence: 1 })
        .unwrap();
    assert!(session.is_synced());
    assert_eq!(
        session.handle_message(now, Message::Ack { sequence: 2 }),
        Err(SessionError::Ack)
    );
}

#[test]
fn too_many_messages_end_it() {
    let now = Instant::now();
    let mut session = greeted(now);
    let burst = Limits::default().burst;
    let taken = (0..burst * 2)
        .take_while(|_| session.handle_message(now, Message::Unknown).is_ok())
        .count();
    assert_eq!(u32::try_from(taken).unwrap(), burst - 1);
    assert_eq!(SessionError::TooFast.reason(), CloseReason::TooFast);
}

#[test]
fn too_many_nodes_end_it() {
    let now = Instant::now();
    let mut session = greeted(now);
    let mut result = Ok(());
    let mut sequence = 0;
    while result.is_ok() && sequence < 20 {
        let first = usize::try_from(sequence).unwrap() * 1000;
        let nodes: Vec<usize> = (first..first + 1000).collect();
        sequence += 1;
        result = session.handle_message(now, state(sequence, sequence == 1, false, &nodes));
    }
    assert_eq!(result, Err(SessionError::TooMuch));
    assert_eq!(sequence, 9);
}

#[test]
fn refusals_are_bounded_and_forgotten_when_they_are_mended() {
    let now = Instant::now();
    let mut session = greeted(now);
    session
        .handle_message(now, state(1, true, true, &[]))
        .unwrap();
    let refusals = |from: usize| {
        let refused = (from..from + 60).map(|one| Refusal {
            name: format!("n{one}"),
            error: RecordError::Prefixes,
        });
        refused.collect::<Vec<_>>()
    };
    for (sequence, from) in [(2, 0), (3, 60)] {
        let delta = Delta {
            sequence,
            refused: refusals(from),
            ..Delta::default()
        };
        session.handle_message(now, Message::Delta(delta)).unwrap();
    }
    session
        .handle_message(now, delta(4, &[119], &[118]))
        .unwrap();
    let Some(Event::Records { refused, .. }) = session.poll_event() else {
        panic!("no records")
    };
    assert_eq!(refused.len(), 62);
    assert_eq!(refused[61].name, "n117");
}

proptest! {
    #[test]
    fn whatever_changes_when_both_sides_end_up_equal(
        steps in prop::collection::vec(
            (0_usize..2, prop::collection::btree_map(0_usize..3000, 1_u8..4, 0..40), 0_u64..300, any::<bool>()),
            1..20,
        ),
    ) {
        let mut pair = Pair::new(Instant::now(), [records([]), records([])]);
        let mut local = [records([]), records([])];
        for (end, nodes, millis, settle) in steps {
            local[end] = records(nodes);
            pair.ends[end].set_local(local[end].clone());
            if settle {
                pair.settle();
            }
            pair.advance(Duration::from_millis(millis));
        }
        pair.advance(Duration::from_secs(1));
        let [a, b] = local;
        prop_assert_eq!(&pair.proposed, &[Some(b), Some(a)]);
        prop_assert!(pair.ends.iter().all(Session::is_synced));
        prop_assert!(pair.longest < 256 << 10);
    }
}
