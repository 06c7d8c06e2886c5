//! A site: a router, the node behind it, and the node's pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::exec;
use crate::lab::{Lab, Link};
use crate::namespace::Namespace;
use crate::profile::{IPV6_FIREWALL, Profile};

/// What rewrites the source of pod packets that leave the pod range, as a CNI plugin would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// A native nftables table.
    Nft,
    /// `iptables` over nftables.
    IptablesNft,
    /// `iptables` with its own tables in the kernel.
    IptablesLegacy,
    /// Nothing does.
    Off,
}

/// How a site is to be.
#[derive(Clone, Debug)]
pub struct SiteSpec {
    /// The router's behaviour.
    pub nat: Profile,
    /// How many pods.
    pub pods: u8,
    /// Where the pods' addresses come from: the bridge has the first one, the pods those from the tenth on.
    /// Default: 10.n.0.0/24, n from 1 up.
    pub pod_cidr: Option<Ipv4Net>,
    /// The network between router and node: the router has the first address, the node the second.
    /// Default: 192.168.(10 + n).0/24.
    pub lan: Option<Ipv4Net>,
    /// What masquerades pod packets.
    pub masquerade: Masquerade,
    /// Whether the site has IPv6 too: a public prefix behind a stateful firewall, pods out of fd00:n::/64.
    pub ipv6: bool,
}

impl SiteSpec {
    /// A site with one pod, IPv4 only, an nftables masquerade.
    pub fn new(nat: Profile) -> Self {
        Self {
            nat,
            pods: 1,
            pod_cidr: None,
            lan: None,
            masquerade: Masquerade::Nft,
            ipv6: false,
        }
    }

    /// The same with another masquerade.
    pub fn masquerade(self, masquerade: Masquerade) -> Self {
        Self { masquerade, ..self }
    }

    /// The same with another number of pods.
    pub fn pods(self, pods: u8) -> Self {
        Self { pods, ..self }
    }

    /// The same with IPv6.
    pub fn with_ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }
}

/// A site that stands.
#[derive(Clone, Debug)]
pub struct Site {
    /// One letter, from `a` on.
    pub name: String,
    /// The router's behaviour.
    pub nat: Profile,
    /// The router, where there is one. Its interfaces are `wan` and `lan`.
    pub router: Option<Namespace>,
    /// The node. Its interfaces are `eth0` (or `wan`, without a router) and `cni0`.
    pub node: Namespace,
    /// The node's own address.
    pub node_ip: Ipv4Addr,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The pods' range.
    pub pod_cidr: Ipv4Net,
    /// The pods' IPv6 range, where there is one.
    pub pod_cidr6: Option<Ipv6Net>,
    /// The link to the core.
    pub link: Link,
    /// The public address now. Changes with [`Lab::renumber`].
    pub wan: Ipv4Addr,
}

/// A pod: a namespace with one address on the node's bridge.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Where it lives.
    pub ns: Namespace,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address, where the site has IPv6.
    pub ip6: Option<Ipv6Addr>,
}

impl Pod {
    /// A port of the pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), port)
    }
}

impl Site {
    /// The namespace that holds the wide-area interface `wan`.
    pub fn uplink(&self) -> &Namespace {
        self.router.as_ref().unwrap_or(&self.node)
    }

    /// The node's interface towards the world.
    pub fn node_interface(&self) -> &'static str {
        if self.router.is_some() { "eth0" } else { "wan" }
    }

    /// The first pod.
    pub fn pod(&self) -> Result<&Pod> {
        self.pods.first().context("the site has no pods")
    }
}

impl Lab {
    /// Adds a site.
    pub fn site(&mut self, spec: SiteSpec) -> Result<Site> {
        let link = self.next_link()?;
        let number = link.number() - 3;
        let name = char::from(b'a' + number - 1).to_string();
        let pod_cidr = spec
            .pod_cidr
            .unwrap_or_else(|| Ipv4Net::new_assert(Ipv4Addr::new(10, number, 0, 0), 24));
        let pod_cidr6 = spec.ipv6.then(|| {
            Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd00, u16::from(number), 0, 0, 0, 0, 0, 0),
                64,
            )
        });
        let node = self.namespace(&format!("node-{name}"))?;
        let router = if spec.nat.has_router() {
            Some(self.namespace(&format!("nat-{name}"))?)
        } else {
            None
        };
        let lan = spec
            .lan
            .unwrap_or_else(|| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 10 + number, 0), 24));
        let wan = link.address(2);
        let mut site = Site {
            name,
            nat: spec.nat,
            node_ip: if router.is_some() { nth(lan, 2)? } else { wan },
            router,
            node,
            pods: Vec::new(),
            pod_cidr,
            pod_cidr6,
            link,
            wan,
        };
        self.cable(&site, lan, spec.ipv6)?;
        bridge(&site)?;
        masquerade_pods(&site, spec.masquerade)?;
        for index in 0..spec.pods {
            let pod = self.pod(&site, index)?;
            site.pods.push(pod);
        }
        Ok(site)
    }

    /// Wide area and LAN.
    fn cable(&self, site: &Site, lan: Ipv4Net, ipv6: bool) -> Result<()> {
        let link = site.link;
        let uplink = site.uplink();
        self.attach(uplink, link, ipv6)?;
        uplink.ip(&[
            &format!("addr add {}/29 dev wan", site.wan),
            &format!("route add default via {}", link.core()),
        ])?;
        site.node.sysctl("net/ipv4/ip_forward", "1")?;
        if ipv6 {
            self.cable6(site)?;
        }
        let Some(router) = &site.router else {
            return Ok(());
        };
        let (inner, outer) = (nth(lan, 2)?, nth(lan, 1)?);
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.nft(&site.nat.rules())?;
        router.ip(&[
            &format!(
                "link add lan type veth peer name eth0 netns {}",
                site.node.name()
            ),
            &format!("addr add {outer}/{} dev lan", lan.prefix_len()),
            "link set lan up",
        ])?;
        site.node.ip(&[
            &format!("addr add {inner}/{} dev eth0", lan.prefix_len()),
            "link set eth0 up",
            &format!("route add default via {outer}"),
        ])?;
        if ipv6 { lan6(site, router) } else { Ok(()) }
    }

    fn cable6(&self, site: &Site) -> Result<()> {
        let link = site.link;
        site.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        site.uplink().sysctl("net/ipv6/conf/all/forwarding", "1")?;
        site.uplink().ip(&[
            &format!("addr add {}/112 dev wan", link.address6(2)),
            &format!("route add ::/0 via {}", link.core6()),
        ])?;
        self.core().ip(&[&format!(
            "route add {} via {}",
            link.subnet6(),
            link.address6(2)
        )])
    }

    fn pod(&self, site: &Site, index: u8) -> Result<Pod> {
        let ns = self.namespace(&format!("pod-{}{index}", site.name))?;
        let ip = nth(site.pod_cidr, 10 + u32::from(index))?;
        let port = format!("pod{index}");
        site.node.ip(&[
            &format!(
                "link add {port} type veth peer name eth0 netns {}",
                ns.name()
            ),
            &format!("link set {port} master cni0 up"),
        ])?;
        ns.ip(&[
            &format!("addr add {ip}/{} dev eth0", site.pod_cidr.prefix_len()),
            "link set eth0 up",
            &format!("route add default via {}", nth(site.pod_cidr, 1)?),
        ])?;
        let ip6 = site
            .pod_cidr6
            .map(|range| nth6(range, 10 + u16::from(index)));
        if let (Some(ip6), Some(range)) = (ip6, site.pod_cidr6) {
            let route = format!("route add ::/0 via {}", nth6(range, 1));
            ns.ip(&[&format!("addr add {ip6}/64 dev eth0"), &route])?;
        }
        Ok(Pod { ns, ip, ip6 })
    }
}

/// The LAN has the second /112 of the site's IPv6 addresses.
fn lan6(site: &Site, router: &Namespace) -> Result<()> {
    let [.., number, _, _] = site.link.address6(0).segments();
    let at = |place| Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, number, 1, place);
    router.nft(IPV6_FIREWALL)?;
    router.ip(&[&format!("addr add {}/112 dev lan", at(1))])?;
    site.node.ip(&[
        &format!("addr add {}/112 dev eth0", at(2)),
        &format!("route add ::/0 via {}", at(1)),
    ])
}

fn bridge(site: &Site) -> Result<()> {
    let range = site.pod_cidr;
    site.node.ip(&[
        "link add cni0 type bridge",
        &format!(
            "addr add {}/{} dev cni0",
            nth(range, 1)?,
            range.prefix_len()
        ),
        "link set cni0 up",
    ])?;
    let Some(range) = site.pod_cidr6 else {
        return Ok(());
    };
    site.node
        .ip(&[&format!("addr add {}/64 dev cni0", nth6(range, 1))])
}

fn masquerade_pods(site: &Site, backend: Masquerade) -> Result<()> {
    masquerade(&site.node, backend, "ip", &site.pod_cidr.to_string())?;
    match site.pod_cidr6 {
        Some(range) => masquerade(&site.node, backend, "ip6", &range.to_string()),
        None => Ok(()),
    }
}

/// Rewrites the source of packets from `range` to anything else. The family is `ip` or `ip6`.
pub(crate) fn masquerade(
    node: &Namespace,
    backend: Masquerade,
    family: &str,
    range: &str,
) -> Result<()> {
    let program = if family == "ip" {
        "iptables"
    } else {
        "ip6tables"
    };
    match backend {
        Masquerade::Off => Ok(()),
        Masquerade::Nft => node.nft(&format!(
            "table {family} cni {{\n chain post {{\n  type nat hook postrouting priority srcnat;\n  \
             {family} saddr {range} {family} daddr != {range} masquerade\n }}\n}}\n"
        )),
        Masquerade::IptablesNft => iptables_masquerade(node, &format!("{program}-nft"), range),
        Masquerade::IptablesLegacy => iptables_masquerade(node, &format!("{program}-legacy"), range),
    }
}

fn iptables_masquerade(node: &Namespace, program: &str, range: &str) -> Result<()> {
    let mut command = node.command(program);
    command.args([
        "-w",
        "10",
        "-t",
        "nat",
        "-A",
        "POSTROUTING",
        "-s",
        range,
        "!",
        "-d",
        range,
        "-j",
        "MASQUERADE",
    ]);
    exec::output(command).map(drop)
}

/// The address at a place of a range.
pub(crate) fn nth(range: Ipv4Net, place: u32) -> Result<Ipv4Addr> {
    let ip = Ipv4Addr::from(u32::from(range.network()) + place);
    ensure!(range.contains(&ip), "{range} has no place {place}");
    Ok(ip)
}

fn nth6(range: Ipv6Net, place: u16) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(range.network()) + u128::from(place))
}
