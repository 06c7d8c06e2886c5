//! Real packets between a pod and a remote pod, past every kind of masquerade and DROP.

use std::net::UdpSocket;
use std::time::Duration;

use crate::lab::{Namespace, Site, State, converge, desired};

/// What CNIs do, both ways: to the outside, and to pods from elsewhere.
const MASQUERADES: [(&str, &str); 3] = [
    (
        "iptables-nft",
        "iptables-nft -t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE; iptables-nft -t nat -A POSTROUTING ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE",
    ),
    (
        "iptables-legacy",
        "iptables-legacy -t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE --random-fully; iptables-legacy -t nat -A POSTROUTING ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE",
    ),
    (
        "nft",
        "nft 'table ip cni { chain post { type nat hook postrouting priority srcnat; ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 masquerade; ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade; }; }'",
    ),
];

/// A node whose device is one end of a pair, with a remote pod at the other.
pub(crate) fn wired(site: &Site, state: &State) -> Namespace {
    let far = Namespace::new();
    site.node.run(|| async {
        let mut netconf = state.open().await;
        site.node.join("culvert0", &far, "eth0");
        converge(&mut netconf, &desired()).await;
    });
    far.sh("ip addr add 10.2.0.9/32 dev eth0");
    far.sh("ip route add 10.1.0.0/16 via 10.1.0.1 dev eth0 onlink src 10.2.0.9");
    far
}

fn bind(namespace: &Namespace, address: &'static str) -> UdpSocket {
    let socket = namespace.bind(address);
    let limit = Some(Duration::from_secs(5));
    socket.set_read_timeout(limit).expect("sets");
    socket
}

/// Sends a request and its answer, and returns whom the answerer and the asker saw.
pub(crate) fn exchange(from: &UdpSocket, to: &UdpSocket) -> (String, String) {
    let there = to.local_addr().expect("bound");
    from.send_to(b"ask", there).expect("sends");
    let (_, asker) = to.recv_from(&mut [0; 8]).expect("arrives");
    to.send_to(b"answer", asker).expect("sends");
    let (_, answerer) = from.recv_from(&mut [0; 8]).expect("comes back");
    (asker.to_string(), answerer.to_string())
}

#[test]
fn pods_see_each_other_past_every_masquerade_and_drop() {
    for (masquerade, rules) in MASQUERADES {
        for drop in ["iptables-nft", "iptables-legacy"] {
            let (site, state) = (Site::new(), State::new());
            site.node.sh("sysctl -qw net.ipv4.ip_forward=1");
            site.node.sh(rules);
            let outside = bind(&site.outside, "192.0.2.2:6000");
            let pod = bind(&site.pod, "10.1.0.2:5000");
            let (seen, _) = exchange(&pod, &outside);
            assert!(seen.starts_with("192.0.2.1:"), "{masquerade}: {seen}");
            site.node.sh(&format!("{drop} -P FORWARD DROP"));
            let far = wired(&site, &state);
            let remote = bind(&far, "10.2.0.9:6000");
            let saw = exchange(&pod, &remote);
            let own = ("10.1.0.2:5000".to_owned(), "10.2.0.9:6000".to_owned());
            assert_eq!(saw, own, "{masquerade}, DROP in {drop}");
            let (pod, remote) = (bind(&site.pod, "10.1.0.2:80"), bind(&far, "10.2.0.9:7000"));
            let saw = exchange(&remote, &pod);
            let own = ("10.2.0.9:7000".to_owned(), "10.1.0.2:80".to_owned());
            assert_eq!(saw, own, "{masquerade}, DROP in {drop}");
        }
    }
}
