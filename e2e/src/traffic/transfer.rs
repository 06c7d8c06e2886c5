//! A TCP transfer whose content is checked at the far end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Socket, Type};

use super::MARKER;
use crate::namespace::Namespace;

/// Data is made and checked in blocks of this length.
const BLOCK: usize = 16 << 10;

/// Receives transfers, one thread each, and answers with what it counted and its checksum.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at an address inside a namespace.
    pub fn start(ns: &Namespace, at: SocketAddr) -> Result<Self> {
        let listener = ns
            .run(|| TcpListener::bind(at))?
            .with_context(|| format!("cannot listen at {at}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || accept(&listener, &stop))
        };
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct TransferReport {
    /// Bytes that the far end received.
    pub bytes: u64,
    /// From the connection's first byte to the far end's verdict.
    pub elapsed: Duration,
    /// Whether count and checksum are those of what was sent.
    pub intact: bool,
    /// The source that the far end saw.
    pub seen_from: SocketAddr,
}

impl TransferReport {
    /// Mean rate in Mbit/s.
    pub fn megabits(&self) -> f64 {
        let bits = u32::try_from(self.bytes / 1000 * 8).map_or(f64::INFINITY, f64::from);
        bits / 1000.0 / self.elapsed.as_secs_f64()
    }
}

/// A transfer under way.
pub struct Transfer {
    sent: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<TransferReport>>>,
}

impl Transfer {
    /// Sends `bytes` from an address inside a namespace, at no more than `rate` bytes a second if one is given.
    pub fn start(
        ns: &Namespace,
        from: SocketAddr,
        to: SocketAddr,
        bytes: u64,
        rate: Option<u64>,
    ) -> Result<Self> {
        let stream = ns
            .run(|| connect(from, to))?
            .with_context(|| format!("cannot connect to {to}"))?;
        let (sent, enough) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let push = Push {
            bytes,
            rate,
            sent: Arc::clone(&sent),
            enough: Arc::clone(&enough),
        };
        let thread = thread::spawn(move || push.run(stream));
        Ok(Self {
            sent,
            enough,
            thread: Some(thread),
        })
    }

    /// Bytes given to the kernel so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it early, and waits for the end.
    pub fn finish(self) -> Result<TransferReport> {
        self.enough.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Result<TransferReport> {
        let thread = self
            .thread
            .take()
            .context("a transfer is waited for once")?;
        thread
            .join()
            .map_err(|_| anyhow!("the transfer's thread panicked"))?
    }
}

/// How long a stream may be silent. Longer than any interruption that a test makes.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

struct Push {
    bytes: u64,
    rate: Option<u64>,
    sent: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
}

impl Push {
    fn run(self, mut stream: TcpStream) -> Result<TransferReport> {
        let start = Instant::now();
        let mut sum = Checksum::default();
        let mut pattern = Pattern::new();
        while sum.bytes < self.bytes && !self.enough.load(Ordering::Relaxed) {
            let left = usize::try_from(self.bytes - sum.bytes)
                .unwrap_or(BLOCK)
                .min(BLOCK);
            let block = pattern.next(left);
            stream
                .write_all(block)
                .with_context(|| format!("broken after {} bytes", sum.bytes))?;
            sum.add(block);
            self.sent.store(sum.bytes, Ordering::Relaxed);
            self.rest(start, sum.bytes);
        }
        stream.shutdown(Shutdown::Write)?;
        let mut verdict = String::new();
        stream
            .read_to_string(&mut verdict)
            .context("no verdict from the far end")?;
        judge(&verdict, &sum, start.elapsed()).with_context(|| format!("verdict {verdict:?}"))
    }

    fn rest(&self, start: Instant, sent: u64) {
        if let Some(rate) = self.rate {
            let due = start + Duration::from_micros(sent.saturating_mul(1_000_000) / rate.max(1));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

/// The verdict is `bytes checksum source`.
fn judge(verdict: &str, sum: &Checksum, elapsed: Duration) -> Result<TransferReport> {
    let mut words = verdict.split(' ');
    let mut word = || words.next().context("too short");
    let (bytes, value) = (word()?.parse()?, word()?.parse::<u64>()?);
    Ok(TransferReport {
        bytes,
        elapsed,
        intact: (bytes, value) == (sum.bytes, sum.value),
        seen_from: word()?.parse()?,
    })
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => {
                thread::spawn(move || receive(stream, from));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn receive(mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut sum = Checksum::default();
    let mut block = vec![0; BLOCK];
    loop {
        let length = fill(&mut stream, &mut block)?;
        sum.add(block.get(..length).unwrap_or_default());
        if length < BLOCK {
            break;
        }
    }
    stream.write_all(format!("{} {} {from}", sum.bytes, sum.value).as_bytes())
}

/// Reads until the block is full or the stream has ended.
fn fill(stream: &mut TcpStream, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = block.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// A count and a checksum over blocks; sensitive to order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Checksum {
    bytes: u64,
    value: u64,
}

impl Checksum {
    fn add(&mut self, block: &[u8]) {
        let (words, rest) = block.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        rest.iter().for_each(|&byte| self.mix(u64::from(byte)));
        self.bytes += u64::try_from(block.len()).unwrap_or_default();
    }

    fn mix(&mut self, word: u64) {
        self.value = (self.value.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Blocks that all differ, and begin with the marker.
struct Pattern {
    block: Vec<u8>,
    number: u64,
}

impl Pattern {
    fn new() -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut block = MARKER.to_vec();
        while block.len() < BLOCK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        Self { block, number: 0 }
    }

    fn next(&mut self, length: usize) -> &[u8] {
        self.number += 1;
        if let Some(place) = self.block.get_mut(MARKER.len()..MARKER.len() + 8) {
            place.copy_from_slice(&self.number.to_le_bytes());
        }
        self.block.get(..length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_sees_order_and_content() {
        let sum = |blocks: &[&[u8]]| {
            let mut sum = Checksum::default();
            blocks.iter().for_each(|block| sum.add(block));
            sum
        };
        assert_eq!(sum(&[b"12345678abc"]), sum(&[b"12345678abc"]));
        assert_ne!(sum(&[b"12345678abcdefgh"]), sum(&[b"abcdefgh12345678"]));
        assert_ne!(sum(&[b"12345678"]), sum(&[b"12345679"]));
    }

    #[test]
    fn transfers_over_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("an address");
        let receiving = thread::spawn(move || {
            let (stream, from) = listener.accept().expect("a connection");
            receive(stream, from)
        });
        let stream = connect("127.0.0.1:0".parse().expect("an address"), to).expect("connects");
        let push = Push {
            bytes: 100_001,
            rate: None,
            sent: Arc::default(),
            enough: Arc::default(),
        };
        let report = push.run(stream).expect("a report");
        receiving.join().expect("no panic").expect("received");
        assert!(report.intact);
        assert_eq!(report.bytes, 100_001);
    }
}
