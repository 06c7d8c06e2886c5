//! Longest-prefix match from an inner destination to a remote node.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes and what each leads to; the most specific wins.
#[derive(Clone, Debug)]
pub(crate) struct PrefixTable<T> {
    v4: Vec<Level<T>>,
    v6: Vec<Level<T>>,
}

/// All prefixes of one length, keyed by their network bits.
#[derive(Clone, Debug)]
struct Level<T> {
    length: u8,
    entries: HashMap<u128, T>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self {
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl<T> PrefixTable<T> {
    pub(crate) fn insert(&mut self, prefix: IpNet, value: T) {
        let (levels, bits) = match prefix {
            IpNet::V4(net) => (&mut self.v4, u128::from(u32::from(net.network()))),
            IpNet::V6(net) => (&mut self.v6, u128::from(net.network())),
        };
        let length = prefix.prefix_len();
        let at = levels.partition_point(|level| level.length > length);
        if levels.get(at).is_none_or(|level| level.length != length) {
            levels.insert(
                at,
                Level {
                    length,
                    entries: HashMap::new(),
                },
            );
        }
        if let Some(level) = levels.get_mut(at) {
            level.entries.insert(bits, value);
        }
    }

    pub(crate) fn lookup(&self, address: IpAddr) -> Option<&T> {
        let (levels, bits, width) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(u32::from(v4)), 32_u32),
            IpAddr::V6(v6) => (&self.v6, u128::from(v6), 128),
        };
        levels
            .iter()
            .find_map(|level| level.entries.get(&masked(bits, width, level.length)))
    }
}

fn masked(bits: u128, width: u32, length: u8) -> u128 {
    let drop = width.saturating_sub(u32::from(length));
    bits.checked_shr(drop)
        .and_then(|kept| kept.checked_shl(drop))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[&'static str]) -> PrefixTable<&'static str> {
        let mut table = PrefixTable::default();
        for entry in entries {
            table.insert(entry.parse().unwrap(), *entry);
        }
        table
    }

    #[test]
    fn the_most_specific_prefix_wins() {
        let table = table(&["10.0.0.0/8", "10.2.0.0/16", "10.2.3.0/24", "10.2.3.4/32"]);
        let found = |ip: &str| table.lookup(ip.parse().unwrap()).copied();
        assert_eq!(found("10.2.3.4"), Some("10.2.3.4/32"));
        assert_eq!(found("10.2.3.5"), Some("10.2.3.0/24"));
        assert_eq!(found("10.2.9.9"), Some("10.2.0.0/16"));
        assert_eq!(found("10.9.9.9"), Some("10.0.0.0/8"));
        assert_eq!(found("11.0.0.1"), None);
    }

    #[test]
    fn families_do_not_mix() {
        let table = table(&["::/1", "fd00:1::/64", "128.0.0.0/1"]);
        let found = |ip: &str| table.lookup(ip.parse().unwrap()).copied();
        assert_eq!(found("fd00:1::9"), Some("fd00:1::/64"));
        assert_eq!(found("192.0.2.1"), Some("128.0.0.0/1"));
        assert_eq!(found("10.0.0.1"), None);
        assert_eq!(found("2001:db8::1"), Some("::/1"));
    }
}
