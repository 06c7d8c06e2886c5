//! TCP connections with relays: when they begin and end, and how long nothing is sent on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::packet::Segment;

/// One TCP connection with a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its packets, both ways.
    pub packets: u64,
    /// Its attempts to begin: SYN without ACK.
    pub opened: u64,
    /// Packets that end it: FIN or RST.
    pub ended: u64,
    /// The longest time between two of its packets.
    pub silence: Duration,
    last: Instant,
}

/// Connections by their two ends, the client first.
#[derive(Clone, Debug, Default)]
pub struct Flows(BTreeMap<(SocketAddr, SocketAddr), Flow>);

impl Flows {
    /// Those with a relay that is reached at this address.
    pub fn with(&self, relay: SocketAddr) -> impl Iterator<Item = &Flow> {
        self.0
            .iter()
            .filter(move |((_, server), _)| *server == relay)
            .map(|(_, flow)| flow)
    }

    pub(super) fn add(&mut self, segment: Segment, now: Instant) {
        let flow = self.0.entry((segment.client, segment.relay));
        let flow = flow.or_insert(Flow {
            packets: 0,
            opened: 0,
            ended: 0,
            silence: Duration::ZERO,
            last: now,
        });
        flow.packets += 1;
        flow.opened += u64::from(segment.opens);
        flow.ended += u64::from(segment.ends);
        flow.silence = flow.silence.max(now.saturating_duration_since(flow.last));
        flow.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beginnings_ends_and_silence() {
        let relay: SocketAddr = "203.0.113.20:443".parse().expect("an address");
        let client: SocketAddr = "203.0.113.34:40000".parse().expect("an address");
        let segment = |opens, ends| Segment {
            client,
            relay,
            opens,
            ends,
        };
        let (mut flows, start) = (Flows::default(), Instant::now());
        flows.add(segment(true, false), start);
        flows.add(segment(false, false), start + Duration::from_secs(25));
        flows.add(segment(false, true), start + Duration::from_secs(26));
        let [flow] = flows.with(relay).collect::<Vec<_>>()[..] else {
            panic!("one flow: {flows:?}");
        };
        assert_eq!((flow.packets, flow.opened, flow.ended), (3, 1, 1));
        assert_eq!(flow.silence, Duration::from_secs(25));
        assert_eq!(flows.with(client).count(), 0, "a client is no relay");
    }
}
