//! What the watches have told so far. Pure.

use std::collections::BTreeMap;

use api::{ClusterObjects, MeshNodeStatus, StoredObject};
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use serde::Deserialize;
use serde_json::Value;

use super::OwnNode;

/// Which watch an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shelf {
    Meshes,
    Peers,
    Slices,
    OwnNode,
}

/// Everything that has been told, one shelf for each watch.
#[derive(Debug)]
pub struct Objects {
    node: String,
    meshes: Known,
    peers: Known,
    slices: Known,
    own: Known,
    own_node: Option<OwnNode>,
}

#[derive(Debug, Default)]
struct Known {
    /// `None` until the first list is complete.
    objects: Option<BTreeMap<String, StoredObject>>,
    /// A list that is being told again.
    list: BTreeMap<String, StoredObject>,
}

impl Objects {
    /// Nothing yet, for the node of this name.
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            meshes: Known::default(),
            peers: Known::default(),
            slices: Known::default(),
            own: Known::default(),
            own_node: None,
        }
    }

    /// Takes an event; `true` if a spec has changed by it, or the object is another one.
    pub(crate) fn take(&mut self, shelf: Shelf, event: Event<DynamicObject>) -> bool {
        if shelf == Shelf::OwnNode {
            self.note_own(&event);
        }
        let known = match shelf {
            Shelf::Meshes => &mut self.meshes,
            Shelf::Peers => &mut self.peers,
            Shelf::Slices => &mut self.slices,
            Shelf::OwnNode => &mut self.own,
        };
        known.take(event)
    }

    /// This node's MeshNode, as last told.
    pub(crate) fn own_node(&self) -> Option<&OwnNode> {
        self.own_node.as_ref()
    }

    /// Everything; `None` until all watches have told all they have.
    pub(crate) fn all(&self) -> Option<ClusterObjects> {
        Some(ClusterObjects {
            node: self.node.clone(),
            meshes: self.meshes.all()?,
            peers: self.peers.all()?,
            slices: self.slices.all()?,
            mesh_node: self
                .own
                .all()?
                .into_iter()
                .find(|own| own.name == self.node),
        })
    }

    fn note_own(&mut self, event: &Event<DynamicObject>) {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                self.own_node = Some(OwnNode::of(object));
            }
            Event::Delete(_) => self.own_node = None,
            Event::InitDone if self.own.list.is_empty() => self.own_node = None,
            Event::Init | Event::InitDone => {}
        }
    }
}

impl Known {
    fn take(&mut self, event: Event<DynamicObject>) -> bool {
        match event {
            Event::Init => {
                self.list.clear();
                false
            }
            Event::InitApply(object) => {
                let object = stored(object);
                self.list.insert(object.name.clone(), object);
                false
            }
            Event::InitDone => {
                let list = Some(std::mem::take(&mut self.list));
                let changed = self.objects != list;
                self.objects = list;
                changed
            }
            Event::Apply(object) => {
                let object = stored(object);
                let objects = self.objects.get_or_insert_default();
                let before = objects.insert(object.name.clone(), object.clone());
                before != Some(object)
            }
            Event::Delete(object) => {
                let objects = self.objects.as_mut();
                objects.is_some_and(|objects| objects.remove(&object.name_any()).is_some())
            }
        }
    }

    fn all(&self) -> Option<Vec<StoredObject>> {
        let objects = self.objects.as_ref()?;
        Some(objects.values().cloned().collect())
    }
}

impl OwnNode {
    fn of(object: &DynamicObject) -> Self {
        let status = object.data.get("status");
        Self {
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation,
            status: status
                .and_then(|status| MeshNodeStatus::deserialize(status).ok())
                .unwrap_or_default(),
        }
    }
}

fn stored(mut object: DynamicObject) -> StoredObject {
    let spec = object.data.get_mut("spec").map(Value::take);
    StoredObject {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        spec: spec.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ApiResource;
    use serde_json::json;

    use super::*;

    fn object(name: &str, spec: Value) -> DynamicObject {
        let kind = ApiResource::erase::<api::Peer>(&());
        DynamicObject::new(name, &kind).data(json!({"spec": spec}))
    }

    const SHELVES: [Shelf; 4] = [Shelf::Meshes, Shelf::Peers, Shelf::Slices, Shelf::OwnNode];

    fn listed() -> Objects {
        let mut objects = Objects::new("n1");
        for shelf in SHELVES {
            assert!(!objects.take(shelf, Event::Init));
            assert!(objects.all().is_none());
            objects.take(shelf, Event::InitDone);
        }
        objects
    }

    fn peers(objects: &Objects) -> Vec<String> {
        let all = objects.all().expect("complete");
        all.peers.into_iter().map(|peer| peer.name).collect()
    }

    #[test]
    fn nothing_is_told_before_everything_is_listed() {
        let objects = listed();
        let all = objects.all().expect("complete");
        assert_eq!((all.node.as_str(), all.peers.len()), ("n1", 0));
    }

    #[test]
    fn a_list_that_is_told_again_replaces_the_old_one_at_its_end() {
        let mut objects = listed();
        let mut take = |event| objects.take(Shelf::Peers, event);
        assert!(take(Event::Apply(object("a", json!({"x": 1})))));
        assert!(
            !take(Event::Apply(object("a", json!({"x": 1})))),
            "a status"
        );
        assert!(take(Event::Apply(object("a", json!({"x": 2})))));
        let mut anew = object("a", json!({"x": 2}));
        anew.metadata.uid = Some("another".to_owned());
        assert!(take(Event::Apply(anew)));
        assert!(take(Event::Apply(object("b", json!({})))));
        assert!(!take(Event::Init));
        assert!(!take(Event::InitApply(object("b", json!({})))));
        assert_eq!(peers(&objects), ["a", "b"]);
        assert!(objects.take(Shelf::Peers, Event::InitDone));
        assert_eq!(peers(&objects), ["b"]);
        assert!(objects.take(Shelf::Peers, Event::Delete(object("b", json!({})))));
        assert!(!objects.take(Shelf::Peers, Event::Delete(object("b", json!({})))));
        assert!(peers(&objects).is_empty());
    }

    #[test]
    fn the_own_node_comes_and_goes() {
        let mut objects = listed();
        let mut own = object("n1", json!({"prefixes": []}));
        own.metadata.uid = Some("u".to_owned());
        own.metadata.generation = Some(3);
        own.data["status"] = json!({"publicKey": "k"});
        assert!(objects.take(Shelf::OwnNode, Event::Apply(own.clone())));
        let node = objects.own_node().expect("there");
        assert_eq!((node.uid.as_str(), node.generation), ("u", Some(3)));
        assert_eq!(node.status.public_key.as_deref(), Some("k"));
        own.data["status"] = json!({"publicKey": "l"});
        assert!(!objects.take(Shelf::OwnNode, Event::Apply(own.clone())));
        assert_eq!(
            objects
                .own_node()
                .expect("there")
                .status
                .public_key
                .as_deref(),
            Some("l")
        );
        assert!(objects.all().expect("complete").mesh_node.is_some());
        objects.take(Shelf::OwnNode, Event::Init);
        assert!(objects.own_node().is_some());
        objects.take(Shelf::OwnNode, Event::InitDone);
        assert!(
            objects.own_node().is_none() && objects.all().expect("complete").mesh_node.is_none()
        );
    }
}
