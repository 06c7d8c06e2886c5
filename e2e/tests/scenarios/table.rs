//! Every router against every router.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::profile::Outcome;
use e2e::{Pair, Profile, figure, wait_for};

/// Measured from the later agent's start: when a ping had arrived at each end, and when both had their final path.
#[derive(Clone, Copy, Debug)]
struct Times {
    first_byte: Duration,
    settled: Duration,
}

/// One run: `b`'s agent starts `head_start` after `a`'s.
fn run(a: Profile, b: Profile, head_start: Duration) -> Result<Times> {
    let mut pair = Pair::behind("table", a, b)?;
    pair.a.agent.start()?;
    thread::sleep(head_start);
    let start = pair.b.agent.start()?;
    let pinger = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    let first = wait_for(Duration::from_secs(5), "the first ping each way", || {
        let there = pair.b.echo.arrivals(pinger.flow()).first();
        let here = pair.a.echo.arrivals(back.flow()).first();
        let both = there.zip(here).map(|(there, here)| there.max(here));
        both.with_context(|| format!("at b {there:?}, at a {here:?}"))
    })?;
    match Outcome::of(a, b) {
        Outcome::Direct => pair.await_paths("direct", Duration::from_secs(10))?,
        Outcome::Relay(reason) => pair.await_reason(reason, Duration::from_secs(20))?,
    }
    let settled = start.elapsed();
    for (pinger, from, to) in [(&pinger, &pair.a, &pair.b), (&back, &pair.b, &pair.a)] {
        let sources = to.echo.arrivals(pinger.flow()).sources();
        ensure!(
            sources
                .iter()
                .all(|source| source.ip() == from.site.pods[0].ip),
            "sources seen: {sources:?}"
        );
    }
    drop((pinger, back));
    pair.finish()?;
    Ok(Times {
        first_byte: first.saturating_duration_since(start),
        settled,
    })
}

/// What the later agent's start may take to the first byte, to a direct path, and to a final reason.
const FIRST_BYTE: Duration = Duration::from_secs(1);
const DIRECT: Duration = Duration::from_secs(2);
const REASON: Duration = Duration::from_secs(15);

fn judge(a: Profile, b: Profile, times: Times) -> Result<()> {
    let limit = if Outcome::of(a, b) == Outcome::Direct {
        DIRECT
    } else {
        REASON
    };
    ensure!(
        times.first_byte <= FIRST_BYTE,
        "first byte after {:?}",
        times.first_byte
    );
    ensure!(
        times.settled <= limit,
        "{:?} after {:?}",
        Outcome::of(a, b),
        times.settled
    );
    Ok(())
}

/// Does all runs, `at_once` at a time, and fails with everything that went wrong.
fn campaign(what: &str, at_once: usize, runs: Vec<(Profile, Profile, Duration)>) -> Result<()> {
    let queue = Mutex::new(runs);
    let (all, failures) = (
        Mutex::new(BTreeMap::<_, Vec<Times>>::new()),
        Mutex::new(Vec::new()),
    );
    let work = || {
        loop {
            let Some((a, b, head_start)) = queue.lock().expect("no panic").pop() else {
                return;
            };
            match run(a, b, head_start) {
                Ok(times) => {
                    all.lock()
                        .expect("no panic")
                        .entry((a, b))
                        .or_default()
                        .push(times);
                    if let Err(error) = judge(a, b, times) {
                        failures
                            .lock()
                            .expect("no panic")
                            .push(format!("{a} x {b}: {error:#}"));
                    }
                }
                Err(error) => failures
                    .lock()
                    .expect("no panic")
                    .push(format!("{a} x {b}: {error:#}")),
            }
        }
    };
    let begin = Instant::now();
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work))));
    for ((a, b), times) in all.into_inner()? {
        let worst = |pick: fn(&Times) -> Duration| times.iter().map(pick).max().unwrap_or_default();
        let (byte, settled) = (
            worst(|times| times.first_byte),
            worst(|times| times.settled),
        );
        figure(
            &format!("{what}: {a:>15} x {b:<15}"),
            format!(
                "{:?}, first byte <= {byte:.3?}, settled <= {settled:.3?}",
                Outcome::of(a, b)
            ),
        );
    }
    figure(what, format!("{:?}", begin.elapsed()));
    let failures = failures.into_inner()?;
    ensure!(
        failures.is_empty(),
        "{} runs failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

#[test]
fn every_pair_ends_as_it_must() -> Result<()> {
    let mut runs = Vec::new();
    for a in Profile::ALL {
        for b in Profile::ALL {
            runs.extend([(a, b, Duration::ZERO); 3]);
        }
    }
    campaign("table", 2, runs)
}

#[test]
fn port_restricted_and_poisoned_always_meet() -> Result<()> {
    let mut runs = Vec::new();
    for a in [Profile::PortRestricted, Profile::Poisoned] {
        for b in [Profile::PortRestricted, Profile::Poisoned] {
            runs.extend([(a, b, Duration::ZERO); 10]);
            runs.extend([(a, b, Duration::from_secs(10)); 10]);
        }
    }
    // Half of them sleep most of the time.
    campaign("punched", 4, runs)
}
