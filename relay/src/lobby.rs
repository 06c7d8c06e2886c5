//! What clients in the lobby may send: enough for a join, too little for traffic.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use derp::NodeKey;

use crate::bucket::{Buckets, Rate};

const RATE: Rate = Rate {
    per_second: 500.0,
    burst: 1000.0,
};
/// Bytes of a packet that cost one token.
const TOKEN_BYTES: usize = 1500;
/// Keys that have a share of their own; there is one key for each invite.
const KEYS: usize = 1024;

/// The shares of all keys. They belong to the keys and not to their connections: who comes again, or twice, has no more.
#[derive(Debug)]
pub(crate) struct Lobby(Mutex<Buckets<NodeKey>>);

impl Lobby {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Buckets::new(RATE, KEYS, now)))
    }

    /// Takes packets off the share of a key. Says how many of them, from the first on, are within it.
    pub(crate) fn take(&self, key: &NodeKey, packets: &[&[u8]], now: Instant) -> usize {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fits = |packet: &[u8]| (0..tokens(packet)).all(|_| shares.take(*key, now));
        packets.iter().take_while(|packet| fits(packet)).count()
    }
}

fn tokens(packet: &[u8]) -> usize {
    packet.len().div_ceil(TOKEN_BYTES).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use derp::NodeSecret;

    use super::*;

    fn key(seed: u8) -> NodeKey {
        NodeSecret::from_bytes([seed; 32]).public()
    }

    #[test]
    fn a_key_has_one_share_and_the_first_packets_within_it_pass() {
        let now = Instant::now();
        let lobby = Lobby::new(now);
        let small = [0; 100];
        let run = vec![&small[..]; 600];
        assert_eq!(lobby.take(&key(1), &run, now), 600);
        assert_eq!(lobby.take(&key(1), &run, now), 400);
        assert_eq!(lobby.take(&key(1), &run, now), 0);
        assert_eq!(lobby.take(&key(2), &run, now), 600);
        let later = now + Duration::from_secs(1);
        assert_eq!(lobby.take(&key(1), &run, later), 500);
    }

    #[test]
    fn large_packets_cost_more() {
        for (length, cost) in [(0, 1), (1500, 1), (1501, 2), (65_536, 44)] {
            assert_eq!(tokens(&vec![0; length]), cost, "{length}");
        }
        let now = Instant::now();
        let large = vec![0; 65_536];
        let fit = Lobby::new(now).take(&key(1), &[large.as_slice(); 100], now);
        assert_eq!(fit, 1000 / 44);
    }
}
