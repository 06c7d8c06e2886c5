//! What the demonstration does, in order.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Demo, Screen};
use crate::capture::{Capture, DATA, Sniffed};
use crate::dump::HostDump;
use crate::lab::Lab;
use crate::pair::{Pair, Side};
use crate::profile::Outcome;
use crate::site::SiteSpec;
use crate::status::{PathState, Status};
use crate::traffic::{Pinger, Server, Transfer};
use crate::wait::wait_for;

const NAMES: [&str; 2] = ["berlin", "tokyo"];
/// How long the throughput is measured.
const TRANSFER: Duration = Duration::from_secs(3);

pub(super) fn tell(demo: Demo, screen: &mut Screen) -> Result<()> {
    let outcome = Outcome::of(demo.a, demo.b);
    screen.start_clock();
    screen.title("Culvert: two sites behind NAT, linked")?;
    screen.note("looking at this machine as it is before")?;
    let host_before = host()?;
    let lab = if demo.keep {
        Lab::new_kept()?
    } else {
        Lab::new("demo")?
    };
    let mut pair = Pair::within(lab, SiteSpec::new(demo.a), SiteSpec::new(demo.b), NAMES)?;
    picture(&pair, screen)?;
    screen.step(
        "an internet, a relay, two routers, two nodes with a pod each stand in network namespaces",
    )?;
    let nodes_before = [dump(&pair.a)?, dump(&pair.b)?];
    manifests(&pair, screen)?;

    screen.title("Linking")?;
    let captures = watch(&pair)?;
    screen.start_clock();
    pair.start()?;
    screen.step("both agents started; the clock begins")?;
    let pinger = ping(&pair)?;
    link(&pair, &pinger, &captures, outcome, screen)?;
    drop(captures);
    carry(&pair, &pinger, screen)?;
    statuses(&pair, screen)?;
    if demo.keep {
        return keep(&pair, screen);
    }
    screen.title("Taking down")?;
    drop(pinger);
    let census = pair.lab.census()?;
    take_down(pair, nodes_before, screen)?;
    let left = census.left();
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    let changes = host()?.diff(&host_before);
    ensure!(
        changes.is_empty(),
        "this machine is not as it was:\n{changes}"
    );
    screen.step(&format!(
        "all {} processes and their namespaces are gone; this machine is as it was before",
        census.processes()
    ))?;
    Ok(())
}

fn picture(pair: &Pair, screen: &mut Screen) -> Result<()> {
    let left = |side: &Side, name: &str| -> Result<String> {
        let (pod, site) = (side.pod()?.ip, &side.site);
        Ok(format!(
            "{name:<7} pod {pod} ── node ── {} {} ",
            site.nat.name(),
            site.wan
        ))
    };
    let (a, b) = (left(&pair.a, NAMES[0])?, left(&pair.b, NAMES[1])?);
    let width = a.chars().count().max(b.chars().count()) + 2;
    let about = |side: &Side| screen.dim(&format!("({})", side.site.nat.description()));
    let relay = format!("relay {} ", pair.relay.url());
    let lines = [
        format!("{a:─<width$}┐ {}", about(&pair.a)),
        format!("{:>width$}┤", format!("{relay}──")),
        format!("{b:─<width$}┘ {}", about(&pair.b)),
    ];
    screen.block(&lines.join("\n"))?;
    Ok(())
}

fn host() -> Result<HostDump> {
    HostDump::take(None, &[Path::new("/etc")])
}

fn dump(side: &Side) -> Result<HostDump> {
    HostDump::take(Some(&side.site.node), &[side.agent.manifests()])
}

/// Captures of what the two sites send into the world and hear from it.
fn watch(pair: &Pair) -> Result<[Capture; 2]> {
    let start = |side: &Side| Capture::start(side.site.uplink(), "wan", &[pair.relay.address()]);
    Ok([start(&pair.a)?, start(&pair.b)?])
}

/// 100 pings a second, long enough for the captures to know them as data.
fn ping(pair: &Pair) -> Result<Pinger> {
    let (pod, to) = (pair.a.pod()?, pair.b.echo.address());
    Pinger::sized(&pod.ns, pod.at(0), to, 100, DATA)
}

fn manifests(pair: &Pair, screen: &mut Screen) -> Result<()> {
    screen.title("What the agents are given")?;
    for (side, name) in [(&pair.a, NAMES[0]), (&pair.b, NAMES[1])] {
        for file in ["mesh.yaml", "peer.yaml"] {
            let text = std::fs::read_to_string(side.agent.manifests().join(file))?;
            let head = screen.dim(&format!("# {name}: {file}"));
            screen.block(&format!("{head}\n{text}"))?;
        }
    }
    Ok(())
}

/// From the start of the agents to the final path at both ends, told as it happens.
fn link(
    pair: &Pair,
    pinger: &Pinger,
    captures: &[Capture; 2],
    outcome: Outcome,
    screen: &mut Screen,
) -> Result<()> {
    let scene = Scene {
        pair,
        pinger,
        captures,
        outcome,
    };
    let (mut told, mut last) = (Told::default(), Instant::now());
    wait_for(PATIENCE, &format!("{outcome:?} at both ends"), || {
        let mut news = Vec::new();
        let settled = scene.look(&mut told, &mut news);
        news.sort_by_key(|(at, _)| *at);
        for (at, text) in news {
            screen.step_at(at, &text)?;
            last = Instant::now();
        }
        if last.elapsed() >= PROGRESS {
            screen.note(&scene.waiting())?;
            last = Instant::now();
        }
        settled
    })?;
    let sources = pair.b.echo.arrivals(pinger.flow()).sources();
    let own = sources.iter().all(|from| *from == pinger.address());
    ensure!(own, "the far pod saw {sources:?} and not the pod");
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(25);
/// What lasts longer says that it goes on.
const PROGRESS: Duration = Duration::from_secs(2);

/// What is looked at while the sites link.
struct Scene<'a> {
    pair: &'a Pair,
    pinger: &'a Pinger,
    captures: &'a [Capture; 2],
    outcome: Outcome,
}

/// What has been told.
#[derive(Default)]
struct Told {
    /// When the first ping arrived.
    first: Option<Instant>,
    nats: [bool; 2],
}

impl Scene<'_> {
    /// Adds what is new. Fails, with what both ends say, until they are settled.
    fn look(&self, told: &mut Told, news: &mut Vec<(Instant, String)>) -> Result<()> {
        // Asking takes a while; what happens meanwhile comes before it.
        let ends = [self.pair.a.agent.status(), self.pair.b.agent.status()];
        let asked = Instant::now();
        let wans = [self.captures[0].so_far(), self.captures[1].so_far()];
        self.first_ping(&wans[1], told, news)?;
        let [a, b] = ends;
        let ends = [a?, b?];
        self.nats(&ends, asked, false, told, news)?;
        let first = told.first.context("no ping has arrived")?;
        let paths = [
            ends[0].path_to(&self.pair.a.other)?,
            ends[1].path_to(&self.pair.b.other)?,
        ];
        let (at, text) = self.settled(&paths, &wans)?;
        self.nats(&ends, asked, true, told, news)?;
        // The far pod wakes a moment after the packet is on the wire, and later ones may be seen there first.
        news.push((at.unwrap_or(asked).max(first), text));
        Ok(())
    }

    /// Which way the first ping took is what the far site's wide-area link carried first.
    fn first_ping(
        &self,
        wan: &Sniffed,
        told: &mut Told,
        news: &mut Vec<(Instant, String)>,
    ) -> Result<()> {
        let first = self.pair.b.echo.arrivals(self.pinger.flow());
        let Some(first) = first.list.first().filter(|_| told.first.is_none()) else {
            return Ok(());
        };
        let way = match (wan.first_relayed, wan.first_direct) {
            (Some(relayed), Some(direct)) if direct < relayed => "directly",
            (Some(_), _) => "over the relay",
            (None, Some(_)) => "directly",
            (None, None) => bail!("the first ping is not in the capture yet"),
        };
        news.push((
            first.at,
            format!(
                "first ping {} -> {}, {way}; the far pod saw {}",
                self.pair.a.pod()?.ip,
                self.pair.b.pod()?.ip,
                first.from.ip()
            ),
        ));
        told.first = Some(first.at);
        Ok(())
    }

    /// What the nodes know of their NATs, once they know it, or `anyway`.
    fn nats(
        &self,
        ends: &[Status; 2],
        asked: Instant,
        anyway: bool,
        told: &mut Told,
        news: &mut Vec<(Instant, String)>,
    ) -> Result<()> {
        for ((status, told), name) in ends.iter().zip(&mut told.nats).zip(NAMES) {
            let (mapping, filtering, seen) = status.nat()?;
            let known = mapping != "unknown" && !seen.is_empty();
            if *told || !known && !anyway {
                continue;
            }
            let seen = if seen.is_empty() {
                "nowhere".to_owned()
            } else {
                seen.join(", ")
            };
            let text =
                format!("{name}'s NAT: mapping {mapping}, filtering {filtering}, seen at {seen}");
            news.push((asked, text));
            *told = true;
        }
        Ok(())
    }

    /// What both ends' final path is, and since when if that can be seen.
    fn settled(
        &self,
        paths: &[PathState; 2],
        wans: &[Sniffed; 2],
    ) -> Result<(Option<Instant>, String)> {
        let [a, b] = paths;
        let both = |fits: &dyn Fn(&PathState) -> bool| {
            ensure!(
                fits(a) && fits(b),
                "{}: {a:?}\n{}: {b:?}",
                NAMES[0],
                NAMES[1]
            );
            Ok(())
        };
        match self.outcome {
            Outcome::Direct => {
                both(&PathState::is_direct)?;
                let moved = wans[0].first_direct.zip(wans[1].first_direct);
                let (at_a, at_b) = moved.context("no data was seen on the direct path")?;
                let ends = paths.each_ref().map(|path| path.endpoint.clone());
                let ends = ends.map(Option::unwrap_or_default).join(" <-> ");
                Ok((Some(at_a.max(at_b)), format!("data goes directly: {ends}")))
            }
            Outcome::Relay(reason) => {
                both(&|path| path.path == "relay" && path.reason.as_deref() == Some(reason))?;
                let strayed = wans.iter().any(|wan| wan.first_direct.is_some());
                ensure!(!strayed, "data was seen on a direct path");
                Ok((
                    None,
                    format!("it stays on the relay, {reason}: {}", explain(reason)),
                ))
            }
        }
    }

    /// What there is to say while nothing happens.
    fn waiting(&self) -> String {
        let says = |side: &Side, name: &str| match side.path() {
            Ok(path) => format!(
                "{name}: {} {}",
                path.path,
                path.reason.as_deref().unwrap_or_default()
            ),
            Err(_) => format!("{name} does not answer"),
        };
        format!(
            "still looking for a direct path ({}, {})",
            says(&self.pair.a, NAMES[0]),
            says(&self.pair.b, NAMES[1])
        )
    }
}

fn explain(reason: &str) -> &'static str {
    match reason {
        "BothNatsHard" => "both routers choose a new port for every destination",
        "HardNatAgainstPortRestricted" => {
            "one router's port cannot be known, and the other lets in no port it does not know"
        }
        "UdpBlocked" => "a firewall lets no UDP pass",
        _ => "see the documentation of the status",
    }
}

/// What the link carries.
fn carry(pair: &Pair, pinger: &Pinger, screen: &mut Screen) -> Result<()> {
    let first = pair
        .b
        .echo
        .arrivals(pinger.flow())
        .list
        .first()
        .map_or(0, |received| received.sequence);
    let sent = wait_for(Duration::from_secs(5), "a second of pings", || {
        let now = pinger.so_far();
        ensure!(
            now.replies.list.len() >= 100,
            "{} answers",
            now.replies.list.len()
        );
        Ok(now)
    })?;
    let through = sent.count();
    let came = wait_for(Duration::from_secs(2), "every ping so far", || {
        let came = pair.b.echo.arrivals(pinger.flow());
        let lost = came.missing(first..through);
        ensure!(lost.is_empty(), "lost {lost:?}");
        Ok(came)
    })?;
    let (begin, end) = (
        came.first().context("no pings")?,
        came.list.last().context("no pings")?.at,
    );
    screen.step(&format!(
        "{} pings since the first one, none lost, longest gap {:.0} ms",
        through.saturating_sub(first),
        came.largest_gap(begin, end).as_secs_f64() * 1000.0
    ))?;
    screen.note("one TCP stream as fast as it goes, for three seconds")?;
    let server = Server::start(&pair.b.pod()?.ns, pair.b.pod_at(9001)?)?;
    let transfer = Transfer::start(
        &pair.a.pod()?.ns,
        pair.a.pod_at(0)?,
        server.address(),
        u64::MAX,
        None,
    )?;
    thread::sleep(TRANSFER);
    let report = transfer.finish()?;
    ensure!(report.intact, "the transfer arrived damaged");
    let rate = screen.strong(&format!("{:.0} Mbit/s", report.megabits()));
    screen.step(&format!(
        "one TCP stream, pod to pod: {rate}, checksum right"
    ))?;
    Ok(())
}

fn statuses(pair: &Pair, screen: &mut Screen) -> Result<()> {
    for (side, name) in [(&pair.a, NAMES[0]), (&pair.b, NAMES[1])] {
        screen.title(&format!("culvert-agent status, in {name}"))?;
        screen.block(&side.agent.status_text()?)?;
    }
    Ok(())
}

fn take_down(mut pair: Pair, before: [HostDump; 2], screen: &mut Screen) -> Result<()> {
    for ((side, before), name) in [&mut pair.a, &mut pair.b]
        .into_iter()
        .zip(before)
        .zip(NAMES)
    {
        side.agent.stop()?;
        side.agent.cleanup(false)?;
        let changes = dump(side)?.diff(&before);
        ensure!(
            changes.is_empty(),
            "{name}'s node is not as it was:\n{changes}"
        );
        screen.step(&format!("{name}'s node is as it was before the agent"))?;
    }
    pair.finish()
}

fn keep(pair: &Pair, screen: &mut Screen) -> Result<()> {
    screen.title("It stays up")?;
    for (from, to, name) in [(&pair.a, &pair.b, NAMES[0]), (&pair.b, &pair.a, NAMES[1])] {
        let pod = from.pod()?;
        let enter = screen.strong(&format!("nsenter --net={} bash", pod.ns.path().display()));
        screen.block(&format!(
            "a shell in {name}'s pod:  {enter}   then for instance: ping {}",
            to.pod()?.ip
        ))?;
        let status = screen.strong(&format!(
            "nsenter --net={} {}",
            from.site.node.path().display(),
            from.agent.status_line()
        ));
        screen.block(&format!("{name}'s status:          {status}"))?;
    }
    let logs = screen.strong(&pair.lab.folder().join("logs").display().to_string());
    screen.block(&format!("logs:                   {logs}"))?;
    let stop = screen.strong("make demo-down");
    screen.block(&format!("stop it:                {stop}"))?;
    Ok(())
}
