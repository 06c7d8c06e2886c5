//! The operator against a real API server: definitions, rules, ownership of fields, election, and what it makes.
//!
//! Fails where none has been built, unless CULVERT_NO_KUBE=1 asks to do without.

#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/joiner.rs"]
mod joiner;
#[path = "apiserver/joining.rs"]
mod joining;
#[path = "apiserver/kinds.rs"]
mod kinds;
#[path = "apiserver/kit.rs"]
mod kit;
#[path = "apiserver/operator.rs"]
mod operator;

use std::time::Duration;

use api::{Mesh, MeshNode, MeshStatus};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use cluster::{Cluster, eventually, get, object};
use control_plane::ControlPlane;
use operator::{NAMESPACE, Operator, cleanup};

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_and_a_real_api_server() {
    if kit::declined() {
        eprintln!("skipped: CULVERT_NO_KUBE is set");
        return;
    }
    let bin = kit::programs().expect(
        "there is no Kubernetes to test with: scripts/clusters.sh builds it, and CULVERT_NO_KUBE=1 does without",
    );
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plane = ControlPlane::start(&bin).await;
    let cluster = Cluster {
        client: plane.client().await,
    };
    cluster.definitions_are_taken().await;
    cluster.rules_accept_and_refuse().await;
    cluster.each_field_has_one_owner().await;
    cluster.make_namespace().await;
    plane.apply_chart(
        &bin,
        &["templates/rbac-operator.yaml", "templates/cleanup.yaml"],
    );
    let account = plane.kubeconfig_of("culvert-operator");
    let (first, second) = (
        Operator::start(&account, "one"),
        Operator::start(&account, "two"),
    );
    let (leader, other) = cluster.one_leads(first, second).await;
    let identity = cluster.an_identity_is_made().await;
    cluster.nodes_become_mesh_nodes().await;
    let relay = cluster.a_relay_is_added(&identity).await;
    let token = cluster.an_invite_gets_a_token().await;
    cluster.somebody_joins_once(&token, &relay).await;
    assert_eq!(leader.refused(), [""; 0], "the chart gives too few rights");
    cluster
        .another_takes_over(leader, Duration::from_secs(25), Operator::kill)
        .await;
    let ready = || async { other.probe("/readyz") };
    eventually("ready again", ready, |code| *code == Some(200)).await;
    let third = Operator::start(&account, "three");
    let stop = |operator: Operator| assert!(operator.stop(), "it ends well");
    cluster
        .another_takes_over(other, Duration::from_secs(8), stop)
        .await;
    assert_eq!(
        cluster.identity().await.as_ref(),
        Some(&identity),
        "the identity stays"
    );
    drop(third);
    cluster.everything_is_cleaned_up(&plane).await;
    cluster.a_damaged_identity_is_left_alone(&plane).await;
}

impl Cluster {
    async fn make_namespace(&self) {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(NAMESPACE.to_owned());
        self.all::<Namespace>()
            .create(&PostParams::default(), &namespace)
            .await
            .expect("made");
        let relay = json!({"name": "main", "exposure": {"type": "NodePort", "host": "127.0.0.1"}});
        let spec = json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "relays": {"managed": [relay]}});
        self.all::<Mesh>()
            .create(&PostParams::default(), &object("default", spec))
            .await
            .expect("made");
    }

    /// Returns the leader first.
    async fn one_leads(&self, first: Operator, second: Operator) -> (Operator, Operator) {
        let ready = || async { (first.probe("/readyz"), second.probe("/readyz")) };
        eventually("both ready", ready, |codes| {
            *codes == (Some(200), Some(200))
        })
        .await;
        assert_eq!(
            (first.probe("/livez"), second.probe("/livez")),
            (Some(200), Some(200))
        );
        let lease = self.lease().await.expect("held");
        match holder(&lease) {
            Some(name) if name.starts_with("one_") => (first, second),
            Some(name) if name.starts_with("two_") => (second, first),
            other => panic!("{other:?} leads"),
        }
    }

    async fn an_identity_is_made(&self) -> ByteString {
        let seed = eventually("an identity", || self.identity(), Option::is_some)
            .await
            .expect("there");
        let text = String::from_utf8(seed.0.clone()).expect("text");
        let secret = derp::ClusterSecret::from_base64(text.trim()).expect("an identity");
        let status = || async {
            get(&self.all::<Mesh>(), "default")
                .await
                .and_then(|mesh| mesh.status?.identity)
        };
        let shown = eventually("it is shown", status, Option::is_some).await;
        assert_eq!(shown, Some(secret.identity().to_string()));
        seed
    }

    async fn nodes_become_mesh_nodes(&self) {
        let (nodes, mesh_nodes) = (self.all::<Node>(), self.all::<MeshNode>());
        let mut node = Node::default();
        node.metadata.name = Some("n1".to_owned());
        node.spec.get_or_insert_default().pod_cidrs = Some(vec!["10.1.1.0/24".to_owned()]);
        nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("made");
        let made = eventually("a MeshNode", || get(&mesh_nodes, "n1"), Option::is_some)
            .await
            .expect("there");
        assert_eq!(made.spec.prefixes, ["10.1.1.0/24"]);
        assert!(
            made.owner_references()
                .iter()
                .any(|owner| owner.kind == "Node" && owner.name == "n1")
        );
    }

    /// Ends the leader, and waits until another leads in a later term.
    async fn another_takes_over(
        &self,
        leader: Operator,
        within: Duration,
        end: impl FnOnce(Operator),
    ) {
        let before = self.lease().await.expect("held");
        let started = Instant::now();
        end(leader);
        let taken = |lease: &Option<LeaseSpec>| {
            let now = lease.as_ref().and_then(holder);
            now.is_some() && now != holder(&before)
        };
        let after = eventually("another leads", || self.lease(), taken)
            .await
            .expect("held");
        assert!(started.elapsed() < within, "after {:?}", started.elapsed());
        assert!(after.lease_transitions > before.lease_transitions);
    }

    async fn everything_is_cleaned_up(&self, plane: &ControlPlane) {
        let account = plane.kubeconfig_of("culvert-cleanup");
        let cleaning =
            tokio::task::spawn_blocking(move || cleanup(&account, &["--deadline", "60s"]));
        self.the_cleaner_has_no_node().await;
        let output = cleaning.await.expect("ends");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains("all nodes are clean"), "{text}");
        assert_eq!(self.lease().await, None);
        assert_eq!(self.identity().await, None);
        let none = || async {
            (
                get(&self.all::<Mesh>(), "default").await,
                get(&self.all::<MeshNode>(), "n1").await,
            )
        };
        eventually("no objects", none, |(mesh, node)| {
            mesh.is_none() && node.is_none()
        })
        .await;
    }

    /// Does what a controller would: counts the nodes of the cleaner, none.
    async fn the_cleaner_has_no_node(&self) {
        let (sets, name) = (self.namespaced::<DaemonSet>(), "culvert-cleanup");
        eventually("a cleaner", || get(&sets, name), Option::is_some).await;
        let counted = json!({"status": {"observedGeneration": 1, "desiredNumberScheduled": 0,
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}});
        sets.patch_status(name, &PatchParams::default(), &Patch::Merge(&counted))
            .await
            .expect("taken");
    }

    async fn a_damaged_identity_is_left_alone(&self, plane: &ControlPlane) {
        let damaged = ByteString(b"AAAA".to_vec());
        let mut secret = Secret::default();
        secret.metadata.name = Some("culvert-identity".to_owned());
        secret.data = Some([("seed".to_owned(), damaged.clone())].into());
        let secrets = self.namespaced::<Secret>();
        secrets
            .create(&PostParams::default(), &secret)
            .await
            .expect("made");
        let (meshes, spec) = (self.all::<Mesh>(), json!({"clusterName": "berlin"}));
        meshes
            .create(&PostParams::default(), &object("default", spec))
            .await
            .expect("made");
        let operator = Operator::start(&plane.kubeconfig_of("culvert-operator"), "four");
        let status = || async { get(&meshes, "default").await?.status };
        let is_said = |status: &Option<MeshStatus>| {
            let conditions = status.iter().flat_map(|status| &status.conditions);
            let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
            ready.any(|ready| ready.reason == "BadIdentitySecret")
        };
        eventually("it is said", status, is_said).await;
        assert_eq!(self.identity().await, Some(damaged));

        let good = derp::ClusterSecret::generate().expect("randomness");
        let seed = ByteString(good.to_base64().as_bytes().to_vec());
        let repaired = json!({"data": {"seed": seed}});
        secrets
            .patch(
                "culvert-identity",
                &PatchParams::default(),
                &Patch::Merge(&repaired),
            )
            .await
            .expect("taken");
        let identity = Some(good.identity().to_string());
        let is_taken = |status: &Option<MeshStatus>| {
            let status = status.as_ref();
            status.is_some_and(|status| {
                status.identity == identity && !is_said(&Some(status.clone()))
            })
        };
        eventually("it is picked up", status, is_taken).await;
        assert!(operator.stop(), "it ends well");
    }
}

fn holder(lease: &LeaseSpec) -> Option<&str> {
    lease
        .holder_identity
        .as_deref()
        .filter(|name| !name.is_empty())
}
