//! Links, addresses, routes and rules over rtnetlink.

mod message;

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::address::AddressFlags;
use netlink_packet_route::link::LinkFlags;
use rtnetlink::{Error, Handle, IpVersion, LinkUnspec};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use crate::actual::{Device, Route, Rule};
use crate::desired::{Names, host, is_v6};
use crate::report::{HostAddress, ReadError};
use crate::sysctl::Attribute;

/// Packets the device queues for a reader that is busy.
pub(crate) const QUEUE: u32 = 10_000;
/// Metric of routes into the device.
const METRIC_LIVE: u32 = 100;
/// Metric of the unreachable routes behind them.
const METRIC_HELD: u32 = 1_000_000;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    /// A socket carries one dump at a time, so requests take turns.
    handle: Mutex<Handle>,
    connection: JoinHandle<()>,
}

/// Links and addresses, as one dump of each.
#[derive(Debug, Default)]
pub(crate) struct Interfaces {
    /// The device of our name.
    pub(crate) device: Option<Device>,
    /// Usable addresses of other links that are up.
    pub(crate) addresses: Vec<HostAddress>,
}

/// What is in our routing table.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) ours: BTreeSet<Route>,
    pub(crate) foreign: usize,
}

/// Rules that concern us.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) ours: BTreeSet<Rule>,
    pub(crate) foreign: BTreeSet<u32>,
}

impl Netlink {
    /// Opens the socket and drives it on the current runtime.
    pub(crate) fn open() -> Result<Self, ReadError> {
        // Strict checking lets the kernel filter route dumps by table.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(ReadError::Socket)?;
        Ok(Self {
            handle: Mutex::new(handle),
            connection: tokio::spawn(connection),
        })
    }

    async fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().await
    }

    /// Reads links and addresses.
    pub(crate) async fn interfaces(&self, names: &Names) -> Result<Interfaces, ReadError> {
        let handle = self.handle().await;
        let links: Vec<_> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(read("links"))?;
        let addresses: Vec<_> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(read("addresses"))?;
        drop(handle);
        let mut found = Interfaces::default();
        for link in &links {
            let Some(name) = message::link_name(link) else {
                continue;
            };
            let ours = name == names.device;
            let up = link.header.flags.contains(LinkFlags::Up);
            let own = addresses
                .iter()
                .filter(|address| address.header.index == link.header.index)
                .filter_map(message::address);
            if ours {
                let own = own.map(|address| address.own).collect();
                found.device = Some(message::device(link, own));
            } else if up {
                let usable = own.filter(|address| !address.flags.intersects(unusable()));
                found.addresses.extend(usable.map(|address| HostAddress {
                    address: address.own.addr(),
                    network: address.network,
                    interface: name.to_owned(),
                }));
            }
        }
        Ok(found)
    }

    /// Reads our routing table, both families.
    pub(crate) async fn routes(
        &self,
        names: &Names,
        device: Option<u32>,
        v6: bool,
    ) -> Result<Routes, ReadError> {
        let handle = self.handle().await;
        let mut found = Routes::default();
        for family in families(v6) {
            let mut stream = Box::pin(
                handle
                    .route()
                    .get(message::table_dump(names, family))
                    .execute(),
            );
            while let Some(route) = stream.next().await {
                let route = match route {
                    Ok(route) => route,
                    // No such table yet.
                    Err(error) if is_code(&error, &[ENOENT]) => break,
                    Err(error) => return Err(read("routes")(error)),
                };
                if message::route_table(&route) != names.table {
                    continue;
                }
                match message::route(&route, names, device) {
                    Some(route) => drop(found.ours.insert(route)),
                    None => found.foreign += 1,
                }
            }
        }
        Ok(found)
    }

    /// Reads routing rules, both families.
    pub(crate) async fn rules(&self, names: &Names, v6: bool) -> Result<Rules, ReadError> {
        let handle = self.handle().await;
        let mut found = Rules::default();
        for family in families(v6) {
            let version = if family { IpVersion::V6 } else { IpVersion::V4 };
            let rules: Vec<_> = handle
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await
                .map_err(read("rules"))?;
            for rule in &rules {
                let seen = message::rule(rule);
                let table = seen.table == names.table;
                if table && seen.protocol == names.protocol {
                    found.ours.insert(Rule {
                        v6: family,
                        priority: seen.priority,
                    });
                } else if table || seen.priority == names.rule_priority {
                    found.foreign.insert(seen.priority);
                }
            }
        }
        Ok(found)
    }

    /// Sets MTU and queue length and brings the device up.
    pub(crate) async fn set_device(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index)
            .mtu(mtu)
            .append_extra_attribute(message::queue(QUEUE))
            .up()
            .build();
        self.handle().await.link().set(link).execute().await
    }

    /// Sets a sysctl of the device, which takes no file that can be written.
    pub(crate) async fn set_attribute(
        &self,
        index: u32,
        attribute: Attribute,
    ) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index)
            .append_extra_attribute(message::sysctl(attribute))
            .build();
        self.handle().await.link().set(link).execute().await
    }

    /// Deletes a device.
    pub(crate) async fn delete_device(&self, index: u32) -> Result<(), Error> {
        let result = self.handle().await.link().del(index).execute().await;
        ignore(result, &[ENODEV])
    }

    /// Adds an address that brings no route of its own and needs no duplicate detection.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<(), Error> {
        let handle = self.handle().await;
        let request = handle.address();
        let mut request = request.add(index, address.addr(), address.prefix_len());
        message::quiet(request.message_mut(), is_v6(&address));
        ignore(request.execute().await, &[EEXIST])
    }

    /// Removes an address of the device.
    pub(crate) async fn delete_address(&self, index: u32, address: IpNet) -> Result<(), Error> {
        let message = message::address_of(index, address);
        let result = self.handle().await.address().del(message).execute().await;
        ignore(result, &[EADDRNOTAVAIL])
    }

    /// Adds a route or puts it in the place of one with the same prefix and metric.
    pub(crate) async fn put_route(
        &self,
        route: &Route,
        names: &Names,
        device: u32,
    ) -> Result<(), Error> {
        let message = message::route_message(route, names, device);
        self.handle()
            .await
            .route()
            .add(message)
            .replace()
            .execute()
            .await
    }

    /// Removes a route.
    pub(crate) async fn delete_route(
        &self,
        route: &Route,
        names: &Names,
        device: u32,
    ) -> Result<(), Error> {
        let message = message::route_message(route, names, device);
        let result = self.handle().await.route().del(message).execute().await;
        ignore(result, &[ESRCH, ENODEV])
    }

    /// Adds our rule. The kernel ignores a request to replace one, so an existing one is success.
    pub(crate) async fn add_rule(&self, rule: Rule, names: &Names) -> Result<(), Error> {
        let handle = self.handle().await;
        let mut request = handle.rule().add();
        *request.message_mut() = message::rule_message(rule, names);
        ignore(request.execute().await, &[EEXIST])
    }

    /// Removes a rule of ours.
    pub(crate) async fn delete_rule(&self, rule: Rule, names: &Names) -> Result<(), Error> {
        let message = message::rule_message(rule, names);
        let result = self.handle().await.rule().del(message).execute().await;
        ignore(result, &[ENOENT])
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Networks the host is on: of every usable address but those inside `excluding`.
pub(crate) fn connected(addresses: &[HostAddress], excluding: &[IpNet]) -> Vec<IpNet> {
    let networks: BTreeSet<_> = addresses
        .iter()
        .filter(|address| !excluding.iter().any(|net| net.contains(&address.network)))
        .flat_map(|address| [address.network, host(&IpNet::from(address.address))])
        .collect();
    IpNet::aggregate(&networks.into_iter().collect())
}

fn unusable() -> AddressFlags {
    AddressFlags::Tentative | AddressFlags::Dadfailed
}

fn families(v6: bool) -> impl Iterator<Item = bool> {
    [false, true]
        .into_iter()
        .filter(move |family| v6 || !family)
}

fn read(what: &'static str) -> impl Fn(Error) -> ReadError {
    move |source| ReadError::Netlink { what, source }
}

fn is_code(error: &Error, codes: &[i32]) -> bool {
    let Error::NetlinkError(message) = error else {
        return false;
    };
    let code = message.code.map_or(0, |code| code.get().saturating_neg());
    codes.contains(&code)
}

fn ignore(result: Result<(), Error>, codes: &[i32]) -> Result<(), Error> {
    match result {
        Err(error) if is_code(&error, codes) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_networks_leave_out_the_pod_bridge() {
        let on = |address: &str, interface: &str| {
            let net: IpNet = address.parse().expect("prefix");
            HostAddress {
                address: net.addr(),
                network: net.trunc(),
                interface: interface.to_owned(),
            }
        };
        let addresses = [
            on("192.168.1.5/24", "eth0"),
            on("10.1.0.1/24", "cni0"),
            on("10.7.0.1/32", "lo"),
        ];
        let texts = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let pods = ["10.1.0.0/16".parse().expect("prefix")];
        assert_eq!(
            texts(connected(&addresses, &pods)),
            ["10.7.0.1/32", "192.168.1.0/24"]
        );
        assert_eq!(connected(&addresses, &[]).len(), 3);
    }
}
