//! What the caller should know about a host, from a reading. Pure.

use crate::actual::Actual;
use crate::desired::{Desired, Names};
use crate::iptables::LOCK;
use crate::nft::Table;
use crate::report::{Condition, ConditionCode};
use crate::sysctl::{self, Setting};

/// The conditions a reading shows.
pub(crate) fn conditions(names: &Names, desired: &Desired, actual: &Actual) -> Vec<Condition> {
    if desired.is_idle() {
        return Vec::new();
    }
    let mut found: Vec<_> = conflicts(names, actual)
        .into_iter()
        .map(|message| Condition::new(ConditionCode::Conflict, message))
        .collect();
    if desired.device && actual.device.is_none() {
        let message = format!("the device {} is not there yet", names.device);
        found.push(Condition::new(ConditionCode::DeviceMissing, message));
    }
    if let Table::Unknown(error) = &actual.table {
        found.push(Condition::new(ConditionCode::NftMissing, error.clone()));
    }
    found.extend(foreign_rules(names, actual));
    found.extend(firewalls(names, desired, actual));
    found.extend(linkdown(actual));
    found.extend(locked(names, desired, actual));
    found
}

/// Why a sysctl of our device is not as it should be.
pub(crate) fn device_sysctl(key: &str, value: &str, error: &str) -> Condition {
    let message = format!(
        "{key} cannot be set to {value} ({error}); {}",
        sysctl::remedy(key, value)
    );
    Condition::new(ConditionCode::DeviceSysctl, message)
}

/// Why nothing of the pods is forwarded.
pub(crate) fn forwarding_off(key: &str, value: &str, error: &str) -> Condition {
    let message = format!(
        "packet forwarding is off and cannot be turned on from here ({error}); {}",
        sysctl::remedy(key, value)
    );
    Condition::new(ConditionCode::ForwardingOff, message)
}

/// Sysctls that ought to be otherwise and cannot be set from here.
fn locked(names: &Names, desired: &Desired, actual: &Actual) -> Vec<Condition> {
    const READ_ONLY: &str = "/proc/sys cannot be written";
    let is_wrong = |setting: &Setting| {
        let now = actual.sysctls.get(&setting.key);
        now.is_some_and(|now| now != setting.value) && actual.locked.contains(&setting.key)
    };
    let host = sysctl::host_settings(desired, actual.v6);
    let host = host.iter().filter(|setting| is_wrong(setting));
    let mut found: Vec<_> = host
        .map(|setting| forwarding_off(&setting.key, setting.value, READ_ONLY))
        .collect();
    if desired.device && actual.device.is_some() {
        let device = sysctl::device_settings(names, desired, actual.v6);
        let by_file = |setting: &&Setting| {
            setting.needed
                && is_wrong(setting)
                && sysctl::attribute(&setting.key, &names.device, setting.value).is_none()
        };
        let device = device.iter().filter(by_file);
        found.extend(device.map(|setting| device_sysctl(&setting.key, setting.value, READ_ONLY)));
    }
    found
}

/// What on the host has our name and is not ours.
pub(crate) fn conflicts(names: &Names, actual: &Actual) -> Vec<String> {
    let Names {
        device,
        table,
        nft_table,
        ..
    } = names;
    let mut found = Vec::new();
    if actual.device.as_ref().is_some_and(|device| !device.tun) {
        found.push(format!(
            "an interface named {device} exists and is not a TUN device; rename or delete it: ip link delete {device}"
        ));
    }
    if actual.foreign_routes > 0 {
        found.push(format!(
            "routing table {table} holds routes of somebody else (see: ip route show table {table}); move them to another table"
        ));
    }
    if actual.table == Table::Foreign {
        found.push(format!(
            "an nftables table inet {nft_table} exists that is not ours; rename it, or delete it: nft delete table inet {nft_table}"
        ));
    }
    found
}

fn foreign_rules(names: &Names, actual: &Actual) -> Option<Condition> {
    if actual.foreign_rules.is_empty() {
        return None;
    }
    let message = format!(
        "a routing rule of somebody else has priority {} or leads to table {} (see: ip rule); give it another",
        names.rule_priority, names.table
    );
    Some(Condition::new(ConditionCode::ForeignRule, message))
}

fn firewalls(names: &Names, desired: &Desired, actual: &Actual) -> Vec<Condition> {
    if !desired.device || desired.listen_port == 0 {
        return Vec::new();
    }
    let drops = actual.native_drops.iter().map(|drop| {
        let message = drop.message(&names.device, desired.listen_port);
        Condition::new(ConditionCode::ForeignDrop, message)
    });
    let missing = actual.missing.iter().map(|program| {
        let message = format!(
            "rules of {program} are in force and the program is not installed; on Debian: apt-get install iptables"
        );
        Condition::new(ConditionCode::IptablesMissing, message)
    });
    let lock = actual.unlocked_iptables.then(|| {
        let message = format!(
            "legacy iptables is in use and its lock {LOCK} is out of reach, so that a change of ours may undo one that somebody else makes at the same moment; mount {LOCK} of the host (a hostPath volume of type FileOrCreate)"
        );
        Condition::new(ConditionCode::IptablesUnlocked, message)
    });
    drops.chain(missing).chain(lock).collect()
}

fn linkdown(actual: &Actual) -> Vec<Condition> {
    ["ipv4", "ipv6"]
        .into_iter()
        .map(|family| format!("net/{family}/conf/all/ignore_routes_with_linkdown"))
        .filter(|key| actual.sysctls.get(key).is_some_and(|value| value != "0"))
        .map(|key| {
            let message = format!(
                "{key} is on: while the agent is stopped, mesh packets meet the unreachable route instead of the device; set it to 0 to have them wait"
            );
            Condition::new(ConditionCode::LinkdownRoutesIgnored, message)
        })
        .collect()
}

/// Said once IPv6 forwarding was turned on by us.
pub(crate) fn ipv6_forwarding() -> Condition {
    Condition::new(
        ConditionCode::Ipv6Forwarding,
        format!(
            "{} was turned on for the pods' IPv6 prefixes: interfaces with accept_ra=1 no longer take router advertisements; set accept_ra=2 where the host needs them",
            sysctl::FORWARD_V6
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actual::Device;
    use std::collections::BTreeSet;

    #[test]
    fn each_obstacle_is_named() {
        let mut actual = Actual {
            device: Some(Device::default()),
            foreign_routes: 1,
            foreign_rules: BTreeSet::from([300]),
            table: Table::Foreign,
            missing: BTreeSet::from(["iptables-legacy"]),
            ..Actual::default()
        };
        let key = "net/ipv4/conf/all/ignore_routes_with_linkdown";
        actual.sysctls.insert(key.to_owned(), "1".to_owned());
        let desired = Desired {
            device: true,
            listen_port: 20443,
            ..Desired::default()
        };
        let found = conditions(&Names::default(), &desired, &actual);
        let codes: Vec<_> = found.iter().map(|condition| condition.code).collect();
        use ConditionCode::{Conflict, ForeignRule, IptablesMissing, LinkdownRoutesIgnored};
        assert_eq!(
            codes,
            [
                Conflict,
                Conflict,
                Conflict,
                ForeignRule,
                IptablesMissing,
                LinkdownRoutesIgnored
            ]
        );
        assert!(found.iter().all(|condition| condition.message.len() > 40));
        assert_eq!(
            conditions(&Names::default(), &Desired::default(), &actual),
            []
        );
    }
}
