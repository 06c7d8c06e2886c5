//! What a router really does, found out with plain datagrams: the lab proves its own routers with it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Host;
use crate::site::Site;

/// Which public port a local port gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// There is no translation.
    None,
    /// The same for every destination.
    Independent,
    /// Another one for each destination.
    Dependent,
    /// No answer came.
    Blocked,
}

/// Who may send to the public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    Open,
    /// Addresses that were sent to.
    Address,
    /// Addresses and ports that were sent to.
    AddressAndPort,
    /// No answer came.
    Blocked,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The mapping.
    pub mapping: Mapping,
    /// The filtering.
    pub filtering: Filtering,
    /// Whether a datagram that came too early took the port away.
    pub poisoned: bool,
}

const PORTS: [u16; 2] = [7001, 7002];
const PATIENCE: Duration = Duration::from_millis(400);

/// What a question asks for: the answer's sender.
const FROM_HERE: u8 = 0;
const FROM_OTHER_PORT: u8 = 1;
const FROM_OTHER_ADDRESS: u8 = 2;

/// Answers questions on two addresses and two ports each.
pub struct Responder {
    addresses: [Ipv4Addr; 2],
    sockets: Vec<UdpSocket>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Responder {
    /// Starts on a host with two addresses.
    pub fn start(host: &Host) -> Result<Self> {
        let [first, second, ..] = *host.v4.as_slice() else {
            anyhow::bail!("the host needs two addresses");
        };
        let [low, high] = PORTS;
        let places = [(first, low), (first, high), (second, low), (second, high)];
        let open = || {
            places
                .iter()
                .map(|&(ip, port)| open(ip, port))
                .collect::<io::Result<Vec<_>>>()
        };
        let sockets = host
            .ns
            .run(open)?
            .context("cannot open the responder's sockets")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for index in 0..sockets.len() {
            let all = sockets
                .iter()
                .map(UdpSocket::try_clone)
                .collect::<io::Result<Vec<_>>>()?;
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || answer(index, &all, &stop)));
        }
        Ok(Self {
            addresses: [first, second],
            sockets,
            stop,
            threads,
        })
    }

    /// Finds out what the router of a site does.
    pub fn classify(&self, site: &Site) -> Result<Class> {
        site.node.run(|| {
            let mapping = self.mapping(site.node_ip)?;
            let blocked = mapping == Mapping::Blocked;
            Ok(Class {
                mapping,
                filtering: if blocked {
                    Filtering::Blocked
                } else {
                    self.filtering()?
                },
                poisoned: mapping == Mapping::Independent && self.poisoned(site)?,
            })
        })?
    }

    fn at(&self, address: usize, port: usize) -> SocketAddr {
        let ip = self
            .addresses
            .get(address)
            .copied()
            .unwrap_or(Ipv4Addr::UNSPECIFIED);
        SocketAddr::new(IpAddr::V4(ip), PORTS.get(port).copied().unwrap_or_default())
    }

    fn mapping(&self, own: Ipv4Addr) -> Result<Mapping> {
        let socket = open(own, 0)?;
        let mut seen = BTreeSet::new();
        for to in [self.at(0, 0), self.at(0, 1), self.at(1, 0)] {
            let Some(answer) = ask(&socket, to, FROM_HERE)? else {
                return Ok(Mapping::Blocked);
            };
            seen.insert(answer);
        }
        Ok(match seen.first() {
            Some(only) if *only == socket.local_addr()?.to_string() => Mapping::None,
            _ if seen.len() == 1 => Mapping::Independent,
            _ => Mapping::Dependent,
        })
    }

    /// Each question from a new socket, so that no earlier one has opened the way.
    fn filtering(&self) -> Result<Filtering> {
        let answered = |question| -> Result<bool> {
            let socket = open(Ipv4Addr::UNSPECIFIED, 0)?;
            Ok(ask(&socket, self.at(0, 0), question)?.is_some())
        };
        if answered(FROM_OTHER_ADDRESS)? {
            return Ok(Filtering::Open);
        }
        Ok(if answered(FROM_OTHER_PORT)? {
            Filtering::Address
        } else {
            Filtering::AddressAndPort
        })
    }

    /// A datagram comes first, uninvited; then the flow that it belongs to goes out. Has the flow kept its port?
    fn poisoned(&self, site: &Site) -> Result<bool> {
        let socket = open(site.node_ip, 0)?;
        let port = socket.local_addr()?.port();
        let early = self.sockets.get(3).context("four sockets")?;
        early.send_to(b"early", (site.wan, port))?;
        thread::sleep(Duration::from_millis(50));
        let seen =
            ask(&socket, self.at(1, 1), FROM_HERE)?.context("no answer after an early datagram")?;
        Ok(seen != format!("{}:{port}", site.wan))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(ip: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((ip, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The address that the responder saw, or nothing when no answer came. Asked twice: the first may meet an unresolved neighbour.
fn ask(socket: &UdpSocket, to: SocketAddr, question: u8) -> Result<Option<String>> {
    let mut buffer = [0; 64];
    for _ in 0..2 {
        socket.send_to(&[question], to)?;
        if let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let answer = buffer.get(..length).unwrap_or_default();
            return Ok(Some(String::from_utf8_lossy(answer).into_owned()));
        }
    }
    Ok(None)
}

/// Sockets are ordered (address 0, port 0), (0, 1), (1, 0), (1, 1).
fn answer(own: usize, all: &[UdpSocket], stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok((_, from))) = all.get(own).map(|socket| socket.recv_from(&mut buffer)) else {
            continue;
        };
        let sender = match buffer[0] {
            FROM_OTHER_PORT => own ^ 1,
            FROM_OTHER_ADDRESS => own ^ 3,
            _ => own,
        };
        if let Some(socket) = all.get(sender) {
            let _ = socket.send_to(from.to_string().as_bytes(), from);
        }
    }
}
