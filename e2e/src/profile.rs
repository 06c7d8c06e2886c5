//! What a site's router does to its packets.

use std::fmt;
use std::str::FromStr;

/// A router's behaviour. More come; a match outside this module should not expect these to be all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Profile {
    /// No router: the node itself has the public address.
    Public,
    /// One mapping for all destinations, and anybody may answer to it.
    FullCone,
    /// One mapping for all destinations; only an address and port that was sent to may answer.
    PortRestricted,
    /// A random mapping for each destination; only that destination may answer.
    Symmetric,
    /// No UDP passes, in either direction; TCP does.
    UdpBlocked,
    /// Port-restricted, but the router itself accepts what nobody asked for: an early probe takes the port away from the
    /// flow that it was meant to meet.
    Poisoned,
}

impl Profile {
    /// Every profile there is.
    pub const ALL: [Self; 6] = [
        Self::Public,
        Self::FullCone,
        Self::PortRestricted,
        Self::Symmetric,
        Self::UdpBlocked,
        Self::Poisoned,
    ];

    /// The name that the command line knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::FullCone => "full-cone",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::UdpBlocked => "udp-blocked",
            Self::Poisoned => "poisoned",
        }
    }

    /// What a person should know about it, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Self::Public => "no NAT, a public address",
            Self::FullCone => "one public port for all, open to all",
            Self::PortRestricted => "one public port for all, open to those who were sent to",
            Self::Symmetric => "another public port for each destination",
            Self::UdpBlocked => "no UDP at all",
            Self::Poisoned => "port-restricted, and confused by early probes",
        }
    }

    /// Whether the site has a router at all.
    pub fn has_router(self) -> bool {
        self != Self::Public
    }

    /// The router's nftables rules for IPv4. The wide-area interface is `wan`.
    pub(crate) fn rules(self) -> String {
        match self {
            Self::Public => String::new(),
            Self::FullCone => [FULL_CONE, INPUT_DROP].concat(),
            Self::PortRestricted => [MASQUERADE, INPUT_DROP, FORWARD_DROP].concat(),
            Self::Symmetric => [RANDOM_MASQUERADE, INPUT_DROP, FORWARD_DROP].concat(),
            Self::UdpBlocked => [MASQUERADE, INPUT_DROP, FORWARD_DROP, UDP_DROP].concat(),
            Self::Poisoned => [MASQUERADE, FORWARD_DROP].concat(),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|profile| profile.name() == text);
        found
            .copied()
            .ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}

/// The text names no [`Profile`].
#[derive(Debug, thiserror::Error)]
#[error(
    "no NAT profile {0:?}; there are: public, full-cone, port-restricted, symmetric, udp-blocked, poisoned"
)]
pub struct UnknownProfile(String);

/// How a pair of sites ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A direct path.
    Direct,
    /// The relay, for this reason at both ends.
    Relay(&'static str),
}

impl Outcome {
    /// What two routers allow.
    pub fn of(a: Profile, b: Profile) -> Self {
        let either = |profile| a == profile || b == profile;
        if either(Profile::UdpBlocked) {
            Self::Relay("UdpBlocked")
        } else if either(Profile::Public) || either(Profile::FullCone) {
            Self::Direct
        } else if a == Profile::Symmetric && b == Profile::Symmetric {
            Self::Relay("BothNatsHard")
        } else if either(Profile::Symmetric) {
            Self::Relay("HardNatAgainstPortRestricted")
        } else {
            Self::Direct
        }
    }
}

/// What makes an IPv6 router: a stateful firewall and no translation.
pub(crate) const IPV6_FIREWALL: &str = r#"
table ip6 wall {
  chain through {
    type filter hook forward priority 0;
    iifname "wan" ct state established,related accept
    iifname "wan" meta l4proto ipv6-icmp accept
    iifname "wan" drop
  }
}
"#;

const MASQUERADE: &str = r#"
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade
  }
}
"#;

const RANDOM_MASQUERADE: &str = r#"
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade fully-random
  }
}
"#;

/// The map is learnt behind NAT, so that it holds the port a flow really got.
const FULL_CONE: &str = r#"
table ip nat {
  map cone {
    type inet_service : ipv4_addr . inet_service;
    flags dynamic,timeout; timeout 300s; size 65535;
  }
  chain pre {
    type nat hook prerouting priority dstnat;
    iifname "wan" meta l4proto udp dnat ip to udp dport map @cone
  }
  chain post {
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade
  }
  chain learn {
    type filter hook postrouting priority srcnat + 10;
    oifname "wan" meta l4proto udp ct direction original update @cone { udp sport : ct original ip saddr . ct original proto-src }
  }
}
"#;

/// Without it an unsolicited datagram is confirmed by conntrack, and takes its port from the flow going out to the same peer.
const INPUT_DROP: &str = r#"
table ip self {
  chain in {
    type filter hook input priority 0;
    iifname "wan" ct state established,related accept
    iifname "wan" ip protocol icmp accept
    iifname "wan" drop
  }
}
"#;

const FORWARD_DROP: &str = r#"
table ip wall {
  chain through {
    type filter hook forward priority 0;
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }
}
"#;

const UDP_DROP: &str = r#"
table ip block {
  chain through {
    type filter hook forward priority -5;
    meta l4proto udp drop
  }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse::<Profile>().expect("a name"), profile);
        }
        assert!("cone".parse::<Profile>().is_err());
    }
}
