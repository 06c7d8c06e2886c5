//! Reading `iptables -S`: who drops, and where an accept belongs.

use std::collections::BTreeMap;

use super::{Accept, Backend, Chain};
use crate::desired::Names;
use crate::nft::Hook;

/// Chains of network policy engines: what we carry is subject to them, so ours come after.
const POLICY_ENGINES: [&str; 10] = [
    "cali-",
    "KUBE-",
    "CILIUM",
    "DOCKER-USER",
    "ANTREA",
    "WEAVE",
    "OVN",
    "AWS-",
    "FLANNEL",
    "ufw-",
];

/// Deepest nesting of chains that is followed.
const MAX_DEPTH: u8 = 8;

/// The built-in chains in a listing of the filter table.
pub(crate) fn analyse(backend: Backend, listing: &str, names: &Names) -> Vec<Chain> {
    let table = Listing::parse(listing);
    [Hook::Forward, Hook::Input, Hook::Output]
        .into_iter()
        .filter_map(|hook| chain(backend, hook, &table, names))
        .collect()
}

fn chain(backend: Backend, hook: Hook, table: &Listing<'_>, names: &Names) -> Option<Chain> {
    let policy = table.policies.get(hook.chain())?;
    let rules = table.rules(hook.chain());
    let mut chain = Chain {
        backend,
        hook,
        drops: *policy == "DROP",
        ours: Vec::new(),
        placed: true,
        position: None,
    };
    let mut others = 0;
    for rule in rules {
        if let Some(accept) = rule.ours(names) {
            // A second copy is put right like a misplaced one.
            chain.placed &= chain.position.is_none() && !chain.ours.contains(&accept);
            chain.ours.push(accept);
            continue;
        }
        others += 1;
        if chain.position.is_some() {
            continue;
        }
        if table.ends(rule, hook, MAX_DEPTH) {
            chain.drops = true;
            chain.position = Some(others);
        } else if rule.is_policy_engine() && !chain.ours.is_empty() {
            chain.placed = false;
        }
    }
    Some(chain)
}

/// A filter table, split into words.
#[derive(Default)]
struct Listing<'a> {
    policies: BTreeMap<&'a str, &'a str>,
    chains: BTreeMap<&'a str, Vec<Rule<'a>>>,
}

struct Rule<'a> {
    words: Vec<&'a str>,
}

impl<'a> Listing<'a> {
    fn parse(listing: &'a str) -> Self {
        let mut table = Self::default();
        for line in listing.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("-P"), Some(chain)) => {
                    table
                        .policies
                        .insert(chain, words.next().unwrap_or_default());
                }
                (Some("-A"), Some(chain)) => {
                    let words = words.collect();
                    table.chains.entry(chain).or_default().push(Rule { words });
                }
                _ => {}
            }
        }
        table
    }

    fn rules(&self, chain: &str) -> &[Rule<'a>] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing of ours gets past `rule`: it drops all, or leads to a chain that does.
    fn ends(&self, rule: &Rule<'_>, hook: Hook, depth: u8) -> bool {
        let Some(target) = rule.target() else {
            return false;
        };
        if !rule.matches_ours(hook) || rule.is_policy_engine() || depth == 0 {
            return false;
        }
        match target {
            "DROP" | "REJECT" => true,
            chain => self
                .rules(chain)
                .iter()
                .take_while(|inner| !(inner.target() == Some("RETURN") && inner.matches_ours(hook)))
                .any(|inner| self.ends(inner, hook, depth.saturating_sub(1))),
        }
    }
}

impl Rule<'_> {
    fn after(&self, flag: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| *word == flag)?;
        self.words.get(at.checked_add(1)?).copied()
    }

    fn target(&self) -> Option<&str> {
        self.after("-j").or_else(|| self.after("-g"))
    }

    fn is_policy_engine(&self) -> bool {
        self.target()
            .is_some_and(|target| POLICY_ENGINES.iter().any(|name| target.starts_with(name)))
    }

    /// The accept this is, if it carries our comment.
    fn ours(&self, names: &Names) -> Option<Accept> {
        let comment = self.after("--comment")?;
        let bare = comment
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        if bare.unwrap_or(comment) != names.comment() || self.target() != Some("ACCEPT") {
            return None;
        }
        let port = |flag| self.after(flag).and_then(|port| port.parse().ok());
        let is_device = |flag| self.after(flag) == Some(names.device.as_str());
        if let Some(port) = port("--dport") {
            return Some(Accept::ToPort(port));
        }
        if let Some(port) = port("--sport") {
            return Some(Accept::FromPort(port));
        }
        if is_device("-i") {
            return Some(Accept::FromDevice);
        }
        is_device("-o").then_some(Accept::IntoDevice)
    }

    /// Whether its matches let in all packets of ours at `hook`.
    ///
    /// At the host's own hooks a rule for one interface, for UDP or for untracked packets is as good as one for
    /// all; among forwarded packets only a rule without matches is.
    fn matches_ours(&self, hook: Hook) -> bool {
        let mut words = self.words.iter().copied();
        while let Some(word) = words.next() {
            let fits = match word {
                "-j" | "-g" => return true,
                "-m" => words.next().is_some_and(|name| {
                    matches!(name, "comment" | "limit")
                        || (hook != Hook::Forward && matches!(name, "conntrack" | "state" | "udp"))
                }),
                "--comment" => skip_quoted(&mut words),
                "-i" | "-o" => {
                    hook != Hook::Forward && words.next().is_some_and(|name| name != "lo")
                }
                "-p" => hook != Hook::Forward && words.next() == Some("udp"),
                "--ctstate" | "--state" => words
                    .next()
                    .is_some_and(|states| states.split(',').any(|state| state == "UNTRACKED")),
                _ => false,
            };
            if !fits {
                return false;
            }
        }
        true
    }
}

/// Comments with blanks are quoted; the closing quote ends the last word.
fn skip_quoted<'a>(words: &mut impl Iterator<Item = &'a str>) -> bool {
    let Some(first) = words.next() else {
        return false;
    };
    let closed = |word: &str| word.ends_with('"') && !word.ends_with("\\\"");
    if first.starts_with('"') && !(first.len() > 1 && closed(first)) {
        return words.any(closed);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Flavour;

    const BACKEND: Backend = Backend {
        flavour: Flavour::Nft,
        v6: false,
    };

    fn one(hook: Hook, listing: &str) -> Chain {
        analyse(BACKEND, listing, &Names::default())
            .into_iter()
            .find(|chain| chain.hook == hook)
            .expect("chain")
    }

    #[test]
    fn who_drops_and_where_an_accept_belongs() {
        let cases = [
            (Hook::Forward, "-P FORWARD ACCEPT", false, None),
            (Hook::Forward, "-P FORWARD DROP", true, None),
            (
                Hook::Forward,
                "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER",
                true,
                None,
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -j cali-FORWARD\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -j KUBE-FORWARD",
                true,
                Some(2),
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -s 10.0.0.9/32 -j DROP",
                false,
                None,
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP",
                false,
                None,
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -j KUBE-FORWARD\n-A FORWARD -j RH-Firewall\n-A RH-Firewall -i lo -j ACCEPT\n-A RH-Firewall -j REJECT",
                true,
                Some(2),
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -j SOME\n-A SOME -j RETURN\n-A SOME -j DROP",
                false,
                None,
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -j LOOP\n-A LOOP -j LOOP",
                false,
                None,
            ),
            (
                Hook::Forward,
                "-P FORWARD ACCEPT\n-A FORWARD -m comment --comment \"cali: drop all\" -j DROP",
                true,
                Some(1),
            ),
            (
                Hook::Input,
                "-P INPUT ACCEPT\n-A INPUT -i lo -j DROP\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -i eth0 -p udp -m udp -j DROP",
                true,
                Some(3),
            ),
            (
                Hook::Input,
                "-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j DROP",
                false,
                None,
            ),
            (
                Hook::Output,
                "-P OUTPUT DROP\n-A OUTPUT -o lo -j ACCEPT",
                true,
                None,
            ),
        ];
        for (hook, listing, drops, position) in cases {
            let chain = one(hook, listing);
            assert_eq!(
                (chain.drops, chain.position),
                (drops, position),
                "{listing}"
            );
        }
    }

    #[test]
    fn ours_are_recognised_by_comment_alone() {
        let chain = one(
            Hook::Input,
            "-P INPUT DROP\n-A INPUT -p udp -m udp --dport 20443 -m comment --comment culvert -j ACCEPT\n-A INPUT -p udp -m udp --dport 20444 -m comment --comment \"culvert\" -j ACCEPT\n-A INPUT -p udp -m udp --dport 53 -j ACCEPT\n-A INPUT -p udp --dport 1 -m comment --comment \"culvert or so\" -j ACCEPT",
        );
        assert_eq!(chain.ours, [Accept::ToPort(20443), Accept::ToPort(20444)]);
        assert!(chain.placed);
    }

    #[test]
    fn placement_is_judged() {
        let ours = "-A FORWARD -i culvert0 -m comment --comment culvert -j ACCEPT\n-A FORWARD -o culvert0 -m comment --comment culvert -j ACCEPT";
        let cases = [
            (format!("-P FORWARD DROP\n{ours}"), true),
            (
                format!("-P FORWARD DROP\n-A FORWARD -j cali-FORWARD\n{ours}"),
                true,
            ),
            (
                format!("-P FORWARD DROP\n{ours}\n-A FORWARD -j cali-FORWARD"),
                false,
            ),
            (
                format!("-P FORWARD DROP\n{ours}\n-A FORWARD -i eth0 -j ACCEPT"),
                true,
            ),
            (
                format!("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n{ours}"),
                false,
            ),
            (
                format!("-P FORWARD ACCEPT\n{ours}\n-A FORWARD -j DROP"),
                true,
            ),
            (format!("-P FORWARD DROP\n{ours}\n{ours}"), false),
        ];
        for (listing, placed) in cases {
            let chain = one(Hook::Forward, &listing);
            assert_eq!(chain.placed, placed, "{listing}");
            assert!(chain.ours.len() >= 2);
        }
    }
}
