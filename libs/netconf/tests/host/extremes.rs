//! Large plans, plans cut short, and hosts without IPv6.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use netconf::Desired;

use crate::lab::{Site, State, converge, desired};
use crate::{clean, drain, pretty_equal};

/// 5,000 prefixes of which no two merge, so that every one is a route and an element.
fn many() -> Desired {
    let remote = (0..5_000_u32).map(|n| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 | (n << 9));
        IpNet::new(address.into(), 24).expect("prefix")
    });
    Desired {
        remote: remote.collect(),
        held: Vec::new(),
        ..desired()
    }
}

#[test]
fn five_thousand_prefixes_are_applied_once_and_quickly() {
    let (site, state) = (Site::new(), State::new());
    let before = site.node.dump();
    site.add_device();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        let mut many = many();
        let timed = async |netconf: &mut netconf::Netconf, many: &Desired, what: &str| {
            let start = Instant::now();
            let changed = netconf.apply(many).await.expect("applies").changed;
            println!("{what}: {changed} changes in {:?}", start.elapsed());
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            changed
        };
        assert!(timed(&mut netconf, &many, "first apply").await > 10_000);
        assert_eq!(timed(&mut netconf, &many, "second apply").await, 0);
        many.mtu = 1400;
        assert!(timed(&mut netconf, &many, "another MTU").await > 5_000);
        // Whatever was lost of so many events, the next one is noticed.
        drain(&mut netconf, &many).await;
        site.node
            .sh("ip route del 11.0.0.0/24 table 24370 metric 100");
        let noticed = tokio::time::timeout(Duration::from_secs(5), netconf.changed()).await;
        assert!(noticed.is_ok());
        assert_eq!(timed(&mut netconf, &many, "repair").await, 1);
        many.remote.clear();
        assert!(timed(&mut netconf, &many, "withdrawal").await > 5_000);
        assert_eq!(clean(&state).await.left, []);
    });
    pretty_equal(&before, &site.node.dump());
}

#[test]
fn an_apply_cut_short_anywhere_is_finished_or_cleaned_up() {
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("iptables-nft -P FORWARD DROP; iptables-legacy -P INPUT DROP");
    let before = site.node.dump();
    let mut cut_short = 0;
    // Each time a little further, until an apply gets through.
    for step in 0..60_u64 {
        site.add_device();
        let finished = site.node.run(|| async {
            let mut netconf = state.open().await;
            let desired = desired();
            let limit = Duration::from_millis(step * 8);
            let finished = tokio::time::timeout(limit, netconf.apply(&desired)).await;
            // Nothing is written when it is dropped, as nothing is when it is killed.
            drop(netconf);
            if step % 2 == 1 {
                converge(&mut state.open().await, &desired).await;
            }
            assert_eq!(clean(&state).await.left, []);
            finished.is_ok()
        });
        pretty_equal(&before, &site.node.dump());
        if finished {
            break;
        }
        cut_short += 1;
    }
    println!("cut short {cut_short} times");
    assert!((2..60).contains(&cut_short), "{cut_short}");
}

#[test]
fn a_host_that_never_rests_is_looked_at_once_a_second() {
    let (site, state) = (Site::new(), State::new());
    site.add_device();
    let over = std::sync::atomic::AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        scope.spawn(|| {
            site.node.sh("for n in $(seq 100); do ip route add 10.77.0.0/16 dev wan0; ip route del 10.77.0.0/16 dev wan0; sleep 0.05; done");
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        site.node.run(|| async {
            let mut netconf = state.open().await;
            let (start, mut looks) = (Instant::now(), 0.0);
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                netconf.apply(&desired()).await.expect("applies");
                looks += 1.0;
                netconf.changed().await;
            }
            looks / start.elapsed().as_secs_f64()
        })
    });
    println!("{looks} a second");
    assert!((0.3..2.5).contains(&looks), "{looks} a second");
}

#[test]
fn a_host_with_ipv6_turned_off_is_configured_for_ipv4() {
    let (site, state) = (Site::new(), State::new());
    site.node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let before = site.node.dump();
    site.add_device();
    site.node.run(|| async {
        let v4 = |nets: Vec<IpNet>| nets.into_iter().filter(|net| net.addr().is_ipv4()).collect();
        let all = desired();
        let desired = Desired {
            local: v4(all.local),
            remote: v4(all.remote),
            held: v4(all.held),
            ..desired()
        };
        let report = converge(&mut state.open().await, &desired).await;
        assert_eq!(report.conditions, []);
        assert_eq!(clean(&state).await.left, []);
        // With IPv6 prefixes it is turned on for our own device alone.
        site.add_device();
        converge(&mut state.open().await, &crate::lab::desired()).await;
        let off = site.node.sh("sysctl -n net.ipv6.conf.all.disable_ipv6 net.ipv6.conf.wan0.disable_ipv6 net.ipv6.conf.culvert0.disable_ipv6");
        assert_eq!(off, "1\n1\n0\n");
        let table = site.node.sh("ip route show table 24370");
        assert!(table.contains("10.2.0.0/16 dev culvert0"), "{table}");
        assert_eq!(clean(&state).await.left, []);
    });
    pretty_equal(&before, &site.node.dump());
}
