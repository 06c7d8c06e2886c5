//! A router with connection tracking, as Linux does it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Random;

/// Time-outs of a flow without and with an answer.
const UNREPLIED: Duration = Duration::from_secs(30);
const REPLIED: Duration = Duration::from_secs(120);

/// What stands between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A host with a public address.
    Public,
    /// A host with a public address behind a firewall that lets in only answers.
    Firewalled,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Plain masquerade behind a WAN that drops what is not expected.
    PortRestricted,
    /// Plain masquerade behind a WAN that accepts packets to the router itself.
    Poisoned,
    /// A new random port per destination.
    Symmetric,
    /// No UDP leaves.
    Blocked,
}

impl Kind {
    /// The node's own address is public.
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Self::Public | Self::Firewalled)
    }
}

/// The router of one site.
#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) kind: Kind,
    /// Public address; the node's own if there is no NAT.
    pub(crate) wan: IpAddr,
    /// By public port and remote address.
    flows: BTreeMap<(u16, SocketAddr), Flow>,
    /// Public port to inside address, of the cone NATs.
    cone: BTreeMap<u16, SocketAddr>,
}

#[derive(Debug)]
struct Flow {
    /// The router itself, when nobody inside began it.
    inside: Option<SocketAddr>,
    expires: Instant,
    replied: bool,
}

impl Nat {
    pub(crate) fn new(kind: Kind, wan: IpAddr) -> Self {
        Self {
            kind,
            wan,
            flows: BTreeMap::new(),
            cone: BTreeMap::new(),
        }
    }

    /// Forgets everything, as a reboot does.
    pub(crate) fn flush(&mut self) {
        self.flows.clear();
        self.cone.clear();
    }

    /// A packet leaves; the source the internet sees, unless it is dropped.
    pub(crate) fn outbound(
        &mut self,
        now: Instant,
        random: &mut Random,
        inside: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        match self.kind {
            Kind::Blocked => return None,
            Kind::Public => return Some(inside),
            Kind::Firewalled
            | Kind::FullCone
            | Kind::AddressRestricted
            | Kind::PortRestricted
            | Kind::Poisoned
            | Kind::Symmetric => {}
        }
        self.flows.retain(|_, flow| now < flow.expires);
        let known = self
            .flows
            .iter()
            .find(|((_, remote), flow)| *remote == to && flow.inside == Some(inside));
        let port = known
            .map(|((port, _), _)| *port)
            .unwrap_or_else(|| self.pick(random, inside, to));
        let flow = self.flows.entry((port, to)).or_insert(Flow {
            inside: Some(inside),
            expires: now,
            replied: false,
        });
        flow.expires = now + if flow.replied { REPLIED } else { UNREPLIED };
        Some(SocketAddr::new(self.wan, port))
    }

    fn pick(&mut self, random: &mut Random, inside: SocketAddr, to: SocketAddr) -> u16 {
        let cone = matches!(self.kind, Kind::FullCone | Kind::AddressRestricted);
        if cone && let Some((&port, _)) = self.cone.iter().find(|(_, mapped)| **mapped == inside) {
            return port;
        }
        let taken = |port: u16| {
            self.flows.contains_key(&(port, to)) || cone && self.cone.contains_key(&port)
        };
        let mut port = inside.port();
        while self.kind == Kind::Symmetric || taken(port) {
            port = 1_024 + u16::try_from(random.below(64_512)).unwrap_or_default();
            if !taken(port) {
                break;
            }
        }
        if cone {
            self.cone.insert(port, inside);
        }
        port
    }

    /// A packet arrives from outside; whom it is for, unless it is dropped or meant for the router.
    pub(crate) fn inbound(
        &mut self,
        now: Instant,
        from: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        self.flows.retain(|_, flow| now < flow.expires);
        if let Some(flow) = self.flows.get_mut(&(port, from)) {
            if flow.inside.is_some() {
                (flow.replied, flow.expires) = (true, now + REPLIED);
            } else {
                flow.expires = now + UNREPLIED;
            }
            return flow.inside;
        }
        let cone = self
            .cone
            .get(&port)
            .copied()
            .filter(|_| self.lets_in(from, port));
        if self.kind == Kind::Poisoned || cone.is_some() {
            self.flows.insert(
                (port, from),
                Flow {
                    inside: cone,
                    expires: now + UNREPLIED,
                    replied: false,
                },
            );
        }
        cone
    }

    fn lets_in(&self, from: SocketAddr, port: u16) -> bool {
        match self.kind {
            Kind::FullCone => true,
            Kind::AddressRestricted => self
                .flows
                .keys()
                .any(|(known, remote)| *known == port && remote.ip() == from.ip()),
            Kind::Public
            | Kind::Firewalled
            | Kind::PortRestricted
            | Kind::Poisoned
            | Kind::Symmetric
            | Kind::Blocked => false,
        }
    }
}
