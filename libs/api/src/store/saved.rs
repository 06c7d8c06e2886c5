//! The last good state over restarts.

use std::collections::BTreeMap;

use derp::NodeKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::learned::Told;
use super::{Held, conflict};
use crate::reader::{Form, read_spec};
use crate::{Kind, NodeSpec, ObjectId};

/// The last good state of every object, as it goes to disk.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SavedState {
    objects: Vec<SavedObject>,
}

/// Specs are kept as written and checked again when they come back: a damaged file cannot bring a bad object in.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct SavedObject {
    kind: String,
    name: String,
    file: String,
    in_force: bool,
    /// Whether it comes from the API server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stored: bool,
    spec: Value,
    /// Nodes in force that are not in the spec: the peer told them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    told: Vec<NodeSpec>,
}

impl SavedState {
    pub(super) fn of(held: &BTreeMap<ObjectId, Held>) -> Self {
        let objects = held.iter().map(|(id, held)| SavedObject {
            kind: id.kind.name().to_owned(),
            name: id.name.clone(),
            file: held.file.clone(),
            in_force: held.in_force,
            stored: held.form == Form::Stored,
            spec: held.spec.clone(),
            told: held.told().map(NodeSpec::from).collect(),
        });
        Self {
            objects: objects.collect(),
        }
    }

    /// What still passes: one Mesh, and Peers that do not contradict each other; and what the Peers had told.
    pub(super) fn restore(
        self,
        own_key: NodeKey,
    ) -> (BTreeMap<ObjectId, Held>, BTreeMap<String, Told>) {
        let (mut restored, mut told) = (BTreeMap::new(), BTreeMap::new());
        for mut object in self.objects {
            let nodes = std::mem::take(&mut object.told);
            let Some((id, held)) = object.check(own_key) else {
                continue;
            };
            if fits(&restored, &id, &held) {
                if let Some(peer) = held.peer().filter(|_| !nodes.is_empty()) {
                    told.insert(id.name.clone(), Told::new(peer.identity, nodes));
                }
                restored.insert(id, held);
            }
        }
        (restored, told)
    }
}

impl SavedObject {
    fn check(self, own_key: NodeKey) -> Option<(ObjectId, Held)> {
        let kind = [Kind::Mesh, Kind::Peer]
            .into_iter()
            .find(|kind| kind.name() == self.kind)?;
        let id = ObjectId {
            kind,
            name: self.name,
        };
        let form = if self.stored {
            Form::Stored
        } else {
            Form::Manifest
        };
        let config = read_spec(&id, &self.spec, form, own_key).ok()?;
        let held = Held::new(self.file, self.spec, form, config);
        Some((
            id,
            Held {
                in_force: self.in_force,
                ..held
            },
        ))
    }
}

fn fits(restored: &BTreeMap<ObjectId, Held>, id: &ObjectId, held: &Held) -> bool {
    match held.peer() {
        None => !restored.keys().any(|other| other.kind == id.kind),
        Some(peer) => {
            let mut others = restored
                .values()
                .filter(|other| other.in_force && held.in_force)
                .filter_map(Held::peer);
            others.all(|other| conflict::between(peer, other).is_empty())
        }
    }
}
