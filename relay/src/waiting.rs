//! Who was looking for keys that were not here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use derp::NodeKey;

const MAX_KEYS: usize = 4096;
const MAX_WAITERS: usize = 16;
const MAX_AGE: Duration = Duration::from_secs(30);

/// Remembers for half a minute who looked for whom.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    by_key: HashMap<NodeKey, Vec<Waiter>>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Waiter {
    key: NodeKey,
    since: Instant,
}

impl Waiting {
    /// `sender` looked for `absent`. When there is no room, the newcomer is not remembered.
    pub(crate) fn add(&mut self, now: Instant, absent: NodeKey, sender: NodeKey) {
        if self.by_key.len() >= MAX_KEYS && !self.by_key.contains_key(&absent) {
            self.sweep(now);
            if self.by_key.len() >= MAX_KEYS {
                return;
            }
        }
        let waiters = self.by_key.entry(absent).or_default();
        waiters.retain(|waiter| waiter.key != sender && is_fresh(waiter, now));
        if waiters.len() < MAX_WAITERS {
            waiters.push(Waiter {
                key: sender,
                since: now,
            });
        }
    }

    /// Who looked for the key that has come; they are forgotten.
    pub(crate) fn take(&mut self, now: Instant, key: &NodeKey) -> Vec<NodeKey> {
        let waiters = self.by_key.remove(key).unwrap_or_default();
        let fresh = waiters.into_iter().filter(|waiter| is_fresh(waiter, now));
        fresh.map(|waiter| waiter.key).collect()
    }

    /// Looks at everything, so at most once a second.
    fn sweep(&mut self, now: Instant) {
        if self
            .swept
            .is_some_and(|swept| now.saturating_duration_since(swept) < Duration::from_secs(1))
        {
            return;
        }
        self.swept = Some(now);
        self.by_key
            .retain(|_, waiters| waiters.iter().any(|waiter| is_fresh(waiter, now)));
    }
}

fn is_fresh(waiter: &Waiter, now: Instant) -> bool {
    now.saturating_duration_since(waiter.since) < MAX_AGE
}

#[cfg(test)]
mod tests {
    use derp::NodeSecret;

    use super::*;

    fn key(seed: u16) -> NodeKey {
        let mut bytes = [9; 32];
        bytes[1..3].copy_from_slice(&seed.to_be_bytes());
        NodeKey::from_bytes(bytes).unwrap_or_else(|_| NodeSecret::from_bytes(bytes).public())
    }

    #[test]
    fn waiters_are_told_once_and_not_late() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        waiting.add(now, key(1), key(2));
        waiting.add(now, key(1), key(2));
        waiting.add(now + MAX_AGE / 2, key(1), key(3));
        assert_eq!(waiting.take(now + MAX_AGE, &key(1)), [key(3)]);
        assert!(waiting.take(now, &key(1)).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        for absent in 0..5000 {
            waiting.add(now, key(absent), key(9999));
        }
        for sender in 0..100 {
            waiting.add(now, key(0), key(sender));
        }
        assert_eq!(waiting.by_key.len(), MAX_KEYS);
        assert_eq!(waiting.take(now, &key(0)).len(), MAX_WAITERS);
        let later = now + MAX_AGE;
        waiting.add(later, key(6000), key(1));
        waiting.add(later, key(6001), key(1));
        assert_eq!(waiting.by_key.len(), 2, "what is old gives way");
    }
}
