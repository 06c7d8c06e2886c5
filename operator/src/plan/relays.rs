//! Relays: the objects of those that run here, and what is known about all of them.

mod address;
mod budget;
mod certificate;
mod deployment;
mod ingress;
mod orphans;
mod service;
mod site;
mod state;
mod tls;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use api::ManagedRelay;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::draft::{Draft, find};
use super::ground::Ground;
use super::names::{self, RELAY, RELAY_LABEL};
use crate::action::Kind;

pub use certificate::{CertificateError, issue_certificate};
pub(crate) use site::{Origin, Site, known_sites, left_out, own_sites};
pub(crate) use state::{findings, found, reachable};

/// Port in the pod.
const PORT: i32 = 8443;
/// STUN's own port (RFC 8489 section 14).
const STUN_PORT: i32 = 3478;
/// Names of ports.
const PORT_NAME: &str = "relay";
const STUN_NAME: &str = "stun";

/// One relay that runs here.
#[derive(Clone, Copy, Debug)]
struct Managed<'a> {
    ground: Ground<'a>,
    relay: &'a ManagedRelay,
}

impl<'a> Managed<'a> {
    /// Name of all its objects.
    fn name(&self) -> String {
        format!("culvert-relay-{}", self.relay.name)
    }

    /// Name of its admit file's `ConfigMap`.
    fn admit_name(&self) -> String {
        format!("{}-admit", self.name())
    }

    fn metadata(&self, name: String) -> ObjectMeta {
        let mut metadata = names::metadata(&self.ground.world.release, RELAY, name);
        metadata.owner_references =
            names::owner_reference(self.ground.mesh).map(|owner| vec![owner]);
        metadata
            .labels
            .get_or_insert_default()
            .insert(RELAY_LABEL.to_owned(), self.relay.name.clone());
        metadata
    }

    /// What tells its pods from all others; never changes.
    fn selector(&self) -> BTreeMap<String, String> {
        let mut labels = names::labels(&self.ground.world.release, RELAY);
        labels.retain(|key, _| key.ends_with("/name") || key.ends_with("/instance"));
        labels.insert(RELAY_LABEL.to_owned(), self.relay.name.clone());
        labels
    }

    fn service(&self) -> Option<&'a Service> {
        find(&self.ground.world.owned.services, &self.name())
    }

    fn secret(&self, name: &str) -> Option<&'a Secret> {
        find(&self.ground.world.owned.secrets, name)
    }

    /// Sees to all its objects. One that waits for another comes with a later look.
    fn write(&self, admit: &str, wanted: &mut BTreeSet<(Kind, String)>, draft: &mut Draft) {
        let owned = &self.ground.world.owned;
        wanted.insert((Kind::Service, self.name()));
        draft.apply(service::wanted(self), self.service());
        wanted.insert((Kind::ConfigMap, self.admit_name()));
        let maps = &owned.config_maps;
        draft.apply(
            self.admit_map(admit),
            find::<ConfigMap>(maps, &self.admit_name()),
        );
        wanted.insert((Kind::PodDisruptionBudget, self.name()));
        let budgets = &owned.disruption_budgets;
        draft.apply(budget::wanted(self), find(budgets, &self.name()));
        if let Some(ingress) = ingress::wanted(self) {
            wanted.insert((Kind::Ingress, self.name()));
            draft.apply(ingress, find(&owned.ingresses, &self.name()));
        }
        if tls::is_self_signed(self.relay) {
            wanted.insert((Kind::Secret, tls::own_secret_name(self)));
            tls::renew(self, draft);
        }
        wanted.insert((Kind::Deployment, self.name()));
        if let Some(deployment) = deployment::wanted(self) {
            draft.apply(deployment, find(&owned.deployments, &self.name()));
        }
    }

    fn admit_map(&self, admit: &str) -> ConfigMap {
        ConfigMap {
            metadata: self.metadata(self.admit_name()),
            data: Some(BTreeMap::from([(
                deployment::ADMIT_FILE.to_owned(),
                admit.to_owned(),
            )])),
            ..ConfigMap::default()
        }
    }
}

/// Sees to the objects of all relays that run here; `admit` is their admit file. Deletes those of relays that are gone.
pub(crate) fn write(ground: Ground<'_>, admit: &str, draft: &mut Draft) {
    let mut wanted = BTreeSet::new();
    for relay in managed(ground) {
        relay.write(admit, &mut wanted, draft);
    }
    orphans::delete(ground.world, &wanted, draft);
}

/// Deletes the objects of all relays.
pub(crate) fn delete_all(world: &crate::world::World, draft: &mut Draft) {
    orphans::delete(world, &BTreeSet::new(), draft);
}

fn managed(ground: Ground<'_>) -> impl Iterator<Item = Managed<'_>> {
    let relays = ground.mesh.spec.relays.iter();
    relays
        .flat_map(|relays| &relays.managed)
        .map(move |relay| Managed { ground, relay })
}
