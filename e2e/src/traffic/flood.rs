//! Floods of what nobody should send.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use rand::Rng;

use super::malformed::{UPGRADE, datagram, greeting};
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
                let _ = socket.send_to(&datagram(), target);
            }
        })
    }

    /// Connections, `rate` a second: most say something wrong and go away, some stay open without a word or behind what they
    /// said, some send a handshake a byte at a time.
    pub fn tcp(ns: &Namespace, target: SocketAddr, rate: u64) -> Result<Self> {
        let mut held = Held::default();
        Self::run(ns, rate, move |count| {
            held.drip();
            let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_millis(100))
            else {
                return;
            };
            let _ = stream.set_nonblocking(true);
            match count % 20 {
                0 => held.silent.push(stream),
                1 => held.slow.push((stream, 0)),
                2 => {
                    let _ = stream.write_all(&greeting(count / 20));
                    let _ = stream.shutdown(Shutdown::Write);
                    held.silent.push(stream);
                }
                3 => {
                    let _ = stream.write_all(&greeting(count / 20));
                    held.silent.push(stream);
                }
                _ => _ = stream.write_all(&greeting(count)),
            }
            held.shorten();
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

/// Connections that stay.
#[derive(Default)]
struct Held {
    silent: Vec<TcpStream>,
    /// With how much of the handshake has been sent.
    slow: Vec<(TcpStream, usize)>,
}

/// How many connections of each kind stay, at most.
const HELD: usize = 100;

impl Held {
    /// Each slow connection sends its next byte every now and then.
    fn drip(&mut self) {
        let Some(last) = self.slow.len().checked_sub(1) else {
            return;
        };
        let place = rand::rng().random_range(0..=last);
        if let Some((stream, sent)) = self.slow.get_mut(place)
            && let Some(byte) = UPGRADE.get(*sent..=*sent)
        {
            let _ = stream.write_all(byte);
            *sent += 1;
        }
    }

    fn shorten(&mut self) {
        self.silent.drain(..self.silent.len().saturating_sub(HELD));
        self.slow.drain(..self.slow.len().saturating_sub(HELD));
    }
}
