//! A server that sends every ping back, and remembers when it came and from where.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::parse;
use crate::namespace::Namespace;

/// One ping that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which pinger sent it.
    pub flow: u32,
    /// Its place in the flow, from 0.
    pub sequence: u64,
    /// When, by the receiver's clock.
    pub at: Instant,
    /// The source that the receiver saw.
    pub from: SocketAddr,
}

/// What arrived of one flow, in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// Every arrival.
    pub list: Vec<Received>,
}

impl Arrivals {
    /// When the first one came.
    pub fn first(&self) -> Option<Instant> {
        self.list.first().map(|received| received.at)
    }

    /// When the first one at or after an instant came.
    pub fn first_since(&self, since: Instant) -> Option<Instant> {
        self.list
            .iter()
            .map(|received| received.at)
            .find(|&at| at >= since)
    }

    /// The longest time without an arrival between two instants; both ends count as arrivals.
    pub fn largest_gap(&self, since: Instant, until: Instant) -> Duration {
        let inside = self
            .list
            .iter()
            .map(|received| received.at)
            .filter(|&at| at >= since && at <= until);
        let mut last = since;
        let mut largest = Duration::ZERO;
        for at in inside.chain([until]) {
            largest = largest.max(at.saturating_duration_since(last));
            last = at;
        }
        largest
    }

    /// All sources seen.
    pub fn sources(&self) -> BTreeSet<SocketAddr> {
        self.list.iter().map(|received| received.from).collect()
    }

    /// Sequence numbers of a range that never came.
    pub fn missing(&self, range: Range<u64>) -> Vec<u64> {
        let came = self.sequences();
        range.filter(|sequence| !came.contains(sequence)).collect()
    }

    /// How many came more than once.
    pub fn duplicates(&self) -> usize {
        self.list.len() - self.sequences().len()
    }

    /// How many came behind a later one.
    pub fn reordered(&self) -> usize {
        let mut highest = 0;
        let mut late = 0;
        for received in &self.list {
            late += usize::from(received.sequence < highest);
            highest = highest.max(received.sequence);
        }
        late
    }

    fn sequences(&self) -> BTreeSet<u64> {
        self.list.iter().map(|received| received.sequence).collect()
    }
}

/// Arrivals that a thread adds to and others read.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Received>>>);

impl Log {
    pub(super) fn add(&self, received: Received) {
        self.lock().push(received);
    }

    pub(super) fn of(&self, flow: u32) -> Arrivals {
        let list = self
            .lock()
            .iter()
            .filter(|received| received.flow == flow)
            .copied()
            .collect();
        Arrivals { list }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server. Stops when dropped.
pub struct Echo {
    address: SocketAddr,
    log: Log,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens at an address inside a namespace.
    pub fn start(ns: &Namespace, at: SocketAddr) -> Result<Self> {
        let socket = ns
            .run(|| UdpSocket::bind(at))?
            .with_context(|| format!("cannot listen at {at}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let (log, stop) = (Log::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (log, stop) = (log.clone(), Arc::clone(&stop));
            thread::spawn(move || serve(&socket, &log, &stop))
        };
        Ok(Self {
            address,
            log,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came of one flow so far.
    pub fn arrivals(&self, flow: u32) -> Arrivals {
        self.log.of(flow)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, log: &Log, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let at = Instant::now();
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Some((flow, sequence)) = parse(bytes) {
            log.add(Received {
                flow,
                sequence,
                at,
                from,
            });
            let _ = socket.send_to(bytes, from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(start: Instant, came: &[(u64, u64)]) -> Arrivals {
        let from = "10.1.0.10:9".parse().expect("an address");
        let received = |&(sequence, ms)| Received {
            flow: 1,
            sequence,
            at: start + Duration::from_millis(ms),
            from,
        };
        Arrivals {
            list: came.iter().map(received).collect(),
        }
    }

    #[test]
    fn gaps_reach_to_both_ends() {
        let start = Instant::now();
        let came = arrivals(start, &[(0, 30), (1, 40), (2, 100)]);
        let gap = |from, to| {
            came.largest_gap(
                start + Duration::from_millis(from),
                start + Duration::from_millis(to),
            )
        };
        assert_eq!(gap(0, 110), Duration::from_millis(60));
        assert_eq!(gap(0, 200), Duration::from_millis(100));
        assert_eq!(gap(90, 100), Duration::from_millis(10));
    }

    #[test]
    fn counts_what_is_wrong() {
        let came = arrivals(Instant::now(), &[(0, 1), (2, 2), (1, 3), (2, 4)]);
        assert_eq!(came.missing(0..4), [3]);
        assert_eq!(came.duplicates(), 1);
        assert_eq!(came.reordered(), 1);
        assert_eq!(came.sources().len(), 1);
    }
}
