//! Where a relay that runs here is reached.

use std::net::Ipv6Addr;

use api::{Exposure, ExposureKind, ManagedRelay};
use derp::RelayUrl;
use k8s_openapi::api::core::v1::{Service, ServicePort};

use super::{Managed, PORT_NAME, STUN_NAME, STUN_PORT, tls};

/// Port of HTTPS (RFC 9110 section 4.2.2).
const HTTPS: u16 = 443;
/// Port of HTTP (RFC 9110 section 4.2.1).
const HTTP: u16 = 80;

/// The host by which others reach it.
pub(super) fn public_host(relay: &ManagedRelay, service: Option<&Service>) -> Option<String> {
    let given = relay.exposure.host.clone();
    match relay.exposure.kind {
        ExposureKind::LoadBalancer => given.or_else(|| balancer_host(service?)),
        ExposureKind::NodePort | ExposureKind::HostPort | ExposureKind::Ingress => given,
    }
}

/// The URL by which others know it.
pub(super) fn public_url(relay: &ManagedRelay, service: Option<&Service>) -> Option<RelayUrl> {
    let host = public_host(relay, service)?;
    let port = match relay.exposure.kind {
        ExposureKind::NodePort => {
            given_port(&relay.exposure).or_else(|| node_port(service?, PORT_NAME))?
        }
        ExposureKind::LoadBalancer | ExposureKind::HostPort | ExposureKind::Ingress => {
            given_port(&relay.exposure).unwrap_or(HTTPS)
        }
    };
    url(is_https(relay, port), &host, port)
}

/// The URL by which this cluster reaches it.
pub(super) fn inside_url(relay: &ManagedRelay, service: &Service) -> Option<RelayUrl> {
    let host = cluster_ips(service).into_iter().next()?;
    url(
        tls::is_in_pod(relay),
        &host,
        u16::try_from(service_port(relay)).ok()?,
    )
}

/// The addresses of its Service.
pub(super) fn cluster_ips(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let all = spec.cluster_ips.clone().unwrap_or_default();
    let all = if all.is_empty() {
        spec.cluster_ip.clone().into_iter().collect()
    } else {
        all
    };
    let is_address = |text: &String| text.parse::<std::net::IpAddr>().is_ok();
    all.into_iter().filter(is_address).collect()
}

/// TCP port of its Service.
pub(super) fn service_port(relay: &ManagedRelay) -> i32 {
    let port = match relay.exposure.kind {
        ExposureKind::LoadBalancer => given_port(&relay.exposure).unwrap_or(HTTPS),
        ExposureKind::NodePort | ExposureKind::HostPort | ExposureKind::Ingress
            if tls::is_in_pod(relay) =>
        {
            HTTPS
        }
        ExposureKind::NodePort | ExposureKind::HostPort | ExposureKind::Ingress => HTTP,
    };
    i32::from(port)
}

/// TCP port of the node where it runs.
pub(super) fn host_port(relay: &ManagedRelay) -> Option<i32> {
    let port = given_port(&relay.exposure).unwrap_or(HTTPS);
    (relay.exposure.kind == ExposureKind::HostPort).then_some(i32::from(port))
}

/// Whether it answers STUN: only where it sees who asks.
pub(super) fn has_stun(relay: &ManagedRelay) -> bool {
    match relay.exposure.kind {
        ExposureKind::LoadBalancer | ExposureKind::HostPort => relay.stun.unwrap_or(true),
        ExposureKind::NodePort => relay.stun.unwrap_or(false),
        ExposureKind::Ingress => false,
    }
}

/// UDP port at its public host where it answers STUN; 0: none.
pub(super) fn stun_port(relay: &ManagedRelay, service: Option<&Service>) -> u16 {
    if !has_stun(relay) {
        return 0;
    }
    match relay.exposure.kind {
        ExposureKind::NodePort => service
            .and_then(|service| node_port(service, STUN_NAME))
            .unwrap_or(0),
        ExposureKind::LoadBalancer | ExposureKind::HostPort | ExposureKind::Ingress => {
            u16::try_from(STUN_PORT).unwrap_or(0)
        }
    }
}

impl Managed<'_> {
    /// See [`public_url`].
    pub(super) fn public_url(&self) -> Option<RelayUrl> {
        public_url(self.relay, self.service())
    }
}

/// An ingress ends TLS, if not here then somewhere in front, unless it is asked for at the port of HTTP.
fn is_https(relay: &ManagedRelay, port: u16) -> bool {
    let behind_ingress = relay.exposure.kind == ExposureKind::Ingress && port != HTTP;
    behind_ingress || !tls::is_none(relay)
}

fn given_port(exposure: &Exposure) -> Option<u16> {
    exposure.port.and_then(|port| u16::try_from(port).ok())
}

fn balancer_host(service: &Service) -> Option<String> {
    let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
    let first = balancer.ingress.as_ref()?.first()?;
    first.ip.clone().or_else(|| first.hostname.clone())
}

fn node_port(service: &Service, name: &str) -> Option<u16> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let is_it = |port: &&ServicePort| port.name.as_deref() == Some(name);
    let port = ports.iter().find(is_it)?.node_port?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn url(tls: bool, host: &str, port: u16) -> Option<RelayUrl> {
    let scheme = if tls { "https" } else { "http" };
    let bare = host.trim_matches(['[', ']']);
    let host = match bare.parse::<Ipv6Addr>() {
        Ok(v6) => format!("[{v6}]"),
        Err(_) => bare.to_owned(),
    };
    format!("{scheme}://{host}:{port}").parse().ok()
}
