//! Ranges that a cluster may take without a person of ours naming them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Whether a range lies in what nobody has for himself on the internet: RFC 1918, the shared space of RFC 6598, and unique
/// local addresses (RFC 4193). Any other would take away from our pods whoever really has it.
pub(super) fn is_private(range: IpNet) -> bool {
    match range {
        IpNet::V4(range) => V4.iter().any(|private| private.contains(&range)),
        IpNet::V6(range) => V6.contains(&range),
    }
}

const V4: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];
const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private() {
        let is = |text: &str| is_private(text.parse().expect("a range"));
        for good in [
            "10.2.0.0/16",
            "172.31.0.0/16",
            "192.168.7.0/24",
            "100.64.0.0/10",
            "fd00:2::/48",
        ] {
            assert!(is(good), "{good}");
        }
        for bad in [
            "126.0.0.0/8",
            "172.0.0.0/8",
            "172.32.0.0/16",
            "8.8.8.8/32",
            "2000::/3",
            "100.0.0.0/8",
        ] {
            assert!(!is(bad), "{bad}");
        }
    }
}
