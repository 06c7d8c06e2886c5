//! What does not fit: the sender is told, and TCP does not try.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Namespace, Pair, Profile, figure, wait_for};
use nix::sys::socket::{getsockopt, sockopt};

const INNER_MTU: usize = 1_280;
/// Without IPv4 and TCP headers.
const LARGEST_SEGMENT: u32 = 1_240;

/// A datagram that may not be fragmented and does not fit is answered: the pod's kernel then knows the path's MTU.
fn learns_the_mtu(from: &Namespace, at: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = from.run(|| UdpSocket::bind(at))??;
    socket.connect(to)?;
    let mtu = || Ok::<_, anyhow::Error>(usize::try_from(getsockopt(&socket, sockopt::IpMtu)?)?);
    let before = mtu()?;
    ensure!(before > INNER_MTU, "the pod knew an MTU of {before} before");
    // Linux sets "don't fragment" on what fits the MTU it knows of.
    socket.send(&[0; INNER_MTU + 1 - 28])?;
    wait_for(Duration::from_secs(5), "the pod learns the MTU", || {
        let now = mtu()?;
        ensure!(now == INNER_MTU, "an MTU of {now}");
        Ok(())
    })
}

/// The largest segments that both ends of a connection may send.
fn segments(
    from: &Namespace,
    at: SocketAddr,
    server: &Namespace,
    to: SocketAddr,
) -> Result<[u32; 2]> {
    let listener = server.run(|| TcpListener::bind(to))??;
    let client = from.run(move || -> Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&at.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
        Ok(socket.into())
    })??;
    let (accepted, _) = listener.accept()?;
    Ok([
        getsockopt(&client, sockopt::TcpMaxSeg)?,
        getsockopt(&accepted, sockopt::TcpMaxSeg)?,
    ])
}

#[test]
fn senders_learn_what_fits() -> Result<()> {
    let mut pair = Pair::behind("mtu", Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    for (a, b) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        // TCP first: it must not need what the datagram teaches.
        let both = segments(&a.pod()?.ns, a.pod_at(0)?, &b.pod()?.ns, b.pod_at(9_010)?)?;
        figure("mtu: largest TCP segments", format!("{both:?}"));
        ensure!(
            both.iter().all(|&segment| segment <= LARGEST_SEGMENT),
            "segments of {both:?}"
        );
    }
    for (a, b) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        learns_the_mtu(&a.pod()?.ns, a.pod_at(0)?, b.pod_at(9_011)?)?;
    }
    pair.finish()
}
