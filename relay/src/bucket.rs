//! Token buckets, alone and by key.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How many tokens come back each second, and how many a bucket holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) burst: f64,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    last: Instant,
}

/// A bucket for each key, for a bounded number of keys. Further keys share one.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    limit: usize,
    buckets: HashMap<K, Bucket>,
    shared: Bucket,
    swept: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            last: now,
        }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens = self.tokens_at(rate, now);
        self.last = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn tokens_at(&self, rate: Rate, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        (self.tokens + elapsed * rate.per_second).min(rate.burst)
    }
}

impl<K: Eq + Hash> Buckets<K> {
    pub(crate) fn new(rate: Rate, limit: usize, now: Instant) -> Self {
        Self {
            rate,
            limit,
            buckets: HashMap::new(),
            shared: Bucket::full(rate, now),
            swept: now,
        }
    }

    /// Takes a token of the key's bucket if there is one.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        let rate = self.rate;
        if let Some(bucket) = self.buckets.get_mut(&key) {
            return bucket.take(rate, now);
        }
        if self.buckets.len() >= self.limit && !self.sweep(now) {
            return self.shared.take(rate, now);
        }
        self.buckets
            .entry(key)
            .or_insert_with(|| Bucket::full(rate, now))
            .take(rate, now)
    }

    /// Forgets buckets that are full again; at most once a second, since it looks at all of them.
    fn sweep(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept) < Duration::from_secs(1) {
            return false;
        }
        self.swept = now;
        let rate = self.rate;
        self.buckets
            .retain(|_, bucket| bucket.tokens_at(rate, now) < rate.burst);
        self.buckets.len() < self.limit
    }
}

/// What counts as one source: an IPv4 address, or the /64 that one IPv6 customer has at least.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 2.0,
        burst: 3.0,
    };

    #[test]
    fn a_bucket_empties_and_fills() {
        let now = Instant::now();
        let mut bucket = Bucket::full(RATE, now);
        let taken = (0..5).filter(|_| bucket.take(RATE, now)).count();
        assert_eq!(taken, 3);
        assert!(bucket.take(RATE, now + Duration::from_millis(500)));
        assert!(!bucket.take(RATE, now + Duration::from_millis(500)));
    }

    #[test]
    fn keys_do_not_share_until_there_are_too_many() {
        let now = Instant::now();
        let mut buckets = Buckets::new(RATE, 2, now);
        let taken =
            |buckets: &mut Buckets<u8>, key| (0..9).filter(|_| buckets.take(key, now)).count();
        assert_eq!([taken(&mut buckets, 1), taken(&mut buckets, 2)], [3, 3]);
        assert_eq!([taken(&mut buckets, 3), taken(&mut buckets, 4)], [3, 0]);
        assert!(
            buckets.take(4, now + Duration::from_secs(10)),
            "full buckets are forgotten"
        );
        assert!(buckets.buckets.len() <= 2);
    }

    #[test]
    fn sources_are_customers() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(source(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
        assert_eq!(
            source(parse("2001:db8:1:2:3:4:5:6")),
            parse("2001:db8:1:2::")
        );
    }
}
