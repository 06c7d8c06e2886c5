//! What texts look like, for API servers: each takes all that the reader takes, and nothing that could break out of a
//! line. The reader itself decides with more care.

/// A prefix.
pub(crate) const CIDR: &str = "^[0-9A-Fa-f.:]+/[0-9]{1,3}$";
/// A DNS label (RFC 1123 section 2.1).
pub(crate) const LABEL: &str = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$";
/// DNS labels joined by dots.
pub(crate) const NAME: &str =
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// A node's public key.
pub(crate) const NODE_KEY: &str = "^([A-Za-z0-9+/]{43}=|nodekey:[0-9A-Fa-f]{64})$";
/// A cluster's identity.
pub(crate) const CLUSTER: &str = "^cluster:[A-Za-z0-9+/]{43}=$";
/// A duration as Go writes it, in hours, minutes and seconds.
pub(crate) const DURATION: &str = "^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$";
/// A host name or address.
pub(crate) const HOST: &str = r"^[-A-Za-z0-9.:\[\]]+$";
/// A pass, as relays are shown it.
pub(crate) const PASS: &str = "^[-A-Za-z0-9_.]+$";
/// A relay's URL.
pub(crate) const RELAY_URL: &str = r"^[Hh][Tt][Tt][Pp][Ss]?://[-A-Za-z0-9.:\[\]]+/?$";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex_automata::dfa::regex::Regex;

    use super::*;

    fn fits(pattern: &str, text: &str) -> bool {
        Regex::new(pattern).expect("a pattern").is_match(text)
    }

    #[test]
    fn what_the_reader_takes_fits() {
        for name in ["a", "a-1.b", "0.0", &"a".repeat(63)] {
            assert!(crate::check::check_name("f", name).is_ok());
            assert!(fits(NAME, name), "{name}");
        }
        for label in ["a", "b-1", &"a".repeat(63)] {
            assert!(crate::check::check_label("f", label).is_ok());
            assert!(fits(LABEL, label), "{label}");
        }
        for url in [
            "http://203.0.113.20:8080",
            "HTTPS://Relay-1.Example.:443/",
            "http://[2001:DB8::1]:8080",
        ] {
            assert!(url.parse::<derp::RelayUrl>().is_ok());
            assert!(fits(RELAY_URL, url), "{url}");
        }
        let key = derp::NodeSecret::from_bytes([7; 32]).public();
        let hex = key.to_hex();
        for text in [
            key.to_string(),
            format!("nodekey:{hex}"),
            format!("nodekey:{}", hex.to_uppercase()),
        ] {
            assert!(text.parse::<derp::NodeKey>().is_ok());
            assert!(fits(NODE_KEY, &text), "{text}");
        }
    }

    #[test]
    fn nothing_breaks_out_of_its_line() {
        for pattern in [CIDR, LABEL, NAME, NODE_KEY, RELAY_URL, CLUSTER, HOST, PASS] {
            for text in [
                "",
                "\n",
                "a\nb",
                "a b",
                "a'",
                "a;b",
                "a\n",
                "10.0.0.0/8\n",
                "http://a\n",
            ] {
                assert!(!fits(pattern, text), "{pattern}: {text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_prefix_fits(bits: u128, length in 0_u8..=128) {
            let v6 = ipnet::Ipv6Net::new(bits.into(), length).expect("a prefix");
            prop_assert!(fits(CIDR, &v6.to_string()));
            let bits = u32::try_from(bits >> 96).expect("32 bits");
            let v4 = ipnet::Ipv4Net::new(bits.into(), length / 4).expect("a prefix");
            prop_assert!(fits(CIDR, &v4.to_string()));
        }
    }
}
