//! Probes under way, and what is known about the addresses of the peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Path;

/// Probes remembered at once.
const MAX_OUTSTANDING: usize = 256;
/// A later answer is ignored.
const EXPIRES: Duration = Duration::from_secs(5);
/// Addresses remembered at once.
const MAX_ADDRESSES: usize = 64;
/// An address that answered this recently needs no probe in return for one of the peer's.
const RECENT: Duration = Duration::from_secs(1);
/// Least time between two probes in return to one address.
const TRIGGER_PAUSE: Duration = Duration::from_millis(20);

/// Probes under way and addresses seen.
#[derive(Debug, Default)]
pub(super) struct Probes {
    outstanding: BTreeMap<u64, Outstanding>,
    addresses: BTreeMap<SocketAddr, Seen>,
    /// The address from which the peer's newest probe came.
    latest: Option<SocketAddr>,
}

#[derive(Debug)]
struct Outstanding {
    to: Path,
    sent: Instant,
}

/// What is known about one address.
#[derive(Debug, Default)]
struct Seen {
    heard: Option<Instant>,
    validated: Option<Instant>,
    triggered: Option<Instant>,
    rtt: Option<Duration>,
}

/// An answered probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) sent: Instant,
    pub(super) rtt: Duration,
}

impl Probes {
    /// Remembers a probe that leaves.
    pub(super) fn sent(&mut self, now: Instant, id: u64, to: Path) {
        self.outstanding
            .retain(|_, probe| now < probe.sent + EXPIRES);
        if self.outstanding.len() >= MAX_OUTSTANDING {
            let oldest = self
                .outstanding
                .iter()
                .min_by_key(|(_, probe)| probe.sent)
                .map(|(&id, _)| id);
            oldest.and_then(|id| self.outstanding.remove(&id));
        }
        self.outstanding.insert(id, Outstanding { to, sent: now });
    }

    /// An answer arrived: it counts only on the path where the probe was sent.
    pub(super) fn answered(&mut self, now: Instant, id: u64, via: Path) -> Option<Answered> {
        let probe = self
            .outstanding
            .get(&id)
            .filter(|probe| probe.to == via && now < probe.sent + EXPIRES)?;
        let answered = Answered {
            sent: probe.sent,
            rtt: now.saturating_duration_since(probe.sent),
        };
        self.outstanding.remove(&id);
        if let Path::Direct(address) = via {
            let seen = self.seen(address);
            seen.validated = Some(now);
            seen.rtt = Some(
                seen.rtt
                    .map_or(answered.rtt, |old| (old * 3 + answered.rtt) / 4),
            );
        }
        Some(answered)
    }

    /// The peer's probe arrived; `true` if one is due in return.
    pub(super) fn heard(&mut self, now: Instant, address: SocketAddr) -> bool {
        self.latest = Some(address);
        let seen = self.seen(address);
        seen.heard = Some(now);
        let recently = |at: Option<Instant>, within| at.is_some_and(|at| now < at + within);
        let due = !recently(seen.validated, RECENT) && !recently(seen.triggered, TRIGGER_PAUSE);
        if due {
            seen.triggered = Some(now);
        }
        due
    }

    pub(super) fn rtt(&self, address: SocketAddr) -> Option<Duration> {
        self.addresses.get(&address)?.rtt
    }

    /// The address from which the peer's newest probe came.
    pub(super) fn latest(&self) -> Option<SocketAddr> {
        self.latest
    }

    /// Nothing sent to `address` so far will be answered.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        self.outstanding
            .retain(|_, probe| probe.to != Path::Direct(address));
    }

    fn seen(&mut self, address: SocketAddr) -> &mut Seen {
        if !self.addresses.contains_key(&address) && self.addresses.len() >= MAX_ADDRESSES {
            let stalest = self
                .addresses
                .iter()
                .min_by_key(|(_, seen)| seen.heard.max(seen.validated));
            let stalest = stalest.map(|(&address, _)| address);
            stalest.and_then(|address| self.addresses.remove(&address));
        }
        self.addresses.entry(address).or_default()
    }
}
