//! Where pods are. Only their nodes and addresses are kept, and they are watched only while that is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, Object};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Absence, absence};
use crate::world::Pods;

/// Pods with addresses of their own. What has ended holds its address no longer.
const SELECTOR: &str =
    "spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed,spec.nodeName!=";
/// How long changes gather: pods come and go in crowds.
const GATHER: Duration = Duration::from_millis(500);
/// Refusals in a row that are believed: an API server that has just started knows no roles yet.
const PATIENCE: u32 = 10;

/// The watch of pods. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct PodWatch {
    api: Api<Object<Spec, Status>>,
    changed: Arc<Notify>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    places: Arc<Mutex<Places>>,
    #[expect(dead_code, reason = "dropping it ends the watch")]
    tasks: JoinSet<()>,
}

/// What of a pod's spec matters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    host_network: bool,
}

/// What of a pod's status matters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    ip: String,
}

/// The pods by uid.
#[derive(Debug, Default)]
struct Places {
    pods: BTreeMap<String, Place>,
    /// Of a list that has not ended.
    incoming: BTreeMap<String, Place>,
    sight: Sight,
    /// The node of each address, as long as nothing has changed.
    nodes: Option<Arc<BTreeMap<IpAddr, Arc<str>>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sight {
    #[default]
    None,
    Refused,
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    created: Option<Timestamp>,
    node: Arc<str>,
    addresses: Vec<IpAddr>,
}

impl PodWatch {
    /// Watches nothing yet. `changed` is told of every change.
    pub(crate) fn new(client: Client, changed: Arc<Notify>) -> Self {
        let resource = ApiResource::erase::<Pod>(&());
        Self {
            api: Api::all_with(client, &resource),
            changed,
            running: None,
        }
    }

    /// Begins to watch, or ends it and forgets what was seen.
    pub(crate) fn want(&mut self, wanted: bool) {
        match (wanted, &self.running) {
            (true, None) => self.running = Some(self.start()),
            (false, Some(_)) => self.running = None,
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// What is known.
    pub(crate) fn seen(&self) -> Pods {
        let running = self.running.as_ref();
        running.map_or(Pods::Unknown, |running| lock(&running.places).seen())
    }

    fn start(&self) -> Running {
        let (places, news) = (Arc::<Mutex<Places>>::default(), Arc::new(Notify::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(keep(
            self.api.clone(),
            Arc::clone(&places),
            Arc::clone(&news),
        ));
        tasks.spawn(gather(news, Arc::clone(&self.changed)));
        Running { places, tasks }
    }
}

/// Watches, and begins anew after each refusal that is believed: a watch that goes on tells nothing of what it missed, and
/// a list that ends says that the right is back.
async fn keep(api: Api<Object<Spec, Status>>, places: Arc<Mutex<Places>>, news: Arc<Notify>) {
    loop {
        until_refused(api.clone(), &places, &news).await;
        if lock(&places).refuse() {
            news.notify_one();
        }
    }
}

async fn until_refused(api: Api<Object<Spec, Status>>, places: &Mutex<Places>, news: &Notify) {
    let events = watcher(api, Config::default().fields(SELECTOR)).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut refused = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // This comes before anything was answered.
                if !matches!(event, Event::Init) {
                    refused = 0;
                }
                if lock(places).apply(event) {
                    news.notify_one();
                }
            }
            Err(error) => {
                tracing::debug!(%error, "pods are not to be seen");
                refused += u32::from(absence(&error) == Some(Absence::Right));
                if refused >= PATIENCE {
                    return;
                }
            }
        }
    }
}

async fn gather(news: Arc<Notify>, changed: Arc<Notify>) {
    loop {
        news.notified().await;
        sleep(GATHER).await;
        changed.notify_one();
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Takes what has happened. Says whether that makes a difference.
    fn apply(&mut self, event: Event<Object<Spec, Status>>) -> bool {
        let changed = match event {
            Event::Init => {
                self.incoming.clear();
                false
            }
            Event::InitApply(pod) => {
                if let Some((uid, place)) = uid(&pod).zip(Place::of(&pod)) {
                    self.incoming.insert(uid, place);
                }
                false
            }
            Event::InitDone => {
                let now = std::mem::take(&mut self.incoming);
                let first = std::mem::replace(&mut self.sight, Sight::Full) != Sight::Full;
                std::mem::replace(&mut self.pods, now) != self.pods || first
            }
            Event::Apply(pod) => match uid(&pod).zip(Place::of(&pod)) {
                Some((uid, place)) => {
                    let before = self.pods.insert(uid, place.clone());
                    before.as_ref() != Some(&place)
                }
                None => self.remove(&pod),
            },
            Event::Delete(pod) => self.remove(&pod),
        };
        if changed {
            self.nodes = None;
        }
        changed
    }

    fn remove(&mut self, pod: &Object<Spec, Status>) -> bool {
        uid(pod).is_some_and(|uid| self.pods.remove(&uid).is_some())
    }

    /// They may not be seen (any more). Says whether that is news.
    fn refuse(&mut self) -> bool {
        std::mem::replace(&mut self.sight, Sight::Refused) != Sight::Refused
    }

    fn seen(&mut self) -> Pods {
        match self.sight {
            Sight::None => Pods::Unknown,
            Sight::Refused => Pods::Forbidden,
            Sight::Full => {
                let nodes = self
                    .nodes
                    .get_or_insert_with(|| Arc::new(by_address(&self.pods)));
                Pods::Known(Arc::clone(nodes))
            }
        }
    }
}

/// Of two pods with one address the younger one has it: the other is about to go.
fn by_address(pods: &BTreeMap<String, Place>) -> BTreeMap<IpAddr, Arc<str>> {
    let mut places: Vec<&Place> = pods.values().collect();
    places.sort_by_key(|place| place.created);
    let pairs = places.into_iter().flat_map(|place| {
        let addresses = place.addresses.iter();
        addresses.map(|address| (*address, Arc::clone(&place.node)))
    });
    pairs.collect()
}

fn uid(pod: &Object<Spec, Status>) -> Option<String> {
    pod.metadata.uid.clone()
}

impl Place {
    /// `None` for a pod that has no address of its own, or not any more.
    fn of(pod: &Object<Spec, Status>) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let node = pod.spec.node_name.as_deref()?;
        let addresses = status.pod_ips.iter();
        let addresses: Vec<IpAddr> = addresses.filter_map(|one| one.ip.parse().ok()).collect();
        let has_own = !pod.spec.host_network && !ended && !addresses.is_empty();
        has_own.then(|| Self {
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            node: node.into(),
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, node: &str, ips: &[&str], more: Value) -> Object<Spec, Status> {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": uid, "namespace": "test", "uid": uid, "creationTimestamp": "2027-01-15T08:00:00Z"},
            "spec": {"nodeName": node, "containers": [{"name": "a"}]},
            "status": {"phase": "Running", "podIPs": ips, "hostIPs": [{"ip": "192.0.2.1"}]},
        });
        for (pointer, value) in more.as_object().into_iter().flatten() {
            let (part, field) = pointer.split_once('.').expect("two words");
            pod[part][field] = value.clone();
        }
        serde_json::from_value(pod).expect("a Pod")
    }

    fn known(places: &mut Places) -> Vec<(String, String)> {
        match places.seen() {
            Pods::Known(nodes) => {
                let text = |(ip, node): (&IpAddr, &Arc<str>)| (ip.to_string(), node.to_string());
                nodes.iter().map(text).collect()
            }
            other @ (Pods::Unknown | Pods::Forbidden) => panic!("{other:?}"),
        }
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(ip, node): &(&str, &str)| ((*ip).to_owned(), (*node).to_owned());
        of.iter().map(owned).collect()
    }

    fn listed(pods: Vec<Object<Spec, Status>>) -> Places {
        let mut places = Places::default();
        assert!(!places.apply(Event::Init));
        for pod in pods {
            assert!(!places.apply(Event::InitApply(pod)));
        }
        assert_eq!(places.seen(), Pods::Unknown, "a list that has not ended");
        assert!(places.apply(Event::InitDone));
        places
    }

    #[test]
    fn pods_with_addresses_of_their_own_are_found() {
        let mut places = listed(vec![
            pod("a", "n1", &["10.1.0.5", "fd01::5"], Value::Null),
            pod("b", "n2", &["10.1.0.6"], Value::Null),
            pod(
                "host",
                "n1",
                &["192.0.2.1"],
                json!({"spec.hostNetwork": true}),
            ),
            pod(
                "done",
                "n1",
                &["10.1.0.7"],
                json!({"status.phase": "Succeeded"}),
            ),
            pod("new", "n1", &[], Value::Null),
            pod(
                "homeless",
                "n1",
                &["10.1.0.8"],
                json!({"spec.nodeName": null}),
            ),
        ]);
        let found = pairs(&[("10.1.0.5", "n1"), ("10.1.0.6", "n2"), ("fd01::5", "n1")]);
        assert_eq!(known(&mut places), found);
    }

    #[test]
    fn only_what_matters_is_news() {
        let mut places = listed(vec![pod("a", "n1", &["10.1.0.5"], Value::Null)]);
        let same = pod(
            "a",
            "n1",
            &["10.1.0.5"],
            json!({"status.reason": "x", "metadata.labels": {"a": "b"}}),
        );
        assert!(!places.apply(Event::Apply(same)));
        assert!(places.apply(Event::Apply(pod("b", "n2", &["10.1.0.6"], Value::Null))));
        assert_eq!(known(&mut places).len(), 2);
        let failed = pod("b", "n2", &["10.1.0.6"], json!({"status.phase": "Failed"}));
        assert!(places.apply(Event::Apply(failed)));
        assert!(places.apply(Event::Delete(pod("a", "n1", &[], Value::Null))));
        assert!(!places.apply(Event::Delete(pod("a", "n1", &[], Value::Null))));
        assert!(known(&mut places).is_empty());
    }

    #[test]
    fn an_address_belongs_to_the_younger_pod() {
        let created = json!({"metadata.creationTimestamp": "2027-01-15T09:00:00Z"});
        let mut places = listed(vec![
            pod("a", "n2", &["10.1.0.5"], created),
            pod("b", "n1", &["10.1.0.5"], Value::Null),
        ]);
        assert_eq!(known(&mut places), pairs(&[("10.1.0.5", "n2")]));
        assert!(places.apply(Event::Delete(pod("a", "n2", &[], Value::Null))));
        assert_eq!(known(&mut places), pairs(&[("10.1.0.5", "n1")]));
    }

    #[test]
    fn a_refusal_is_told_and_ends_with_the_next_list() {
        let mut places = listed(vec![pod("a", "n1", &["10.1.0.5"], Value::Null)]);
        assert!(places.refuse() && !places.refuse());
        assert_eq!(places.seen(), Pods::Forbidden);
        assert!(!places.apply(Event::Init));
        assert!(places.apply(Event::InitDone));
        assert!(known(&mut places).is_empty());
    }
}
