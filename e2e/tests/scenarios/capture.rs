//! What the wide area sees of two sites that talk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::capture::Count;
use e2e::traffic::{Server, Transfer};
use e2e::{Capture, Class, Pair, Profile, Sniffed, figure, wait_for};

/// A whole run, from before the agents start to after they end, watched on both sites' wide-area links.
fn watched(name: &str, nat: Profile, path: &str) -> Result<[Sniffed; 2]> {
    let mut pair = Pair::behind(name, nat, nat)?;
    let relays = [pair.relay.address()];
    let captures = [
        Capture::start(pair.a.site.uplink(), "wan", &relays)?,
        Capture::start(pair.b.site.uplink(), "wan", &relays)?,
    ];
    pair.start()?;
    pair.a.agent.ready()?;
    pair.b.agent.ready()?;
    let sealed = |side: &e2e::Side| {
        wait_for(Duration::from_secs(5), "mesh routes stand", || {
            side.path().map(drop)
        })
    };
    sealed(&pair.a)?;
    sealed(&pair.b)?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    pair.await_paths(path, Duration::from_secs(20))?;
    let server = Server::start(&pair.b.pod()?.ns, pair.b.pod_at(9001)?)?;
    let transfer = Transfer::start(
        &pair.a.pod()?.ns,
        pair.a.pod_at(0)?,
        server.address(),
        5_000_000,
        Some(1_000_000),
    )?;
    let report = transfer.wait()?;
    ensure!(report.intact, "the transfer is not intact");
    ensure!(
        report.seen_from.ip() == pair.a.pod()?.ip,
        "TCP seen from {}",
        report.seen_from
    );
    for (pinger, from, to) in [(there, &pair.a, &pair.b), (back, &pair.b, &pair.a)] {
        let sent = pinger.stop();
        let came = to.echo.arrivals(sent.flow);
        came.first().context("no pings arrived")?;
        ensure!(
            came.sources()
                .iter()
                .all(|source| source.ip() == from.site.pods[0].ip),
            "seen from {:?}",
            came.sources()
        );
    }
    pair.a.agent.stop()?;
    pair.b.agent.stop()?;
    let seen = captures.map(Capture::stop);
    for (side, seen) in ["a", "b"].iter().zip(&seen) {
        for (class, count) in &seen.counts {
            figure(
                &format!("{name}: wan of {side}: {class}"),
                format!("{} packets, {} bytes", count.packets, count.bytes),
            );
        }
    }
    for seen in &seen {
        // The sites have no IPv6.
        ensure!(
            seen.count(Class::Neighbour) == Count::default(),
            "{:?}",
            seen.counts
        );
    }
    pair.finish()?;
    Ok(seen)
}

#[test]
fn direct_traffic_is_sealed() -> Result<()> {
    for seen in watched("capdir", Profile::PortRestricted, "direct")? {
        seen.assert_sealed()?;
        assert!(seen.direct_bytes() > 4_000_000, "{:?}", seen.counts);
        assert!(seen.relay_bytes() > 0, "the relay comes first");
    }
    Ok(())
}

#[test]
fn relayed_traffic_is_sealed() -> Result<()> {
    for seen in watched("caprel", Profile::Symmetric, "relay")? {
        seen.assert_sealed()?;
        assert!(seen.relay_bytes() > 4_000_000, "{:?}", seen.counts);
    }
    Ok(())
}
