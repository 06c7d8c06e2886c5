//! From the prefixes of nodes to the range that they come from.

use ipnet::IpNet;

/// A range that holds all prefixes of its family is believed if it is no larger than this: controller managers cut the
/// nodes' prefixes out of one range, of which only parts are seen.
const WIDEST_V4: u8 = 16;
/// The same for IPv6.
const WIDEST_V6: u8 = 48;

/// Few ranges that hold all prefixes: one per family where they lie close together.
pub(super) fn collapse(prefixes: Vec<IpNet>) -> Vec<IpNet> {
    let (v4, v6): (Vec<_>, Vec<_>) = prefixes
        .into_iter()
        .partition(|prefix| prefix.addr().is_ipv4());
    [family(v4, WIDEST_V4), family(v6, WIDEST_V6)].concat()
}

/// Those that lie in one of the ranges, sorted, each once.
pub(crate) fn within(ranges: &[IpNet], mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
    prefixes.retain(|prefix| ranges.iter().any(|range| range.contains(prefix)));
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

fn family(prefixes: Vec<IpNet>, widest: u8) -> Vec<IpNet> {
    match covering(&prefixes) {
        Some(range) if range.prefix_len() >= widest => vec![range],
        Some(_) | None => IpNet::aggregate(&prefixes),
    }
}

/// The smallest range that holds all of them.
fn covering(prefixes: &[IpNet]) -> Option<IpNet> {
    let mut range = prefixes.first()?.trunc();
    while !prefixes.iter().all(|prefix| range.contains(prefix)) {
        range = range.supernet()?;
    }
    Some(range)
}
