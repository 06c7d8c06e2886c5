//! What the demonstration does, in order.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Demo, Screen};
use crate::dump::HostDump;
use crate::lab::Lab;
use crate::pair::{Pair, Side};
use crate::profile::Outcome;
use crate::site::SiteSpec;
use crate::status::PathState;
use crate::traffic::{Pinger, Server, Transfer};
use crate::wait::wait_for;

const NAMES: [&str; 2] = ["berlin", "tokyo"];
/// How long the throughput is measured.
const TRANSFER: Duration = Duration::from_secs(3);

pub(super) fn tell(demo: Demo, screen: &mut Screen) -> Result<()> {
    let outcome = Outcome::of(demo.a, demo.b);
    screen.start_clock();
    screen.title("Culvert: two sites behind NAT, linked")?;
    let host_before = HostDump::take(None, &[])?;
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
    let start = screen.start_clock();
    pair.start()?;
    screen.step("both agents started; the clock begins")?;
    let pinger = pair.ping_from_a(100)?;
    link(&mut pair, &pinger, outcome, start, screen)?;
    carry(&pair, &pinger, screen)?;
    statuses(&pair, screen)?;
    if demo.keep {
        return keep(&pair, screen);
    }
    screen.title("Taking down")?;
    drop(pinger);
    take_down(pair, nodes_before, screen)?;
    let changes = HostDump::take(None, &[])?.diff(&host_before);
    ensure!(
        changes.is_empty(),
        "this machine is not as it was:\n{changes}"
    );
    screen.step("namespaces and processes are gone; this machine is as it was before")?;
    Ok(())
}

fn picture(pair: &Pair, screen: &mut Screen) -> Result<()> {
    let mut lines = Vec::new();
    for (side, name) in [(&pair.a, NAMES[0]), (&pair.b, NAMES[1])] {
        let site = &side.site;
        let nat = screen.strong(site.nat.name());
        let about = screen.dim(&format!("({})", site.nat.description()));
        lines.push(format!(
            "{name:<7} pod {} ── node ── {nat} {} ──┐ {about}",
            side.pod()?.ip,
            site.wan
        ));
    }
    let relay = screen.strong(&pair.relay.url());
    lines.insert(1, format!("{:42}relay {relay} ──┤", ""));
    screen.block(&lines.join("\n"))?;
    Ok(())
}

fn dump(side: &Side) -> Result<HostDump> {
    HostDump::take(Some(&side.site.node), &[])
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

/// From the start of the agents to the final path.
fn link(
    pair: &mut Pair,
    pinger: &Pinger,
    outcome: Outcome,
    start: Instant,
    screen: &mut Screen,
) -> Result<()> {
    let mut paths = Paths::default();
    let patience = Duration::from_secs(20);
    let first = wait_for(patience, "the first ping", || {
        paths.look(pair);
        pair.b
            .echo
            .arrivals(pinger.flow())
            .first()
            .context("nothing arrived")
    })?;
    let from = pair.b.echo.arrivals(pinger.flow()).sources();
    let from = from.first().context("no source")?.ip();
    screen.step_at(
        first,
        &format!(
            "first ping {} -> {}; the far pod saw {}",
            pair.a.pod()?.ip,
            pair.b.pod()?.ip,
            screen.strong(&from.to_string())
        ),
    )?;
    ensure!(
        from == pair.a.pod()?.ip,
        "the far pod saw {from} and not the pod"
    );
    let settled = wait_for(patience, &format!("{outcome:?} at both ends"), || {
        paths.look(pair);
        paths.settled(outcome)
    })?;
    for (side, name) in [(&pair.a, NAMES[0]), (&pair.b, NAMES[1])] {
        nat(side, name, screen)?;
    }
    if let Some(at) = paths.relay_since {
        screen.step_at(
            at,
            &format!("data goes over the {}", screen.strong("relay")),
        )?;
    }
    match outcome {
        Outcome::Direct => {
            let ends = [
                paths.a.and_then(|path| path.endpoint),
                paths.b.and_then(|path| path.endpoint),
            ];
            let ends = ends.map(Option::unwrap_or_default).join(" <-> ");
            screen.step_at(
                settled,
                &format!("data goes {}: {ends}", screen.strong("direct")),
            )?;
        }
        Outcome::Relay(reason) => {
            let why = screen.strong(reason);
            screen.step_at(
                settled,
                &format!("it stays there, {why}: {}", explain(reason)),
            )?;
        }
    }
    screen.block(&screen.dim(&format!(
        "({:.2} s from the agents' start)",
        settled.duration_since(start).as_secs_f64()
    )))?;
    Ok(())
}

fn nat(side: &Side, name: &str, screen: &mut Screen) -> Result<()> {
    let (mapping, filtering, seen) = side.agent.status()?.nat()?;
    let seen = if seen.is_empty() {
        "nowhere".to_owned()
    } else {
        seen.join(", ")
    };
    screen.step(&format!(
        "{name}'s NAT: mapping {mapping}, filtering {filtering}, seen at {seen}"
    ))?;
    Ok(())
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

/// The paths of both ends as they change.
#[derive(Default)]
struct Paths {
    a: Option<PathState>,
    b: Option<PathState>,
    relay_since: Option<Instant>,
}

impl Paths {
    fn look(&mut self, pair: &Pair) {
        self.a = pair.a.path().ok();
        self.b = pair.b.path().ok();
        let relayed = self.a.as_ref().is_some_and(|path| path.path == "relay");
        if relayed {
            self.relay_since.get_or_insert_with(Instant::now);
        }
    }

    fn settled(&self, outcome: Outcome) -> Result<Instant> {
        let (Some(a), Some(b)) = (&self.a, &self.b) else {
            bail!("an agent does not answer yet");
        };
        let fits = |path: &PathState| match outcome {
            Outcome::Direct => path.is_direct(),
            Outcome::Relay(reason) => {
                path.path == "relay" && path.reason.as_deref() == Some(reason)
            }
        };
        ensure!(
            fits(a) && fits(b),
            "{}: {a:?}\n{}: {b:?}",
            NAMES[0],
            NAMES[1]
        );
        Ok(Instant::now())
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
    // The last few may still be on their way.
    let through = sent.count().saturating_sub(10);
    let lost = pair
        .b
        .echo
        .arrivals(pinger.flow())
        .missing(first..through)
        .len();
    let gap = pair.b.echo.arrivals(pinger.flow());
    let (begin, end) = (
        gap.first().context("no pings")?,
        gap.list.last().context("no pings")?.at,
    );
    screen.step(&format!(
        "{} pings since the first one, {lost} lost, longest gap {:.0} ms",
        through.saturating_sub(first),
        gap.largest_gap(begin, end).as_secs_f64() * 1000.0
    ))?;
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
