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

use api::{Mesh, MeshNode};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use kube::ResourceExt;
use kube::api::PostParams;
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
    let (first, second) = (
        Operator::start(&plane.kubeconfig(), "one"),
        Operator::start(&plane.kubeconfig(), "two"),
    );
    let (leader, other) = cluster.one_leads(first, second).await;
    let identity = cluster.an_identity_is_made().await;
    cluster.nodes_become_mesh_nodes().await;
    let relay = cluster.a_relay_is_added(&identity).await;
    let token = cluster.an_invite_gets_a_token().await;
    cluster.somebody_joins_once(&token, &relay).await;
    cluster
        .another_takes_over(leader, Duration::from_secs(25), Operator::kill)
        .await;
    let ready = || async { other.probe("/readyz") };
    eventually("ready again", ready, |code| *code == Some(200)).await;
    let third = Operator::start(&plane.kubeconfig(), "three");
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
        let output = cleanup(&plane.kubeconfig(), &["--deadline", "4s"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains("nodes are left as they are"), "{text}");
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

    async fn a_damaged_identity_is_left_alone(&self, plane: &ControlPlane) {
        let mut secret = Secret::default();
        secret.metadata.name = Some("culvert-identity".to_owned());
        secret.data = Some([("seed".to_owned(), ByteString(b"AAAA".to_vec()))].into());
        self.namespaced::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .expect("made");
        let log = {
            let operator = Operator::start(&plane.kubeconfig(), "four");
            tokio::task::spawn_blocking(|| operator.wait_for_failure())
                .await
                .expect("ends")
        };
        assert!(log.contains("culvert-identity is damaged"), "{log}");
        assert_eq!(self.identity().await, Some(ByteString(b"AAAA".to_vec())));
    }
}

fn holder(lease: &LeaseSpec) -> Option<&str> {
    lease
        .holder_identity
        .as_deref()
        .filter(|name| !name.is_empty())
}
