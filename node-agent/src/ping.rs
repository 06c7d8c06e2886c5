//! `culvert-agent ping`: whether an address answers, without any rights.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::output;

/// From one request to the next, and how long an answer may take.
const INTERVAL: Duration = Duration::from_secs(1);
/// Where nobody listens: a host that is there says so.
const TCP_PORT: u16 = 7;
const REQUEST_BYTES: usize = 16;

/// What `ping` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PingArgs {
    /// Address to ping.
    #[arg(value_name = "ADDR")]
    pub(crate) address: IpAddr,
    /// How many requests to send.
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,
}

/// Pings, and prints a line an answer.
///
/// # Errors
/// Without a single answer.
pub(crate) fn ping(args: &PingArgs) -> anyhow::Result<()> {
    let way = Way::open(args.address).context("cannot open a socket")?;
    let mut answers = 0_u32;
    for sequence in 1..=args.count {
        let started = Instant::now();
        let line = match way.ask(sequence) {
            Ok(()) => {
                answers += 1;
                let micros = started.elapsed().as_micros();
                format!(
                    "answer from {} ({}): seq={sequence} time={}.{:03} ms\n",
                    args.address,
                    way.name(),
                    micros / 1000,
                    micros % 1000
                )
            }
            Err(error) => format!(
                "no answer from {} ({}): seq={sequence}: {error}\n",
                args.address,
                way.name()
            ),
        };
        output::print(&line)?;
        if sequence < args.count {
            thread::sleep(INTERVAL.saturating_sub(started.elapsed()));
        }
    }
    output::print(&format!("{} sent, {answers} answered\n", args.count))?;
    if answers == 0 {
        bail!("{} does not answer", args.address);
    }
    Ok(())
}

/// How to ask.
enum Way {
    /// By ICMP echo requests, from a socket that the kernel gives to members of `net.ipv4.ping_group_range`.
    Echo { socket: Socket, v6: bool },
    /// By opening a TCP connection: both an acceptance and a refusal are answers.
    Tcp(SocketAddr),
}

impl Way {
    fn open(address: IpAddr) -> io::Result<Self> {
        let (domain, protocol) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Ok(socket) => {
                socket.connect(&SocketAddr::new(address, 0).into())?;
                let v6 = address.is_ipv6();
                Ok(Self::Echo { socket, v6 })
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Ok(Self::Tcp(SocketAddr::new(address, TCP_PORT)))
            }
            Err(error) => Err(error),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Echo { .. } => "ICMP",
            Self::Tcp(_) => "TCP",
        }
    }

    fn ask(&self, sequence: u16) -> io::Result<()> {
        match self {
            Self::Echo { socket, v6 } => echo(socket, *v6, sequence),
            Self::Tcp(address) => match TcpStream::connect_timeout(address, INTERVAL) {
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error),
                Ok(_) | Err(_) => Ok(()),
            },
        }
    }
}

/// Sends a request and waits for its reply; replies to earlier ones are passed over.
fn echo(mut socket: &Socket, v6: bool, sequence: u16) -> io::Result<()> {
    let deadline = Instant::now() + INTERVAL;
    socket.write_all(&request(v6, sequence))?;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(length) if is_reply(v6, sequence, buffer.get(..length).unwrap_or_default()) => {
                return Ok(());
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// An echo request (RFC 792, RFC 4443 section 4.1). The kernel fills in identifier and checksum.
fn request(v6: bool, sequence: u16) -> [u8; REQUEST_BYTES] {
    let [high, low] = sequence.to_be_bytes();
    let mut bytes = *b"\0\0\0\0\0\0\0\0culvert.";
    bytes[0] = if v6 { 128 } else { 8 };
    bytes[6] = high;
    bytes[7] = low;
    bytes
}

/// Whether these bytes are the reply to that request; the kernel has checked the identifier.
fn is_reply(v6: bool, sequence: u16, bytes: &[u8]) -> bool {
    let kind = if v6 { 129 } else { 0 };
    let [found, 0, _, _, _, _, high, low, ..] = *bytes else {
        return false;
    };
    found == kind && u16::from_be_bytes([high, low]) == sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_that_to_its_request() {
        for v6 in [false, true] {
            let mut reply = request(v6, 300);
            assert!(!is_reply(v6, 300, &reply), "a request is no reply");
            reply[0] = if v6 { 129 } else { 0 };
            assert!(is_reply(v6, 300, &reply));
            assert!(!is_reply(v6, 301, &reply) && !is_reply(!v6, 300, &reply));
            assert!(!is_reply(v6, 300, &reply[..7]));
        }
    }

    #[test]
    fn this_host_answers() {
        let way = Way::open(IpAddr::from([127, 0, 0, 1])).expect("a socket");
        way.ask(1).expect("an answer by the first way");
        let tcp = Way::Tcp(SocketAddr::from(([127, 0, 0, 1], TCP_PORT)));
        tcp.ask(1).expect("an answer by TCP");
    }
}
