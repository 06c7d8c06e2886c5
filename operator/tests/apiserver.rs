//! The operator against a real API server: definitions, rules, ownership of fields, election, and what it makes.
//!
//! Fails where none has been built, unless CULVERT_NO_KUBE=1 asks to do without.

#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/joiner.rs"]
mod joiner;
#[path = "apiserver/kit.rs"]
mod kit;
#[path = "apiserver/operator.rs"]
mod operator;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use api::{Invite, Mesh, MeshNode, MeshNodeStatus, Peer, PeerSlice, find_condition};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sync::{JoinError, RefusedCode};
use tokio::time::Instant;

use control_plane::ControlPlane;
use joiner::{Joiner, OwnedRelay};
use operator::{NAMESPACE, Operator, cleanup};

const PATIENCE: Duration = Duration::from_secs(30);

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

struct Cluster {
    client: Client,
}

impl Cluster {
    async fn definitions_are_taken(&self) {
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

    async fn rules_accept_and_refuse(&self) {
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

    async fn each_field_has_one_owner(&self) {
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
            .create(&PostParams::default(), &mesh(spec))
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

    async fn a_relay_is_added(&self, seed: &ByteString) -> OwnedRelay {
        let text = String::from_utf8(seed.0.clone()).expect("text");
        let secret = derp::ClusterSecret::from_base64(text.trim()).expect("an identity");
        let relay = OwnedRelay::start(secret.identity()).await;
        let external = json!({"url": relay.url().to_string(), "stunPort": 0, "owner": secret.identity().to_string()});
        let patch = json!({"spec": {"relays": {"external": [external]}}});
        let meshes = self.all::<Mesh>();
        meshes
            .patch("default", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("taken");
        let inside = |mesh: &Option<Mesh>| {
            let status = mesh.as_ref().and_then(|mesh| mesh.status.as_ref());
            status.is_some_and(|status| status.relays.iter().any(|relay| relay.inside))
        };
        eventually("a relay is connected", || get(&meshes, "default"), inside).await;
        relay
    }

    async fn somebody_joins_once(&self, token: &sync::Token, relay: &OwnedRelay) {
        let (tokyo, osaka) = (Joiner::new(), Joiner::new());
        let welcome = tokyo.join(token, "tokyo").await.expect("it is let in");
        assert_eq!(welcome.cidrs, ["10.1.0.0/16".parse().expect("a range")]);
        let peers = self
            .all::<Peer>()
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let identities: Vec<_> = peers
            .iter()
            .map(|peer| peer.spec.identity.clone())
            .collect();
        assert_eq!(identities, [Some(tokyo.secret.identity().to_string())]);
        assert_eq!(peers[0].spec.allowed_cidrs, ["10.2.0.0/16"]);
        let again = osaka.join(token, "osaka").await.expect_err("it is used");
        let JoinError::Refused(refused) = &again else {
            panic!("{again}");
        };
        assert_eq!(refused.code, RefusedCode::Used);
        let talk = tokyo.talk(token.inviter, &welcome, &relay.url());
        let slices = || async {
            self.all::<PeerSlice>()
                .list(&ListParams::default())
                .await
                .expect("listed")
                .items
        };
        let told = eventually("a PeerSlice", slices, |slices| !slices.is_empty()).await;
        assert_eq!(told[0].spec.nodes[0].name, "node");
        assert_eq!(told[0].spec.nodes[0].prefixes, ["10.2.1.0/24"]);
        assert!(
            told[0]
                .owner_references()
                .iter()
                .any(|owner| owner.kind == "Peer")
        );
        drop(talk);
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = || async {
            events
                .list(&ListParams::default())
                .await
                .expect("listed")
                .items
        };
        let about_it = |events: &Vec<Event>| {
            let mut kinds = events
                .iter()
                .filter_map(|event| event.regarding.as_ref()?.kind.clone());
            kinds.any(|kind| kind == "Invite")
        };
        eventually("an Event", events, about_it).await;
    }

    async fn an_invite_gets_a_token(&self) -> sync::Token {
        let invites = self.all::<Invite>();
        invites
            .create(&PostParams::default(), &object("tokyo", json!({})))
            .await
            .expect("made");
        let ready = |invite: &Option<Invite>| {
            let status = invite.as_ref().and_then(|invite| invite.status.as_ref());
            status.is_some_and(|status| {
                find_condition(&status.conditions, "Ready")
                    .is_some_and(|ready| ready.status == "True")
            })
        };
        let invite = eventually("a token", || get(&invites, "tokyo"), ready)
            .await
            .expect("there");
        let status = invite.status.expect("a status");
        let secret = status.secret_name.expect("a Secret");
        let secret = get(&self.namespaced::<Secret>(), &secret)
            .await
            .expect("there");
        let token = secret
            .data
            .and_then(|mut data| data.remove("token"))
            .expect("a token");
        let token: sync::Token = String::from_utf8(token.0)
            .expect("text")
            .trim()
            .parse()
            .expect("a token");
        assert_eq!(Some(token.secret.identity().to_string()), status.identity);
        assert!(!token.relays.is_empty());
        token
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

    async fn identity(&self) -> Option<ByteString> {
        get(&self.namespaced::<Secret>(), "culvert-identity")
            .await?
            .data?
            .remove("seed")
    }

    async fn lease(&self) -> Option<LeaseSpec> {
        get(&self.namespaced::<Lease>(), "culvert-operator")
            .await?
            .spec
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}

fn mesh(spec: Value) -> Mesh {
    object("default", spec)
}

fn object<K: Resource<DynamicType = ()> + DeserializeOwned>(name: &str, spec: Value) -> K {
    let object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).expect("an object")
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

fn holder(lease: &LeaseSpec) -> Option<&str> {
    lease
        .holder_identity
        .as_deref()
        .filter(|name| !name.is_empty())
}

async fn get<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str) -> Option<K> {
    api.get_opt(name).await.expect("answers")
}

/// Asks until the answer is as wanted.
async fn eventually<T: Debug, F: Future<Output = T>>(
    what: &str,
    ask: impl Fn() -> F,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: still {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
