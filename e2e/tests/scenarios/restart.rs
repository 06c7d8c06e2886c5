//! Agents and routers that start over, and agents that are gone.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::traffic::{Server, Transfer};
use e2e::{Capture, Pair, Profile, figure, wait_for};

/// From the restart to the first packet at the far end, at most.
const RESTART: Duration = Duration::from_secs(3);
/// From the rebinding to the next packet at the far end, at most.
const REBIND: Duration = Duration::from_secs(5);

/// Kills and restarts one agent, and lets one side speak first.
fn restarted(pair: &mut Pair, path: &str, kill_a: bool, speak_a: bool) -> Result<()> {
    let killed = if kill_a {
        &mut pair.a.agent
    } else {
        &mut pair.b.agent
    };
    killed.kill()?;
    let start = killed.start()?;
    let (from, to) = if speak_a {
        (&pair.a, &pair.b)
    } else {
        (&pair.b, &pair.a)
    };
    let pinger = from.ping(to, 100)?;
    let first = wait_for(Duration::from_secs(15), "traffic is back", || {
        to.echo
            .arrivals(pinger.flow())
            .first()
            .context("nothing arrives")
    })?;
    let took = first.saturating_duration_since(start);
    let case = format!(
        "{path}: {} killed, {} speaks first",
        name(kill_a),
        name(speak_a)
    );
    figure(&case, format!("{took:?}"));
    ensure!(took <= RESTART, "{case}: {took:?}");
    pair.await_paths(path, Duration::from_secs(30))
        .context(case)
}

fn name(a: bool) -> &'static str {
    if a { "a" } else { "b" }
}

fn every_restart(lab: &str, nat: Profile, path: &str) -> Result<()> {
    let mut pair = Pair::behind(lab, nat, nat)?;
    pair.establish(path)?;
    for (kill_a, speak_a) in [(true, true), (true, false), (false, true), (false, false)] {
        restarted(&mut pair, path, kill_a, speak_a)?;
    }
    pair.finish()
}

#[test]
fn traffic_is_back_after_sigkill_direct() -> Result<()> {
    every_restart("killdir", Profile::PortRestricted, "direct")
}

#[test]
fn traffic_is_back_after_sigkill_relayed() -> Result<()> {
    every_restart("killrel", Profile::Symmetric, "relay")
}

/// A router forgets all flows, then gets another address, while a transfer and pings run.
#[test]
fn rebinding_heals() -> Result<()> {
    let mut pair = Pair::behind("rebind", Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    let server = Server::start(&pair.b.pod()?.ns, pair.b.pod_at(9001)?)?;
    let transfer = Transfer::start(
        &pair.a.pod()?.ns,
        pair.a.pod_at(0)?,
        server.address(),
        u64::MAX,
        Some(500_000),
    )?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    for event in ["flows forgotten", "address changed"] {
        thread::sleep(Duration::from_secs(3));
        let begin = Instant::now();
        if event == "flows forgotten" {
            pair.lab.forget_flows(&pair.a.site)?;
        } else {
            pair.lab.renumber(&mut pair.a.site)?;
        }
        thread::sleep(REBIND + Duration::from_secs(1));
        for (pinger, receiver) in [(&there, &pair.b), (&back, &pair.a)] {
            let gap = receiver
                .echo
                .arrivals(pinger.flow())
                .largest_gap(begin, Instant::now());
            figure(
                &format!("{event}: largest gap at {}", receiver.site.name),
                format!("{gap:?}"),
            );
            ensure!(gap <= REBIND, "{event}: {gap:?} at {}", receiver.site.name);
        }
        pair.await_paths("direct", Duration::from_secs(30))
            .context(event)?;
    }
    assert!(transfer.finish()?.intact);
    pair.finish()
}

/// How a site stops serving the other.
#[derive(Clone, Copy, Debug)]
enum End {
    Terminated,
    Killed,
    PeerDeleted,
    MeshDeleted,
    /// Killed, and then somebody deletes the device.
    DeviceDeleted,
}

fn nothing_in_the_clear(end: End) -> Result<()> {
    let mut pair = Pair::behind(
        &format!("clear{}", end as u8),
        Profile::PortRestricted,
        Profile::PortRestricted,
    )?;
    pair.establish("direct")?;
    let server = Server::start(&pair.b.pod()?.ns, pair.b.pod_at(9001)?)?;
    let node = Capture::start(
        &pair.a.site.node,
        pair.a.site.node_interface(),
        &[pair.relay.address()],
    )?;
    let wan = Capture::start(pair.a.site.uplink(), "wan", &[pair.relay.address()])?;
    let pinger = pair.ping_from_a(100)?;
    wait_for(Duration::from_secs(5), "pings", || {
        pair.b.echo.arrivals(pinger.flow()).first().context("none")
    })?;
    match end {
        End::Terminated => pair.a.agent.stop()?,
        End::Killed => pair.a.agent.kill()?,
        End::PeerDeleted => pair.a.agent.delete("peer.yaml")?,
        End::MeshDeleted => pair.a.agent.delete("mesh.yaml")?,
        End::DeviceDeleted => {
            pair.a.agent.kill()?;
            pair.a.site.node.ip(&["link del culvert0"])?;
        }
    }
    wait_for(Duration::from_secs(10), "pings stop", || {
        let last = pair
            .b
            .echo
            .arrivals(pinger.flow())
            .list
            .last()
            .map(|received| received.at.elapsed());
        ensure!(
            last.is_some_and(|last| last > Duration::from_secs(2)),
            "heard {last:?} ago"
        );
        Ok(())
    })?;
    // A flow that begins now has no old state to lean on.
    let late = pair.ping_from_a(100)?;
    let (ns, from) = (&pair.a.pod()?.ns, pair.a.pod_at(0)?);
    let connected = Transfer::start(ns, from, server.address(), 1, None);
    ensure!(connected.is_err(), "{end:?}: a connection was made");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(pair.b.echo.arrivals(late.flow()).list.len(), 0, "{end:?}");
    // A SYN holds no marker: sealed, relayed or an error is all that may be there.
    for (place, seen) in [("node", node.stop()), ("wan", wan.stop())] {
        seen.assert_sealed()
            .with_context(|| format!("{end:?}, on the {place}"))?;
    }
    pair.finish()
}

#[test]
fn what_is_gone_sends_nothing_in_the_clear() -> Result<()> {
    thread::scope(|scope| {
        let ends = [
            End::Terminated,
            End::Killed,
            End::PeerDeleted,
            End::MeshDeleted,
            End::DeviceDeleted,
        ];
        let all = ends.map(|end| scope.spawn(move || nothing_in_the_clear(end)));
        all.into_iter()
            .try_for_each(|one| one.join().expect("no panic"))
    })
}
