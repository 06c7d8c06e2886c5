//! The Ingress of a relay. The controller ends TLS; behind it the relay speaks plain HTTP, of what is sealed anyway.

use std::collections::BTreeMap;

use api::ExposureKind;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTLS, ServiceBackendPort,
};

use super::{Managed, PORT_NAME, tls};

/// Annotation that cert-manager reads.
const ISSUER: &str = "cert-manager.io/cluster-issuer";

/// The Ingress as it should be; `None` with other exposures.
pub(super) fn wanted(relay: &Managed<'_>) -> Option<Ingress> {
    let exposure = &relay.relay.exposure;
    if exposure.kind != ExposureKind::Ingress {
        return None;
    }
    let host = exposure.host.clone()?;
    let mut metadata = relay.metadata(relay.name());
    let annotations = annotations(relay);
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    let tls = tls::secret_name(relay).map(|secret| {
        vec![IngressTLS {
            hosts: Some(vec![host.clone()]),
            secret_name: Some(secret),
        }]
    });
    Some(Ingress {
        metadata,
        spec: Some(IngressSpec {
            ingress_class_name: exposure.class_name.clone(),
            rules: Some(vec![rule(relay, host)]),
            tls,
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    })
}

fn annotations(relay: &Managed<'_>) -> BTreeMap<String, String> {
    let mut annotations = relay.relay.exposure.annotations.clone();
    if let Some(issuer) = tls::issuer(relay.relay) {
        annotations
            .entry(ISSUER.to_owned())
            .or_insert_with(|| issuer.to_owned());
    }
    annotations
}

fn rule(relay: &Managed<'_>, host: String) -> IngressRule {
    let backend = IngressServiceBackend {
        name: relay.name(),
        port: Some(ServiceBackendPort {
            name: Some(PORT_NAME.to_owned()),
            number: None,
        }),
    };
    let path = HTTPIngressPath {
        path: Some("/".to_owned()),
        path_type: "Prefix".to_owned(),
        backend: IngressBackend {
            service: Some(backend),
            ..IngressBackend::default()
        },
    };
    IngressRule {
        host: Some(host),
        http: Some(HTTPIngressRuleValue { paths: vec![path] }),
    }
}
