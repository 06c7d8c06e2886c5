//! Objects of relays that are gone, or that are exposed in another way now.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::Resource;

use crate::action::Kind;
use crate::plan::draft::Draft;
use crate::plan::names::{self, RELAY, RELAY_LABEL};
use crate::world::World;

/// Deletes all objects of relays but those that are wanted.
pub(super) fn delete(world: &World, wanted: &BTreeSet<(Kind, String)>, draft: &mut Draft) {
    let mut sweep = Sweep {
        world,
        wanted,
        draft,
    };
    let owned = &world.owned;
    sweep.kind(Kind::Ingress, &owned.ingresses);
    sweep.kind(Kind::Deployment, &owned.deployments);
    sweep.kind(Kind::Service, &owned.services);
    sweep.kind(Kind::PodDisruptionBudget, &owned.disruption_budgets);
    sweep.kind(Kind::ConfigMap, &owned.config_maps);
    sweep.kind(Kind::Secret, &owned.secrets);
}

struct Sweep<'a> {
    world: &'a World,
    wanted: &'a BTreeSet<(Kind, String)>,
    draft: &'a mut Draft,
}

impl Sweep<'_> {
    fn kind<K: Resource>(&mut self, kind: Kind, objects: &[Arc<K>]) {
        for object in objects {
            let metadata = object.meta();
            let name = metadata.name.clone().unwrap_or_default();
            let labels = metadata.labels.as_ref();
            let of_relay = labels.is_some_and(|labels| labels.contains_key(RELAY_LABEL))
                && names::is_ours(&self.world.release, RELAY, metadata)
                && metadata.deletion_timestamp.is_none();
            if of_relay && !self.wanted.contains(&(kind, name)) {
                self.draft.delete(kind, object.as_ref());
            }
        }
    }
}
