//! Something that the data path stands on goes away, and there is another, or it comes back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::traffic::Pinger;
use e2e::{Capture, Pair, Profile, Relay, RelayOptions, Side, figure, wait_for};

/// Without an arrival while data moves to another relay, at most.
const RELAY: Duration = Duration::from_secs(2);
/// Without an arrival while the device is made again, or the port changes, at most.
const DEVICE: Duration = Duration::from_secs(5);

/// Pings both ways, and what became of them.
struct Both<'a> {
    flows: [(Pinger, &'a Side); 2],
    begin: Instant,
}

impl<'a> Both<'a> {
    fn start(a: &'a Side, b: &'a Side) -> Result<Self> {
        let flows = [(a.ping(b, 100)?, b), (b.ping(a, 100)?, a)];
        for (pinger, receiver) in &flows {
            wait_for(Duration::from_secs(5), "pings", || {
                let first = receiver.echo.arrivals(pinger.flow()).first();
                first.context("none")
            })?;
        }
        Ok(Self {
            flows,
            begin: Instant::now(),
        })
    }

    fn judge(self, what: &str, most: Duration) -> Result<()> {
        let end = Instant::now();
        for (pinger, receiver) in self.flows {
            let came = receiver.echo.arrivals(pinger.stop().flow);
            let gap = came.largest_gap(self.begin, end);
            figure(
                &format!("{what}: largest gap at {}", receiver.site.name),
                format!("{gap:?}"),
            );
            ensure!(
                gap <= most,
                "{what}: a gap of {gap:?} at {}",
                receiver.site.name
            );
        }
        Ok(())
    }
}

/// Both sites hold a connection to both relays. A connection backs off after a death.
fn both_connected(pair: &Pair) -> Result<()> {
    for side in [&pair.a, &pair.b] {
        wait_for(Duration::from_secs(15), "both relays", || {
            let connected = side.agent.status()?.connected_relays()?;
            ensure!(connected.len() == 2, "connected: {connected:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn another_relay_takes_over() -> Result<()> {
    let mut pair = Pair::behind("relays", Profile::Symmetric, Profile::Symmetric)?;
    let host = pair.lab.public_host()?;
    let mut second = Relay::start(&pair.lab, &host, RelayOptions::default())?;
    let relays = [&pair.relay, &second].map(|relay| (relay.url(), relay.stun().port()));
    for (side, name) in [(&pair.a, "site-a"), (&pair.b, "site-b")] {
        side.agent
            .write("mesh.yaml", &side.mesh(name, &relays).yaml())?;
    }
    pair.establish("relay")?;
    let endpoint = |side: &Side| side.path()?.endpoint.context("a relayed path has an end");
    both_connected(&pair)?;
    for turn in ["first", "second"] {
        let used = [endpoint(&pair.a)?, endpoint(&pair.b)?];
        figure(
            &format!("relays: before the {turn} death"),
            format!("{used:?}"),
        );
        let pings = Both::start(&pair.a, &pair.b)?;
        let dying = if used[0] == pair.relay.url() {
            &mut pair.relay
        } else {
            &mut second
        };
        dying.kill()?;
        thread::sleep(Duration::from_secs(4));
        pings.judge(&format!("relays: {turn} death"), RELAY)?;
        let dead = dying.url();
        for side in [&pair.a, &pair.b] {
            ensure!(endpoint(side)? != dead, "{} is on {dead}", side.site.name);
        }
        dying.resume()?;
        both_connected(&pair)?;
    }
    pair.finish()
}

#[test]
fn a_deleted_device_comes_back() -> Result<()> {
    let mut pair = Pair::behind("tun", Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    let node = &pair.a.site.node;
    let capture = Capture::start(node, pair.a.site.node_interface(), &[pair.relay.address()])?;
    let pings = Both::start(&pair.a, &pair.b)?;
    for _ in 0..2 {
        node.ip(&["link del culvert0"])?;
        thread::sleep(DEVICE + Duration::from_secs(1));
    }
    pings.judge("device deleted", DEVICE)?;
    let seen = capture.stop();
    ensure!(seen.marked == 0, "in the clear: {:?}", seen.marked_packets);
    pair.await_paths("direct", Duration::from_secs(10))?;
    pair.finish()
}

#[test]
fn the_port_changes_at_run_time() -> Result<()> {
    const PORT: u16 = 20_555;
    let mut pair = Pair::behind("port", Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    let relays = [(pair.relay.url(), pair.relay.stun().port())];
    let mut mesh = pair.a.mesh("site-a", &relays);
    mesh.listen_port = Some(PORT);
    let pings = Both::start(&pair.a, &pair.b)?;
    pair.a.agent.write("mesh.yaml", &mesh.yaml())?;
    wait_for(Duration::from_secs(10), "the new port", || {
        let port = pair.a.agent.status()?.listen_port()?;
        ensure!(port == PORT, "{port}");
        Ok(())
    })?;
    pair.await_paths("direct", Duration::from_secs(30))?;
    pings.judge("port changed", DEVICE)?;
    pair.finish()
}
