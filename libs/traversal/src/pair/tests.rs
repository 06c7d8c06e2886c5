//! One side alone.

use super::*;
use crate::sim::Random;

/// A pair with a session on a relay, in a mesh of 10.0.0.0/8.
#[expect(clippy::disallowed_methods, reason = "a test has to begin somewhere")]
fn pair() -> (Pair, Instant) {
    let now = Instant::now();
    let local = Local {
        own_prefixes: vec!["10.0.0.0/8".parse().unwrap()],
        ..Local::default()
    };
    let mut pair = Pair::new(now, Box::new(Random(5)), local);
    pair.handle_relay(now, true, None);
    pair.handle_session(now);
    (pair, now)
}

/// Kinds of messages to send straight to `address`.
fn sent(pair: &mut Pair, address: SocketAddr) -> Vec<Control> {
    std::iter::from_fn(|| pair.poll_transmit())
        .filter(|transmit| transmit.via == Path::Direct(address))
        .map(|transmit| transmit.message)
        .collect()
}

#[test]
fn a_probe_is_answered_everywhere_and_returned_outside_the_mesh() {
    for (address, returned) in [
        ("203.0.113.9:4000", 1),
        ("192.168.7.9:4000", 1),
        ("10.2.0.9:4000", 0),
        ("127.0.0.1:4000", 0),
    ] {
        let (mut pair, now) = pair();
        let address = address.parse().unwrap();
        sent(&mut pair, address);
        pair.handle_control(now, Path::Direct(address), Control::Probe { id: 7 });
        let sent = sent(&mut pair, address);
        let is_probe = |message: &&Control| matches!(message, Control::Probe { .. });
        assert!(matches!(sent[0], Control::ProbeReply { id: 7, .. }));
        assert_eq!(sent.iter().filter(is_probe).count(), returned, "{address}");
    }
}

#[test]
fn a_barrier_does_not_keep_a_sleeper_trying() {
    let (mut pair, mut now) = pair();
    let hello = Hello {
        epoch: 9,
        seq: 1,
        ack: None,
        mapping: Default::default(),
        filtering: Default::default(),
        udp: Default::default(),
        awake: true,
        wants_answer: false,
        candidates: Vec::new(),
    };
    now += SLEEP;
    pair.handle_control(now, Path::Relay, Control::Hello(hello));
    assert!(!pair.is_active(now));
    let barrier = Control::Barrier {
        epoch: 9,
        round: 1,
        seen: 1,
    };
    pair.handle_control(now, Path::Relay, barrier);
    for _ in 0..10 {
        now += Duration::from_secs(2);
        pair.handle_timeout(now);
        assert_eq!(pair.retry.due(), None);
    }
}
