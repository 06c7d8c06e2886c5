//! The lab itself: its routers do what their profiles say, its tools see what there is to see, and nothing stays behind.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::classify::{Class, Filtering, Mapping, Responder};
use e2e::impair::Cut;
use e2e::process::{Daemon, DaemonSpec};
use e2e::traffic::{Echo, Pinger, Server, Transfer};
use e2e::{Capture, HostDump, Lab, Masquerade, Profile, SiteSpec, capture, wait_for};

/// What a profile has to look like from outside.
fn expected(profile: Profile) -> Class {
    let class = |mapping, filtering, poisoned| Class {
        mapping,
        filtering,
        poisoned,
    };
    match profile {
        Profile::Public => class(Mapping::None, Filtering::Open, false),
        Profile::FullCone => class(Mapping::Independent, Filtering::Open, false),
        Profile::PortRestricted => class(Mapping::Independent, Filtering::AddressAndPort, false),
        Profile::Poisoned => class(Mapping::Independent, Filtering::AddressAndPort, true),
        Profile::Symmetric => class(Mapping::Dependent, Filtering::AddressAndPort, false),
        Profile::UdpBlocked => class(Mapping::Blocked, Filtering::Blocked, false),
        other => panic!("say what {other} looks like"),
    }
}

#[test]
fn routers_are_what_they_are_called() -> Result<()> {
    let mut lab = Lab::new("kinds")?;
    let responder = Responder::start(&lab.relay_host()?)?;
    for profile in Profile::ALL {
        let site = lab.site(SiteSpec::new(profile).pods(0))?;
        assert_eq!(responder.classify(&site)?, expected(profile), "{profile}");
    }
    lab.finish()
}

#[test]
fn tcp_passes_every_router() -> Result<()> {
    let mut lab = Lab::new("tcp")?;
    let host = lab.relay_host()?;
    let to = "203.0.113.20:8080".parse()?;
    let server = Server::start(&host.ns, to)?;
    for profile in Profile::ALL {
        let site = lab.site(SiteSpec::new(profile))?;
        let pod = site.pod()?;
        let report =
            Transfer::start(&pod.ns, pod.at(0), server.address(), 100_000, None)?.wait()?;
        assert!(report.intact, "{profile}");
        assert_eq!(report.seen_from.ip(), site.wan, "{profile}");
    }
    lab.finish()
}

#[test]
fn every_masquerade_translates_pods() -> Result<()> {
    let mut lab = Lab::new("masq")?;
    let host = lab.public_host()?;
    let echo = Echo::start(&host.ns, "203.0.113.30:9000".parse()?)?;
    for masquerade in [
        Masquerade::Nft,
        Masquerade::IptablesNft,
        Masquerade::IptablesLegacy,
    ] {
        let site = lab.site(SiteSpec::new(Profile::Public).masquerade(masquerade))?;
        let pod = site.pod()?;
        let pinger = Pinger::start(&pod.ns, pod.at(0), echo.address(), 50)?;
        let came = wait_for(Duration::from_secs(3), "pings", || {
            first_sources(&echo, &pinger)
        })?;
        assert_eq!(came, [site.wan.to_string()], "{masquerade:?}");
    }
    lab.finish()
}

fn first_sources(echo: &Echo, pinger: &Pinger) -> Result<Vec<String>> {
    let came = echo.arrivals(pinger.flow());
    came.first().context("nothing came")?;
    Ok(came
        .sources()
        .iter()
        .map(|from| from.ip().to_string())
        .collect())
}

/// The core is a hop: an opener dies on it, and the sender is told.
#[test]
fn low_ttl_dies_between_the_routers() -> Result<()> {
    let mut lab = Lab::new("ttl")?;
    let a = lab.site(SiteSpec::new(Profile::PortRestricted).pods(0))?;
    let b = lab.site(SiteSpec::new(Profile::Public).pods(0))?;
    let at_a = Capture::start(a.uplink(), "wan", &[])?;
    let at_b = Capture::start(b.uplink(), "wan", &[])?;
    let mut opener = vec![0; 148];
    opener[0] = 1;
    let send = |ttl| -> Result<()> {
        a.node.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:20000")?;
            socket.set_ttl(ttl)?;
            socket.send_to(&opener, (b.wan, 20000))?;
            Ok(())
        })?
    };
    send(2)?;
    wait_for(Duration::from_secs(2), "time exceeded", || {
        let seen = at_a.so_far();
        let told = seen.count(capture::Class::IcmpError).packets;
        if told > 0 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })?;
    assert_eq!(at_b.so_far().count(capture::Class::WireGuard(1)).packets, 0);
    send(3)?;
    wait_for(
        Duration::from_secs(2),
        "an opener with TTL 3 arrives",
        || {
            let seen = at_b.so_far();
            if seen.count(capture::Class::WireGuard(1)).packets == 1 {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        },
    )?;
    at_a.stop().assert_sealed()?;
    lab.finish()
}

#[test]
fn captures_see_what_should_not_be_there() -> Result<()> {
    let mut lab = Lab::new("sniff")?;
    let site = lab.site(SiteSpec::new(Profile::Public))?;
    let host = lab.public_host()?;
    let echo = Echo::start(&host.ns, "203.0.113.30:9000".parse()?)?;
    let capture = Capture::start(site.uplink(), "wan", &[])?;
    let pod = site.pod()?;
    let pinger = Pinger::start(&pod.ns, pod.at(0), echo.address(), 20)?;
    wait_for(Duration::from_secs(3), "an answer", || {
        pinger.so_far().replies.first().context("none")
    })?;
    pinger.stop();
    let seen = capture.stop();
    assert!(seen.marked >= 2, "{seen:?}");
    assert!(
        seen.foreign
            .iter()
            .any(|line| line.contains("203.0.113.30:9000")),
        "{:?}",
        seen.foreign
    );
    assert!(seen.assert_sealed().is_err());
    lab.finish()
}

#[test]
fn cuts_stop_udp_and_restoring_brings_it_back() -> Result<()> {
    let mut lab = Lab::new("cut")?;
    let a = lab.site(SiteSpec::new(Profile::Public))?;
    let b = lab.site(SiteSpec::new(Profile::Public).pods(0))?;
    let echo = Echo::start(&b.node, format!("{}:9000", b.wan).parse()?)?;
    let server = Server::start(&b.node, format!("{}:9001", b.wan).parse()?)?;
    let pod = a.pod()?;
    let pinger = Pinger::start(&pod.ns, pod.at(0), echo.address(), 100)?;
    let arrives = |what: &str| {
        let since = Instant::now();
        wait_for(Duration::from_secs(3), what, || {
            echo.arrivals(pinger.flow())
                .first_since(since)
                .context("none")
        })
    };
    for cut in Cut::ALL {
        arrives("a ping before the cut")?;
        lab.cut(&a, &b, cut)?;
        let cut_at = Instant::now();
        let report = Transfer::start(&pod.ns, pod.at(0), server.address(), 1000, None)?.wait()?;
        assert!(report.intact, "TCP passes {cut:?}");
        wait_for(Duration::from_secs(3), "silence", || {
            let last = echo
                .arrivals(pinger.flow())
                .list
                .last()
                .map(|received| received.at);
            let silent = last.map(|at| at.elapsed()).context("nothing ever came")?;
            ensure!(silent > Duration::from_millis(300), "heard {silent:?} ago");
            Ok(())
        })?;
        lab.restore()?;
        let back = arrives("a ping after the cut")?;
        assert!(
            echo.arrivals(pinger.flow()).largest_gap(cut_at, back) > Duration::from_millis(200),
            "{cut:?}"
        );
    }
    lab.finish()
}

#[test]
fn renumbering_changes_what_the_world_sees() -> Result<()> {
    let mut lab = Lab::new("renum")?;
    let mut site = lab.site(SiteSpec::new(Profile::PortRestricted))?;
    let host = lab.public_host()?;
    let echo = Echo::start(&host.ns, "203.0.113.30:9000".parse()?)?;
    let pod = site.pod()?.clone();
    let pinger = Pinger::start(&pod.ns, pod.at(0), echo.address(), 50)?;
    let before = site.wan;
    wait_for(Duration::from_secs(3), "pings", || {
        echo.arrivals(pinger.flow()).first().context("none")
    })?;
    let after = lab.renumber(&mut site)?;
    assert_ne!(before, after);
    wait_for(Duration::from_secs(3), "pings from the new address", || {
        let sources = echo.arrivals(pinger.flow()).sources();
        let seen = sources.iter().any(|from| from.ip() == after);
        if seen {
            Ok(())
        } else {
            Err(format!("{sources:?}"))
        }
    })?;
    lab.finish()
}

#[test]
fn ipv6_reaches_out_and_is_walled() -> Result<()> {
    let mut lab = Lab::new("six")?;
    let a = lab.site(SiteSpec::new(Profile::PortRestricted).with_ipv6())?;
    let b = lab.site(SiteSpec::new(Profile::Public).with_ipv6().pods(0))?;
    let echo = Echo::start(&b.node, format!("[{}]:9000", b.link.address6(2)).parse()?)?;
    let pod = a.pod()?;
    let pinger = Pinger::start(&pod.ns, "[::]:0".parse()?, echo.address(), 20)?;
    wait_for(Duration::from_secs(3), "a pod's ping over IPv6", || {
        pinger.so_far().replies.first().context("no answer")
    })?;
    let sources = echo.arrivals(pinger.flow()).sources();
    let node = sources.first().context("no source")?.ip();
    assert!(a.link.contains(node), "{node}");
    let inner = Echo::start(&a.node, "[::]:9000".parse()?)?;
    let intruder = Pinger::start(
        &b.node,
        "[::]:0".parse()?,
        format!("[{node}]:9000").parse()?,
        100,
    )?;
    wait_for(Duration::from_secs(3), "20 uninvited pings", || {
        (intruder.so_far().count() > 20).then_some(()).ok_or("less")
    })?;
    assert_eq!(inner.arrivals(intruder.flow()).list.len(), 0);
    lab.finish()
}

#[test]
fn the_host_is_not_touched() -> Result<()> {
    let dump = || HostDump::take(None, &[]);
    let before = dump()?;
    let mut lab = Lab::new("host")?;
    lab.relay_host()?;
    let site = lab.site(SiteSpec::new(Profile::FullCone).masquerade(Masquerade::IptablesLegacy))?;
    let node_before = HostDump::take(Some(&site.node), &[])?;
    assert_eq!(
        HostDump::take(Some(&site.node), &[])?.diff(&node_before),
        ""
    );
    site.node.ip(&["route add 198.51.100.0/24 dev cni0"])?;
    let changed = HostDump::take(Some(&site.node), &[])?.diff(&node_before);
    assert!(changed.contains("198.51.100.0/24"), "{changed}");
    lab.finish()?;
    assert_eq!(dump()?.diff(&before), "");
    Ok(())
}

/// A maker of labs that is killed: this test again, in a process of its own.
const VICTIM: &str = "LAB_VICTIM";

#[test]
fn a_killed_maker_leaves_nothing() -> Result<()> {
    if let Some(told) = std::env::var_os(VICTIM) {
        let mut lab = Lab::new("victim")?;
        let site = lab.site(SiteSpec::new(Profile::PortRestricted))?;
        let sleeper = DaemonSpec {
            ns: site.node,
            program: "sleep".into(),
            arguments: vec!["1000".to_owned()],
            log: lab.folder().join("logs/sleep"),
            keep: false,
        };
        let daemon = Daemon::start(&sleeper)?;
        fs::write(
            told,
            format!(
                "{} {} {}.",
                lab.prefix(),
                daemon.pid(),
                lab.folder().display()
            ),
        )?;
        loop {
            std::thread::park();
        }
    }
    let told = std::env::temp_dir().join(format!("lab-victim-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "a_killed_maker_leaves_nothing"])
        .env(VICTIM, &told);
    let mut victim = command.stdout(Stdio::null()).spawn()?;
    let words = wait_for(Duration::from_secs(10), "the victim's lab stands", || {
        let words = fs::read_to_string(&told)?;
        ensure!(words.ends_with('.'), "half a line: {words:?}");
        Ok(words.trim_end_matches('.').to_owned())
    })?;
    fs::remove_file(&told)?;
    victim.kill()?;
    victim.wait()?;
    let [prefix, pid, folder] = words.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("{words:?}");
    };
    wait_for(Duration::from_secs(5), "everything is gone", || {
        let mounts = fs::read_dir("/run/netns")?
            .flatten()
            .map(|entry| entry.file_name());
        let left: Vec<_> = mounts
            .filter(|name| name.to_string_lossy().starts_with(prefix))
            .collect();
        ensure!(left.is_empty(), "namespaces {left:?}");
        ensure!(!Path::new(folder).exists(), "the folder {folder}");
        ensure!(!Path::new("/proc").join(pid).exists(), "the process {pid}");
        Ok(())
    })
}
