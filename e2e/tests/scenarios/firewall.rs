//! Nodes whose own firewall drops all that was not asked for, and flows older than the agent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::firewall::Firewall;
use e2e::{HostDump, Masquerade, Pair, Profile, SiteSpec, figure, wait_for};

fn behind_firewall(firewall: Firewall) -> Result<()> {
    let masquerade = match firewall {
        Firewall::IptablesNft => Masquerade::IptablesNft,
        Firewall::IptablesLegacy => Masquerade::IptablesLegacy,
    };
    let spec = || SiteSpec::new(Profile::PortRestricted).masquerade(masquerade);
    let mut pair = Pair::new(&format!("wall{}", firewall as u8), spec(), spec())?;
    for side in [&pair.a, &pair.b] {
        firewall.install(&side.site)?;
    }
    let before = HostDump::take(Some(&pair.a.site.node), &[])?;
    pair.establish("direct")?;
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    for (pinger, from, to) in [(there, &pair.a, &pair.b), (back, &pair.b, &pair.a)] {
        wait_for(Duration::from_secs(5), "answers", || {
            ensure!(
                pinger.so_far().replies.list.len() > 100,
                "{firewall:?}: too few answers"
            );
            Ok(())
        })?;
        let sources = to.echo.arrivals(pinger.flow()).sources();
        ensure!(
            sources
                .iter()
                .all(|source| source.ip() == from.site.pods[0].ip),
            "{firewall:?}: seen from {sources:?}"
        );
    }
    pair.a.agent.stop()?;
    pair.a.agent.cleanup(false)?;
    let changes = HostDump::take(Some(&pair.a.site.node), &[])?.diff(&before);
    assert_eq!(changes, "", "{firewall:?}");
    pair.finish()
}

#[test]
fn direct_behind_an_iptables_nft_firewall() -> Result<()> {
    behind_firewall(Firewall::IptablesNft)
}

#[test]
fn direct_behind_an_iptables_legacy_firewall() -> Result<()> {
    behind_firewall(Firewall::IptablesLegacy)
}

/// Begun in the clear, each flow was translated; it must not stay so.
#[test]
fn older_flows_lose_their_translation() -> Result<()> {
    for masquerade in [
        Masquerade::Nft,
        Masquerade::IptablesNft,
        Masquerade::IptablesLegacy,
    ] {
        let spec = || SiteSpec::new(Profile::PortRestricted).masquerade(masquerade);
        let mut pair = Pair::new("older", spec(), spec())?;
        let pinger = pair.ping_from_a(100)?;
        wait_for(Duration::from_secs(5), "pings into the void", || {
            ensure!(pinger.so_far().count() > 20, "too few");
            Ok(())
        })?;
        let start = pair.start()?;
        let first = wait_for(Duration::from_secs(10), "the old flow arrives", || {
            pair.b
                .echo
                .arrivals(pinger.flow())
                .first()
                .context("nothing")
        })?;
        figure(
            &format!("{masquerade:?}: an older flow arrives after"),
            format!("{:?}", first.saturating_duration_since(start)),
        );
        let sources = pair.b.echo.arrivals(pinger.flow()).sources();
        let expected = pinger.address();
        assert_eq!(
            sources.into_iter().collect::<Vec<_>>(),
            [expected],
            "{masquerade:?}"
        );
        drop(pinger);
        pair.finish()?;
    }
    Ok(())
}
