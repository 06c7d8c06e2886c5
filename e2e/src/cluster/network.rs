//! The network of one cluster's site: a router, a LAN behind it, and what each node does to pod packets.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;

use super::ClusterSpec;
use super::grounds::Grounds;
use crate::firewall::Firewall;
use crate::lab::{Lab, Link};
use crate::namespace::Namespace;
use crate::profile::Profile;
use crate::site::{masquerade, nth};

/// Places on the LAN.
const ROUTER: u32 = 1;
const CONTROL: u32 = 2;
const NODES: u32 = 10;

/// The addresses of a site, and its router.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) nat: Profile,
    pub(super) link: Link,
    /// Its interfaces are `wan` and the bridge `lan`.
    pub(super) router: Namespace,
    pub(super) lan: Ipv4Net,
    pub(super) pods: Ipv4Net,
    pub(super) services: Ipv4Net,
    spec: ClusterSpec,
}

impl Network {
    /// Makes router and LAN.
    pub(super) fn create(lab: &mut Lab, spec: &ClusterSpec) -> Result<Self> {
        let link = lab.next_link()?;
        let number = link.number() - 3;
        let range =
            |first, second| Ipv4Net::new_assert(Ipv4Addr::new(10, first + second, 0, 0), 16);
        let router = lab.namespace(&format!("nat-{}", spec.name))?;
        let network = Self {
            name: spec.name.clone(),
            nat: spec.nat,
            link,
            router,
            lan: spec.lan.map_or_else(|| default_lan(spec.nat, number), Ok)?,
            pods: spec.pods.unwrap_or_else(|| range(100, number)),
            services: spec.services.unwrap_or_else(|| range(200, number)),
            spec: spec.clone(),
        };
        ensure!(
            network.pods.prefix_len() <= 16 && network.services.prefix_len() <= 20,
            "pods need a /16, services a /20"
        );
        network.route(lab)?;
        Ok(network)
    }

    fn route(&self, lab: &Lab) -> Result<()> {
        lab.attach(&self.router, self.link, false)?;
        let wan = self.wan();
        self.router.ip(&[
            &format!("addr add {wan}/29 dev wan"),
            &format!("route add default via {}", self.link.core()),
            // Given, and not that of a port: a node that goes must not change the router's address for the others.
            "link add lan address 02:00:00:00:00:01 type bridge",
            &format!("addr add {} dev lan", self.with_prefix(ROUTER)?),
            "link set lan up",
        ])?;
        self.router.sysctl("net/ipv4/ip_forward", "1")?;
        if self.nat.has_router() {
            return self.router.nft(&self.nat.rules());
        }
        // Public nodes: the LAN's addresses are routed. The API server stays private all the same.
        lab.core()
            .ip(&[&format!("route add {} via {wan}", self.lan)])?;
        let hidden = self.control()?;
        self.router.nft(&format!(
            "table ip hide {{\n chain through {{\n  type filter hook forward priority 0;\n  \
             iifname \"wan\" ip daddr {hidden} ct state new drop\n }}\n}}\n"
        ))
    }

    /// The router's public address.
    pub(super) fn wan(&self) -> Ipv4Addr {
        self.link.address(2)
    }

    /// The API server's address on the LAN.
    pub(super) fn control(&self) -> Result<Ipv4Addr> {
        nth(self.lan, CONTROL)
    }

    /// A node's address on the LAN. The first node is 1.
    pub(super) fn node(&self, number: u8) -> Result<Ipv4Addr> {
        nth(self.lan, NODES + u32::from(number))
    }

    /// The prefix of a node's pods, a /24.
    pub(super) fn node_pods(&self, number: u8) -> Result<Ipv4Net> {
        let first = nth(self.pods, u32::from(number) << 8)?;
        Ok(Ipv4Net::new_assert(first, 24))
    }

    /// Makes the namespace of the control plane, and cables it.
    pub(super) fn add_control(&self, grounds: &Grounds) -> Result<Namespace> {
        let ns = grounds.namespace(&format!("control-{}", self.name))?;
        self.cable(&ns, "control", CONTROL)?;
        Ok(ns)
    }

    /// Makes the namespace of a node, cables it, and gives it the rules that a CNI plugin and an administrator would.
    pub(super) fn add_node(&self, grounds: &Grounds, number: u8) -> Result<Namespace> {
        let ns = grounds.namespace(&format!("node-{}-{number}", self.name))?;
        self.cable(&ns, &format!("node{number}"), NODES + u32::from(number))?;
        ns.sysctl("net/ipv4/ip_forward", "1")?;
        // Without it an answer within the bridge would not be translated back from a Service.
        ns.sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
        masquerade(&ns, self.spec.masquerade, "ip", &self.pods.to_string())?;
        if let Some(firewall) = self.spec.forward_drop {
            self.drop_forwarded(&ns, firewall, self.node_pods(number)?)?;
        }
        Ok(ns)
    }

    /// Removes the router's port of a node, and so the node's own end.
    pub(super) fn unplug(&self, number: u8) -> Result<()> {
        self.router.ip(&[&format!("link del node{number}")])
    }

    /// What lets another machine of the site reach a node's pods.
    pub(super) fn route_to(&self, number: u8) -> Result<String> {
        Ok(format!(
            "route replace {} via {}",
            self.node_pods(number)?,
            self.node(number)?
        ))
    }

    /// Forwards a TCP port of the public address to a port of a node, as a person does on a home router.
    pub(super) fn forward_tcp(&self, port: u16, number: u8, to: u16) -> Result<()> {
        let node = self.node(number)?;
        self.router.nft(&format!(
            "table ip forwarded {{\n chain pre {{\n  type nat hook prerouting priority dstnat;\n  \
             iifname \"wan\" tcp dport {port} dnat to {node}:{to}\n }}\n}}\n"
        ))?;
        if self.nat.rules().contains("table ip wall") {
            self.router
                .nft("insert rule ip wall through ct status dnat accept\n")?;
        }
        Ok(())
    }

    fn cable(&self, ns: &Namespace, port: &str, place: u32) -> Result<()> {
        self.router.ip(&[
            &format!(
                "link add {port} type veth peer name eth0 netns {}",
                ns.name()
            ),
            &format!("link set {port} master lan up"),
        ])?;
        ns.ip(&[
            &format!("addr add {} dev eth0", self.with_prefix(place)?),
            "link set eth0 up",
            &format!("route add default via {}", nth(self.lan, ROUTER)?),
        ])
    }

    fn with_prefix(&self, place: u32) -> Result<String> {
        Ok(format!(
            "{}/{}",
            nth(self.lan, place)?,
            self.lan.prefix_len()
        ))
    }

    /// FORWARD drops what nobody accepts: pods may send, and the cluster may send to pods, as CNI plugins see to.
    fn drop_forwarded(&self, ns: &Namespace, firewall: Firewall, own: Ipv4Net) -> Result<()> {
        let (pods, lan) = (self.pods, self.lan);
        for rule in [
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
            format!("-A FORWARD -i cni0 -s {own} -j ACCEPT"),
            format!("-A FORWARD -s {pods} -d {own} -j ACCEPT"),
            format!("-A FORWARD -s {lan} -d {own} -j ACCEPT"),
            "-P FORWARD DROP".to_owned(),
        ] {
            let words: Vec<_> = ["-w", "10"].into_iter().chain(rule.split(' ')).collect();
            ns.exec(firewall.program(), &words)?;
        }
        Ok(())
    }
}

/// Behind a router 192.168.(20 + n).0/24. Public nodes have addresses of 198.51.100.(16n)/28.
fn default_lan(nat: Profile, number: u8) -> Result<Ipv4Net> {
    if nat.has_router() {
        return Ok(Ipv4Net::new_assert(
            Ipv4Addr::new(192, 168, 20 + number, 0),
            24,
        ));
    }
    ensure!(number < 16, "no more public addresses");
    Ok(Ipv4Net::new_assert(
        Ipv4Addr::new(198, 51, 100, number * 16),
        28,
    ))
}
