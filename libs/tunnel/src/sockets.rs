//! The two UDP sockets of a node: one stable port, IPv4 and IPv6, batches out and in.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::batch::Batch;

/// Kernel buffer of each socket; the default drops bursts of a single TCP window.
const BUFFER: usize = 7 << 20;
/// Room for one coalesced read.
const SLOT: usize = 65_536;
/// How often and how long a new process waits for the port of its predecessor.
const BIND_ATTEMPTS: u32 = 20;
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// The sockets; IPv6 is absent on hosts that have none.
#[derive(Debug)]
pub(crate) struct Sockets {
    v4: Bound,
    v6: Option<Bound>,
    batching: bool,
}

#[derive(Debug)]
struct Bound {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Sockets {
    /// Binds `port` on both families. With `batching` off every datagram is a system call of its own.
    pub(crate) fn bind(port: u16, batching: bool) -> io::Result<Self> {
        let v4 = Bound::new((Ipv4Addr::UNSPECIFIED, port).into())?;
        let v6 = Bound::new((Ipv6Addr::UNSPECIFIED, port).into())
            .inspect_err(|error| tracing::info!(%error, "no IPv6 socket"))
            .ok();
        Ok(Self { v4, v6, batching })
    }

    /// Both descriptors, to be polled for reading.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (
            self.v4.socket.as_fd(),
            self.v6.as_ref().map(|bound| bound.socket.as_fd()),
        )
    }

    /// Segments a batch towards `to` may have.
    pub(crate) fn max_segments(&self, to: SocketAddr) -> usize {
        match (self.batching, self.towards(to)) {
            (true, Some(bound)) => bound.state.max_gso_segments(),
            (false, _) | (_, None) => 1,
        }
    }

    /// Sends a whole batch; a kernel that refuses segmentation gets it packet by packet.
    pub(crate) fn send(&self, to: SocketAddr, batch: &Batch) -> io::Result<()> {
        let bound = self.towards(to).ok_or(io::ErrorKind::NetworkUnreachable)?;
        match bound.send(to, batch.bytes(), Some(batch.segment_size()), batch.ecn()) {
            Err(error) if batch.segments() > 1 && refuses_segmentation(&error) => batch
                .bytes()
                .chunks(batch.segment_size())
                .try_for_each(|one| bound.send(to, one, None, batch.ecn())),
            sent => sent,
        }
    }

    /// Sends one datagram, with a hop limit of its own if `ttl` is given.
    pub(crate) fn send_one(
        &self,
        to: SocketAddr,
        datagram: &[u8],
        ttl: Option<u8>,
    ) -> io::Result<()> {
        let bound = self.towards(to).ok_or(io::ErrorKind::NetworkUnreachable)?;
        match ttl {
            None => bound.send(to, datagram, None, 0),
            Some(ttl) => bound.send_limited(to, datagram, ttl),
        }
    }

    /// Reads what is there into `slots`; calls `each` per datagram with its source and outer ECN bits.
    /// Returns how many reads were made; 0 when both sockets are empty.
    pub(crate) fn receive(
        &self,
        slots: &mut Slots,
        mut each: impl FnMut(SocketAddr, u8, &[u8]),
    ) -> usize {
        let v4 = self.v4.receive(slots, &mut each);
        v4 + self
            .v6
            .as_ref()
            .map_or(0, |bound| bound.receive(slots, &mut each))
    }

    fn towards(&self, to: SocketAddr) -> Option<&Bound> {
        match to {
            SocketAddr::V4(_) => Some(&self.v4),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

impl Bound {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let socket: UdpSocket = bind(address)?.into();
        let state = UdpSocketState::new((&socket).into())?;
        for result in [
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER),
            setsockopt(&socket, sockopt::SndBufForce, &BUFFER),
        ] {
            if let Err(error) = result {
                tracing::info!(%error, "socket buffers stay at the kernel's default");
            }
        }
        Ok(Self { socket, state })
    }

    fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
        ecn: u8,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: to,
            ecn: EcnCodepoint::from_bits(ecn),
            contents,
            segment_size,
            src_ip: None,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// The hop limit rides as ancillary data, so that it cannot race with other senders on the socket.
    fn send_limited(&self, to: SocketAddr, datagram: &[u8], ttl: u8) -> io::Result<()> {
        let hops = i32::from(ttl);
        let limit = match to {
            SocketAddr::V4(_) => ControlMessage::Ipv4Ttl(&hops),
            SocketAddr::V6(_) => ControlMessage::Ipv6HopLimit(&hops),
        };
        let address = SockaddrStorage::from(to);
        let data = [IoSlice::new(datagram)];
        sendmsg(
            self.socket.as_raw_fd(),
            &data,
            &[limit],
            MsgFlags::MSG_DONTWAIT,
            Some(&address),
        )?;
        Ok(())
    }

    fn receive(&self, slots: &mut Slots, each: &mut impl FnMut(SocketAddr, u8, &[u8])) -> usize {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = slots.bytes.chunks_mut(SLOT);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let read = match self
            .state
            .recv((&self.socket).into(), &mut buffers, &mut meta)
        {
            Ok(read) => read,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%error, "receive");
                }
                return 0;
            }
        };
        for (buffer, meta) in buffers.iter().zip(&meta).take(read) {
            let ecn = meta.ecn.map_or(0, |codepoint| codepoint as u8);
            let whole = buffer.get(..meta.len).unwrap_or_default();
            whole
                .chunks(meta.stride.max(1))
                .for_each(|datagram| each(meta.addr, ecn, datagram));
        }
        read
    }
}

/// Receive buffers, made once per thread.
pub(crate) struct Slots {
    bytes: Vec<u8>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SLOT * BATCH_SIZE],
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let mut attempt = 0;
    loop {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < BIND_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(BIND_PAUSE);
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(socket),
        }
    }
}

/// `EIO`: a device without checksum offload; `EINVAL`: a kernel that has changed its mind about segmentation.
fn refuses_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == nix::libc::EIO || code == nix::libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn pair() -> (Sockets, Sockets, SocketAddr) {
        let (a, b) = (
            Sockets::bind(0, true).unwrap(),
            Sockets::bind(0, true).unwrap(),
        );
        let port = b.v4.socket.local_addr().unwrap().port();
        (a, b, (Ipv4Addr::LOCALHOST, port).into())
    }

    fn collect(sockets: &Sockets, want: usize) -> Vec<Vec<u8>> {
        let (mut slots, mut got) = (Slots::new(), Vec::new());
        let end = Instant::now() + Duration::from_secs(10);
        while got.len() < want && Instant::now() < end {
            sockets.receive(&mut slots, |_, _, datagram| got.push(datagram.to_vec()));
        }
        got
    }

    #[test]
    fn a_batch_arrives_as_its_packets_in_order() {
        let (a, b, to) = pair();
        let mut batch = Batch::new();
        for (fill, len) in [(1_u8, 100), (2, 100), (3, 40)] {
            assert!(batch.push(len, 0, |out| {
                out.fill(fill);
                true
            }));
        }
        a.send(to, &batch).unwrap();
        assert_eq!(collect(&b, 3), [vec![1; 100], vec![2; 100], vec![3; 40]]);
    }

    #[test]
    fn a_datagram_with_its_own_hop_limit_does_not_change_the_next() {
        let (a, b, to) = pair();
        a.send_one(to, &[1; 20], Some(2)).unwrap();
        a.send_one(to, &[2; 20], None).unwrap();
        assert_eq!(collect(&b, 2), [vec![1; 20], vec![2; 20]]);
        assert_eq!(a.v4.socket.ttl().unwrap(), 64);
    }
}
