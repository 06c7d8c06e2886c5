//! The Service of a relay: its inside address, and with some exposures the outside one, too.

use api::ExposureKind;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Managed, PORT_NAME, STUN_NAME, STUN_PORT, address};

/// The Service as it should be.
pub(super) fn wanted(relay: &Managed<'_>) -> Service {
    let exposure = &relay.relay.exposure;
    let mut metadata = relay.metadata(relay.name());
    let (kind, outside) = match exposure.kind {
        ExposureKind::LoadBalancer => ("LoadBalancer", true),
        ExposureKind::NodePort => ("NodePort", true),
        ExposureKind::HostPort | ExposureKind::Ingress => ("ClusterIP", false),
    };
    if outside && !exposure.annotations.is_empty() {
        metadata.annotations = Some(exposure.annotations.clone());
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            selector: Some(relay.selector()),
            ports: Some(ports(relay)),
            // The source address of a packet is what STUN tells.
            external_traffic_policy: (outside && address::has_stun(relay.relay))
                .then(|| "Local".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn ports(relay: &Managed<'_>) -> Vec<ServicePort> {
    let exposure = &relay.relay.exposure;
    let node_port = exposure
        .node_port
        .filter(|_| exposure.kind == ExposureKind::NodePort);
    let mut ports = vec![ServicePort {
        node_port: node_port.and_then(|port| i32::try_from(port).ok()),
        ..port(PORT_NAME, "TCP", address::service_port(relay.relay))
    }];
    if address::has_stun(relay.relay) {
        ports.push(port(STUN_NAME, "UDP", STUN_PORT));
    }
    ports
}

fn port(name: &str, protocol: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
