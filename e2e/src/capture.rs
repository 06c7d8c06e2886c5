//! Watching an interface: every IP packet is put into a class, and what belongs nowhere is kept.

mod flow;
mod packet;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use packet::{carries_data, segment};

pub use flow::{Flow, Flows};
pub use packet::{Class, DATA, classify};

use crate::namespace::Namespace;
use crate::traffic::MARKER;

/// How many packets of no class are kept whole.
const KEPT: usize = 40;

/// Kernel memory for packets that wait to be read.
const BUFFER: usize = 32 << 20;

/// How many packets and bytes, IP headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What an interface has carried.
#[derive(Clone, Debug, Default)]
pub struct Sniffed {
    /// Each class that occurred.
    pub counts: BTreeMap<Class, Count>,
    /// The first packets of [`Class::Foreign`], described and in hexadecimal.
    pub foreign: Vec<String>,
    /// How many packets held the marker of the test traffic in the clear.
    pub marked: u64,
    /// Headers of the first marked packets.
    pub marked_packets: Vec<String>,
    /// Connections with relays.
    pub flows: Flows,
    /// When the first data went by the relay.
    pub first_relayed: Option<Instant>,
    /// When the first data went directly.
    pub first_direct: Option<Instant>,
}

impl Sniffed {
    /// How much of one class there was.
    pub fn count(&self, class: Class) -> Count {
        self.counts.get(&class).copied().unwrap_or_default()
    }

    /// Bytes in WireGuard data packets.
    pub fn direct_bytes(&self) -> u64 {
        self.count(Class::WireGuard(4)).bytes
    }

    /// Bytes to and from the relay by TCP.
    pub fn relay_bytes(&self) -> u64 {
        self.count(Class::RelayTcp).bytes
    }

    /// Fails when anything foreign, or anything marked, was seen; also when nothing was seen at all.
    pub fn assert_sealed(&self) -> Result<()> {
        ensure!(!self.counts.is_empty(), "the capture saw nothing");
        ensure!(
            self.foreign.is_empty(),
            "foreign packets:\n{}",
            self.foreign.join("\n")
        );
        ensure!(
            self.marked == 0,
            "{} packets in the clear:\n{}",
            self.marked,
            self.marked_packets.join("\n")
        );
        Ok(())
    }

    fn add(&mut self, packet: &[u8], relays: &[SocketAddr]) {
        let class = classify(packet, relays);
        let count = self.counts.entry(class).or_default();
        count.packets += 1;
        count.bytes += u64::try_from(packet.len()).unwrap_or_default();
        if class == Class::Foreign && self.foreign.len() < KEPT {
            self.foreign.push(packet::describe(packet));
        }
        if let Some(segment) = segment(packet, relays) {
            self.flows.add(segment, Instant::now());
        }
        let first = if class == Class::RelayTcp {
            &mut self.first_relayed
        } else {
            &mut self.first_direct
        };
        if first.is_none() && carries_data(packet, class) {
            *first = Some(Instant::now());
        }
        if packet.windows(MARKER.len()).any(|window| window == MARKER) {
            self.marked += 1;
            if self.marked_packets.len() < KEPT {
                self.marked_packets.push(packet::describe(packet));
            }
        }
    }
}

/// A capture that runs until stopped or dropped.
pub struct Capture {
    seen: Arc<Mutex<Sniffed>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts on an interface, both directions. TCP to and from `relays` counts as relay traffic.
    pub fn start(ns: &Namespace, interface: &str, relays: &[SocketAddr]) -> Result<Self> {
        let (socket, index) = ns
            .run(|| open(interface))?
            .with_context(|| format!("cannot watch {interface}"))?;
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let watch = Watch {
            socket,
            index,
            relays: relays.to_vec(),
            seen: Arc::clone(&seen),
            stop: Arc::clone(&stop),
        };
        let thread = Some(thread::spawn(move || watch.run()));
        Ok(Self { seen, stop, thread })
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Sniffed {
        lock(&self.seen).clone()
    }

    /// Stops, and tells what was seen.
    pub fn stop(mut self) -> Sniffed {
        self.halt();
        self.so_far()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.halt();
    }
}

struct Watch {
    socket: OwnedFd,
    index: usize,
    relays: Vec<SocketAddr>,
    seen: Arc<Mutex<Sniffed>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn run(self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer)
            else {
                continue;
            };
            let packet = buffer.get(..length).unwrap_or_default();
            let is_ip = matches!(packet.first().map(|byte| byte >> 4), Some(4 | 6));
            if is_ip && from.is_some_and(|from| from.ifindex() == self.index) {
                lock(&self.seen).add(packet, &self.relays);
            }
        }
    }
}

/// A packet socket hears every interface of its namespace; the index tells ours.
fn open(interface: &str) -> Result<(OwnedFd, usize)> {
    let index = usize::try_from(if_nametoindex(interface)?)?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    Ok((socket, index))
}

fn lock(seen: &Mutex<Sniffed>) -> MutexGuard<'_, Sniffed> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
