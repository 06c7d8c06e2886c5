//! Files under `/proc/sys`. Keys are paths below it; the `net` subtree is that of the calling thread's namespace.
//!
//! In a container they can be read and not written. Most of what is set on our own device has a way over netlink, which
//! is taken everywhere; see [`attribute`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use crate::desired::{Desired, Names};

/// Global IPv4 forwarding.
pub(crate) const FORWARD_V4: &str = "net/ipv4/ip_forward";
/// Global IPv6 forwarding.
pub(crate) const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

/// One sysctl and the value it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: &'static str,
    /// Without it something does not work, so that somebody is told when it cannot be set.
    pub(crate) needed: bool,
}

/// A sysctl of one device as `RTM_SETLINK` takes it in `IFLA_AF_SPEC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    /// In `IFLA_INET_CONF`: its number in `linux/ip.h` (`IPV4_DEVCONF_*`) and a value of four bytes.
    Inet(u16, u32),
    /// In `AF_INET6`: its number in `linux/if_link.h` (`IFLA_INET6_*`) and a value of one byte.
    Inet6(u16, u8),
}

/// The way over netlink to set `key` of `device`, if there is one.
pub(crate) fn attribute(key: &str, device: &str, value: &str) -> Option<Attribute> {
    let inet = |number| Some(Attribute::Inet(number, value.parse().ok()?));
    let (folder, name) = key.rsplit_once('/')?;
    let family = folder.strip_suffix(device)?.strip_suffix("/conf/")?;
    match (family, name) {
        ("net/ipv4", "forwarding") => inet(1),
        ("net/ipv4", "rp_filter") => inet(8),
        ("net/ipv4", "ignore_routes_with_linkdown") => inet(29),
        ("net/ipv6", "addr_gen_mode") => Some(Attribute::Inet6(8, value.parse().ok()?)),
        _ => None,
    }
}

/// What `desired` asks of our own device.
pub(crate) fn device_settings(names: &Names, desired: &Desired, v6: bool) -> Vec<Setting> {
    let device = &names.device;
    let v4 = |name: &str, value| Setting {
        key: format!("net/ipv4/conf/{device}/{name}"),
        value,
        needed: true,
    };
    let on_v6 = |name: &str, value, needed| Setting {
        key: format!("net/ipv6/conf/{device}/{name}"),
        value,
        needed,
    };
    // Loose: the way back to a remote pod is our rule, which strict reverse path filtering of some kernels does not see for host traffic.
    let mut settings = vec![v4("rp_filter", "2"), v4("ignore_routes_with_linkdown", "0")];
    if desired.forwards(false) {
        settings.push(v4("forwarding", "1"));
    }
    if v6 {
        if desired.uses_v6() {
            settings.push(on_v6("disable_ipv6", "0", true));
        }
        // Only a second line: a router advertisement counts from a link-local source alone, which no peer has and our
        // table drops.
        settings.push(on_v6("accept_ra", "0", false));
        settings.push(on_v6("autoconf", "0", false));
        settings.push(on_v6("addr_gen_mode", "1", true));
        settings.push(on_v6("ignore_routes_with_linkdown", "0", true));
        if desired.forwards(true) {
            // The kernel asks the switch for all devices whether to forward; this one only makes the device a router's.
            settings.push(on_v6("forwarding", "1", false));
        }
    }
    settings
}

/// What `desired` asks of the host as a whole.
pub(crate) fn host_settings(desired: &Desired, v6: bool) -> Vec<Setting> {
    let families = [(FORWARD_V4, false, true), (FORWARD_V6, true, v6)];
    families
        .into_iter()
        .filter(|(_, family, there)| *there && desired.forwards(*family))
        .map(|(key, ..)| Setting {
            key: key.to_owned(),
            value: "1",
            needed: true,
        })
        .collect()
}

/// Values of everything a plan looks at. Absent files have no entry.
pub(crate) fn read_all(names: &Names) -> BTreeMap<String, String> {
    let device = &names.device;
    let v4 = ["rp_filter", "forwarding", "ignore_routes_with_linkdown"];
    let v6 = [
        "disable_ipv6",
        "accept_ra",
        "autoconf",
        "addr_gen_mode",
        "ignore_routes_with_linkdown",
        "forwarding",
    ];
    let fixed = [
        FORWARD_V4.to_owned(),
        FORWARD_V6.to_owned(),
        "net/ipv4/conf/all/ignore_routes_with_linkdown".to_owned(),
        "net/ipv6/conf/all/ignore_routes_with_linkdown".to_owned(),
    ];
    let v4 = v4.map(|name| format!("net/ipv4/conf/{device}/{name}"));
    let v6 = v6.map(|name| format!("net/ipv6/conf/{device}/{name}"));
    fixed
        .into_iter()
        .chain(v4)
        .chain(v6)
        .filter_map(|key| read(&key).map(|value| (key, value)))
        .collect()
}

/// Those of `keys` that can be read and not written from here.
pub(crate) fn locked<'a>(keys: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let is_locked = |key: &&String| {
        // Opening alone changes nothing.
        path(key).is_some_and(|path| OpenOptions::new().write(true).open(path).is_err())
    };
    keys.filter(is_locked).cloned().collect()
}

/// What to run on the host to set `key`.
pub(crate) fn remedy(key: &str, value: &str) -> String {
    format!(
        "run on the host: sysctl -w {}={value}",
        key.replace('/', ".")
    )
}

/// Everything the kernel rewrites when the forwarding switch `key` is turned, with the values of now.
///
/// Turning it sets the `forwarding` of every interface, and for IPv4 `all.accept_redirects` too.
pub(crate) fn turned_by(key: &str, except: &str) -> BTreeMap<String, String> {
    let family = if key == FORWARD_V6 { "ipv6" } else { "ipv4" };
    let folder = format!("net/{family}/conf");
    let mut keys = vec![key.to_owned()];
    if family == "ipv4" {
        keys.push(format!("{folder}/all/accept_redirects"));
    }
    let interfaces = fs::read_dir(Path::new("/proc/sys").join(&folder));
    for entry in interfaces.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| *name != except) else {
            continue;
        };
        keys.push(format!("{folder}/{name}/forwarding"));
    }
    keys.into_iter()
        .filter_map(|key| read(&key).map(|value| (key, value)))
        .collect()
}

/// The value of `key`, without the newline.
pub(crate) fn read(key: &str) -> Option<String> {
    let path = path(key)?;
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// Sets `key`.
pub(crate) fn write(key: &str, value: &str) -> io::Result<()> {
    let path =
        path(key).ok_or_else(|| io::Error::other(format!("{key} is not a network sysctl")))?;
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("/proc/sys/{key}: {error}")))
}

/// Whether the kernel has IPv6.
pub(crate) fn has_v6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// Changes with every boot.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

/// Keys also come from the journal, so they are kept inside the network subtree.
fn path(key: &str) -> Option<std::path::PathBuf> {
    let inside = key.starts_with("net/ipv4/") || key.starts_with("net/ipv6/");
    (inside && !key.split('/').any(|part| part.is_empty() || part == ".."))
        .then(|| Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_inside_the_network_subtree() {
        for key in [
            "kernel/panic",
            "net/ipv4/../../kernel/panic",
            "net/ipv4//x",
            "/etc/passwd",
        ] {
            assert!(path(key).is_none(), "{key}");
            assert!(write(key, "1").is_err(), "{key}");
        }
        assert!(read(FORWARD_V4).is_some_and(|value| value == "0" || value == "1"));
    }

    #[test]
    fn what_netlink_can_set_is_known_by_its_key() {
        let cases = [
            (
                "net/ipv4/conf/culvert0/rp_filter",
                "2",
                Some(Attribute::Inet(8, 2)),
            ),
            (
                "net/ipv6/conf/culvert0/addr_gen_mode",
                "1",
                Some(Attribute::Inet6(8, 1)),
            ),
            ("net/ipv6/conf/culvert0/rp_filter", "2", None),
            ("net/ipv4/conf/culvert00/rp_filter", "2", None),
            ("net/ipv4/conf/all/rp_filter", "2", None),
            ("net/ipv4/ip_forward", "1", None),
            ("net/ipv4/conf/culvert0/rp_filter", "two", None),
        ];
        for (key, value, expected) in cases {
            assert_eq!(attribute(key, "culvert0", value), expected, "{key}");
        }
    }

    #[test]
    fn forwarding_is_asked_for_per_family_and_only_for_pods() {
        let net = |text: &str| text.parse().expect("prefix");
        let mut desired = Desired {
            device: true,
            addresses: vec![net("10.99.0.1/32")],
            local: vec![net("10.99.0.1/32")],
            ..Desired::default()
        };
        assert_eq!(host_settings(&desired, true), []);
        desired.local.push(net("10.1.0.0/16"));
        let keys = |desired: &Desired, v6| -> Vec<_> {
            host_settings(desired, v6)
                .into_iter()
                .map(|s| s.key)
                .collect()
        };
        assert_eq!(keys(&desired, true), [FORWARD_V4]);
        desired.local.push(net("fd00:1::/64"));
        assert_eq!(keys(&desired, true), [FORWARD_V4, FORWARD_V6]);
        assert_eq!(keys(&desired, false), [FORWARD_V4]);
    }
}
