//! The Deployment of a relay: one pod, as a stranger, that may do nothing but listen.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, HTTPGetAction, KeyToPath,
    LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::certificate::text;
use super::{Managed, PORT, PORT_NAME, STUN_NAME, STUN_PORT, address, tls};
use crate::plan::covers::checksum;

/// Key of the admit file in its `ConfigMap`, and its name in the pod.
pub(super) const ADMIT_FILE: &str = "admit";

const ADMIT_DIR: &str = "/etc/culvert";
const TLS_DIR: &str = "/etc/culvert-tls";
/// Nobody, in images without a shell.
const USER: i64 = 65_532;

/// The Deployment as it should be; `None` while its certificate is missing.
pub(super) fn wanted(relay: &Managed<'_>) -> Option<Deployment> {
    let certificate = if tls::is_in_pod(relay.relay) {
        Some(text(tls::certificate(relay)?, "tls.crt")?)
    } else {
        None
    };
    Some(Deployment {
        metadata: relay.metadata(relay.name()),
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            selector: LabelSelector {
                match_labels: Some(relay.selector()),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                ..DeploymentStrategy::default()
            }),
            template: template(relay, certificate.as_deref()),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })
}

fn template(relay: &Managed<'_>, certificate: Option<&str>) -> PodTemplateSpec {
    let metadata = relay.metadata(relay.name());
    // A relay reads its certificate once.
    let annotations = certificate.map(|certificate| {
        let sum = checksum(certificate.as_bytes());
        BTreeMap::from([("culvert.dev/certificate".to_owned(), sum)])
    });
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: metadata.labels,
            annotations,
            ..ObjectMeta::default()
        }),
        spec: Some(pod(relay)),
    }
}

fn pod(relay: &Managed<'_>) -> PodSpec {
    let release = &relay.ground.world.release;
    let secrets = release.pull_secrets.iter();
    let secrets: Vec<_> = secrets
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect();
    let selector = &relay.relay.node_selector;
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        containers: vec![container(relay)],
        image_pull_secrets: (!secrets.is_empty()).then_some(secrets),
        node_selector: (!selector.is_empty()).then(|| selector.clone()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(10),
        volumes: Some(volumes(relay)),
        ..PodSpec::default()
    }
}

fn container(relay: &Managed<'_>) -> Container {
    let release = &relay.ground.world.release;
    let requests = [("cpu", "10m"), ("memory", "32Mi")];
    let requests = requests.map(|(key, value)| (key.to_owned(), Quantity(value.to_owned())));
    Container {
        name: "relay".to_owned(),
        image: Some(release.relay_image.clone()),
        image_pull_policy: release.pull_policy.clone(),
        args: Some(args(relay)),
        ports: Some(ports(relay)),
        liveness_probe: Some(probe(relay, 10, 3)),
        readiness_probe: Some(probe(relay, 2, 2)),
        resources: Some(ResourceRequirements {
            requests: Some(requests.into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts(relay)),
        ..Container::default()
    }
}

fn args(relay: &Managed<'_>) -> Vec<String> {
    let any = any_address(relay);
    let mut args = vec![
        format!("--listen={any}:{PORT}"),
        format!("--admit={ADMIT_DIR}/{ADMIT_FILE}"),
    ];
    if tls::is_in_pod(relay.relay) {
        args.push(format!("--tls-cert={TLS_DIR}/tls.crt"));
        args.push(format!("--tls-key={TLS_DIR}/tls.key"));
    }
    if address::has_stun(relay.relay) {
        args.push(format!("--stun={any}:{STUN_PORT}"));
    }
    args
}

/// Pods have IPv6 only where all ranges are.
fn any_address(relay: &Managed<'_>) -> &'static str {
    let ranges = &relay.ground.ranges.pods;
    let v6_only = !ranges.is_empty() && ranges.iter().all(|range| range.addr().is_ipv6());
    if v6_only { "[::]" } else { "0.0.0.0" }
}

fn ports(relay: &Managed<'_>) -> Vec<ContainerPort> {
    let host_port = address::host_port(relay.relay);
    let port = |name: &str, protocol: &str, container_port, host_port| ContainerPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        container_port,
        host_port,
        ..ContainerPort::default()
    };
    let mut ports = vec![port(PORT_NAME, "TCP", PORT, host_port)];
    if address::has_stun(relay.relay) {
        ports.push(port(
            STUN_NAME,
            "UDP",
            STUN_PORT,
            host_port.map(|_| STUN_PORT),
        ));
    }
    ports
}

fn probe(relay: &Managed<'_>, period_seconds: i32, failure_threshold: i32) -> Probe {
    let scheme = if tls::is_in_pod(relay.relay) {
        "HTTPS"
    } else {
        "HTTP"
    };
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/healthz".to_owned()),
            port: IntOrString::String(PORT_NAME.to_owned()),
            scheme: Some(scheme.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

fn volumes(relay: &Managed<'_>) -> Vec<Volume> {
    let mut volumes = vec![Volume {
        name: "admit".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: relay.admit_name(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }];
    if tls::is_in_pod(relay.relay) {
        let item = |key: &str| KeyToPath {
            key: key.to_owned(),
            path: key.to_owned(),
            mode: None,
        };
        volumes.push(Volume {
            name: "tls".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: tls::secret_name(relay),
                items: Some(vec![item("tls.crt"), item("tls.key")]),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn mounts(relay: &Managed<'_>) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount("admit", ADMIT_DIR)];
    if tls::is_in_pod(relay.relay) {
        mounts.push(mount("tls", TLS_DIR));
    }
    mounts
}
