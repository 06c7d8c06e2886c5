//! What may happen to links and routers while traffic flows.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::site::Site;

/// How UDP between two sites is cut at the core. TCP, and so the relay, stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Silently, both ways.
    BothWays,
    /// Silently, from the first site to the second only.
    OneWay,
    /// Both ways, and the core says so by ICMP host unreachable.
    Unreachable,
}

impl Cut {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::BothWays, Self::OneWay, Self::Unreachable];

    fn verdict(self) -> &'static str {
        match self {
            Self::BothWays | Self::OneWay => "drop",
            Self::Unreachable => "reject with icmpx type host-unreachable",
        }
    }
}

impl Lab {
    /// Cuts UDP from `a` to `b`, and unless one way, from `b` to `a`. Replaces any earlier cut in the lab.
    pub fn cut(&self, a: &Site, b: &Site, cut: Cut) -> Result<()> {
        let mut rules = rule(a, b, cut);
        if cut != Cut::OneWay {
            rules += &rule(b, a, cut);
        }
        self.core().nft(&format!(
            "table inet cut\ndelete table inet cut\ntable inet cut {{\n chain through {{\n  \
             type filter hook forward priority 0;\n{rules} }}\n}}\n"
        ))
    }

    /// Takes any cut back.
    pub fn restore(&self) -> Result<()> {
        self.core().nft("table inet cut\ndelete table inet cut\n")
    }

    /// The router forgets every flow, as one that was switched off and on.
    pub fn forget_flows(&self, site: &Site) -> Result<()> {
        site.uplink().exec("conntrack", &["-F"]).map(drop)
    }

    /// Gives a site's uplink another public address, the next one of its subnet, and forgets its flows as such a router does.
    pub fn renumber(&self, site: &mut Site) -> Result<Ipv4Addr> {
        let [.., last] = site.wan.octets();
        let place = last % 8;
        let next = site.link.address(if place >= 6 { 2 } else { place + 1 });
        site.uplink().ip(&[
            &format!("addr del {}/29 dev wan", site.wan),
            &format!("addr add {next}/29 dev wan"),
            &format!("route replace default via {}", site.link.core()),
        ])?;
        site.wan = next;
        self.forget_flows(site)
            .context("the address is changed, but old flows keep the old one")?;
        Ok(next)
    }
}

fn rule(from: &Site, to: &Site, cut: Cut) -> String {
    let (a, b, verdict) = (from.link, to.link, cut.verdict());
    format!(
        "  ip saddr {} ip daddr {} meta l4proto udp {verdict}\n  ip6 saddr {} ip6 daddr {} meta l4proto udp {verdict}\n",
        a.subnet(),
        b.subnet(),
        a.subnet6(),
        b.subnet6()
    )
}
