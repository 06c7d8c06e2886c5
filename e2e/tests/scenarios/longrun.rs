//! Hours in minutes: re-keying under traffic, and waking after silence.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::traffic::{PingReport, probe};
use e2e::{Pair, Profile, Side, figure};

/// Three re-keys: one every 120 s.
const LONG: Duration = Duration::from_secs(400);
/// One session to begin with and three re-keys at least; twice that would be handshakes that nobody needs.
const SESSIONS: RangeInclusive<usize> = 4..=8;

/// Pings both ways for a long time; every one has to arrive, and its answer too.
fn loses_nothing(name: &str, nat: Profile, path: &str) -> Result<()> {
    let mut pair = Pair::behind(name, nat, nat)?;
    pair.establish(path)?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    let start = Instant::now();
    let mut handshakes = BTreeSet::new();
    while start.elapsed() < LONG {
        thread::sleep(Duration::from_secs(5));
        let now = pair.a.path()?;
        ensure!(now.path == path, "{now:?} after {:?}", start.elapsed());
        handshakes.extend(now.last_handshake);
    }
    let (there, back) = (there.stop(), back.stop());
    figure(
        &format!("{name}: sessions seen in {LONG:?}"),
        handshakes.len(),
    );
    ensure!(
        SESSIONS.contains(&handshakes.len()),
        "{} sessions and not {SESSIONS:?}: {handshakes:?}",
        handshakes.len()
    );
    whole(name, &there, &pair.b)?;
    whole(name, &back, &pair.a)?;
    pair.finish()
}

fn whole(name: &str, sent: &PingReport, receiver: &Side) -> Result<()> {
    let came = receiver.echo.arrivals(sent.flow);
    let (first, last) = (
        came.first().context("nothing came")?,
        came.list.last().context("nothing came")?.at,
    );
    let lost = came.missing(0..sent.count());
    let unanswered = sent.replies.missing(0..sent.count());
    figure(
        &format!("{name}: of {} pings", sent.count()),
        format!(
            "{} lost, {} answers lost, {} twice, {} late, largest gap {:?}",
            lost.len(),
            unanswered.len(),
            came.duplicates(),
            came.reordered(),
            came.largest_gap(first, last)
        ),
    );
    ensure!(
        lost.is_empty() && unanswered.is_empty(),
        "lost {lost:?}, unanswered {unanswered:?}"
    );
    ensure!(came.duplicates() == 0, "{} came twice", came.duplicates());
    Ok(())
}

#[test]
fn direct_loses_nothing() -> Result<()> {
    loses_nothing("longdir", Profile::PortRestricted, "direct")
}

#[test]
fn relay_loses_nothing() -> Result<()> {
    loses_nothing("longrel", Profile::Symmetric, "relay")
}

/// A minute without traffic, then one ping.
fn wakes(name: &str, nat: Profile, path: &str, from_a: bool) -> Result<()> {
    let mut pair = Pair::behind(name, nat, nat)?;
    pair.establish(path)?;
    thread::sleep(Duration::from_secs(60));
    let (from, to) = if from_a {
        (&pair.a, &pair.b)
    } else {
        (&pair.b, &pair.a)
    };
    let took = probe(
        &from.pod()?.ns,
        from.pod_at(0)?,
        &to.echo,
        Duration::from_secs(10),
    )?;
    figure(
        &format!(
            "{name}: first packet after a minute, from {}",
            from.site.name
        ),
        format!("{took:?}"),
    );
    ensure!(took <= Duration::from_secs(1), "took {took:?}");
    pair.finish()
}

#[test]
fn silence_is_broken_at_once_by_either_side() -> Result<()> {
    let cases = [
        ("silent0", Profile::PortRestricted, "direct", true),
        ("silent1", Profile::PortRestricted, "direct", false),
        ("silent2", Profile::Symmetric, "relay", true),
        ("silent3", Profile::Symmetric, "relay", false),
    ];
    thread::scope(|scope| {
        let all = cases
            .map(|(name, nat, path, from_a)| scope.spawn(move || wakes(name, nat, path, from_a)));
        all.into_iter()
            .try_for_each(|one| one.join().expect("no panic"))
    })
}
