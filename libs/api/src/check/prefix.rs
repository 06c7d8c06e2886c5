//! Prefixes: form, and the ranges that nobody may claim.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Findings, quote};
use crate::{Code, Problem};

/// A prefix, and the place in its list where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) index: usize,
    pub(super) prefix: IpNet,
}

/// Checks a list of prefixes, each occurring once.
pub(super) fn check_list(found: &mut Findings, field: &str, texts: &[String]) -> Vec<Listed> {
    let mut listed = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Some(prefix) = found.take(check_prefix(&field, text)) else {
            continue;
        };
        if !seen.insert(prefix) {
            found.add(
                field,
                Code::DuplicatePrefix,
                format!("{prefix} occurs twice in this list; remove one"),
            );
        } else {
            listed.push(Listed { index, prefix });
        }
    }
    listed
}

/// The prefixes without their places.
pub(super) fn without_places(listed: &[Listed]) -> Vec<IpNet> {
    listed.iter().map(|listed| listed.prefix).collect()
}

/// Checks one prefix: `address/length`, no host bits, nothing special.
///
/// # Errors
/// With the code of the rule that is broken.
pub fn check_prefix(field: &str, text: &str) -> Result<IpNet, Problem> {
    let prefix: IpNet = text.parse().map_err(|_| unreadable(field, text))?;
    if prefix.addr() != prefix.network() {
        let message = format!(
            "{prefix} has bits set behind its length; write {}",
            prefix.trunc()
        );
        return Err(Problem::new(field, Code::HostBitsSet, message));
    }
    if prefix.prefix_len() == 0 {
        let message =
            format!("{prefix} is everything there is; list the prefixes that are really used");
        return Err(Problem::new(field, Code::DefaultRoute, message));
    }
    match special(prefix) {
        Some((code, what)) => {
            let message = format!(
                "{prefix} touches {what}, which cannot be reached through a mesh; leave it out"
            );
            Err(Problem::new(field, code, message))
        }
        None => Ok(prefix),
    }
}

/// Whether two prefixes have an address in common.
#[must_use]
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn unreadable(field: &str, text: &str) -> Problem {
    let fix = match text.parse::<IpAddr>() {
        Ok(address) => format!(
            "{} has no length; write {}",
            quote(text),
            IpNet::from(address)
        ),
        Err(_) => format!(
            "{} is not a prefix; write address/length, such as 10.2.0.0/16 or fd00:2::/48",
            quote(text)
        ),
    };
    Problem::new(field, Code::BadCidr, fix)
}

fn special(prefix: IpNet) -> Option<(Code, &'static str)> {
    let v4 = |a, b, c, d, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length));
    let v6 = |high: u16, low: u128, length| {
        let bits = (u128::from(high) << 112) | low;
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length))
    };
    let ranges = [
        (
            v6(0, 0xffff_0000_0000, 96),
            Code::MappedAddress,
            "the IPv4-mapped range ::ffff:0:0/96",
        ),
        (
            v4(127, 0, 0, 0, 8),
            Code::Loopback,
            "the loopback range 127.0.0.0/8",
        ),
        (v6(0, 1, 128), Code::Loopback, "the loopback address ::1"),
        (
            v4(169, 254, 0, 0, 16),
            Code::LinkLocal,
            "the link-local range 169.254.0.0/16",
        ),
        (
            v6(0xfe80, 0, 10),
            Code::LinkLocal,
            "the link-local range fe80::/10",
        ),
        (
            v4(224, 0, 0, 0, 4),
            Code::Multicast,
            "the multicast range 224.0.0.0/4",
        ),
        (
            v6(0xff00, 0, 8),
            Code::Multicast,
            "the multicast range ff00::/8",
        ),
        (
            v4(0, 0, 0, 0, 8),
            Code::Reserved,
            "the reserved range 0.0.0.0/8",
        ),
        (
            v4(240, 0, 0, 0, 4),
            Code::Reserved,
            "the reserved range 240.0.0.0/4",
        ),
        (v6(0, 0, 128), Code::Reserved, "the unspecified address ::"),
    ];
    let hit = ranges
        .into_iter()
        .find(|(range, ..)| overlap(*range, prefix));
    hit.map(|(_, code, what)| (code, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Option<Code> {
        check_prefix("f", text).err().map(|problem| problem.code)
    }

    #[test]
    fn ordinary_prefixes_pass() {
        for text in [
            "10.0.0.0/8",
            "10.99.0.1/32",
            "203.0.113.0/24",
            "fd00:2::/48",
            "2000::/3",
            "64:ff9b::/96",
            "100.64.0.0/10",
            "126.0.0.0/8",
        ] {
            assert_eq!(code(text), None, "{text}");
        }
    }

    #[test]
    fn others_do_not() {
        let cases = [
            ("", Code::BadCidr),
            ("10.0.0.1", Code::BadCidr),
            ("10.0.0.0/33", Code::BadCidr),
            (" 10.0.0.0/8", Code::BadCidr),
            ("10.0.0.1/8", Code::HostBitsSet),
            ("fd00::1/64", Code::HostBitsSet),
            ("0.0.0.0/0", Code::DefaultRoute),
            ("::/0", Code::DefaultRoute),
            ("::ffff:10.0.0.0/104", Code::MappedAddress),
            ("::/64", Code::MappedAddress),
            ("127.0.0.1/32", Code::Loopback),
            ("126.0.0.0/7", Code::Loopback),
            ("::1/128", Code::Loopback),
            ("169.254.169.254/32", Code::LinkLocal),
            ("169.0.0.0/8", Code::LinkLocal),
            ("fe80::/64", Code::LinkLocal),
            ("224.0.0.0/24", Code::Multicast),
            ("ff02::/16", Code::Multicast),
            ("0.0.0.0/32", Code::Reserved),
            ("255.255.255.255/32", Code::Reserved),
            ("::/128", Code::Reserved),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn the_message_holds_the_fix() {
        let message = |text| check_prefix("f", text).expect_err("refused").message;
        assert!(message("10.2.3.4/16").contains("write 10.2.0.0/16"));
        assert!(message("10.2.3.4").contains("write 10.2.3.4/32"));
    }
}
