//! The direct path breaks and comes back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::impair::Cut;
use e2e::traffic::{Server, Transfer};
use e2e::{Capture, Pair, Profile, figure};

/// Without an arrival, at most.
const GAP: Duration = Duration::from_secs(2);
/// From the end of the cut to a direct path at both ends, at most.
const BACK: Duration = Duration::from_secs(30);

fn direct_pair(name: &str) -> Result<Pair> {
    let mut pair = Pair::behind(name, Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    Ok(pair)
}

fn survives(cut: Cut) -> Result<()> {
    let pair = direct_pair(&format!("cut{}", cut as u8))?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    pair.lab.cut(&pair.a.site, &pair.b.site, cut)?;
    pair.await_paths("relay", Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(5));
    pair.lab.restore()?;
    let restored = Instant::now();
    pair.await_paths("direct", BACK)?;
    figure(
        &format!("{cut:?}: direct again after"),
        format!("{:?}", restored.elapsed()),
    );
    ensure!(
        restored.elapsed() <= BACK,
        "{cut:?}: direct again after {:?}",
        restored.elapsed()
    );
    thread::sleep(Duration::from_secs(1));
    let end = Instant::now();
    for (pinger, receiver) in [(there, &pair.b), (back, &pair.a)] {
        let came = receiver.echo.arrivals(pinger.stop().flow);
        let gap = came.largest_gap(begin, end);
        figure(
            &format!("{cut:?}: largest gap at {}", receiver.site.name),
            format!("{gap:?}"),
        );
        ensure!(
            gap <= GAP,
            "{cut:?}: a gap of {gap:?} at {}",
            receiver.site.name
        );
    }
    pair.finish()
}

#[test]
fn the_relay_takes_over_within_two_seconds() -> Result<()> {
    thread::scope(|scope| {
        let all = Cut::ALL.map(|cut| scope.spawn(move || survives(cut)));
        all.into_iter()
            .try_for_each(|one| one.join().expect("no panic"))
    })
}

/// Bytes a second, and how long at least.
const RATE: u64 = 200_000;
const LENGTH: Duration = Duration::from_secs(180);
/// On each path, between two switches.
const DWELL: Duration = Duration::from_secs(8);

#[test]
fn a_transfer_survives_twenty_switches() -> Result<()> {
    let pair = direct_pair("switch")?;
    let capture = Capture::start(pair.a.site.uplink(), "wan", &[pair.relay.address()])?;
    let server = Server::start(&pair.b.pod()?.ns, pair.b.pod_at(9001)?)?;
    let start = Instant::now();
    let transfer = Transfer::start(
        &pair.a.pod()?.ns,
        pair.a.pod_at(0)?,
        server.address(),
        u64::MAX,
        Some(RATE),
    )?;
    for switch in 1..=10 {
        thread::sleep(DWELL);
        pair.lab.cut(&pair.a.site, &pair.b.site, Cut::BothWays)?;
        pair.await_paths("relay", Duration::from_secs(10))
            .with_context(|| format!("switch {switch}"))?;
        thread::sleep(DWELL);
        pair.lab.restore()?;
        pair.await_paths("direct", BACK)
            .with_context(|| format!("switch {switch}"))?;
        ensure!(
            !transfer.is_over(),
            "the transfer ended early: {:?}",
            transfer.wait()
        );
    }
    // The transfer's own clock began a little later.
    thread::sleep((LENGTH + Duration::from_secs(2)).saturating_sub(start.elapsed()));
    let report = transfer.finish()?;
    let seen = capture.stop();
    let (direct, relay) = (seen.direct_bytes(), seen.relay_bytes());
    figure(
        "switches: bytes direct, by relay, in",
        format!("{direct}, {relay}, {:?}", report.elapsed),
    );
    assert!(report.intact, "{report:?}");
    assert!(report.elapsed >= LENGTH, "{report:?}");
    assert!(
        direct * 5 >= direct + relay,
        "too little went directly: {direct} of {}",
        direct + relay
    );
    assert!(
        relay * 5 >= direct + relay,
        "too little went by the relay: {relay} of {}",
        direct + relay
    );
    pair.finish()
}

#[test]
fn the_relay_may_die_while_direct() -> Result<()> {
    let mut pair = direct_pair("norelay")?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    thread::sleep(Duration::from_secs(1));
    pair.relay.kill()?;
    thread::sleep(Duration::from_secs(15));
    pair.await_paths("direct", Duration::ZERO)?;
    pair.relay.resume()?;
    thread::sleep(Duration::from_secs(5));
    for (pinger, receiver) in [(there, &pair.b), (back, &pair.a)] {
        let sent = pinger.stop();
        let lost = receiver.echo.arrivals(sent.flow).missing(0..sent.count());
        figure(
            "relay killed: lost",
            format!("{} of {}", lost.len(), sent.count()),
        );
        ensure!(lost.is_empty(), "lost {lost:?}");
    }
    pair.finish()
}
