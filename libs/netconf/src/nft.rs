//! Our nftables table: rendering, reading back, and what native tables of others drop.
//!
//! The text given to `nft -f -` is made of typed values only. The table holds, in the order a packet meets them:
//!
//! * `port_in`, `port_out`: the tunnel's UDP port is exempt from connection tracking, so no pod can claim it;
//! * `ingress`: from the device come only mesh sources to local destinations;
//! * `clamp_*`: TCP MSS of both directions fits the device;
//! * `keep_source`: identity source NAT one step before everybody's masquerade, whose binding then stands;
//! * `egress`: nothing for a mesh prefix leaves by another device.
//!
//! An empty chain `owner_<hash>` marks the table as ours and says which structure it has.

mod listing;
mod native;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use crate::desired::{Desired, Names, host, is_v6};
use crate::exec::Program;
use crate::report::CommandError;

pub(crate) use listing::{parse, rules_digest};
pub(crate) use native::{BaseChain, base_chains, native_drop};
pub use native::{Hook, NativeDrop};

/// The program.
pub(crate) const NFT: Program = Program {
    name: "nft",
    package: "nftables",
};

/// State of the nftables table of our name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Table {
    /// There is none.
    #[default]
    Absent,
    /// The `nft` program could not say.
    Unknown(String),
    /// It has no owner mark: somebody else's.
    Foreign,
    /// Ours.
    Ours {
        /// The structure its owner mark names; `None` when there are several marks.
        structure: Option<u64>,
        /// Its rules are as they were when it was made.
        intact: bool,
        /// The elements of its sets.
        sets: Sets,
    },
}

/// Elements of the three address sets, aggregated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sets {
    /// What this node serves.
    pub local: BTreeSet<IpNet>,
    /// What has a live peer.
    pub remote: BTreeSet<IpNet>,
    /// What must not leave in the clear.
    pub held: BTreeSet<IpNet>,
}

/// Names of the sets without the family digit.
const SETS: [&str; 3] = ["local", "remote", "held"];

impl Sets {
    /// The sets for `desired`. Set elements may not overlap, so nested prefixes merge.
    pub(crate) fn of(desired: &Desired) -> Self {
        let aggregate = |nets: Vec<IpNet>| IpNet::aggregate(&nets).into_iter().collect();
        let own = desired.addresses.iter().map(host);
        let held = desired.held.iter().chain(&desired.remote);
        let remote = if desired.device {
            desired.remote.iter().map(IpNet::trunc).collect()
        } else {
            Vec::new()
        };
        Self {
            local: aggregate(desired.local.iter().map(IpNet::trunc).chain(own).collect()),
            remote: aggregate(remote),
            held: aggregate(held.map(IpNet::trunc).collect()),
        }
    }

    fn named(&self, name: &str) -> &BTreeSet<IpNet> {
        match name {
            "local" => &self.local,
            "remote" => &self.remote,
            _ => &self.held,
        }
    }

    fn insert(&mut self, name: &str, net: IpNet) {
        match name {
            "local" => self.local.insert(net),
            "remote" => self.remote.insert(net),
            _ => self.held.insert(net),
        };
    }

    /// Elements of one set and family, as nftables writes them; empty: none.
    fn elements(&self, name: &str, v6: bool) -> String {
        let texts: Vec<_> = self
            .named(name)
            .iter()
            .filter(|net| is_v6(net) == v6)
            .map(ToString::to_string)
            .collect();
        texts.join(", ")
    }
}

/// The hash of the table's structure: everything but set elements.
pub(crate) fn structure(names: &Names, desired: &Desired) -> u64 {
    digest(&body(names, desired, &Sets::default()))
}

/// Text that makes the table anew in one transaction, whatever was there before.
pub(crate) fn render(names: &Names, desired: &Desired) -> String {
    let table = &names.nft_table;
    let body = body(names, desired, &Sets::of(desired));
    let owner = structure(names, desired);
    format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
         \tchain owner_{owner:016x} {{\n\t}}\n{body}}}\n"
    )
}

/// Text that makes the sets of a table with elements `from` hold `to`; flows and counters survive.
pub(crate) fn render_sets(names: &Names, from: &Sets, to: &Sets) -> String {
    let table = &names.nft_table;
    let mut text = String::new();
    for name in SETS {
        for (v6, digit) in [(false, 4), (true, 6)] {
            let elements = to.elements(name, v6);
            if from.elements(name, v6) == elements {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "flush set inet {table} {name}{digit}");
            if !elements.is_empty() {
                let _ = writeln!(
                    text,
                    "add element inet {table} {name}{digit} {{ {elements} }}"
                );
            }
        }
    }
    text
}

/// Text that removes the table.
pub(crate) fn render_delete(names: &Names) -> String {
    format!("delete table inet {}\n", names.nft_table)
}

/// Runs a transaction.
pub(crate) async fn load(text: &str) -> Result<(), CommandError> {
    NFT.run(&["-f", "-"], text).await.map(drop)
}

/// Lists our table without counters; the empty text if there is none.
pub(crate) async fn list(names: &Names) -> Result<String, CommandError> {
    let args = ["-s", "list", "table", "inet", &names.nft_table];
    match NFT.run(&args, "").await {
        Err(CommandError::Failed { stderr, .. }) if stderr.contains("No such file") => {
            Ok(String::new())
        }
        other => other,
    }
}

/// FNV-1a, 64 bits: stable over builds, and nothing here needs more than noticing a change.
pub(crate) fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn body(names: &Names, desired: &Desired, sets: &Sets) -> String {
    let device = &names.device;
    let mut text = String::new();
    for name in SETS {
        text += &set(name, false, sets);
        text += &set(name, true, sets);
    }
    text += &port_chains(desired.listen_port);
    text += &filter_chains(device);
    text += &clamp_chains(device, desired.mtu);
    text += KEEP_SOURCE;
    text
}

fn set(name: &str, v6: bool, sets: &Sets) -> String {
    let (digit, kind) = if v6 {
        (6, "ipv6_addr")
    } else {
        (4, "ipv4_addr")
    };
    let elements = sets.elements(name, v6);
    let elements = if elements.is_empty() {
        elements
    } else {
        format!("\t\telements = {{ {elements} }}\n")
    };
    format!("\tset {name}{digit} {{\n\t\ttype {kind}\n\t\tflags interval\n{elements}\t}}\n")
}

/// Packets that kube-proxy marked 0x4000 must be masqueraded (hairpin, `externalTrafficPolicy: Cluster`).
const KEEP_SOURCE: &str = "\tchain keep_source {
\t\ttype nat hook postrouting priority 99; policy accept;
\t\tmeta mark & 0x4000 == 0x4000 return
\t\tip saddr @local4 ip daddr @remote4 snat ip to ip saddr
\t\tip saddr @remote4 ip daddr @local4 snat ip to ip saddr
\t\tip6 saddr @local6 ip6 daddr @remote6 snat ip6 to ip6 saddr
\t\tip6 saddr @remote6 ip6 daddr @local6 snat ip6 to ip6 saddr
\t}
";

fn port_chains(port: u16) -> String {
    if port == 0 {
        return String::new();
    }
    format!(
        "\tchain port_in {{
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tudp dport {port} fib daddr type local notrack
\t}}
\tchain port_out {{
\t\ttype filter hook output priority -300; policy accept;
\t\tudp sport {port} notrack
\t}}
"
    )
}

/// `lo` is let out because a packet to one of our own addresses leaves through it.
fn filter_chains(device: &str) -> String {
    format!(
        "\tchain ingress {{
\t\ttype filter hook prerouting priority -299; policy accept;
\t\tiifname != \"{device}\" return
\t\tip saddr @remote4 ip daddr @local4 return
\t\tip6 saddr @remote6 ip6 daddr @local6 return
\t\tcounter drop
\t}}
\tchain egress {{
\t\ttype filter hook postrouting priority 300; policy accept;
\t\toifname {{ \"lo\", \"{device}\" }} return
\t\tip daddr @held4 counter drop
\t\tip6 daddr @held6 counter drop
\t}}
"
    )
}

/// The kernel only ever lowers the option, so a smaller MSS passes. TCP and IP headers take 40 and 60 bytes (RFC 9293, 3.7.1).
fn clamp_chains(device: &str, mtu: u32) -> String {
    let mut text = String::new();
    let hooks = [
        ("forward", &["iifname", "oifname"][..]),
        ("input", &["iifname"]),
        ("output", &["oifname"]),
    ];
    for (hook, sides) in hooks {
        let _ = writeln!(
            text,
            "\tchain clamp_{hook} {{\n\t\ttype filter hook {hook} priority -150; policy accept;"
        );
        for side in sides {
            for (family, headers) in [("ipv4", 40), ("ipv6", 60)] {
                let mss = mtu.saturating_sub(headers).clamp(1, 65_535);
                let _ = writeln!(
                    text,
                    "\t\t{side} \"{device}\" meta nfproto {family} tcp flags & (syn | rst) == syn \
                     tcp option maxseg size set {mss}"
                );
            }
        }
        text += "\t}\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn desired() -> Desired {
        Desired {
            mtu: 1280,
            listen_port: 20443,
            addresses: vec![net("10.99.0.1/24")],
            local: vec![net("10.1.0.0/16"), net("fd00:1::/64")],
            remote: vec![net("10.2.0.0/16"), net("10.2.3.0/24"), net("fd00:2::/64")],
            held: vec![net("10.3.0.0/16")],
            device: true,
        }
    }

    #[test]
    fn sets_are_aggregated_and_complete() {
        let sets = Sets::of(&desired());
        let nets = |texts: &[&str]| texts.iter().copied().map(net).collect::<BTreeSet<_>>();
        assert_eq!(
            sets.local,
            nets(&["10.1.0.0/16", "10.99.0.1/32", "fd00:1::/64"])
        );
        assert_eq!(sets.remote, nets(&["10.2.0.0/16", "fd00:2::/64"]));
        assert_eq!(sets.held, nets(&["10.2.0.0/15", "fd00:2::/64"]));
    }

    #[test]
    fn structure_is_independent_of_elements_and_depends_on_the_rest() {
        let names = Names::default();
        let base = structure(&names, &desired());
        let mut other = desired();
        other.remote.clear();
        assert_eq!(structure(&names, &other), base);
        other.listen_port += 1;
        assert_ne!(structure(&names, &other), base);
        other.listen_port -= 1;
        other.mtu = 1400;
        assert_ne!(structure(&names, &other), base);
    }

    #[test]
    fn only_changed_sets_are_written() {
        let from = Sets::of(&desired());
        let mut to = from.clone();
        to.remote.remove(&net("fd00:2::/64"));
        let names = Names::default();
        assert_eq!(render_sets(&names, &from, &from), "");
        assert_eq!(
            render_sets(&names, &from, &to),
            "flush set inet culvert remote6\n"
        );
        assert_eq!(
            render_sets(&names, &to, &from),
            "flush set inet culvert remote6\nadd element inet culvert remote6 { fd00:2::/64 }\n"
        );
    }

    #[tokio::test]
    async fn nft_accepts_what_is_rendered() {
        let mut idle = desired();
        idle.listen_port = 0;
        idle.remote.clear();
        for desired in [desired(), idle, Desired::default()] {
            let text = render(&Names::default(), &desired);
            NFT.run(&["-c", "-f", "-"], &text)
                .await
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
    }
}
