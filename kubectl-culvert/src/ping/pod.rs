//! The pod, or the container in a pod, that pings.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Job, START_SECONDS};

/// Name of the container.
pub(super) const CONTAINER: &str = "ping";

/// A pod that pings and ends: on this node, or on any.
///
/// It passes the standard "restricted". The sysctl, one that every standard allows, lets a process without rights send
/// echo requests.
pub(super) fn pod(node: Option<&str>, job: &Job) -> Pod {
    let mut pod: Pod = from(json!({
        "metadata": {
            "generateName": "culvert-ping-",
            "labels": {
                "app.kubernetes.io/name": "culvert",
                "app.kubernetes.io/component": "ping",
                "app.kubernetes.io/part-of": "culvert",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": START_SECONDS + 2 * u64::from(job.count),
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ping_group_range", "value": "0 2147483647"}],
            },
            "containers": [container(CONTAINER, job)],
        },
    }));
    if let Some(spec) = &mut pod.spec {
        spec.image_pull_secrets = Some(job.pull_secrets.clone());
        spec.node_name = node.map(ToOwned::to_owned);
    }
    pod
}

/// The patch that adds such a container to a pod.
pub(super) fn ephemeral(name: &str, job: &Job) -> Value {
    json!({"spec": {"ephemeralContainers": [container(name, job)]}})
}

/// A name that no container of the pod has: an ephemeral one can neither be changed nor removed.
pub(super) fn free_name(pod: &Pod) -> String {
    let taken = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.ephemeral_containers.as_ref());
    let taken: Vec<&str> = taken
        .into_iter()
        .flatten()
        .map(|c| c.name.as_str())
        .collect();
    let candidates = (1..).map(|n: u64| format!("culvert-{CONTAINER}-{n}"));
    let mut free = candidates.filter(|name| !taken.contains(&name.as_str()));
    free.next().unwrap_or_default()
}

fn container(name: &str, job: &Job) -> Value {
    json!({
        "name": name,
        "image": job.image,
        "args": ["ping", job.address.to_string(), "--count", job.count.to_string()],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// The shape is fixed here, and a test holds it.
fn from(value: Value) -> Pod {
    serde_json::from_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use k8s_openapi::api::core::v1::LocalObjectReference;

    use super::*;

    fn job() -> Job {
        Job {
            address: IpAddr::from([10, 2, 0, 5]),
            count: 3,
            image: "x/agent:1".to_owned(),
            pull_secrets: vec![LocalObjectReference {
                name: "regcred".to_owned(),
            }],
        }
    }

    #[test]
    fn the_pod_pings_on_the_node() {
        let pod = serde_json::to_value(pod(Some("w1"), &job())).expect("serialises");
        assert_eq!(
            pod.pointer("/spec/containers/0/args"),
            Some(&json!(["ping", "10.2.0.5", "--count", "3"]))
        );
        assert_eq!(pod.pointer("/spec/nodeName"), Some(&json!("w1")));
        assert_eq!(
            pod.pointer("/spec/imagePullSecrets"),
            Some(&json!([{"name": "regcred"}]))
        );
        assert_eq!(
            pod.pointer("/spec/securityContext/runAsNonRoot"),
            Some(&json!(true))
        );
    }

    #[test]
    fn an_added_container_has_a_name_of_its_own() {
        let pod = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            from(
                json!({"metadata": {}, "spec": {"containers": [], "ephemeralContainers": containers}}),
            )
        };
        assert_eq!(free_name(&Pod::default()), "culvert-ping-1");
        assert_eq!(
            free_name(&pod(&["culvert-ping-1", "debugger", "culvert-ping-2"])),
            "culvert-ping-3"
        );
    }
}
