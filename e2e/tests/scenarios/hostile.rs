//! A minute under fire.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::process::Daemon;
use e2e::traffic::Flood;
use e2e::{Pair, Profile, figure, wait_for};

const LENGTH: Duration = Duration::from_secs(60);
const DATAGRAMS: u64 = 5_000;
const CONNECTIONS: u64 = 200;
/// What a process may grow by, in KiB.
const GROWTH: u64 = 8 << 10;

/// A process before the flood.
struct Before {
    pid: u32,
    files: usize,
    resident: u64,
}

impl Before {
    fn of(daemon: &Daemon) -> Result<Self> {
        Ok(Self {
            pid: daemon.pid(),
            files: daemon.open_files()?,
            resident: daemon.resident_kib()?,
        })
    }

    /// Fails unless the process is the same and hardly larger.
    fn watch(&self, name: &str, daemon: &mut Daemon) -> Result<u64> {
        daemon.ensure_running()?;
        ensure!(daemon.pid() == self.pid, "{name} was started again");
        let resident = daemon.resident_kib()?;
        ensure!(
            resident <= self.resident + GROWTH,
            "{name} grew from {} to {resident} KiB",
            self.resident
        );
        Ok(resident)
    }

    /// Fails unless it is also left with as many open files as before.
    fn judge(&self, name: &str, daemon: &mut Daemon) -> Result<()> {
        let resident = self.watch(name, daemon)?;
        figure(
            &format!("flood: {name}: resident KiB before and after"),
            format!("{}, {resident}", self.resident),
        );
        wait_for(
            Duration::from_secs(40),
            "as many open files as before",
            || {
                let files = daemon.open_files()?;
                ensure!(
                    files == self.files,
                    "{name}: {files} files, before {}",
                    self.files
                );
                Ok(())
            },
        )
    }
}

/// Lets the floods run. Every second the processes have to be the same, and hardly larger.
fn endure(watched: &mut [(&str, &Before, &mut Daemon)]) -> Result<()> {
    let start = Instant::now();
    let mut largest = vec![0; watched.len()];
    while start.elapsed() < LENGTH {
        thread::sleep(Duration::from_secs(1));
        for ((name, before, daemon), largest) in watched.iter_mut().zip(&mut largest) {
            *largest = before.watch(name, daemon)?.max(*largest);
        }
    }
    for ((name, before, _), largest) in watched.iter().zip(largest) {
        figure(
            &format!("flood: {name}: resident KiB before and at most during"),
            format!("{}, {largest}", before.resident),
        );
    }
    Ok(())
}

/// What a flood of a rate must have sent to count: the machine may be busy.
fn enough(rate: u64) -> u64 {
    rate * LENGTH.as_secs() * 9 / 10
}

/// The flood meets the UDP socket of a node with a public address, the relay, and its STUN port.
#[test]
fn a_flood_disturbs_nobody() -> Result<()> {
    let mut pair = Pair::behind("flood", Profile::PortRestricted, Profile::Public)?;
    let attacker = pair.lab.public_host()?;
    pair.establish("direct")?;
    let port = pair.b.agent.status()?.listen_port()?;
    let node = format!("{}:{port}", pair.b.site.wan).parse()?;
    let agent = Before::of(pair.b.agent.daemon()?)?;
    let relay = Before::of(pair.relay.daemon()?)?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    let floods = [
        Flood::udp(&attacker.ns, &[node], DATAGRAMS)?,
        Flood::udp(&attacker.ns, &[pair.relay.stun()], DATAGRAMS)?,
        Flood::tcp(&attacker.ns, pair.relay.address(), CONNECTIONS)?,
    ];
    endure(&mut [
        ("agent", &agent, pair.b.agent.daemon()?),
        ("relay", &relay, pair.relay.daemon()?),
    ])?;
    let counts = floods.map(Flood::stop);
    figure(
        "flood: to the node, to STUN, connections",
        format!("{counts:?}"),
    );
    let wanted = [DATAGRAMS, DATAGRAMS, CONNECTIONS].map(enough);
    assert!(
        counts
            .iter()
            .zip(wanted)
            .all(|(sent, wanted)| *sent >= wanted),
        "the flood was thin: {counts:?}"
    );
    for (pinger, receiver) in [(there, &pair.b), (back, &pair.a)] {
        let sent = pinger.stop();
        let came = receiver.echo.arrivals(sent.flow);
        came.first().context("no pings arrived")?;
        let lost = came.missing(0..sent.count());
        ensure!(lost.is_empty(), "lost at {}: {lost:?}", receiver.site.name);
    }
    agent.judge("agent", pair.b.agent.daemon()?)?;
    relay.judge("relay", pair.relay.daemon()?)?;
    pair.finish()
}

/// The same against a pair whose only path is the relay under attack.
#[test]
fn a_flooded_relay_still_relays() -> Result<()> {
    let mut pair = Pair::behind("floodrel", Profile::Symmetric, Profile::Symmetric)?;
    let attacker = pair.lab.public_host()?;
    pair.establish("relay")?;
    let relay = Before::of(pair.relay.daemon()?)?;
    let there = pair.ping_from_a(100)?;
    let floods = [
        Flood::udp(&attacker.ns, &[pair.relay.stun()], DATAGRAMS)?,
        Flood::tcp(&attacker.ns, pair.relay.address(), CONNECTIONS)?,
    ];
    endure(&mut [("relay", &relay, pair.relay.daemon()?)])?;
    let counts = floods.map(Flood::stop);
    let wanted = [DATAGRAMS, CONNECTIONS].map(enough);
    assert!(
        counts
            .iter()
            .zip(wanted)
            .all(|(sent, wanted)| *sent >= wanted),
        "the flood was thin: {counts:?}"
    );
    let sent = there.stop();
    let lost = pair.b.echo.arrivals(sent.flow).missing(0..sent.count());
    figure(
        "flooded relay: lost",
        format!("{} of {} under {counts:?}", lost.len(), sent.count()),
    );
    ensure!(lost.is_empty(), "lost {lost:?}");
    relay.judge("relay", pair.relay.daemon()?)?;
    pair.finish()
}
