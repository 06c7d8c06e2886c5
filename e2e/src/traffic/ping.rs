//! A paced sender of pings that also hears what comes back.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::echo::{Arrivals, Echo, Log, Received};
use super::{parse, payload};
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// Default length of a ping's payload.
const SIZE: usize = 100;

/// Sends pings until stopped or dropped.
pub struct Pinger {
    flow: u32,
    address: SocketAddr,
    sent: Sent,
    replies: Log,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of a flow, by its sender.
#[derive(Clone, Debug)]
pub struct PingReport {
    /// The flow's number, to ask an [`Echo`] about.
    pub flow: u32,
    /// When each ping was sent.
    pub sent: Vec<Instant>,
    /// What came back.
    pub replies: Arrivals,
}

impl PingReport {
    /// One more than the last sequence number.
    pub fn count(&self) -> u64 {
        u64::try_from(self.sent.len()).unwrap_or(u64::MAX)
    }
}

impl Pinger {
    /// Starts sending `rate` pings a second from an address inside a namespace; port 0 takes any.
    pub fn start(ns: &Namespace, from: SocketAddr, to: SocketAddr, rate: u32) -> Result<Self> {
        Self::sized(ns, from, to, rate, SIZE)
    }

    /// The same with pings of another size, in bytes of payload.
    pub fn sized(
        ns: &Namespace,
        from: SocketAddr,
        to: SocketAddr,
        rate: u32,
        size: usize,
    ) -> Result<Self> {
        static FLOWS: AtomicU32 = AtomicU32::new(1);
        ensure!(rate > 0, "a rate of 0 sends nothing");
        let flow = FLOWS.fetch_add(1, Ordering::Relaxed);
        let socket = ns
            .run(|| UdpSocket::bind(from))?
            .with_context(|| format!("cannot send from {from}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (sent, replies, stop) = (
            Sent::default(),
            Log::default(),
            Arc::new(AtomicBool::new(false)),
        );
        let address = socket.local_addr()?;
        let hearing = {
            let (socket, replies, stop) = (socket.try_clone()?, replies.clone(), Arc::clone(&stop));
            thread::spawn(move || hear(&socket, &replies, &stop))
        };
        let sending = {
            let (sent, stop) = (sent.clone(), Arc::clone(&stop));
            let pace = Pace {
                flow,
                to,
                rate,
                size,
            };
            thread::spawn(move || pace.send(&socket, &sent, &stop))
        };
        Ok(Self {
            flow,
            address,
            sent,
            replies,
            stop,
            threads: vec![hearing, sending],
        })
    }

    /// The flow's number, to ask an [`Echo`] about.
    pub fn flow(&self) -> u32 {
        self.flow
    }

    /// Where it sends from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What became of it so far.
    pub fn so_far(&self) -> PingReport {
        PingReport {
            flow: self.flow,
            sent: self.sent.lock().clone(),
            replies: self.replies.of(self.flow),
        }
    }

    /// Stops sending, and tells what became of it all, answers on their way included.
    pub fn stop(mut self) -> PingReport {
        self.halt();
        self.so_far()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Sends one ping from a new socket and waits for its arrival at the server. Returns how long it took by the server's clock.
pub fn probe(ns: &Namespace, from: SocketAddr, to: &Echo, patience: Duration) -> Result<Duration> {
    let pinger = Pinger::start(ns, from, to.address(), 1)?;
    let arrival = wait_for(patience, "a single ping", || {
        to.arrivals(pinger.flow()).first().ok_or("nothing")
    })?;
    let sent = pinger.stop().sent;
    let start = sent.first().context("a ping arrived, so one was sent")?;
    Ok(arrival.saturating_duration_since(*start))
}

#[derive(Clone, Debug, Default)]
struct Sent(Arc<Mutex<Vec<Instant>>>);

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Pace {
    flow: u32,
    to: SocketAddr,
    rate: u32,
    size: usize,
}

impl Pace {
    fn send(&self, socket: &UdpSocket, sent: &Sent, stop: &AtomicBool) {
        let start = Instant::now();
        let mut sequence = 0;
        while !stop.load(Ordering::Relaxed) {
            // No route yet, or a firewall: counts as sent and lost.
            sent.lock().push(Instant::now());
            let _ = socket.send_to(&payload(self.flow, sequence, self.size), self.to);
            sequence += 1;
            self.rest(start, sequence, stop);
        }
    }

    /// Until the next one is due, without oversleeping a stop.
    fn rest(&self, start: Instant, sequence: u64, stop: &AtomicBool) {
        let due = start + Duration::from_micros(sequence * 1_000_000 / u64::from(self.rate));
        while !stop.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Goes on after the stop until the line is silent for one read time-out.
fn hear(socket: &UdpSocket, replies: &Log, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            continue;
        };
        let at = Instant::now();
        if let Some((flow, sequence)) = parse(buffer.get(..length).unwrap_or_default()) {
            replies.add(Received {
                flow,
                sequence,
                at,
                from,
            });
        }
    }
}
