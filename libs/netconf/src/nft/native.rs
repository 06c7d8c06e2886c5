//! Base chains of others in nftables. A drop anywhere on a hook wins, whatever our table accepts, so a native
//! table that drops can only be opened by its owner.

use crate::desired::Names;

/// A netfilter hook at which packets of ours may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets passing through.
    Forward,
    /// Packets to the host.
    Input,
    /// Packets of the host.
    Output,
}

impl Hook {
    /// The built-in chain of iptables at this hook.
    pub(crate) fn chain(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Input => "INPUT",
            Self::Output => "OUTPUT",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "forward" => Some(Self::Forward),
            "input" => Some(Self::Input),
            "output" => Some(Self::Output),
            _ => None,
        }
    }
}

/// A base chain at one of our hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) family: String,
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) hook: Hook,
    pub(crate) drops: bool,
}

impl BaseChain {
    /// Whether iptables-nft may hold it; it uses exactly these names.
    pub(crate) fn is_iptables(&self) -> bool {
        matches!(self.family.as_str(), "ip" | "ip6")
            && self.table == "filter"
            && self.name == self.hook.chain()
    }
}

/// A native chain that drops what the tunnel carries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NativeDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// Where it sits.
    pub hook: Hook,
    /// What it would have to let through and does not, as nftables matches.
    pub matches: Vec<String>,
}

impl NativeDrop {
    /// What happened and the exact remedy.
    pub(crate) fn message(&self, device: &str, port: u16) -> String {
        let Self {
            family,
            table,
            chain,
            ..
        } = self;
        let remedy = if table == "firewalld" {
            format!(
                "run: firewall-cmd --permanent --zone=trusted --add-interface={device}; \
                 firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload"
            )
        } else {
            let rules: Vec<_> = self
                .matches
                .iter()
                .map(|what| format!("nft 'insert rule {family} {table} {chain} {what} accept'"))
                .collect();
            format!("run: {}", rules.join("; "))
        };
        format!(
            "chain {chain} of the nftables table {family} {table} drops packets of the tunnel; {remedy}"
        )
    }
}

/// The base chains in the answer of `nft list chains`, but for our own.
pub(crate) fn base_chains(listing: &str, names: &Names) -> Vec<BaseChain> {
    let mut found = Vec::new();
    let (mut table, mut chain) = (None, None);
    for line in listing.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["table", family, name, "{"] => table = Some((*family, *name)),
            ["chain", name, "{"] => chain = Some(*name),
            ["type", "filter", "hook", hook, ..] => {
                let place = table.zip(chain);
                let drops = words.ends_with(&["policy", "drop;"]);
                found.extend(place.and_then(|((family, table), name)| {
                    base_chain(family, table, name, hook, drops)
                }));
            }
            _ => {}
        }
    }
    found.retain(|chain| !(chain.family == "inet" && chain.table == names.nft_table));
    found
}

fn base_chain(family: &str, table: &str, name: &str, hook: &str, drops: bool) -> Option<BaseChain> {
    // Table and chain go back to nft as arguments, which it parses as a command.
    matches!(family, "ip" | "ip6" | "inet").then_some(())?;
    Some(BaseChain {
        family: family.to_owned(),
        table: identifier(table)?.to_owned(),
        name: identifier(name)?.to_owned(),
        hook: Hook::parse(hook)?,
        drops,
    })
}

fn identifier(name: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let first = name.bytes().next().filter(u8::is_ascii_alphabetic);
    first.filter(|_| name.bytes().all(plain)).map(|_| name)
}

/// Judges a native chain from its listing: does it drop at the end, and does it let us through before?
pub(crate) fn native_drop(
    chain: &BaseChain,
    listing: &str,
    device: &str,
    port: u16,
) -> Option<NativeDrop> {
    let rules: Vec<_> = listing.lines().map(str::trim).collect();
    let end = rules.iter().position(|rule| is_terminal(rule));
    if !chain.drops && end.is_none() {
        return None;
    }
    let before = rules.get(..end.unwrap_or(rules.len())).unwrap_or_default();
    let matches: Vec<_> = needed(chain.hook, device, port)
        .into_iter()
        .filter(|need| !before.iter().any(|rule| need.is_met_by(rule)))
        .map(|need| need.text)
        .collect();
    (!matches.is_empty()).then(|| NativeDrop {
        family: chain.family.clone(),
        table: chain.table.clone(),
        chain: chain.name.clone(),
        hook: chain.hook,
        matches,
    })
}

struct Need {
    text: String,
    words: [String; 2],
}

impl Need {
    /// Close enough: an accept that names the same thing on the same side.
    fn is_met_by(&self, rule: &str) -> bool {
        let mut words = rule.split([' ', ',']);
        let [side, what] = &self.words;
        rule.contains("accept") && words.any(|word| word == side) && words.any(|word| word == what)
    }
}

fn needed(hook: Hook, device: &str, port: u16) -> Vec<Need> {
    let need = |prefix: &str, side: &str, what: String| Need {
        text: format!("{prefix}{side} {what}"),
        words: [side.to_owned(), what],
    };
    let device = format!("\"{device}\"");
    match hook {
        Hook::Forward => vec![
            need("", "iifname", device.clone()),
            need("", "oifname", device),
        ],
        Hook::Input => vec![need("udp ", "dport", port.to_string())],
        Hook::Output => vec![need("udp ", "sport", port.to_string())],
    }
}

/// A rule without matches that ends in a drop or a reject.
fn is_terminal(rule: &str) -> bool {
    let verdict = |word: &str| word == "drop" || word == "reject";
    let rest = rule.strip_prefix("counter ").unwrap_or(rule);
    let rest = match rest.strip_prefix("packets ") {
        Some(counted) => counted
            .split_once(" bytes ")
            .and_then(|(_, rest)| rest.split_once(' ')),
        None => Some(("", rest)),
    };
    rest.and_then(|(_, rest)| rest.split(' ').next())
        .is_some_and(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "table inet culvert {
\tchain egress {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain KUBE-FORWARD {
\t}
}
table ip nat {
\tchain POSTROUTING {
\t\ttype nat hook output priority srcnat; policy accept;
\t}
}
table inet guard {
\tchain in {
\t\ttype filter hook input priority filter; policy drop;
\t}
\tchain pre {
\t\ttype filter hook prerouting priority filter; policy drop;
\t}
\tchain a;b {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table bridge guard {
\tchain b {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
";

    #[test]
    fn only_foreign_ip_base_chains_with_plain_names_count() {
        let chains = base_chains(CHAINS, &Names::default());
        let names: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["FORWARD", "in"]);
        let iptables: Vec<_> = chains.iter().map(BaseChain::is_iptables).collect();
        assert_eq!(iptables, [true, false]);
        assert!(chains.iter().all(|chain| chain.drops));
        assert_eq!(base_chains("what", &Names::default()), []);
    }

    fn chain(hook: Hook, drops: bool) -> BaseChain {
        BaseChain {
            family: "inet".to_owned(),
            table: "guard".to_owned(),
            name: "in".to_owned(),
            hook,
            drops,
        }
    }

    #[test]
    fn a_drop_is_reported_unless_we_are_let_through_before_it() {
        let cases = [
            (Hook::Input, true, "ct state established accept", 1),
            (Hook::Input, true, "udp dport 20443 accept", 0),
            (Hook::Input, true, "udp dport { 53, 20443 } accept", 0),
            (Hook::Input, true, "udp dport 2044 accept", 1),
            (Hook::Input, false, "tcp dport 22 accept", 0),
            (Hook::Input, false, "counter packets 3 bytes 9 drop", 1),
            (Hook::Input, false, "drop\nudp dport 20443 accept", 1),
            (Hook::Input, false, "ip saddr 1.2.3.4 drop", 0),
            (Hook::Forward, true, "iifname \"culvert0\" accept", 1),
            (
                Hook::Forward,
                true,
                "iifname \"culvert0\" accept\noifname \"culvert0\" accept",
                0,
            ),
            (
                Hook::Forward,
                false,
                "reject with icmpx admin-prohibited",
                2,
            ),
            (Hook::Output, true, "", 1),
        ];
        for (hook, drops, listing, missing) in cases {
            let found = native_drop(&chain(hook, drops), listing, "culvert0", 20443);
            let count = found.map_or(0, |found| found.matches.len());
            assert_eq!(count, missing, "{hook:?} {drops} {listing}");
        }
    }

    #[test]
    fn the_message_is_a_command() {
        let found = native_drop(&chain(Hook::Input, true), "", "culvert0", 20443).expect("drops");
        let message = found.message("culvert0", 20443);
        assert!(
            message.contains("nft 'insert rule inet guard in udp dport 20443 accept'"),
            "{message}"
        );
    }
}
