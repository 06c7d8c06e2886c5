use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::iptables::Flavour;

fn net(text: &str) -> IpNet {
    text.parse().expect("prefix")
}

fn desired() -> Desired {
    Desired {
        mtu: 1280,
        listen_port: 20443,
        addresses: vec![],
        local: vec![net("10.1.0.0/16")],
        remote: vec![net("10.2.0.0/16")],
        held: vec![net("10.2.0.0/16"), net("10.3.0.0/16")],
        device: true,
    }
}

/// A host with the bare device, the CNI's bridge and forwarding off.
fn bare() -> Actual {
    Actual {
        v6: true,
        device: Some(Device {
            index: 7,
            tun: true,
            mtu: 1500,
            queue: 500,
            ..Device::default()
        }),
        addresses: vec![
            "192.168.1.5".parse().expect("address"),
            "10.1.0.1".parse().expect("address"),
        ],
        sysctls: BTreeMap::from([(sysctl::FORWARD_V4.to_owned(), "0".to_owned())]),
        ..Actual::default()
    }
}

/// What the kernel would do.
fn model(actual: &mut Actual, change: Change, names: &Names, desired: &Desired) {
    match change {
        Change::Turn { key, value } | Change::Sysctl { key, value } => {
            actual.sysctls.insert(key, value);
        }
        Change::SetDevice => {
            let device = actual.device.as_mut().expect("device");
            (device.up, device.mtu, device.queue) = (true, desired.mtu, QUEUE);
        }
        Change::AddAddress(address) => {
            let device = actual.device.as_mut().expect("device");
            assert!(device.addresses.insert(address));
        }
        Change::DeleteAddress(address) => {
            let device = actual.device.as_mut().expect("device");
            assert!(device.addresses.remove(&address));
        }
        Change::MakeTable => {
            actual.table = Table::Ours {
                structure: Some(nft::structure(names, desired)),
                intact: true,
                sets: Sets::of(desired),
            };
        }
        Change::SetElements { to, .. } => {
            let Table::Ours { sets, .. } = &mut actual.table else {
                panic!("no table to set elements of");
            };
            *sets = to;
        }
        Change::DeleteTable => actual.table = Table::Absent,
        Change::Insert {
            backend,
            hook,
            accept,
            ..
        } => {
            let chain = chain(actual, backend, hook);
            chain.ours.push(accept);
            chain.placed = true;
        }
        Change::Delete {
            backend,
            hook,
            accept,
        } => {
            let chain = chain(actual, backend, hook);
            let at = chain.ours.iter().position(|ours| *ours == accept);
            chain.ours.remove(at.expect("there to delete"));
            chain.placed |= chain.ours.is_empty();
        }
        Change::PutRoute(route) => {
            let live = |route: &Route| matches!(route.target, Target::Device { .. });
            let replaces = |old: &Route| old.prefix == route.prefix && live(old) && live(&route);
            actual.routes.retain(|old| !replaces(old));
            assert!(actual.routes.insert(route));
        }
        Change::DeleteRoute(route) => assert!(actual.routes.remove(&route)),
        Change::AddRule(rule) => assert!(actual.rules.insert(rule)),
        Change::DeleteRule(rule) => assert!(actual.rules.remove(&rule)),
        Change::DeleteDevice => {
            actual.device = None;
            let leads_nowhere = |route: &Route| matches!(route.target, Target::Unreachable);
            actual.routes.retain(leads_nowhere);
        }
        Change::ForgetFlows => actual.flows_pending = false,
    }
}

fn chain(actual: &mut Actual, backend: Backend, hook: Hook) -> &mut Chain {
    let mut chains = actual.chains.iter_mut();
    chains
        .find(|chain| chain.backend == backend && chain.hook == hook)
        .expect("chain")
}

fn apply_all(desired: &Desired, actual: &mut Actual) -> usize {
    let names = Names::default();
    let changes = plan(&names, desired, actual);
    let count = changes.len();
    for change in changes {
        model(actual, change, &names, desired);
    }
    count
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_bare_host_is_set_up_in_a_safe_order() {
    let changes = plan(&Names::default(), &desired(), &bare());
    assert_eq!(
        texts(&changes),
        [
            "set up the device",
            "make the nftables table",
            "route 10.2.0.0/16",
            "route 10.3.0.0/16",
            "add IPv4 rule 300",
            "add IPv6 rule 300",
            "route 10.2.0.0/16",
            "set net/ipv4/ip_forward to 1",
            "forget translated flows",
        ]
    );
    let live = Change::PutRoute(Route {
        prefix: net("10.2.0.0/16"),
        target: Target::Device {
            source: "10.1.0.1".parse().ok(),
            mtu: 1280,
        },
    });
    assert_eq!(changes.get(6), Some(&live));
}

#[test]
fn a_withdrawn_peer_becomes_unreachable_and_nothing_else() {
    let mut actual = bare();
    apply_all(&desired(), &mut actual);
    let mut fewer = desired();
    fewer.remote.clear();
    let changes = plan(&Names::default(), &fewer, &actual);
    assert_eq!(
        texts(&changes),
        ["update the nftables sets", "remove route 10.2.0.0/16"]
    );
    assert!(matches!(
        changes.last(),
        Some(Change::DeleteRoute(Route {
            target: Target::Device { .. },
            ..
        }))
    ));
}

#[test]
fn a_new_peer_makes_old_flows_forgotten() {
    let mut actual = bare();
    apply_all(&desired(), &mut actual);
    let mut more = desired();
    more.remote.push(net("10.3.0.0/16"));
    let changes = plan(&Names::default(), &more, &actual);
    assert_eq!(
        texts(&changes),
        [
            "update the nftables sets",
            "route 10.3.0.0/16",
            "forget translated flows"
        ]
    );
}

#[test]
fn without_a_device_prefixes_stay_unreachable() {
    let mut actual = bare();
    apply_all(&desired(), &mut actual);
    let mut without = desired();
    without.device = false;
    apply_all(&without, &mut actual);
    assert_eq!(actual.device, None);
    assert_eq!(actual.routes.len(), 2);
    assert_eq!(actual.rules.len(), 2);
    assert_eq!(apply_all(&without, &mut actual), 0);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let mut actual = bare();
    actual.table = Table::Foreign;
    actual.device = Some(Device::default());
    let names = Names::default();
    let changes = plan(&names, &Desired::default(), &actual);
    assert_eq!(changes, []);
    let changes = plan(&names, &desired(), &actual);
    assert!(!changes.contains(&Change::MakeTable));
}

#[test]
fn accepts_follow_the_port_and_the_drop() {
    let backend = Backend {
        flavour: Flavour::Legacy,
        v6: false,
    };
    let input = Chain {
        backend,
        hook: Hook::Input,
        drops: true,
        ours: vec![Accept::ToPort(1)],
        placed: true,
        position: Some(4),
    };
    let mut actual = bare();
    apply_all(&desired(), &mut actual);
    actual.chains = vec![input];
    let changes = plan(&Names::default(), &desired(), &actual);
    let (hook, accept) = (Hook::Input, Accept::ToPort(20443));
    assert_eq!(
        changes,
        [
            Change::Delete {
                backend,
                hook,
                accept: Accept::ToPort(1)
            },
            Change::Insert {
                backend,
                hook,
                accept,
                position: Some(4)
            },
        ]
    );
    apply_all(&desired(), &mut actual);
    if let Some(chain) = actual.chains.first_mut() {
        chain.drops = false;
    }
    let changes = plan(&Names::default(), &desired(), &actual);
    assert_eq!(
        changes,
        [Change::Delete {
            backend,
            hook,
            accept
        }]
    );
}

#[test]
fn what_cannot_be_written_is_not_planned_unless_netlink_can() {
    let key = |name: &str| format!("net/{name}");
    let mut actual = bare();
    actual.sysctls.extend([
        (key("ipv4/conf/culvert0/rp_filter"), "1".to_owned()),
        (key("ipv6/conf/culvert0/accept_ra"), "1".to_owned()),
    ]);
    actual.locked = actual.sysctls.keys().cloned().collect();
    let changes = texts(&plan(&Names::default(), &desired(), &actual));
    let sets: Vec<_> = changes
        .iter()
        .filter(|text| text.contains("net/"))
        .collect();
    assert_eq!(sets, ["set net/ipv4/conf/culvert0/rp_filter to 2"]);
    apply_all(&desired(), &mut actual);
    assert_eq!(apply_all(&desired(), &mut actual), 0);
}

#[test]
fn a_device_without_ipv6_takes_no_route_and_the_guard_stays() {
    let mut desired = desired();
    desired.remote.push(net("fd00:2::/64"));
    let mut actual = bare();
    actual.device.as_mut().expect("device").no_v6 = true;
    apply_all(&desired, &mut actual);
    let to = |prefix: &str| {
        let prefix = net(prefix);
        actual
            .routes
            .iter()
            .filter(move |route| route.prefix == prefix)
            .count()
    };
    assert_eq!((to("10.2.0.0/16"), to("fd00:2::/64")), (2, 1));
}

#[test]
fn a_gateway_serves_its_cluster_and_leaves_its_routes_alone() {
    let mut desired = desired();
    desired.local = vec![net("10.0.0.0/12")];
    desired.remote = vec![net("10.16.0.0/12")];
    desired.held = vec![net("10.16.0.0/12")];
    let mut actual = bare();
    apply_all(&desired, &mut actual);
    let own = |route: &Route| desired.local.iter().any(|net| net.contains(&route.prefix));
    assert_eq!(actual.routes.iter().filter(|route| own(route)).count(), 0);
    assert_eq!(actual.routes.len(), 2);
    assert_eq!(
        actual.sysctls.get(sysctl::FORWARD_V4),
        Some(&"1".to_owned())
    );
    assert_eq!(apply_all(&desired, &mut actual), 0);
}

fn prefixes() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (0_u8..6, 12_u8..25).prop_map(|(b, length)| {
        IpNet::new([10, b, b, 0].into(), length)
            .expect("prefix")
            .trunc()
    });
    let v6 = (0_u16..6, 48_u8..65).prop_map(|(b, length)| {
        IpNet::new([0xfd00, b, b, 0, 0, 0, 0, 0].into(), length)
            .expect("prefix")
            .trunc()
    });
    proptest::collection::vec(prop_oneof![v4, v6], 0..5)
}

prop_compose! {
    fn any_desired()(
        mtu in 1280_u32..1500,
        listen_port in 0_u16..3,
        addresses in prefixes(),
        local in prefixes(),
        remote in prefixes(),
        held in prefixes(),
        device in any::<bool>(),
    ) -> Desired {
        Desired { mtu, listen_port, addresses, local, remote, held, device }
    }
}

fn any_accept() -> impl Strategy<Value = Accept> {
    prop_oneof![
        Just(Accept::FromDevice),
        Just(Accept::IntoDevice),
        (0_u16..3).prop_map(Accept::ToPort),
        (0_u16..3).prop_map(Accept::FromPort),
    ]
}

prop_compose! {
    fn any_chain()(
        legacy in any::<bool>(),
        hook in prop_oneof![Just(Hook::Forward), Just(Hook::Input), Just(Hook::Output)],
        drops in any::<bool>(),
        ours in proptest::collection::vec(any_accept(), 0..4),
        placed in any::<bool>(),
        position in proptest::option::of(1_usize..9),
    ) -> Chain {
        let flavour = if legacy { Flavour::Legacy } else { Flavour::Nft };
        let copies = ours.len() != ours.iter().collect::<BTreeSet<_>>().len();
        let placed = ours.is_empty() || (placed && !copies);
        Chain { backend: Backend { flavour, v6: false }, hook, drops, ours, placed, position }
    }
}

prop_compose! {
    fn any_actual()(
        v6 in any::<bool>(),
        there in any::<bool>(),
        up in any::<bool>(),
        addresses in prefixes(),
        old in any_desired(),
        intact in any::<bool>(),
        table in any::<bool>(),
        priority in 299_u32..302,
        chain in any_chain(),
        forward in "[01]",
        locked in any::<bool>(),
        no_v6 in any::<bool>(),
        metric in 0_u32..3,
    ) -> Actual {
        let device = Device {
            index: 7, tun: true, up, mtu: 1400, queue: 500,
            addresses: addresses.into_iter().filter(|net| v6 || !is_v6(net)).collect(),
            no_v6: v6 && no_v6,
        };
        let mut actual = Actual {
            v6,
            device: there.then_some(device),
            addresses: vec!["10.1.1.1".parse().expect("address")],
            rules: BTreeSet::from([Rule { v6: false, priority }]),
            chains: vec![chain],
            sysctls: BTreeMap::from([(sysctl::FORWARD_V4.to_owned(), forward)]),
            locked: locked.then(|| sysctl::FORWARD_V4.to_owned()).into_iter().collect(),
            ..Actual::default()
        };
        actual.routes = routes(&old, &actual);
        actual.routes.insert(Route { prefix: net("10.9.0.0/16"), target: Target::Other { metric, kind: 6 } });
        if table {
            let structure = Some(nft::structure(&Names::default(), &old));
            actual.table = Table::Ours { structure, intact, sets: Sets::of(&old) };
        }
        actual
    }
}

proptest! {
    #[test]
    fn a_plan_applied_leaves_nothing_to_plan(desired in any_desired(), mut actual in any_actual()) {
        apply_all(&desired, &mut actual);
        let again = plan(&Names::default(), &desired, &actual);
        prop_assert_eq!(again, vec![]);
    }

    #[test]
    fn no_step_opens_a_hole(desired in any_desired(), mut actual in any_actual()) {
        let names = Names::default();
        apply_all(&desired, &mut actual);
        let mut next = desired.clone();
        next.remote.clear();
        next.device = false;
        for change in plan(&names, &next, &actual) {
            model(&mut actual, change, &names, &next);
            for prefix in desired.held.iter().filter(|net| actual.v6 || !is_v6(net)) {
                let route = Route { prefix: *prefix, target: Target::Unreachable };
                prop_assert!(next.is_idle() || actual.routes.contains(&route));
            }
        }
    }

    #[test]
    fn forwarding_waits_for_every_guard(desired in any_desired(), mut actual in any_actual()) {
        let names = Names::default();
        for change in plan(&names, &desired, &actual) {
            if matches!(change, Change::Turn { .. }) {
                let mut guarded = routes(&desired, &actual);
                guarded.retain(|route| matches!(route.target, Target::Unreachable));
                prop_assert!(guarded.is_subset(&actual.routes));
                prop_assert!(rules(&names, &desired, &actual).is_subset(&actual.rules));
                let Table::Ours { sets, .. } = &actual.table else {
                    panic!("no table");
                };
                prop_assert_eq!(sets, &Sets::of(&desired));
            }
            model(&mut actual, change, &names, &desired);
        }
    }

    #[test]
    fn an_idle_plan_leaves_no_trace(desired in any_desired(), mut actual in any_actual()) {
        apply_all(&desired, &mut actual);
        apply_all(&Desired::default(), &mut actual);
        prop_assert_eq!(actual.device, None);
        prop_assert_eq!(actual.table, Table::Absent);
        prop_assert!(actual.routes.is_empty() && actual.rules.is_empty());
        prop_assert!(actual.chains.iter().all(|chain| chain.ours.is_empty()));
    }
}
