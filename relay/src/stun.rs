//! STUN on UDP: tells clients the address they are seen at, so that they can find out about their NATs.
//!
//! Answers are never longer than 44 bytes or the request, and limited per source and in total. With two addresses of a
//! family, CHANGE-REQUEST is honoured, and each address names another in OTHER-ADDRESS.

mod codec;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::bucket::{Bucket, Buckets, Rate, source};
use crate::metrics::{Metrics, Stun};
use codec::{Answer, Change, Request};

const PER_SOURCE: Rate = Rate {
    per_second: 50.0,
    burst: 200.0,
};
const IN_TOTAL: Rate = Rate {
    per_second: 20_000.0,
    burst: 20_000.0,
};
const MAX_SOURCES: usize = 16_384;
const BUFFER: usize = 2048;

/// All STUN sockets.
#[derive(Debug)]
pub(crate) struct StunServer {
    ports: Vec<Port>,
    limits: Mutex<Limits>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Port {
    address: SocketAddr,
    socket: UdpSocket,
    /// A further port of the same address, for CHANGE-REQUEST, which nothing is expected on.
    extra: Option<UdpSocket>,
    /// The port that is named in OTHER-ADDRESS.
    other: Option<usize>,
    /// The port that answers for another address.
    other_ip: Option<usize>,
}

#[derive(Debug)]
struct Limits {
    sources: Buckets<IpAddr>,
    total: Bucket,
}

impl StunServer {
    /// Binds the addresses.
    ///
    /// # Errors
    ///
    /// The address that cannot be bound, and why.
    pub(crate) fn bind(
        addresses: &[SocketAddr],
        metrics: Arc<Metrics>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let now = Instant::now();
        let limits = Limits {
            sources: Buckets::new(PER_SOURCE, MAX_SOURCES, now),
            total: Bucket::full(IN_TOTAL, now),
        };
        let mut ports = addresses
            .iter()
            .map(|address| Port::bind(*address).map_err(|error| (*address, error)))
            .collect::<Result<Vec<_>, _>>()?;
        let bound: Vec<SocketAddr> = ports.iter().map(|port| port.address).collect();
        for (index, port) in ports.iter_mut().enumerate() {
            port.other = other(&bound, index);
            port.other_ip = other_ip(&bound, index);
            if port.other_ip.is_some() {
                let any_port = SocketAddr::new(port.address.ip(), 0);
                port.extra = Some(bind_udp(any_port).map_err(|error| (any_port, error))?);
            }
        }
        Ok(Self {
            ports,
            limits: Mutex::new(limits),
            metrics,
        })
    }

    /// The addresses in the order in which they were given.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|port| port.address).collect()
    }

    /// Answers on one of the sockets, for ever.
    pub(crate) async fn serve(&self, index: usize) {
        let Some(port) = self.ports.get(index) else {
            return;
        };
        let mut buffer = [0; BUFFER];
        loop {
            // Errors here are those of datagrams sent before, to ports that are closed.
            let Ok((length, from)) = port.socket.recv_from(&mut buffer).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let result = self
                .handle(port, buffer.get(..length).unwrap_or_default(), from)
                .await;
            self.metrics.count_stun(result);
        }
    }

    async fn handle(&self, port: &Port, datagram: &[u8], from: SocketAddr) -> Stun {
        let Some(mut request) = Request::parse(datagram) else {
            return Stun::malformed;
        };
        if !self.allows(from.ip()) {
            return Stun::limited;
        }
        let socket = self.socket_for(port, request.change);
        if socket.is_none() {
            request.refuse_change();
        }
        let other = port
            .other
            .and_then(|index| self.ports.get(index))
            .map(|port| port.address);
        let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
        let (bytes, result) = match request.answer(seen, other) {
            Some(Answer::Success(bytes)) => (bytes, Stun::answered),
            Some(Answer::Refused(bytes)) => (bytes, Stun::refused),
            None => return Stun::refused,
        };
        let sent = socket.unwrap_or(&port.socket).send_to(&bytes, from).await;
        if sent.is_ok() { result } else { Stun::failed }
    }

    /// The socket to answer from; `None` if there is none such as the client wants.
    fn socket_for<'a>(&'a self, port: &'a Port, change: Change) -> Option<&'a UdpSocket> {
        if !change.is_wanted() {
            return Some(&port.socket);
        }
        let other = self.ports.get(port.other_ip?)?;
        let port = if change.ip { other } else { port };
        if change.port {
            port.extra.as_ref()
        } else {
            Some(&port.socket)
        }
    }

    fn allows(&self, from: IpAddr) -> bool {
        let now = Instant::now();
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.sources.take(source(from), now) && limits.total.take(IN_TOTAL, now)
    }
}

impl Port {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = bind_udp(address)?;
        Ok(Self {
            address: socket.local_addr()?,
            socket,
            extra: None,
            other: None,
            other_ip: None,
        })
    }
}

/// An IPv6 socket takes IPv6 alone, so that both families can have the same port.
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// The next address of the family that can be named, one with another IP first.
fn other(addresses: &[SocketAddr], index: usize) -> Option<usize> {
    other_ip(addresses, index).or_else(|| others(addresses, index).next())
}

/// The next address of the family with another IP. An unspecified address names no other.
fn other_ip(addresses: &[SocketAddr], index: usize) -> Option<usize> {
    let own = addresses
        .get(index)
        .filter(|own| !own.ip().is_unspecified())?;
    others(addresses, index).find(|other| {
        addresses
            .get(*other)
            .is_some_and(|other| other.ip() != own.ip())
    })
}

fn others(addresses: &[SocketAddr], index: usize) -> impl Iterator<Item = usize> {
    let count = addresses.len();
    let own = addresses.get(index).copied();
    let is_other = move |address: SocketAddr| {
        own.is_some_and(|own| own.is_ipv4() == address.is_ipv4() && own != address)
            && !address.ip().is_unspecified()
    };
    let turn = (1..count).map(move |step| (index + step) % count);
    turn.filter(move |other| addresses.get(*other).copied().is_some_and(&is_other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn another_ip_is_named_first() {
        let all = addresses(&[
            "192.0.2.1:1",
            "192.0.2.1:2",
            "[2001:db8::1]:1",
            "192.0.2.2:1",
        ]);
        let named: Vec<_> = (0..4).map(|index| other(&all, index)).collect();
        assert_eq!(named, [Some(3), Some(3), None, Some(0)]);
    }

    #[test]
    fn another_port_is_named_where_there_is_one_ip() {
        let all = addresses(&["192.0.2.1:1", "192.0.2.1:2"]);
        assert_eq!((other(&all, 0), other(&all, 1)), (Some(1), Some(0)));
        assert_eq!(other_ip(&all, 0), None);
    }

    #[test]
    fn unspecified_addresses_are_not_named() {
        let all = addresses(&["0.0.0.0:1", "0.0.0.0:2"]);
        assert_eq!(other(&all, 0), None);
        let mixed = addresses(&["0.0.0.0:1", "192.0.2.1:2"]);
        assert_eq!(other_ip(&mixed, 0), None);
    }
}
