//! The plan: what to change so that the host is as wanted. Pure; applying it and planning again gives nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::actual::{Actual, Device, Route, Rule, Target};
use crate::desired::{Desired, Names, is_v6, within};
use crate::iptables::{self, Accept, Backend, Chain};
use crate::netlink::QUEUE;
use crate::nft::{self, Hook, Sets, Table};
use crate::sysctl;

/// One step. Steps are applied in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Turn on a forwarding switch of the host, which is undone by cleanup.
    Turn {
        /// Path below `/proc/sys`.
        key: String,
        /// New value.
        value: String,
    },
    /// Set a sysctl of our device, which goes with it; over netlink where that can.
    Sysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// New value.
        value: String,
    },
    /// Set MTU and queue length of our device and bring it up.
    SetDevice,
    /// Put an address on our device.
    AddAddress(IpNet),
    /// Take an address off our device.
    DeleteAddress(IpNet),
    /// Make the nftables table anew, in one transaction.
    MakeTable,
    /// Change elements of its sets in place.
    SetElements {
        /// What is there.
        from: Sets,
        /// What is wanted.
        to: Sets,
    },
    /// Remove the nftables table.
    DeleteTable,
    /// Insert an accept into an iptables chain.
    Insert {
        /// Which iptables.
        backend: Backend,
        /// Which chain.
        hook: Hook,
        /// What to accept.
        accept: Accept,
        /// Where; `None`: at the end.
        position: Option<usize>,
    },
    /// Delete an accept of ours.
    Delete {
        /// Which iptables.
        backend: Backend,
        /// Which chain.
        hook: Hook,
        /// What it accepts.
        accept: Accept,
    },
    /// Add or replace a route.
    PutRoute(Route),
    /// Remove a route.
    DeleteRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule.
    DeleteRule(Rule),
    /// Delete our device.
    DeleteDevice,
    /// Remove tracked flows between mesh prefixes whose source is translated.
    ForgetFlows,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn { key, value } | Self::Sysctl { key, value } => {
                write!(f, "set {key} to {value}")
            }
            Self::SetDevice => f.write_str("set up the device"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "remove address {address}"),
            Self::MakeTable => f.write_str("make the nftables table"),
            Self::SetElements { .. } => f.write_str("update the nftables sets"),
            Self::DeleteTable => f.write_str("remove the nftables table"),
            Self::Insert {
                backend,
                hook,
                accept,
                ..
            } => {
                let (program, chain) = (backend.program().name, hook.chain());
                write!(f, "insert {accept:?} into {chain} of {program}")
            }
            Self::Delete {
                backend,
                hook,
                accept,
            } => {
                let (program, chain) = (backend.program().name, hook.chain());
                write!(f, "remove {accept:?} from {chain} of {program}")
            }
            Self::PutRoute(route) => write!(f, "route {}", route.prefix),
            Self::DeleteRoute(route) => write!(f, "remove route {}", route.prefix),
            Self::AddRule(rule) => write!(f, "add {rule}"),
            Self::DeleteRule(rule) => write!(f, "remove {rule}"),
            Self::DeleteDevice => f.write_str("delete the device"),
            Self::ForgetFlows => f.write_str("forget translated flows"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        write!(f, "{family} rule {}", self.priority)
    }
}

/// The steps from `actual` to `desired`; empty when there is nothing to do.
///
/// What protects comes before what connects: sets and filters before routes, an unreachable route before the
/// live one in front of it, and forwarding only when all of them stand. While it is off no pod's packet leaves the node.
pub fn plan(names: &Names, desired: &Desired, actual: &Actual) -> Vec<Change> {
    let mut changes = Vec::new();
    device(names, desired, actual, &mut changes);
    let flows = table(names, desired, actual, &mut changes);
    for chain in &actual.chains {
        accepts(chain, desired, &mut changes);
    }
    routing(names, desired, actual, &mut changes);
    host(desired, actual, &mut changes);
    if !desired.device && actual.device.as_ref().is_some_and(|device| device.tun) {
        changes.push(Change::DeleteDevice);
    }
    if flows && desired.device && !desired.remote.is_empty() {
        changes.push(Change::ForgetFlows);
    }
    changes
}

/// The routes `desired` asks for. Live ones need the device to be there.
pub(crate) fn routes(desired: &Desired, actual: &Actual) -> BTreeSet<Route> {
    let usable = |net: &&IpNet| actual.v6 || !is_v6(net);
    let reachable = |net: &&IpNet| takes_v6(actual) || !is_v6(net);
    let held = desired.held.iter().chain(&desired.remote).filter(usable);
    let mut routes: BTreeSet<_> = held
        .map(|net| Route {
            prefix: net.trunc(),
            target: Target::Unreachable,
        })
        .collect();
    if desired.device && actual.device.is_some() {
        routes.extend(desired.remote.iter().filter(reachable).map(|net| Route {
            prefix: net.trunc(),
            target: Target::Device {
                source: source(desired, actual, is_v6(net)),
                mtu: desired.mtu,
            },
        }));
    }
    routes
}

/// Whether our device takes IPv6.
fn takes_v6(actual: &Actual) -> bool {
    actual.v6 && actual.device.as_ref().is_none_or(|device| !device.no_v6)
}

/// An address of ours the far side can answer: on the device, or on the bridge of the pods.
fn source(desired: &Desired, actual: &Actual, v6: bool) -> Option<IpAddr> {
    let own = desired.addresses.iter().map(IpNet::addr);
    let hosts = actual.addresses.iter().copied();
    own.chain(hosts.filter(|address| within(*address, &desired.local)))
        .find(|address| address.is_ipv6() == v6)
}

fn host(desired: &Desired, actual: &Actual, changes: &mut Vec<Change>) {
    for setting in sysctl::host_settings(desired, actual.v6) {
        let now = actual.sysctls.get(&setting.key);
        if now.is_some_and(|now| now == "0") && !actual.locked.contains(&setting.key) {
            changes.push(Change::Turn {
                key: setting.key,
                value: setting.value.to_owned(),
            });
        }
    }
}

fn device(names: &Names, desired: &Desired, actual: &Actual, changes: &mut Vec<Change>) {
    let Some(device) = actual.device.as_ref().filter(|_| desired.device) else {
        return;
    };
    for setting in sysctl::device_settings(names, desired, actual.v6) {
        let now = actual.sysctls.get(&setting.key);
        let is_out_of_reach = actual.locked.contains(&setting.key)
            && sysctl::attribute(&setting.key, &names.device, setting.value).is_none();
        if now.is_some_and(|now| now != setting.value) && !is_out_of_reach {
            changes.push(Change::Sysctl {
                key: setting.key,
                value: setting.value.to_owned(),
            });
        }
    }
    if !is_set_up(device, desired) {
        changes.push(Change::SetDevice);
    }
    let wanted: BTreeSet<_> = desired
        .addresses
        .iter()
        .copied()
        .filter(|net| takes_v6(actual) || !is_v6(net))
        .collect();
    let surplus = device.addresses.difference(&wanted);
    let absent = wanted.difference(&device.addresses);
    changes.extend(surplus.copied().map(Change::DeleteAddress));
    changes.extend(absent.copied().map(Change::AddAddress));
}

fn is_set_up(device: &Device, desired: &Desired) -> bool {
    device.up && device.mtu == desired.mtu && device.queue == QUEUE
}

/// Whether flows may carry a translation from a time without our table.
fn table(names: &Names, desired: &Desired, actual: &Actual, changes: &mut Vec<Change>) -> bool {
    let wanted = !desired.is_idle();
    match &actual.table {
        // Without a word from nft, or with a table that is not ours, nothing is touched.
        Table::Unknown(_) | Table::Foreign => false,
        Table::Absent => {
            changes.extend(wanted.then_some(Change::MakeTable));
            wanted
        }
        Table::Ours { .. } if !wanted => {
            changes.push(Change::DeleteTable);
            false
        }
        Table::Ours {
            structure,
            intact,
            sets,
        } => {
            let to = Sets::of(desired);
            let grown = !to.local.is_subset(&sets.local) || !to.remote.is_subset(&sets.remote);
            if !intact || *structure != Some(nft::structure(names, desired)) {
                changes.push(Change::MakeTable);
            } else if *sets != to {
                changes.push(Change::SetElements {
                    from: sets.clone(),
                    to,
                });
            }
            grown || !intact || actual.flows_pending
        }
    }
}

fn accepts(chain: &Chain, desired: &Desired, changes: &mut Vec<Change>) {
    let wanted = iptables::wanted(chain, desired);
    let there: BTreeSet<_> = chain.ours.iter().copied().collect();
    if there == wanted && chain.placed {
        return;
    }
    let (backend, hook) = (chain.backend, chain.hook);
    let stay = |accept: &Accept| chain.placed && wanted.contains(accept);
    let old = chain.ours.iter().copied().filter(|accept| !stay(accept));
    changes.extend(old.map(|accept| Change::Delete {
        backend,
        hook,
        accept,
    }));
    let fresh = wanted
        .iter()
        .copied()
        .filter(|accept| !(chain.placed && there.contains(accept)));
    changes.extend(fresh.map(|accept| Change::Insert {
        backend,
        hook,
        accept,
        position: chain.position,
    }));
}

fn routing(names: &Names, desired: &Desired, actual: &Actual, changes: &mut Vec<Change>) {
    let wanted = routes(desired, actual);
    let is_live = |route: &&Route| matches!(route.target, Target::Device { .. });
    let absent: Vec<_> = wanted.difference(&actual.routes).collect();
    let (live, held): (Vec<_>, Vec<_>) = absent.into_iter().partition(is_live);
    changes.extend(held.into_iter().cloned().map(Change::PutRoute));
    let rules = rules(names, desired, actual);
    let rules_absent = rules.difference(&actual.rules);
    changes.extend(rules_absent.copied().map(Change::AddRule));
    changes.extend(live.into_iter().cloned().map(Change::PutRoute));
    let surplus = actual.routes.difference(&wanted);
    let surplus = surplus.filter(|route| !is_replaced(route, &wanted));
    changes.extend(surplus.cloned().map(Change::DeleteRoute));
    let rules_surplus = actual.rules.difference(&rules);
    changes.extend(rules_surplus.copied().map(Change::DeleteRule));
}

fn rules(names: &Names, desired: &Desired, actual: &Actual) -> BTreeSet<Rule> {
    if desired.is_idle() {
        return BTreeSet::new();
    }
    [false, true]
        .into_iter()
        .filter(|v6| actual.v6 || !v6)
        .map(|v6| Rule {
            v6,
            priority: names.rule_priority,
        })
        .collect()
}

/// A live route with another source or MTU has the same key, so putting the wanted one replaces it.
fn is_replaced(route: &Route, wanted: &BTreeSet<Route>) -> bool {
    let first = Route {
        prefix: route.prefix,
        target: Target::Unreachable,
    };
    matches!(route.target, Target::Device { .. })
        && wanted
            .range(first..)
            .take_while(|other| other.prefix == route.prefix)
            .any(|other| matches!(other.target, Target::Device { .. }))
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
