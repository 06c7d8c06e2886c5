//! Reading our own table back from `nft -s list table`.

use std::net::IpAddr;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use super::{SETS, Sets, Table, digest};

/// Most lines of one listing that are looked at.
const MAX_LINES: usize = 200_000;

/// Judges a listing; `made` is the digest taken when the table was made.
pub(crate) fn parse(listing: &str, made: Option<u64>) -> Table {
    if listing.trim().is_empty() {
        return Table::Absent;
    }
    let split = split(listing);
    let owners: Vec<_> = listing.lines().filter_map(owner).collect();
    match owners.as_slice() {
        [] => Table::Foreign,
        [structure] => Table::Ours {
            structure: Some(*structure),
            intact: split.readable && made == Some(digest(&split.rules)),
            sets: split.sets,
        },
        _ => Table::Ours {
            structure: None,
            intact: false,
            sets: split.sets,
        },
    }
}

/// The digest to remember for a table that was just made.
pub(crate) fn rules_digest(listing: &str) -> u64 {
    digest(&split(listing).rules)
}

#[derive(Default)]
struct Split {
    /// Every line but those of set elements.
    rules: String,
    sets: Sets,
    /// Every element was understood.
    readable: bool,
}

fn split(listing: &str) -> Split {
    let mut split = Split {
        readable: true,
        ..Split::default()
    };
    let mut set = None;
    let mut inside = false;
    for line in listing.lines().take(MAX_LINES).map(str::trim) {
        if let Some(name) = set_name(line) {
            set = Some(name);
        }
        let elements = match (inside, line.strip_prefix("elements = {")) {
            (true, _) => line,
            (false, Some(rest)) => rest,
            (false, None) => {
                split.rules += line;
                split.rules.push('\n');
                continue;
            }
        };
        inside = !elements.ends_with('}');
        for text in elements.trim_end_matches('}').split(',').map(str::trim) {
            split.add(set, text);
        }
    }
    split
}

impl Split {
    fn add(&mut self, set: Option<&str>, text: &str) {
        if text.is_empty() {
            return;
        }
        let (Some(set), Some(nets)) = (set, element(text)) else {
            self.readable = false;
            return;
        };
        for net in nets {
            self.sets.insert(set, net);
        }
    }
}

/// `set remote4 {` is `remote`.
fn set_name(line: &str) -> Option<&'static str> {
    let name = line.strip_prefix("set ")?.strip_suffix(" {")?;
    let name = name.strip_suffix(['4', '6'])?;
    SETS.into_iter().find(|known| *known == name)
}

/// `chain owner_0123456789abcdef {` is the number.
fn owner(line: &str) -> Option<u64> {
    let name = line
        .trim()
        .strip_prefix("chain owner_")?
        .strip_suffix(" {")?;
    u64::from_str_radix(name, 16).ok()
}

/// A prefix, an address or a range of at most a few prefixes.
fn element(text: &str) -> Option<Vec<IpNet>> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(vec![net]);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(vec![IpNet::from(address)]);
    }
    let (from, to) = text.split_once('-')?;
    let subnets = match (from.parse().ok()?, to.parse().ok()?) {
        (IpAddr::V4(from), IpAddr::V4(to)) => IpSubnets::V4(Ipv4Subnets::new(from, to, 0)),
        (IpAddr::V6(from), IpAddr::V6(to)) => IpSubnets::V6(Ipv6Subnets::new(from, to, 0)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    Some(subnets.take(256).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "table inet culvert {
\tset remote4 {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.2.0.0/24, 10.2.2.0/24,
\t\t\t     10.99.0.1, 10.4.0.0-10.4.2.255 }
\t}

\tset local6 {
\t\ttype ipv6_addr
\t\telements = { fd00:1::/64 }
\t}

\tchain owner_00000000000000ff {
\t}
}
";

    fn texts(nets: &std::collections::BTreeSet<IpNet>) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn elements_and_owner_are_read() {
        let made = Some(rules_digest(LISTING));
        let Table::Ours {
            structure,
            intact,
            sets,
        } = parse(LISTING, made)
        else {
            panic!("ours");
        };
        assert_eq!(structure, Some(255));
        assert!(intact);
        assert_eq!(
            texts(&sets.remote),
            [
                "10.2.0.0/24",
                "10.2.2.0/24",
                "10.4.0.0/23",
                "10.4.2.0/24",
                "10.99.0.1/32"
            ]
        );
        assert_eq!(texts(&sets.local), ["fd00:1::/64"]);
    }

    #[test]
    fn elements_do_not_count_as_rules() {
        let fewer = LISTING.replace("10.2.2.0/24,\n\t\t\t     ", "");
        assert_eq!(rules_digest(&fewer), rules_digest(LISTING));
        let tampered = LISTING.replace("flags interval", "flags timeout");
        assert_ne!(rules_digest(&tampered), rules_digest(LISTING));
    }

    #[test]
    fn strange_tables_are_not_ours_or_not_intact() {
        assert_eq!(parse("", None), Table::Absent);
        assert_eq!(parse("table inet culvert {\n}\n", None), Table::Foreign);
        let strange = LISTING.replace("fd00:1::/64", "what");
        let made = Some(rules_digest(&strange));
        assert!(matches!(
            parse(&strange, made),
            Table::Ours { intact: false, .. }
        ));
        let twice = LISTING.replace("}\n}", "}\n\tchain owner_01 {\n\t}\n}");
        assert!(matches!(
            parse(&twice, None),
            Table::Ours {
                structure: None,
                ..
            }
        ));
    }
}
