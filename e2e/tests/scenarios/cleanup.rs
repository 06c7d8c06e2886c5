//! After cleanup a node is as it was.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{HostDump, Masquerade, Pair, Profile, SiteSpec, wait_for};

/// How the agent ends before cleanup.
#[derive(Clone, Copy, Debug)]
enum End {
    Terminated,
    Killed,
}

fn as_before(name: &str, spec: &SiteSpec, end: End) -> Result<()> {
    let mut pair = Pair::new(name, spec.clone(), spec.clone())?;
    let host = || HostDump::take(None, &[Path::new("/etc")]);
    let host_before = host()?;
    let manifests = pair.a.agent.manifests().to_owned();
    let folders = [Path::new("/etc"), manifests.as_path()];
    let node = pair.a.site.node.clone();
    let dump = || HostDump::take(Some(&node), &folders);
    let before = dump()?;
    let key = pair.a.agent.key()?;
    pair.establish("direct")?;
    let pinger = pair.ping_from_a(100)?;
    wait_for(Duration::from_secs(5), "pings", || {
        pair.b.echo.arrivals(pinger.flow()).first().context("none")
    })?;
    let during = dump()?.diff(&before);
    ensure!(
        during.contains("culvert0"),
        "the agent has changed nothing? {during}"
    );
    match end {
        End::Terminated => pair.a.agent.stop()?,
        End::Killed => pair.a.agent.kill()?,
    }
    drop(pinger);
    pair.a.agent.cleanup(false)?;
    assert_eq!(dump()?.diff(&before), "", "{name} {end:?}");
    assert_eq!(pair.a.agent.key()?, key, "the key is kept");
    pair.a.agent.cleanup(true)?;
    let left = std::fs::read_dir(pair.a.agent.state())
        .into_iter()
        .flatten()
        .count();
    assert_eq!(left, 0, "the state folder after --purge");
    let agents = pair.lab.census()?;
    assert!(agents.processes() >= 3, "{agents:?}");
    pair.finish()?;
    assert_eq!(agents.left(), Vec::<String>::new());
    assert_eq!(host()?.diff(&host_before), "", "the lab's host");
    Ok(())
}

#[test]
fn after_sigterm() -> Result<()> {
    as_before(
        "cleanterm",
        &SiteSpec::new(Profile::PortRestricted),
        End::Terminated,
    )
}

#[test]
fn after_sigkill() -> Result<()> {
    as_before("cleankill", &SiteSpec::new(Profile::Public), End::Killed)
}

#[test]
fn on_a_node_of_iptables() -> Result<()> {
    let spec = SiteSpec::new(Profile::FullCone).masquerade(Masquerade::IptablesNft);
    as_before("cleannft", &spec, End::Terminated)
}

#[test]
fn on_a_node_of_legacy_iptables() -> Result<()> {
    let spec = SiteSpec::new(Profile::FullCone).masquerade(Masquerade::IptablesLegacy);
    as_before("cleanleg", &spec, End::Killed)
}
