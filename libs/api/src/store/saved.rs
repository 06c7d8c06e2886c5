//! The last good state over restarts.

use std::collections::BTreeMap;

use derp::NodeKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Held, conflict};
use crate::reader::read_spec;
use crate::{Kind, ObjectId};

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
    spec: Value,
}

impl SavedState {
    pub(super) fn of(held: &BTreeMap<ObjectId, Held>) -> Self {
        let objects = held.iter().map(|(id, held)| SavedObject {
            kind: id.kind.name().to_owned(),
            name: id.name.clone(),
            file: held.file.clone(),
            in_force: held.in_force,
            spec: held.spec.clone(),
        });
        Self {
            objects: objects.collect(),
        }
    }

    /// What still passes: one Mesh, and Peers that do not contradict each other.
    pub(super) fn restore(self, own_key: NodeKey) -> BTreeMap<ObjectId, Held> {
        let mut restored = BTreeMap::new();
        for object in self.objects {
            let Some((id, held)) = object.check(own_key) else {
                continue;
            };
            if fits(&restored, &id, &held) {
                restored.insert(id, held);
            }
        }
        restored
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
        let config = read_spec(&id, &self.spec, own_key).ok()?;
        let held = Held {
            file: self.file,
            spec: self.spec,
            config,
            in_force: self.in_force,
        };
        Some((id, held))
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
