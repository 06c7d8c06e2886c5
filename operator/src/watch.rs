//! What there is: the API server's objects, kept up to date.

mod pods;
mod shelf;

pub(crate) use shelf::Shelf;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use api::{Invite, Mesh, MeshNode, Peer, PeerSlice};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodSpec, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::heard::Heard;
use crate::world::{Owned, World};
use pods::PodWatch;
use shelf::Versions;

/// Label of everything that the operator makes.
pub(crate) const MANAGED: &str = "app.kubernetes.io/managed-by=culvert-operator";
/// Errors in a row after which an optional kind counts as not there: whatever serves it may be broken for good.
const PATIENCE: u32 = 10;
/// What helm keeps in Secrets is large and none of our business.
const NOT_HELM: &str = "type!=helm.sh/release.v1";

/// Pods of agents, as the chart labels them.
const AGENTS: &str = "app.kubernetes.io/name=culvert,app.kubernetes.io/component=agent";

/// Everything that is watched. Dropping it ends the watches.
#[derive(Debug)]
pub(crate) struct Watched {
    meshes: Shelf<Mesh>,
    peers: Shelf<Peer>,
    invites: Shelf<Invite>,
    mesh_nodes: Shelf<MeshNode>,
    slices: Shelf<PeerSlice>,
    nodes: Shelf<Node>,
    agents: Shelf<Pod>,
    pods: PodWatch,
    heard: Arc<Mutex<Heard>>,
    deployments: Shelf<Deployment>,
    services: Shelf<Service>,
    ingresses: Shelf<Ingress>,
    secrets: Shelf<Secret>,
    config_maps: Shelf<ConfigMap>,
    disruption_budgets: Shelf<PodDisruptionBudget>,
    by_kind: BTreeMap<String, Arc<dyn Versions>>,
    #[expect(dead_code, reason = "dropping it ends the watches")]
    tasks: JoinSet<()>,
}

/// How a kind is watched.
pub(crate) struct How<K> {
    /// What to leave out, to save memory.
    pub(crate) trim: fn(&mut K),
    /// Whether two versions of an object make no difference.
    pub(crate) same: fn(&K, &K) -> bool,
    /// Whether a kind that is not there, or that must not be seen, counts as one without objects.
    pub(crate) optional: bool,
    /// Is told of every object that comes; says whether that alone is news.
    pub(crate) seen: Option<Seen<K>>,
}

/// Is told of objects.
pub(crate) struct Seen<K>(Box<dyn Fn(&K) -> bool + Send + Sync>);

impl<K: Resource> Default for How<K> {
    fn default() -> Self {
        Self {
            trim: |_| {},
            same: |before, now| before.meta().resource_version == now.meta().resource_version,
            optional: false,
            seen: None,
        }
    }
}

impl Watched {
    /// Begins to watch. `changed` is told of every change.
    pub(crate) fn start(client: &Client, namespace: &str, changed: &Arc<Notify>) -> Self {
        let mut start = Start {
            client,
            changed,
            by_kind: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        let managed = || Config::default().labels(MANAGED);
        let heard = Arc::<Mutex<Heard>>::default();
        let pods = Api::namespaced(client.clone(), namespace);
        Self {
            meshes: start.cluster(How::default()),
            peers: start.cluster(How::default()),
            invites: start.cluster(How::default()),
            mesh_nodes: start.cluster(How {
                same: same_but_heartbeat,
                seen: Some(listen(&heard)),
                ..How::default()
            }),
            agents: start.shelf(
                pods,
                Config::default().labels(AGENTS),
                How {
                    trim: trim_pod,
                    same: |before, now| before == now,
                    optional: true,
                    ..How::default()
                },
            ),
            pods: PodWatch::new(client.clone(), Arc::clone(changed)),
            heard,
            slices: start.cluster(How::default()),
            nodes: start.cluster(How {
                trim: trim_node,
                same: |before, now| before == now,
                ..How::default()
            }),
            deployments: start.namespaced(namespace, managed()),
            services: start.namespaced(namespace, managed()),
            ingresses: start.namespaced(namespace, managed()),
            secrets: start.namespaced(namespace, Config::default().fields(NOT_HELM)),
            config_maps: start.namespaced(namespace, managed()),
            disruption_budgets: start.namespaced(namespace, managed()),
            by_kind: start.by_kind,
            tasks: start.tasks,
        }
    }

    /// Whether everything has been seen once.
    pub(crate) fn is_complete(&self) -> bool {
        self.by_kind.values().all(|shelf| shelf.is_complete())
    }

    /// Whether the object is here in this version or a later one, as far as its kind is watched.
    pub(crate) fn has_reached(&self, kind: &str, name: &str, version: &str) -> bool {
        let shelf = self.by_kind.get(kind);
        shelf.is_none_or(|shelf| shelf.has_reached(name, version))
    }

    /// Whether all pods are to be watched, too. They count as unknown until they have been seen.
    pub(crate) fn want_pods(&mut self, wanted: bool) {
        self.pods.want(wanted);
    }

    /// Puts everything into a look.
    pub(crate) fn fill(&self, world: &mut World) {
        world.meshes = self.meshes.objects();
        world.peers = self.peers.objects();
        world.invites = self.invites.objects();
        world.mesh_nodes = self.mesh_nodes.objects();
        world.slices = self.slices.objects();
        world.nodes = self.nodes.objects();
        world.pods = self.pods.seen();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.begin(&world.mesh_nodes);
        world.heard = heard.clone();
        drop(heard);
        world.owned = Owned {
            deployments: self.deployments.objects(),
            services: self.services.objects(),
            ingresses: self.ingresses.objects(),
            secrets: self.secrets.objects(),
            config_maps: self.config_maps.objects(),
            agents: self.agents.objects(),
            disruption_budgets: self.disruption_budgets.objects(),
        };
    }
}

/// Starts watches.
struct Start<'a> {
    client: &'a Client,
    changed: &'a Arc<Notify>,
    by_kind: BTreeMap<String, Arc<dyn Versions>>,
    tasks: JoinSet<()>,
}

impl Start<'_> {
    fn cluster<K>(&mut self, how: How<K>) -> Shelf<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = Api::all(self.client.clone());
        self.shelf(api, Config::default(), how)
    }

    fn namespaced<K>(&mut self, namespace: &str, config: Config) -> Shelf<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.shelf(api, config, How::default())
    }

    fn shelf<K>(&mut self, api: Api<K>, config: Config, how: How<K>) -> Shelf<K>
    where
        K: Resource<DynamicType = ()>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let kind = K::kind(&());
        let shelf = Shelf::default();
        let keep = keep(
            api,
            config,
            shelf.clone(),
            how,
            Arc::clone(self.changed),
            kind.to_string(),
        );
        self.tasks.spawn(keep);
        self.by_kind
            .insert(kind.into_owned(), Arc::new(shelf.clone()));
        shelf
    }
}

/// Keeps a shelf up to date for ever. `what` names it in the log.
pub(crate) async fn keep<K>(
    api: Api<K>,
    config: Config,
    shelf: Shelf<K>,
    how: How<K>,
    changed: Arc<Notify>,
    what: String,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut events = std::pin::pin!(events(api, config, how.trim));
    let (mut failing, mut missed) = (false, 0);
    while let Some(event) = events.next().await {
        let news = match event {
            Ok(event) => {
                failing = false;
                missed = 0;
                let told = is_told(how.seen.as_ref(), &event);
                shelf.apply(event, how.same) || told
            }
            Err(error) if how.optional => {
                tracing::debug!(what, %error, "not to be seen here");
                missed += 1;
                match absence(&error) {
                    Some(Absence::Kind) => shelf.clear(),
                    // Something that cannot be read now says nothing about what it was, nor, for a while, that it is not.
                    Some(Absence::Right) => shelf.complete(),
                    None if missed >= PATIENCE => shelf.complete(),
                    None => false,
                }
            }
            Err(error) => {
                if std::mem::replace(&mut failing, true) {
                    tracing::debug!(what, %error, "still cannot watch");
                } else if absence(&error).is_some() {
                    tracing::warn!(what, %error, "cannot watch; are the CRDs installed, and the operator's roles?");
                } else {
                    tracing::info!(what, %error, "watch interrupted; going on");
                }
                false
            }
        };
        if news {
            changed.notify_one();
        }
    }
}

fn events<K>(
    api: Api<K>,
    config: Config,
    trim: fn(&mut K),
) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, config).default_backoff();
    events.map(move |event| {
        event.map(|event| {
            event.modify(|object| {
                object.managed_fields_mut().clear();
                trim(object);
            })
        })
    })
}

fn is_told<K>(seen: Option<&Seen<K>>, event: &Event<K>) -> bool {
    match (seen, event) {
        (Some(seen), Event::Apply(object) | Event::InitApply(object)) => (seen.0)(object),
        (Some(_) | None, _) => false,
    }
}

/// Notes at once when an agent is heard: looks at everything may be far apart.
fn listen(heard: &Arc<Mutex<Heard>>) -> Seen<MeshNode> {
    let heard = Arc::clone(heard);
    Seen(Box::new(move |node| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.note(node, Timestamp::now())
    }))
}

/// That an agent is still there is noted when it is heard. It changes nothing else, so it is no reason to look at everything.
fn same_but_heartbeat(before: &MeshNode, now: &MeshNode) -> bool {
    let strip = |node: &MeshNode| {
        let mut meta = node.metadata.clone();
        meta.resource_version = None;
        let mut status = node.status.clone();
        if let Some(status) = &mut status {
            status.heartbeat_at = None;
        }
        (meta, status)
    };
    before.spec == now.spec && strip(before) == strip(now)
}

/// Why a kind is not to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// There is no such kind.
    Kind,
    /// We may not look at it, or may not at the moment: an API server that has just started knows no roles yet.
    Right,
}

/// What an error says about the kind; `None` where it is about the API server or the way to it.
fn absence(error: &watcher::Error) -> Option<Absence> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => match status.code {
            404 => Some(Absence::Kind),
            403 => Some(Absence::Right),
            _ => None,
        },
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Leaves out what is large or changes without meaning anything here.
fn trim_node(node: &mut Node) {
    node.metadata.resource_version = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
    }
}

/// Which node it is on is all that matters.
fn trim_pod(pod: &mut Pod) {
    let node = pod.spec.take().and_then(|spec| spec.node_name);
    *pod = Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.take(),
            namespace: pod.metadata.namespace.take(),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: node,
            ..PodSpec::default()
        }),
        status: None,
    };
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn a_heartbeat_of_a_node_is_no_news() {
        let node = |second, ready: &str| {
            let mut node = Node::default();
            node.metadata.name = Some("n".to_owned());
            node.metadata.resource_version = Some(format!("{second}"));
            let time = Timestamp::from_second(second).expect("a time");
            let condition = NodeCondition {
                type_: "Ready".to_owned(),
                status: ready.to_owned(),
                last_heartbeat_time: Some(Time(time)),
                ..NodeCondition::default()
            };
            node.status = Some(NodeStatus {
                conditions: Some(vec![condition]),
                ..NodeStatus::default()
            });
            trim_node(&mut node);
            node
        };
        assert_eq!(node(1, "True"), node(2, "True"));
        assert_ne!(node(1, "True"), node(2, "False"));
    }

    #[test]
    fn a_heartbeat_of_an_agent_is_noted_and_no_news() {
        let node = |second: i64, key: &str| {
            let at = Timestamp::from_second(second).expect("a time");
            let status = serde_json::json!({"heartbeatAt": at.to_string(), "publicKey": key});
            let meta = serde_json::json!({"name": "n", "resourceVersion": second.to_string()});
            let node = serde_json::json!({"metadata": meta, "spec": {}, "status": status});
            serde_json::from_value::<MeshNode>(node).expect("a MeshNode")
        };
        assert!(same_but_heartbeat(&node(1, "k"), &node(2, "k")));
        assert!(!same_but_heartbeat(&node(1, "k"), &node(2, "l")));
        let mut other = node(1, "k");
        other.spec.probes.push("p".to_owned());
        assert!(!same_but_heartbeat(&node(1, "k"), &other));

        let heard = Arc::<Mutex<Heard>>::default();
        let seen = listen(&heard);
        assert!(!is_told(Some(&seen), &Event::Apply(node(1, "k"))));
        let noted = heard.lock().expect("not poisoned").silent_at("n");
        assert!(noted.is_some_and(|at| at > Timestamp::now()));
    }

    #[test]
    fn of_a_pod_its_node_is_kept() {
        let pod = serde_json::json!({
            "metadata": {"name": "a", "namespace": "culvert", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "agent"}]}, "status": {"phase": "Running"},
        });
        let mut pod: Pod = serde_json::from_value(pod).expect("a Pod");
        trim_pod(&mut pod);
        let left = serde_json::to_value(&pod).expect("JSON");
        assert_eq!(
            left["metadata"],
            serde_json::json!({"name": "a", "namespace": "culvert"})
        );
        assert_eq!(
            left["spec"],
            serde_json::json!({"containers": [], "nodeName": "n1"})
        );
    }

    #[test]
    fn what_is_not_there_is_told_from_what_fails() {
        let api = |code| {
            kube::Error::Api(
                kube::core::Status::failure("no", "")
                    .with_code(code)
                    .boxed(),
            )
        };
        let of = |code| absence(&watcher::Error::InitialListFailed(api(code)));
        assert_eq!(of(404), Some(Absence::Kind));
        assert_eq!(of(403), Some(Absence::Right));
        assert_eq!(of(500), None);
        assert_eq!(absence(&watcher::Error::NoResourceVersion), None);
    }
}
