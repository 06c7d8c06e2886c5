//! The thread from the TUN device to the network.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::batch::Batch;
use crate::device::{MAX_READ, Tun, VNET_HEADER};
use crate::packet::{Header, clamp_mss};
use crate::peer::{Padded, Peer, padded_length};
use crate::shared::{DataEvent, Directory, Shared, count};

/// Packets taken from the device before any is sent.
const BURST: usize = 64;
/// How long one wait may last before the stop flag is looked at again.
const WAIT_MS: u16 = 250;
/// Pause between attempts to open a device that somebody deleted.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// Runs until the tunnel stops; reopens the device `name` when it is deleted under us.
pub(crate) fn run(shared: &Shared, name: &str) {
    let (mut arena, mut batch) = (Arena::new(), Batch::new());
    while !shared.is_stopping() {
        let tun = shared.tun.load_full();
        if let Err(error) = turn(shared, &tun, &mut arena, &mut batch) {
            tracing::warn!(%error, device = name, "device lost, opening it again");
            reopen(shared, name);
        }
    }
}

fn turn(shared: &Shared, tun: &Tun, arena: &mut Arena, batch: &mut Batch) -> io::Result<()> {
    let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(WAIT_MS)) {
        // A signal may be handled on any thread; the device is as it was.
        Err(Errno::EINTR) => return Ok(()),
        polled => polled?,
    };
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    if events.contains(PollFlags::POLLIN) {
        let directory = shared.directory.load();
        arena.fill(shared, tun, &directory)?;
        arena.send(shared, batch);
        // Peers that are revoked meanwhile, with their keys, are not kept alive from here.
        arena.packets.clear();
    }
    Ok(())
}

fn reopen(shared: &Shared, name: &str) {
    while !shared.is_stopping() {
        match Tun::open(name) {
            Ok(tun) => return shared.tun.store(Arc::new(tun)),
            Err(error) => tracing::debug!(%error, device = name, "open"),
        }
        std::thread::sleep(REOPEN_PAUSE);
    }
}

/// Packets of one burst, back to back, each padded for sealing.
struct Arena {
    bytes: Vec<u8>,
    packets: Vec<Slot>,
    end: usize,
}

struct Slot {
    start: usize,
    padded: usize,
    ecn: u8,
    peer: Arc<Peer>,
}

impl Arena {
    fn new() -> Self {
        Self {
            bytes: vec![0; BURST * 2_048 + MAX_READ],
            packets: Vec::with_capacity(BURST),
            end: 0,
        }
    }

    /// Reads up to a burst; packets that go nowhere are counted and forgotten.
    fn fill(&mut self, shared: &Shared, tun: &Tun, directory: &Directory) -> io::Result<()> {
        self.end = 0;
        let mtu = shared.mtu.load(Ordering::Relaxed);
        while self.packets.len() < BURST && self.bytes.len() - self.end >= MAX_READ {
            let Some(room) = self.bytes.get_mut(self.end..self.end + MAX_READ) else {
                break;
            };
            match tun.read(room) {
                Ok(read) => self.accept(shared, directory, read, mtu),
                Err(error) if is_over(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn accept(&mut self, shared: &Shared, directory: &Directory, read: usize, mtu: usize) {
        let start = self.end + VNET_HEADER;
        let Some(packet) = self.bytes.get_mut(start..self.end + read.max(VNET_HEADER)) else {
            return;
        };
        let Some((header, peer)) = route(shared, directory, packet, mtu) else {
            return;
        };
        clamp_mss(packet, mtu);
        let padded = padded_length(header.length, mtu);
        if let Some(padding) = self.bytes.get_mut(start + header.length..start + padded) {
            padding.fill(0);
        }
        self.end = start + padded;
        self.packets.push(Slot {
            start,
            padded,
            ecn: header.ecn,
            peer,
        });
    }

    /// Hands runs of packets for the same peer over, in order.
    fn send(&self, shared: &Shared, batch: &mut Batch) {
        let now = Instant::now();
        for run in self.packets.chunk_by(|a, b| Arc::ptr_eq(&a.peer, &b.peer)) {
            let Some(peer) = run.first().map(|slot| &slot.peer) else {
                continue;
            };
            let packets = run.iter().filter_map(|slot| {
                let bytes = self.bytes.get(slot.start..slot.start + slot.padded)?;
                Some(Padded {
                    bytes,
                    ecn: slot.ecn,
                })
            });
            let outcome = peer.send(packets, &shared.sockets, batch, now);
            shared.note_traffic(peer, &peer.counters.last_tx, now);
            if outcome.needs_session {
                shared.want(peer);
            }
            if let Some(address) = outcome.unreachable {
                shared.tell(DataEvent::Unreachable {
                    key: peer.key,
                    address,
                });
            }
        }
    }
}

/// Nothing more to read now, which says nothing about the device.
fn is_over(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The peer that serves a packet's destination, if this node may send it there.
fn route(
    shared: &Shared,
    directory: &Directory,
    packet: &[u8],
    mtu: usize,
) -> Option<(Header, Arc<Peer>)> {
    let Some(header) = Header::parse(packet) else {
        count(&shared.drops.malformed);
        return None;
    };
    let Some(peer) = directory.owner(header.destination) else {
        count(&shared.drops.no_route);
        return None;
    };
    if !directory.serves(header.source) {
        count(&shared.drops.foreign_source);
        tracing::trace!(source = %header.source, "source is not this node's to use");
        return None;
    }
    if header.length > mtu {
        // The device has this MTU, so the kernel has answered "too big" to the sender of any packet it forwards.
        count(&shared.drops.too_big);
        return None;
    }
    Some((header, Arc::clone(peer)))
}
