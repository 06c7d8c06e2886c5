//! Floods of what nobody should send.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::{Rng, RngCore};

use crate::namespace::Namespace;

/// Sends rubbish until stopped or dropped.
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Datagrams, `rate` a second, to the targets in turn: noise, and STUN and WireGuard messages that are almost right.
    pub fn udp(ns: &Namespace, targets: &[SocketAddr], rate: u64) -> Result<Self> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let socket = ns
            .run(|| UdpSocket::bind(any))?
            .context("cannot open the flood's socket")?;
        let targets = targets.to_vec();
        Self::run(ns, rate, move |count| {
            let place = usize::try_from(count).unwrap_or_default() % targets.len().max(1);
            if let Some(target) = targets.get(place) {
                let _ = socket.send_to(&rubbish(), target);
            }
        })
    }

    /// Connections, `rate` a second, each of which says something wrong and goes away or falls silent.
    pub fn tcp(ns: &Namespace, target: SocketAddr, rate: u64) -> Result<Self> {
        let mut silent: Vec<TcpStream> = Vec::new();
        Self::run(ns, rate, move |count| {
            let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_millis(100))
            else {
                return;
            };
            let _ = stream.write_all(&greeting(count));
            if count.is_multiple_of(10) {
                silent.push(stream);
                silent.drain(..silent.len().saturating_sub(50));
            }
        })
    }

    fn run(ns: &Namespace, rate: u64, mut send: impl FnMut(u64) + Send + 'static) -> Result<Self> {
        let (sent, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        // The thread is started inside, so that sockets it opens are there too.
        let thread = ns.run(move || {
            thread::spawn(move || {
                let start = Instant::now();
                while !stopped.load(Ordering::Relaxed) {
                    let due = u64::try_from(start.elapsed().as_micros())
                        .unwrap_or(u64::MAX)
                        .saturating_mul(rate)
                        / 1_000_000;
                    for count in counter.load(Ordering::Relaxed)..due {
                        send(count);
                        counter.store(count + 1, Ordering::Relaxed);
                        if stopped.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            })
        })?;
        Ok(Self {
            sent,
            stop,
            thread: Some(thread),
        })
    }

    /// Stops, and tells how many were sent.
    pub fn stop(mut self) -> u64 {
        self.halt();
        self.sent.load(Ordering::Relaxed)
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.halt();
    }
}

fn rubbish() -> Vec<u8> {
    let mut rng = rand::rng();
    let length = match rng.random_range(0..6) {
        0 => rng.random_range(0..4),
        1 => 20,
        2 => 148,
        3 => 92,
        4 => rng.random_range(32..200),
        _ => rng.random_range(0..1400),
    };
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    let head: &[u8] = match rng.random_range(0..8) {
        0 => &[1, 0, 0, 0],
        1 => &[2, 0, 0, 0],
        2 => &[3, 0, 0, 0],
        3 => &[4, 0, 0, 0],
        4 => &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
        5 => &[0, 1, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42],
        6 => &[1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42],
        _ => &[],
    };
    if let Some(place) = bytes.get_mut(..head.len()) {
        place.copy_from_slice(head);
    }
    bytes
}

fn greeting(count: u64) -> Vec<u8> {
    let upgrade =
        b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
    match count % 6 {
        0 => rubbish(),
        1 => b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(),
        2 => [upgrade.as_slice(), &rubbish()].concat(),
        3 => [upgrade.as_slice(), &[2, 0xff, 0xff, 0xff, 0xff]].concat(),
        4 => [b"GET /derp HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 9000]].concat(),
        _ => upgrade.iter().take(11).copied().collect(),
    }
}
