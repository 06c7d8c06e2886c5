//! The plan on real kernels: namespaces, real `nft` and both iptables. Needs root.

mod container;
mod extremes;
mod lab;
mod packets;

use std::time::{Duration, Instant};

use lab::{Site, State, converge, desired};
use netconf::{Condition, ConditionCode, Desired, Names, Netconf, OpenError};

async fn clean(state: &State) -> netconf::CleanupReport {
    Netconf::cleanup(Names::default(), &state.journal())
        .await
        .expect("cleans up")
}

#[test]
fn a_second_apply_changes_nothing_and_cleanup_leaves_no_trace() {
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("sysctl -qw net.ipv4.conf.wan0.forwarding=1 net.ipv4.conf.all.accept_redirects=1");
    site.node
        .sh("iptables-nft -A INPUT -i lo -j ACCEPT; ip route add 10.9.0.0/16 via 192.0.2.2");
    let before = site.node.dump();
    site.add_device();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        let mut desired = desired();
        desired.addresses = vec![
            "10.1.255.1/32".parse().expect("prefix"),
            "fd00:1::ff/128".parse().expect("prefix"),
        ];
        let first = netconf.apply(&desired).await.expect("applies");
        assert!(first.changed > 10, "{first:?}");
        let second = netconf.apply(&desired).await.expect("applies");
        assert_eq!(second.changed, 0, "{second:?}");
        let codes: Vec<_> = second.conditions.iter().map(|c| c.code).collect();
        assert_eq!(codes, [ConditionCode::Ipv6Forwarding]);
        drop(netconf);
        let third = state.open().await.apply(&desired).await.expect("applies");
        assert_eq!(third.changed, 0, "{third:?}");
    });
    let node = &site.node;
    assert!(
        node.sh("ip route get 10.2.0.9")
            .contains("dev culvert0 table 24370 src 10.1.255.1")
    );
    assert!(
        node.sh("ip -6 route get fd00:2::9")
            .contains("dev culvert0")
    );
    assert!(
        node.sh("ip route show table 24370")
            .contains("unreachable 10.3.0.0/16 proto 173 metric 1000000")
    );
    assert_eq!(
        node.sh("sysctl -n net.ipv4.conf.culvert0.rp_filter net.ipv4.ip_forward"),
        "2\n1\n"
    );
    assert!(!node.sh("ip -6 addr show dev culvert0").contains("fe80"));
    node.run(|| async {
        let report = clean(&state).await;
        assert_eq!(report.left, []);
        assert!(!report.removed.is_empty());
        let again = clean(&state).await;
        assert_eq!((again.removed.len(), again.left.len()), (0, 0), "{again:?}");
    });
    pretty_equal(&before, &node.dump());
    assert!(!state.journal().exists());
}

fn pretty_equal(before: &str, after: &str) {
    let mut lines = before.lines().zip(after.lines());
    let difference = lines.find(|(before, after)| before != after);
    assert_eq!(difference, None);
    assert_eq!(before.lines().count(), after.lines().count());
}

#[test]
fn cleanup_finds_everything_without_a_journal() {
    let (site, state) = (Site::new(), State::new());
    site.node.sh("iptables-nft -P FORWARD DROP; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let before = site.node.dump();
    site.add_device();
    site.node.run(|| async {
        state.open().await.apply(&desired()).await.expect("applies");
        std::fs::remove_file(state.journal()).expect("removes");
        let report = clean(&state).await;
        assert_eq!(report.left, []);
    });
    pretty_equal(&before, &site.node.dump());
}

#[test]
fn what_others_delete_comes_back_within_a_second() {
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("iptables-legacy -P FORWARD DROP; iptables-nft -P INPUT DROP");
    site.add_device();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        converge(&mut netconf, &desired()).await;
        let start = Instant::now();
        let nothing = netconf.apply(&desired()).await.expect("applies");
        println!("an apply without changes took {:?}", start.elapsed());
        assert_eq!(nothing.changed, 0);
        let damages = [
            "ip route flush table 24370",
            "ip rule del priority 300",
            "ip -6 rule del priority 300",
            "nft flush ruleset; iptables-nft -P INPUT DROP",
            "nft flush chain inet culvert keep_source",
            "nft flush set inet culvert remote4",
            "nft delete table inet culvert",
            "ip link set culvert0 down",
            "ip link set culvert0 mtu 1400",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.conf.culvert0.rp_filter=1",
            "iptables-legacy -F FORWARD",
            "iptables-nft -F INPUT",
            "iptables-legacy -A FORWARD -j DOCKER-USER 2>/dev/null || iptables-legacy -N DOCKER-USER; iptables-legacy -A FORWARD -j DOCKER-USER",
            "iptables-legacy -I FORWARD -j DROP",
        ];
        for damage in damages {
            drain(&mut netconf, &desired()).await;
            site.node.sh(damage);
            let start = Instant::now();
            while netconf.apply(&desired()).await.expect("applies").changed == 0 {
                let noticed = tokio::time::timeout(Duration::from_secs(5), netconf.changed()).await;
                assert!(noticed.is_ok(), "not noticed: {damage}");
                assert!(start.elapsed() < Duration::from_secs(5), "not repaired: {damage}");
            }
            converge(&mut netconf, &desired()).await;
        }
        let forward = site.node.sh("iptables-legacy -S FORWARD");
        let order: Vec<_> = forward.lines().map(|line| line.split("-j ").last()).collect();
        assert_eq!(order.first(), Some(&Some("-P FORWARD DROP")));
        assert!(forward.find("culvert0") < forward.find("-j DROP"), "{forward}");
        clean(&state).await;
    });
}

/// Applies and waits until the watch is quiet, so that what it says next is news.
async fn drain(netconf: &mut Netconf, desired: &Desired) {
    converge(netconf, desired).await;
    while tokio::time::timeout(Duration::from_millis(900), netconf.changed())
        .await
        .is_ok()
    {
        converge(netconf, desired).await;
    }
}

#[test]
fn the_watch_is_quick_and_then_quiet() {
    let (site, state) = (Site::new(), State::new());
    site.add_device();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        drain(&mut netconf, &desired()).await;
        for damage in [
            "ip route flush table 24370",
            "nft delete table inet culvert",
        ] {
            let start = Instant::now();
            site.node.sh(damage);
            netconf.changed().await;
            let report = netconf.apply(&desired()).await.expect("applies");
            println!("{damage}: repaired after {:?}", start.elapsed());
            assert!(report.changed > 0);
            assert!(start.elapsed() < Duration::from_secs(2));
            drain(&mut netconf, &desired()).await;
        }
        clean(&state).await;
    });
}

#[test]
fn the_source_survives_every_masquerade() {
    let masquerades = [
        "iptables-nft -t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE; ip6tables-nft -t nat -A POSTROUTING -s fd00:1::/64 -j MASQUERADE",
        "iptables-legacy -t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE",
        "nft 'table ip cni { chain post { type nat hook postrouting priority srcnat; ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 masquerade; }; }'",
    ];
    for masquerade in masquerades {
        let (site, state) = (Site::new(), State::new());
        site.node.sh(masquerade);
        site.add_device();
        site.node.run(|| async {
            converge(&mut state.open().await, &desired()).await;
        });
        site.send("10.2.0.9");
        site.send("192.0.2.2");
        site.send_v6("fd00:2::9");
        let kept = site.flow("10.2.0.9").expect("tracked");
        assert!(
            kept.contains("src=10.2.0.9 dst=10.1.0.2"),
            "{masquerade}: {kept}"
        );
        let kept = site.flow("fd00:2::9").expect("tracked");
        assert!(
            kept.contains("src=fd00:2::9 dst=fd00:1::2"),
            "{masquerade}: {kept}"
        );
        let elsewhere = site.flow("192.0.2.2").expect("tracked");
        assert!(
            elsewhere.contains("src=192.0.2.2 dst=192.0.2.1"),
            "{elsewhere}"
        );
    }
}

#[test]
fn an_old_translated_flow_starts_anew() {
    let (site, state) = (Site::new(), State::new());
    site.node.sh("sysctl -qw net.ipv4.ip_forward=1");
    site.node
        .sh("iptables-nft -t nat -A POSTROUTING -s 10.1.0.0/16 -j MASQUERADE");
    site.send("10.2.0.9");
    site.send("192.0.2.2");
    let old = site.flow("10.2.0.9").expect("tracked");
    assert!(old.contains("src=10.2.0.9 dst=192.0.2.1"), "{old}");
    site.add_device();
    site.node.run(|| async {
        let report = converge(&mut state.open().await, &desired()).await;
        assert!(
            report
                .conditions
                .iter()
                .all(|c| c.code != ConditionCode::OldFlows),
            "{report:?}"
        );
    });
    assert_eq!(site.flow("10.2.0.9"), None);
    assert!(site.flow("192.0.2.2").is_some());
    site.send("10.2.0.9");
    let new = site.flow("10.2.0.9").expect("tracked");
    assert!(new.contains("src=10.2.0.9 dst=10.1.0.2"), "{new}");
}

#[test]
fn drops_are_opened_in_the_backend_that_holds_them() {
    for (backend, other) in [("iptables-nft", "legacy"), ("iptables-legacy", "nft")] {
        let (site, state) = (Site::new(), State::new());
        for rule in [
            "-P INPUT DROP",
            "-P FORWARD DROP",
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A INPUT -s 192.0.2.66 -j DROP",
        ] {
            site.node.sh(&format!("{backend} {rule}"));
        }
        let before = (
            site.node.dump(),
            site.node.sh(&format!(
                "{backend}-save | grep -v '^#' | sed 's/\\[.*\\]//'"
            )),
        );
        site.add_device();
        assert!(!reaches(&site), "{backend} does not drop");
        site.node.run(|| async {
            let report = converge(&mut state.open().await, &desired()).await;
            assert!(
                report
                    .conditions
                    .iter()
                    .all(|c| c.code == ConditionCode::Ipv6Forwarding),
                "{report:?}"
            );
        });
        assert!(
            reaches(&site),
            "{backend} still drops datagrams to the port"
        );
        site.send("10.2.0.9");
        assert!(
            site.flow("10.2.0.9").is_some(),
            "{backend} still drops what is forwarded"
        );
        let names = site.node.sh("cat /proc/net/ip_tables_names");
        let tables = site.node.sh("nft list tables");
        let quiet = if other == "legacy" {
            names.is_empty()
        } else {
            !tables.contains("ip filter")
        };
        assert!(quiet, "{other} was touched: {names} {tables}");
        site.node.run(|| async {
            assert_eq!(clean(&state).await.left, []);
        });
        let after = (
            site.node.dump(),
            site.node.sh(&format!(
                "{backend}-save | grep -v '^#' | sed 's/\\[.*\\]//'"
            )),
        );
        pretty_equal(&before.0, &after.0);
        pretty_equal(&before.1, &after.1);
    }
}

/// Whether a datagram from outside arrives at the tunnel's port on the node.
fn reaches(site: &Site) -> bool {
    let inside = site.node.bind("192.0.2.1:20443");
    let outside = site.outside.bind("192.0.2.2:4000");
    inside
        .set_read_timeout(Some(Duration::from_millis(400)))
        .expect("sets");
    outside.send_to(b"x", "192.0.2.1:20443").expect("sends");
    inside.recv(&mut [0; 8]).is_ok()
}

#[test]
fn a_native_drop_is_reported_with_its_remedy() {
    let (site, state) = (Site::new(), State::new());
    site.node.sh("nft 'table inet guard { chain in { type filter hook input priority 0; policy drop; }; chain through { type filter hook forward priority 0; counter drop; }; }'");
    site.add_device();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        let report = converge(&mut netconf, &desired()).await;
        let drops: Vec<&Condition> = report
            .conditions
            .iter()
            .filter(|c| c.code == ConditionCode::ForeignDrop)
            .collect();
        assert_eq!(drops.len(), 2, "{report:?}");
        for drop in drops {
            let (_, remedy) = drop.message.split_once("run: ").expect("remedy");
            site.node.sh(remedy);
        }
        let report = converge(&mut netconf, &desired()).await;
        assert!(
            report
                .conditions
                .iter()
                .all(|c| c.code != ConditionCode::ForeignDrop),
            "{report:?}"
        );
    });
    assert!(reaches(&site));
}

#[test]
fn a_withdrawn_prefix_stays_unreachable_over_restarts() {
    let (site, state) = (Site::new(), State::new());
    site.add_device();
    site.node.run(|| async {
        converge(&mut state.open().await, &desired()).await;
        let mut fewer = desired();
        fewer.remote.clear();
        fewer.held.clear();
        converge(&mut state.open().await, &fewer).await;
        let table = site.node.sh("ip route show table 24370");
        assert!(
            !table.contains("culvert0") && table.contains("unreachable 10.2.0.0/16"),
            "{table}"
        );
        fewer.device = false;
        converge(&mut state.open().await, &fewer).await;
    });
    assert!(!site.node.sh("ip link").contains("culvert0"));
    // Even without the rule nothing leaves in the clear.
    site.node.sh("ip rule del priority 300");
    site.send("10.2.0.9");
    let listing = site.node.sh("nft list chain inet culvert egress");
    assert!(listing.contains("@held4 counter packets 1 "), "{listing}");
    // A network that the host has joined since is no longer held.
    site.node.sh("ip addr add 10.2.5.5/24 dev wan0");
    site.node.run(|| async {
        let idle = Desired {
            held: vec!["10.3.0.0/16".parse().expect("prefix")],
            ..Desired::default()
        };
        converge(&mut state.open().await, &idle).await;
        assert!(!site.node.sh("ip route show table 24370").contains("10.2."));
        assert_eq!(clean(&state).await.left, []);
    });
}

#[test]
fn what_is_somebody_elses_is_named_and_kept() {
    let conflicts = [
        (
            "ip link add culvert0 type bridge",
            "an interface named culvert0",
        ),
        ("nft add table inet culvert", "nftables table inet culvert"),
        (
            "ip route add unreachable 10.8.0.0/16 table 24370",
            "routing table 24370",
        ),
    ];
    for (line, name) in conflicts {
        let (site, state) = (Site::new(), State::new());
        site.node.sh(line);
        let before = site.node.dump();
        site.node.run(|| async {
            let error = Netconf::open(Names::default(), state.journal()).await;
            let Err(OpenError::Conflict(message)) = error else {
                panic!("opened in spite of: {line}");
            };
            assert!(message.contains(name), "{message}");
            let report = clean(&state).await;
            assert_eq!(
                (report.removed.len(), report.left.len()),
                (0, 1),
                "{report:?}"
            );
        });
        pretty_equal(&before, &site.node.dump());
    }
}

#[test]
fn addresses_and_networks_of_the_host_are_listed() {
    let (site, state) = (Site::new(), State::new());
    site.add_device();
    site.node.run(|| async {
        let netconf = state.open().await;
        let addresses = netconf.host_addresses().await.expect("lists");
        let texts: Vec<_> = addresses
            .iter()
            .map(|found| format!("{} {} {}", found.address, found.network, found.interface))
            .collect();
        assert!(
            texts.contains(&"192.0.2.1 192.0.2.0/24 wan0".to_owned()),
            "{texts:?}"
        );
        assert!(
            texts
                .iter()
                .all(|text| !text.starts_with("127.") && !text.starts_with("fe80"))
        );
        let connected = netconf.connected(&desired().local).await.expect("lists");
        assert_eq!(connected, ["192.0.2.0/24".parse().expect("prefix")]);
    });
}

#[test]
fn only_mesh_sources_come_in_and_connections_fit_the_device() {
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("iptables-nft -t nat -A POSTROUTING ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE");
    // The rules know the device by name, so a pair of veth ends can carry what the tunnel would.
    let far = packets::wired(&site, &state);
    far.sh("ip addr add 10.66.0.9/32 dev eth0");
    let listener = site
        .pod
        .run(|| async { std::net::TcpListener::bind("10.1.0.2:80").expect("binds") });
    let stream = far.run(|| async {
        let address = "10.1.0.2:80".parse().expect("address");
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connects")
    });
    let (accepted, from) = listener.accept().expect("accepts");
    assert_eq!(from.ip().to_string(), "10.2.0.9");
    for end in [&stream, &accepted] {
        let mss =
            nix::sys::socket::getsockopt(end, nix::sys::socket::sockopt::TcpMaxSeg).expect("mss");
        assert!((500..=1240).contains(&mss), "{mss}");
    }
    let socket = site.pod.bind("10.1.0.2:9");
    for from in ["10.66.0.9:1", "10.2.0.9:1"] {
        let sent = far.bind(from).send_to(b"x", "10.1.0.2:9");
        assert_eq!(sent.expect("sends"), 1);
    }
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("sets");
    let (_, from) = socket.recv_from(&mut [0; 8]).expect("receives");
    assert_eq!(from.to_string(), "10.2.0.9:1", "the stranger came first");
}
