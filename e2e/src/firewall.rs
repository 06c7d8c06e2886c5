//! Firewalls on a node itself: everything is dropped but what answers.

use anyhow::Result;

use crate::site::Site;

/// Which program the host's firewall was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    /// `iptables` over nftables.
    IptablesNft,
    /// `iptables` with its own tables in the kernel.
    IptablesLegacy,
}

impl Firewall {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::IptablesNft, Self::IptablesLegacy];

    /// The program.
    pub fn program(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Sets INPUT and FORWARD of the site's node to DROP, with accepts for loopback and for established flows only.
    pub fn install(self, site: &Site) -> Result<()> {
        for rule in [
            "-A INPUT -i lo -j ACCEPT",
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-P INPUT DROP",
            "-P FORWARD DROP",
        ] {
            let words: Vec<_> = ["-w", "10"].into_iter().chain(rule.split(' ')).collect();
            site.node.exec(self.program(), &words)?;
        }
        Ok(())
    }
}
