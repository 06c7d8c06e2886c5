//! Between netlink messages and our types.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use rtnetlink::packet_core::{DefaultNla, Emitable as _};

use super::{METRIC_HELD, METRIC_LIVE};
use crate::actual::{Device, Route, Rule, Target};
use crate::desired::{Names, is_v6};
use crate::sysctl::Attribute;

/// An address of some link.
pub(super) struct Address {
    /// The address with its prefix length.
    pub(super) own: IpNet,
    /// The network, which on a point-to-point link is the other side's.
    pub(super) network: IpNet,
    pub(super) flags: AddressFlags,
}

/// A rule, as far as we tell rules apart.
pub(super) struct SeenRule {
    pub(super) priority: u32,
    pub(super) table: u32,
    pub(super) protocol: u8,
}

pub(super) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            return Some(name.as_str());
        }
        None
    })
}

pub(super) fn device(link: &LinkMessage, addresses: BTreeSet<IpNet>) -> Device {
    let mut device = Device {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        addresses,
        ..Device::default()
    };
    for attribute in &link.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            device.mtu = *mtu;
        } else if let LinkAttribute::TxQueueLen(queue) = attribute {
            device.queue = *queue;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            device.tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
        }
    }
    device
}

pub(super) fn queue(packets: u32) -> LinkAttribute {
    LinkAttribute::TxQueueLen(packets)
}

/// `IFLA_AF_SPEC` with one sysctl. The library writes the flat form in which the kernel lists them; it takes nested ones.
pub(super) fn sysctl(attribute: Attribute) -> LinkAttribute {
    const AF_SPEC: u16 = 26;
    const INET_CONF: u16 = 1;
    let (family, value) = match attribute {
        Attribute::Inet(number, value) => {
            let conf = vec![nla(number, value.to_ne_bytes().to_vec())];
            (AddressFamily::Inet, nested(INET_CONF, &conf))
        }
        Attribute::Inet6(number, value) => (AddressFamily::Inet6, nla(number, vec![value])),
    };
    let family = nested(u16::from(u8::from(family)), &[value]);
    LinkAttribute::Other(nested(AF_SPEC, &[family]))
}

fn nla(kind: u16, value: Vec<u8>) -> DefaultNla {
    DefaultNla::new(kind, value)
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    const NESTED: u16 = 0x8000;
    let mut value = vec![0; inner.buffer_len()];
    inner.emit(&mut value);
    nla(kind | NESTED, value)
}

/// Loopback and link-local addresses, which no one else can use, are `None`.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut own = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            own = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            peer = Some(*address);
        } else if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    let own = own.or(peer)?;
    let length = message.header.prefix_len;
    let network = IpNet::new(peer.unwrap_or(own), length).ok()?.trunc();
    let own = IpNet::new(own, length).ok()?;
    (!is_local(own.addr())).then_some(Address {
        own,
        network,
        flags,
    })
}

fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}

/// Makes an address come without a prefix route and, for IPv6, at once.
pub(super) fn quiet(message: &mut AddressMessage, v6: bool) {
    let mut flags = AddressFlags::Noprefixroute;
    if v6 {
        flags |= AddressFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
}

pub(super) fn address_of(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(is_v6(&address));
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Local(address.addr()),
    ];
    message
}

pub(super) fn table_dump(names: &Names, v6: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.attributes.push(RouteAttribute::Table(names.table));
    message
}

pub(super) fn route_table(message: &RouteMessage) -> u32 {
    let table = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Table(table) = attribute {
            return Some(*table);
        }
        None
    });
    table.unwrap_or_else(|| message.header.table.into())
}

/// `None`: not ours.
pub(super) fn route(message: &RouteMessage, names: &Names, device: Option<u32>) -> Option<Route> {
    if u8::from(message.header.protocol) != names.protocol {
        return None;
    }
    let mut prefix = default_route(message.header.address_family);
    let (mut metric, mut out, mut source, mut mtu) = (0, None, None, 0);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            let length = message.header.destination_prefix_length;
            prefix = IpNet::new(ip(address)?, length).ok()?;
        } else if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        } else if let RouteAttribute::Oif(index) = attribute {
            out = Some(*index);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = ip(address);
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            mtu = metrics.iter().find_map(route_mtu).unwrap_or(0);
        }
    }
    let kind = message.header.kind;
    let target = if kind == RouteType::Unreachable && metric == METRIC_HELD {
        Target::Unreachable
    } else if kind == RouteType::Unicast && metric == METRIC_LIVE && out.is_some() && out == device
    {
        Target::Device { source, mtu }
    } else {
        Target::Other {
            metric,
            kind: u8::from(kind),
        }
    };
    Some(Route { prefix, target })
}

fn route_mtu(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric {
        return Some(*mtu);
    }
    None
}

fn default_route(family: AddressFamily) -> IpNet {
    if family == AddressFamily::Inet6 {
        IpNet::V6(ipnet::Ipv6Net::default())
    } else {
        IpNet::V4(ipnet::Ipv4Net::default())
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        return Some(IpAddr::V4(*address));
    }
    if let RouteAddress::Inet6(address) = address {
        return Some(IpAddr::V6(*address));
    }
    None
}

pub(super) fn route_message(route: &Route, names: &Names, device: u32) -> RouteMessage {
    let v6 = is_v6(&route.prefix);
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.header.protocol = RouteProtocol::from(names.protocol);
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.attributes = vec![
        RouteAttribute::Table(names.table),
        RouteAttribute::Destination(RouteAddress::from(route.prefix.addr())),
    ];
    let metric = match &route.target {
        Target::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            METRIC_HELD
        }
        Target::Device { source, mtu } => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = if v6 {
                RouteScope::Universe
            } else {
                RouteScope::Link
            };
            message.attributes.push(RouteAttribute::Oif(device));
            message
                .attributes
                .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(*mtu)]));
            let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
            message.attributes.extend(source);
            METRIC_LIVE
        }
        Target::Other { metric, kind } => {
            message.header.kind = RouteType::from(*kind);
            message.header.scope = RouteScope::NoWhere;
            *metric
        }
    };
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

pub(super) fn rule(message: &RuleMessage) -> SeenRule {
    let mut seen = SeenRule {
        priority: 0,
        table: u32::from(message.header.table),
        protocol: 0,
    };
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(priority) = attribute {
            seen.priority = *priority;
        } else if let RuleAttribute::Table(table) = attribute {
            seen.table = *table;
        } else if let RuleAttribute::Protocol(protocol) = attribute {
            seen.protocol = u8::from(*protocol);
        }
    }
    seen
}

pub(super) fn rule_message(rule: Rule, names: &Names) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.v6);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(names.table),
        RuleAttribute::Protocol(RouteProtocol::from(names.protocol)),
    ];
    message
}

fn family(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_survive_the_way_through_a_message() {
        let names = Names::default();
        let targets = [
            Target::Unreachable,
            Target::Device {
                source: None,
                mtu: 1280,
            },
            Target::Other { metric: 7, kind: 6 },
        ];
        for prefix in ["10.2.0.0/16", "fd00:2::/64"] {
            for target in targets.clone() {
                let prefix: IpNet = prefix.parse().expect("prefix");
                let route_in = Route { prefix, target };
                let message = route_message(&route_in, &names, 5);
                assert_eq!(route_table(&message), names.table);
                assert_eq!(route(&message, &names, Some(5)), Some(route_in));
            }
        }
    }

    #[test]
    fn routes_of_other_protocols_are_foreign() {
        let names = Names::default();
        let other = Names {
            protocol: 4,
            ..names.clone()
        };
        let prefix = "10.2.0.0/16".parse().expect("prefix");
        let message = route_message(
            &Route {
                prefix,
                target: Target::Unreachable,
            },
            &other,
            5,
        );
        assert_eq!(route(&message, &names, Some(5)), None);
    }
}
