//! A small cluster for tests, and an API server that does what a plan says.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Invite, Mesh, MeshNode, Peer, PeerSlice};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use sync::{
    ClusterIdentity, ClusterSecret, DownReason, NodeRecord, PeerState, PeerView, Records,
    RelayState,
};

use super::footing::Footing;
use super::ground::Ground;
use super::names::{IDENTITY_SECRET, SEED_KEY};
use super::{issue_certificate, plan};
use crate::action::{Action, Kind, Object, Plan, Redemption, StatusOf};
use crate::world::{Fresh, Owned, Release, SyncView, World};

/// When all of it happens.
pub(crate) const NOW: i64 = 1_800_000_000;
/// Looks after which nothing may be left to do.
const LOOKS: usize = 10;

/// A world to be changed by a test.
pub(crate) struct Fixture {
    pub(crate) world: World,
    uids: u64,
}

/// An identity by a number.
pub(crate) fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).expect("a seed")
}

/// A node key by a number.
pub(crate) fn key(seed: u8) -> derp::NodeKey {
    derp::NodeSecret::from_bytes([seed; 32]).public()
}

/// An object from JSON.
pub(crate) fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

impl Fixture {
    /// A cluster `berlin` of two nodes with 10.1.0.0/16, an identity, a Mesh without relays.
    pub(crate) fn new() -> Self {
        let mut fixture = Self {
            world: empty(),
            uids: 0,
        };
        let seed = ByteString(secret(1).to_base64().as_bytes().to_vec());
        let identity = Secret {
            metadata: meta(IDENTITY_SECRET, Some("culvert")),
            data: Some(BTreeMap::from([(SEED_KEY.to_owned(), seed)])),
            ..Secret::default()
        };
        fixture.world.owned.secrets.push(Arc::new(identity));
        fixture.mesh(json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"]}));
        fixture.node("n1", &["10.1.1.0/24"]);
        fixture.node("n2", &["10.1.2.0/24"]);
        fixture.world.heard.begin(&[]);
        fixture
    }

    pub(crate) fn ground_of<'a>(&'a self, footing: &'a Footing<'a>) -> Ground<'a> {
        footing.ground(&self.world, self.now())
    }

    pub(crate) fn with_ground<T>(&self, act: impl FnOnce(Ground<'_>) -> T) -> T {
        let footing = Footing::of(&self.world).expect("a footing");
        act(self.ground_of(&footing))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.world.now
    }

    pub(crate) fn pass_seconds(&mut self, seconds: i64) {
        self.world.now = super::draft::later(self.world.now, seconds);
    }

    /// Replaces the Mesh.
    pub(crate) fn mesh(&mut self, spec: Value) {
        let status = self
            .world
            .meshes
            .first()
            .and_then(|mesh| mesh.status.clone());
        let mut mesh: Mesh = object(json!({"metadata": {"name": "default"}, "spec": spec}));
        mesh.status = status;
        self.created(&mut mesh);
        self.world.meshes = vec![Arc::new(mesh)];
    }

    /// Adds a Node that is alive.
    pub(crate) fn node(&mut self, name: &str, prefixes: &[&str]) {
        let mut node: Node = object(json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": prefixes},
            "status": {
                "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", self.world.nodes.len() + 1)}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
        self.created(&mut node);
        self.world.nodes.push(Arc::new(node));
    }

    pub(crate) fn peer(&mut self, name: &str, spec: Value) {
        let mut peer: Peer = object(json!({"metadata": {"name": name}, "spec": spec}));
        self.created(&mut peer);
        self.world.peers.push(Arc::new(peer));
    }

    pub(crate) fn invite(&mut self, name: &str, spec: Value) {
        let mut invite: Invite = object(json!({"metadata": {"name": name}, "spec": spec}));
        self.created(&mut invite);
        self.world.invites.push(Arc::new(invite));
    }

    /// Reports of a node's agent.
    pub(crate) fn report(&mut self, node: &str, status: Value) {
        let found = self.world.mesh_nodes.iter_mut();
        let found = found.filter(|one| one.name_any() == node);
        for one in found {
            Arc::make_mut(one).status = Some(object(status.clone()));
            let _ = self.world.heard.note(one, self.world.now);
        }
    }

    /// Lets the agents of all nodes be ready, with keys.
    pub(crate) fn agents_ready(&mut self) {
        for (number, name) in ["n1", "n2"].into_iter().enumerate() {
            let key = key(u8::try_from(number).expect("small") + 100);
            let ready = json!([{"type": "Ready", "status": "True", "reason": "Programmed", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"}]);
            self.report(
                name,
                json!({"publicKey": key.to_string(), "conditions": ready, "peers": []}),
            );
        }
    }

    /// What a peer's operator shows.
    pub(crate) fn view(&mut self, identity: ClusterIdentity, view: PeerView) {
        self.world.sync.peers.insert(identity, view);
    }

    /// Lets all relays that are asked for be connected.
    pub(crate) fn connect(&mut self) {
        let input = plan(&self.world).sync.expect("conversations");
        for relay in input.relays {
            let state = RelayState {
                connected: true,
                ..RelayState::default()
            };
            self.world.sync.relays.insert(relay.url, state);
        }
    }

    /// Lets peers be heard now over all relays that are connected.
    pub(crate) fn come_over_relays(&mut self) {
        let now = self.now();
        let relays = self.world.sync.relays.keys().cloned();
        self.world.sync.used = relays.map(|relay| (relay, now)).collect();
    }

    /// Carries out plans until nothing is left to do; gives the last one.
    pub(crate) fn settle(&mut self) -> Plan {
        for _ in 0..LOOKS {
            let plan = plan(&self.world);
            if plan.actions.is_empty() {
                return plan;
            }
            self.carry_out(plan.actions);
        }
        let left = plan(&self.world).actions;
        panic!("there is always something left to do: {left:#?}");
    }

    pub(crate) fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Apply(object) => self.apply(object),
                Action::Swap(object) => self.swap(object),
                Action::Create(object) => self.create(object),
                Action::Certify(order) => {
                    let secret = issue_certificate(&order, self.now()).expect("a certificate");
                    self.apply(secret.into());
                }
                Action::ApplyStatus(status) => self.status(status),
                Action::Redeem(redemption) => {
                    let Redemption {
                        name,
                        resource_version,
                        status,
                    } = redemption;
                    self.status(StatusOf::Invite(name, Some(resource_version), status));
                }
                Action::Delete(target) => self.delete(target.kind, &target.name),
                Action::Event(_) => {}
            }
        }
    }

    pub(crate) fn peer_status(&self, name: &str) -> api::PeerStatus {
        let peer = super::draft::find(&self.world.peers, name).expect("a Peer");
        peer.status.clone().expect("a status")
    }

    pub(crate) fn mesh_status(&self) -> api::MeshStatus {
        self.world.meshes[0].status.clone().expect("a status")
    }

    fn created<K: Resource>(&mut self, object: &mut K) {
        self.uids += 1;
        let meta = object.meta_mut();
        meta.uid.get_or_insert_with(|| format!("uid-{}", self.uids));
        meta.resource_version = Some(self.uids.to_string());
        meta.generation.get_or_insert(1);
        let time = super::draft::later(self.world.now, 0);
        meta.creation_timestamp.get_or_insert(Time(time));
    }

    /// As an API server has it: of this version, or not there yet.
    fn swap(&mut self, object: Object) {
        let Object::ConfigMap(map) = &object else {
            panic!("only the register is swapped: {object:?}");
        };
        let found = super::draft::find(&self.world.owned.config_maps, &map.name_any());
        let found = found.and_then(ResourceExt::resource_version);
        assert_eq!(found, map.resource_version(), "of this version");
        self.apply(object);
    }

    fn create(&mut self, object: Object) {
        if self.exists(
            object.kind(),
            &object.metadata().name.clone().unwrap_or_default(),
        ) {
            return;
        }
        self.apply(object);
    }

    fn exists(&self, kind: Kind, name: &str) -> bool {
        fn has<K: Resource>(list: &[Arc<K>], name: &str) -> bool {
            super::draft::find(list, name).is_some()
        }
        let (world, owned) = (&self.world, &self.world.owned);
        match kind {
            Kind::Deployment => has(&owned.deployments, name),
            Kind::Service => has(&owned.services, name),
            Kind::Ingress => has(&owned.ingresses, name),
            Kind::Secret => has(&owned.secrets, name),
            Kind::ConfigMap => has(&owned.config_maps, name),
            Kind::PodDisruptionBudget => has(&owned.disruption_budgets, name),
            Kind::MeshNode => has(&world.mesh_nodes, name),
            Kind::Peer => has(&world.peers, name),
            Kind::PeerSlice => has(&world.slices, name),
        }
    }

    fn apply(&mut self, object: Object) {
        let mut world = std::mem::replace(&mut self.world, empty());
        let owned = &mut world.owned;
        match object {
            Object::Deployment(one) => self.put(&mut owned.deployments, *one),
            Object::Service(one) => self.put(&mut owned.services, with_addresses(*one)),
            Object::Ingress(one) => self.put(&mut owned.ingresses, *one),
            Object::Secret(one) if one.data.is_none() => annotate(&mut owned.secrets, &one),
            Object::Secret(one) => self.put(&mut owned.secrets, *one),
            Object::ConfigMap(one) => self.put(&mut owned.config_maps, *one),
            Object::PodDisruptionBudget(one) => self.put(&mut owned.disruption_budgets, *one),
            Object::MeshNode(mut one) => {
                let before = super::draft::find(&world.mesh_nodes, &one.name_any());
                one.status = before.and_then(|before: &MeshNode| before.status.clone());
                self.put(&mut world.mesh_nodes, *one);
            }
            Object::Peer(one) => self.put(&mut world.peers, *one),
            Object::PeerSlice(mut one) => {
                let before = super::draft::find(&world.slices, &one.name_any());
                one.status = before.and_then(|before: &PeerSlice| before.status.clone());
                self.put(&mut world.slices, *one);
            }
        }
        self.world = world;
    }

    fn put<K: Resource + Clone>(&mut self, list: &mut Vec<Arc<K>>, mut object: K) {
        let name = object.name_any();
        if let Some(before) = list.iter().find(|one| one.name_any() == name) {
            object.meta_mut().uid.clone_from(&before.meta().uid);
        }
        self.created(&mut object);
        list.retain(|one| one.name_any() != name);
        list.push(Arc::new(object));
    }

    fn status(&mut self, status: StatusOf) {
        fn of<'a, K: Resource + Clone>(list: &'a mut [Arc<K>], name: &str) -> &'a mut K {
            let found = list.iter_mut().find(|one| one.name_any() == name);
            Arc::make_mut(found.expect("it is there"))
        }
        // Status has whole seconds, as the API server is sent it.
        match status {
            StatusOf::Mesh(name, status) => {
                of(&mut self.world.meshes, &name).status = Some(sent(&status));
            }
            StatusOf::Peer(name, status) => {
                of(&mut self.world.peers, &name).status = Some(sent(&status));
            }
            StatusOf::Invite(name, version, status) => {
                let invite = of(&mut self.world.invites, &name);
                assert_eq!(version, invite.metadata.resource_version, "of this version");
                invite.status = Some(sent(&status));
                self.uids += 1;
                invite.metadata.resource_version = Some(self.uids.to_string());
            }
            StatusOf::PeerSlice(name, status) => {
                of(&mut self.world.slices, &name).status = Some(sent(&status));
            }
        }
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        fn drop<K: Resource>(list: &mut Vec<Arc<K>>, name: &str) {
            list.retain(|one| one.name_any() != name);
        }
        let world = &mut self.world;
        let owned = &mut world.owned;
        match kind {
            Kind::Deployment => drop(&mut owned.deployments, name),
            Kind::Service => drop(&mut owned.services, name),
            Kind::Ingress => drop(&mut owned.ingresses, name),
            Kind::Secret => drop(&mut owned.secrets, name),
            Kind::ConfigMap => drop(&mut owned.config_maps, name),
            Kind::PodDisruptionBudget => drop(&mut owned.disruption_budgets, name),
            Kind::MeshNode => drop(&mut world.mesh_nodes, name),
            Kind::Peer => drop(&mut world.peers, name),
            Kind::PeerSlice => drop(&mut world.slices, name),
        }
    }
}

/// A peer that speaks to us, with these nodes: name, key, prefixes.
pub(crate) fn up(name: &str, nodes: &[(&str, u8, &[&str])]) -> PeerView {
    let mut records = Records::default();
    for (name, number, prefixes) in nodes {
        let prefixes = prefixes.iter().map(|text| text.parse().expect("a prefix"));
        let record = NodeRecord::new(key(*number), None, prefixes.collect(), 1);
        let record = Arc::new(record.expect("a record"));
        records
            .insert(name.parse().expect("a name"), record)
            .expect("room");
    }
    PeerView {
        state: PeerState::Up {
            cluster_name: name.parse().expect("a name"),
            generation: 1,
            version: 1,
        },
        records: Some(Arc::new(records)),
        synced: true,
        ..PeerView::default()
    }
}

/// A peer that does not speak to us.
pub(crate) fn down(reason: DownReason) -> PeerView {
    PeerView {
        state: PeerState::Down { reason },
        ..PeerView::default()
    }
}

/// The status of the condition of this type, and its reason.
pub(crate) fn condition<'a>(
    conditions: &'a [k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    kind: &str,
) -> (&'a str, &'a str) {
    let found = api::find_condition(conditions, kind).expect(kind);
    (&found.status, &found.reason)
}

fn empty() -> World {
    World {
        now: Timestamp::from_second(NOW).expect("a time"),
        release: Release {
            namespace: "culvert".to_owned(),
            instance: "culvert".to_owned(),
            relay_image: "ghcr.io/culvert-dev/relay:test".to_owned(),
            pull_policy: Some("IfNotPresent".to_owned()),
            pull_secrets: vec!["registry".to_owned()],
        },
        fresh: Fresh {
            identity: secret(201),
            invite: secret(202),
        },
        meshes: Vec::new(),
        peers: Vec::new(),
        invites: Vec::new(),
        mesh_nodes: Vec::new(),
        heard: crate::heard::Heard::default(),
        slices: Vec::new(),
        nodes: Vec::new(),
        pods: crate::world::Pods::Unknown,
        networks: Vec::new(),
        owned: Owned::default(),
        sync: SyncView {
            running: true,
            ..SyncView::default()
        },
        join: None,
        denied: BTreeMap::new(),
        undenied: BTreeMap::new(),
    }
}

fn meta(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ObjectMeta::default()
    }
}

fn sent<S: serde::Serialize + serde::de::DeserializeOwned>(status: &S) -> S {
    object(serde_json::to_value(status).expect("JSON"))
}

fn annotate(secrets: &mut [Arc<Secret>], with: &Secret) {
    let name = with.name_any();
    for secret in secrets.iter_mut().filter(|one| one.name_any() == name) {
        let annotations = with.metadata.annotations.clone().unwrap_or_default();
        Arc::make_mut(secret).annotations_mut().extend(annotations);
    }
}

/// What the API server gives to a Service.
fn with_addresses(mut service: Service) -> Service {
    if let Some(spec) = &mut service.spec {
        spec.cluster_ip = Some("10.96.0.7".to_owned());
        spec.cluster_ips = Some(vec!["10.96.0.7".to_owned()]);
        if spec.type_.as_deref() != Some("ClusterIP") {
            for port in spec.ports.iter_mut().flatten() {
                port.node_port.get_or_insert(30_443);
            }
        }
    }
    service
}
