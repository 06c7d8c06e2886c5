//! The kinds in a real API server: definitions, rules, and one owner for each field.

use std::collections::BTreeSet;

use api::{Mesh, MeshNode, MeshNodeStatus, Peer};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, get, object};

impl Cluster {
    pub(crate) async fn definitions_are_taken(&self) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in api::crds() {
            let name = definition.name_any();
            let parameters = PatchParams::apply("test").validation_strict();
            api.patch(&name, &parameters, &Patch::Apply(&definition))
                .await
                .expect("taken");
            let established = |found: &CustomResourceDefinition| {
                let conditions = found
                    .status
                    .iter()
                    .flat_map(|status| status.conditions.iter().flatten());
                conditions
                    .into_iter()
                    .any(|one| one.type_ == "Established" && one.status == "True")
            };
            eventually(
                "established",
                || get(&api, &name),
                |found| found.as_ref().is_some_and(established),
            )
            .await;
        }
    }

    pub(crate) async fn rules_accept_and_refuse(&self) {
        let (meshes, peers) = (self.all::<Mesh>(), self.all::<Peer>());
        let good =
            mesh(json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16", "fd00:1::/64"]}));
        let dry = dry_run();
        eventually("served", || meshes.create(&dry, &good), Result::is_ok)
            .await
            .expect("taken");
        for (bad, why) in [
            (
                json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.1/16"]}),
                "host bits",
            ),
            (
                json!({"clusterName": "berlin", "podCIDRs": ["0.0.0.0/0"]}),
                "everything",
            ),
            (json!({"clusterName": "Berlin"}), "no DNS label"),
            (
                json!({"clusterName": "berlin", "relays": {"managed": [{"name": "a", "exposure": {"type": "NodePort"}}]}}),
                "no host",
            ),
        ] {
            assert!(
                meshes.create(&dry_run(), &mesh(bad)).await.is_err(),
                "{why}"
            );
        }
        let identity = derp::ClusterSecret::generate()
            .expect("randomness")
            .identity();
        let spec = json!({"allowedCIDRs": ["10.9.0.0/16"], "identity": identity.to_string()});
        let peer = object::<Peer>("fixed", spec);
        peers
            .create(&PostParams::default(), &peer)
            .await
            .expect("taken");
        let other = derp::ClusterSecret::generate()
            .expect("randomness")
            .identity();
        let patch = json!({"spec": {"identity": other.to_string()}});
        let changed = peers
            .patch("fixed", &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        assert!(changed.is_err(), "an identity is for good");
        peers
            .delete("fixed", &DeleteParams::default())
            .await
            .expect("deleted");
    }

    pub(crate) async fn each_field_has_one_owner(&self) {
        let api = self.all::<MeshNode>();
        let spec = object::<MeshNode>("shared", json!({"prefixes": ["10.1.1.0/24"]}));
        let applied = PatchParams::apply("culvert-operator").force();
        api.patch("shared", &applied, &Patch::Apply(&spec))
            .await
            .expect("taken");
        let status = json!({"apiVersion": "culvert.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "shared"},
            "status": MeshNodeStatus { listen_port: Some(12345), ..MeshNodeStatus::default() }});
        let applied = PatchParams::apply("culvert-agent").force();
        let node = api
            .patch_status("shared", &applied, &Patch::Apply(&status))
            .await
            .expect("taken");
        let mut owned: Vec<(String, BTreeSet<String>)> = Vec::new();
        for entry in node.managed_fields() {
            let fields = entry
                .fields_v1
                .as_ref()
                .map(|fields| paths(&fields.0, ""))
                .unwrap_or_default();
            owned.push((entry.manager.clone().unwrap_or_default(), fields));
        }
        let of = |manager: &str| {
            owned
                .iter()
                .find(|(name, _)| name == manager)
                .map(|(_, fields)| fields.clone())
        };
        let (operator, agent) = (
            of("culvert-operator").expect("owns"),
            of("culvert-agent").expect("owns"),
        );
        assert!(operator.contains("f:spec/f:prefixes") && agent.contains("f:status/f:listenPort"));
        assert_eq!(
            operator.intersection(&agent).count(),
            0,
            "{operator:?} and {agent:?}"
        );
        api.delete("shared", &DeleteParams::default())
            .await
            .expect("deleted");
    }
}

fn mesh(spec: Value) -> Mesh {
    object("default", spec)
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// Paths of all fields in a set of managed fields.
fn paths(fields: &Value, prefix: &str) -> BTreeSet<String> {
    let entries = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != ".");
    entries
        .flat_map(|(key, inner)| {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}/{key}")
            };
            match paths(inner, &path) {
                inner if inner.is_empty() => BTreeSet::from([path]),
                inner => inner,
            }
        })
        .collect()
}
