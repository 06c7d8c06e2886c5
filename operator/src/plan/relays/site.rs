//! What is known about a relay, whoever runs it.

use api::{ExternalRelay, Peer};
use derp::RelayUrl;
use kube::ResourceExt;
use sync::ClusterIdentity;

use super::{Managed, address, managed, tls};
use crate::plan::ground::Ground;

/// Most relays of a cluster.
const MAX_SITES: usize = 16;
const DEFAULT_STUN_PORT: u16 = 3478;

/// A relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Name of a managed relay, `external-N` of one in the Mesh, `peer-NAME-N` of one in a Peer.
    pub(crate) name: String,
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// How others know it; `None` while that is not known.
    pub(crate) url: Option<RelayUrl>,
    /// Where this cluster connects to instead.
    pub(crate) dial: Option<RelayUrl>,
    /// Certificates (PEM) to trust for it.
    pub(crate) ca_bundle: Option<String>,
    /// UDP port of STUN; 0: none.
    pub(crate) stun_port: u16,
    /// Whose passes it takes.
    pub(crate) owner: Option<ClusterIdentity>,
    /// Whether that is a guess: nobody has named its owner.
    pub(crate) is_assumed: bool,
    /// What is missing.
    pub(crate) problem: Option<String>,
}

/// Where a relay comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It runs here.
    Managed,
    /// It stands in the Mesh.
    External,
    /// It stands in this Peer.
    Peer(String),
}

impl Site {
    /// Whether it stands in the Mesh and runs elsewhere.
    pub(crate) fn is_external(&self) -> bool {
        self.origin == Origin::External
    }

    /// Whether it is this cluster's: it runs here, or stands in the Mesh.
    pub(crate) fn is_own(&self) -> bool {
        match self.origin {
            Origin::Managed | Origin::External => true,
            Origin::Peer(_) => false,
        }
    }

    /// As nodes are told, without a pass; `None` while its URL is not known.
    pub(crate) fn external(&self) -> Option<ExternalRelay> {
        Some(ExternalRelay {
            url: self.url.as_ref()?.to_string(),
            stun_port: Some(i64::from(self.stun_port)),
            ca_bundle: self.ca_bundle.clone(),
            dial: self.dial.as_ref().map(RelayUrl::to_string),
            owner: self.owner.map(|owner| owner.to_string()),
            pass: None,
        })
    }
}

/// The relays of this cluster: those that run here, and those in the Mesh.
pub(crate) fn own_sites(ground: Ground<'_>) -> Vec<Site> {
    let external = ground.mesh.spec.relays.iter();
    let external = external.flat_map(|relays| &relays.external).enumerate();
    let external = external.map(|(index, relay)| {
        let own = Some(ground.identity());
        external_site(format!("external-{index}"), Origin::External, relay, own)
    });
    managed(ground).map(managed_site).chain(external).collect()
}

/// The relays of this cluster and those of its peers, each URL once, as many as there is room for.
pub(crate) fn known_sites(own: &[Site], peers: &[&Peer]) -> Vec<Site> {
    let mut sites = all_sites(own, peers);
    sites.truncate(MAX_SITES);
    sites
}

/// How many there is no room for.
pub(crate) fn left_out(own: &[Site], peers: &[&Peer]) -> usize {
    all_sites(own, peers).len().saturating_sub(MAX_SITES)
}

fn all_sites(own: &[Site], peers: &[&Peer]) -> Vec<Site> {
    let of_peer = |peer: &&Peer| {
        let name = peer.name_any();
        let identity = peer.spec.identity.as_ref();
        let identity = identity.and_then(|identity| identity.parse().ok());
        let sites = peer.spec.relays.iter().enumerate();
        let site = |(index, relay): (usize, &ExternalRelay)| {
            let title = format!("peer-{name}-{index}");
            external_site(title, Origin::Peer(name.clone()), relay, identity)
        };
        sites.map(site).collect::<Vec<_>>()
    };
    let mut sites: Vec<Site> = Vec::new();
    for site in own.iter().cloned().chain(peers.iter().flat_map(of_peer)) {
        let known = site.url.is_some() && sites.iter().any(|other| other.url == site.url);
        if !known {
            sites.push(site);
        }
    }
    sites
}

fn managed_site(relay: Managed<'_>) -> Site {
    let service = relay.service();
    let has_certificate = tls::is_none(relay.relay) || tls::certificate(&relay).is_some();
    Site {
        name: relay.relay.name.clone(),
        origin: Origin::Managed,
        // Whoever is told of it must be told whom to trust.
        url: relay.public_url().filter(|_| has_certificate),
        dial: service.and_then(|service| address::inside_url(relay.relay, service)),
        ca_bundle: tls::ca_bundle(&relay),
        stun_port: address::stun_port(relay.relay, service),
        owner: Some(relay.ground.identity()),
        is_assumed: false,
        problem: problem(&relay, has_certificate),
    }
}

fn problem(relay: &Managed<'_>, has_certificate: bool) -> Option<String> {
    let secret = tls::secret_name(relay).unwrap_or_default();
    if !has_certificate && tls::is_self_signed(relay.relay) {
        return Some("its certificate is being made".to_owned());
    }
    if !has_certificate {
        return Some(format!(
            "Secret {secret} with tls.crt and tls.key is missing; create it, or have cert-manager create it with a Certificate"
        ));
    }
    relay.public_url().is_none().then(|| {
        "its public address is not known yet; wait for the load balancer, or set exposure.host"
            .to_owned()
    })
}

/// A relay as it is written. Without an owner it is taken for that of whoever lists it, `default`.
fn external_site(
    name: String,
    origin: Origin,
    relay: &ExternalRelay,
    default: Option<ClusterIdentity>,
) -> Site {
    let url: Option<RelayUrl> = relay.url.parse().ok();
    let problem = url.is_none().then(|| "its URL is none".to_owned());
    let stun_port = relay.stun_port.and_then(|port| u16::try_from(port).ok());
    Site {
        name,
        origin,
        url,
        dial: relay.dial.as_ref().and_then(|dial| dial.parse().ok()),
        ca_bundle: relay.ca_bundle.clone().filter(|pem| !pem.is_empty()),
        stun_port: stun_port.unwrap_or(DEFAULT_STUN_PORT),
        owner: match &relay.owner {
            Some(owner) => owner.parse().ok(),
            None => default,
        },
        is_assumed: relay.owner.is_none(),
        problem,
    }
}
