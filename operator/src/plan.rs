//! The decisions of the operator: a [`World`] in, a [`Plan`] out. No clock, no randomness, no I/O.
//!
//! What is decided is what should be, whatever has happened before: a look may come late, twice, or after a restart. A
//! world that is as it should be gives no actions, which the tests hold: every plan is carried out on its world until
//! nothing is left to do.
//!
//! One module for each thing that is decided:
//!
//! * `footing`: the Mesh that counts, the identity, and from `discovery` the ranges. Nothing else goes on without.
//! * `relays`: objects of relays that run here; what is known about all relays.
//! * `peers`: which Peers may be, which of their nodes, and how they are.
//! * `nodes`: what agents are told. `passes`: what lets whom into which relay. `revocation`: who is let in no longer.
//! * `invites`: tokens. Who uses them is a matter of [`crate::join`].
//! * `mesh`: the sum of it all.

pub(crate) mod covers;
pub(crate) mod discovery;
pub(crate) mod draft;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod footing;
pub(crate) mod ground;
pub(crate) mod identity;
pub(crate) mod invites;
mod mesh;
pub mod names;
mod nodes;
pub(crate) mod passes;
pub(crate) mod peers;
pub(crate) mod relays;
pub(crate) mod revocation;
#[cfg(test)]
pub(crate) mod tests;

use sync::ClusterIdentity;

use crate::action::{DenyPush, JoinOrder, Plan, SyncInput};
use crate::join::plan_join;
use crate::world::World;
use draft::Draft;
use footing::{Footing, Missing};
use ground::Ground;
use passes::Passes;
use relays::Site;

pub use relays::{CertificateError, issue_certificate};

/// Seconds between two looks at most: passes are renewed then.
const LOOK_EVERY: i64 = 600;

/// Decides what is to be done.
#[must_use]
pub fn plan(world: &World) -> Plan {
    let mut draft = Draft::new(world.now);
    draft.wake_in(LOOK_EVERY);
    let rest = match Footing::of(world) {
        Ok(footing) => {
            let ground = footing.ground(world, draft.now());
            mesh::refuse_others(world, ground.mesh, &mut draft);
            on_ground(ground, &mut draft)
        }
        Err(missing) => without_ground(world, missing, &mut draft),
    };
    let (actions, wake_after) = draft.finish();
    Plan {
        actions,
        sync: rest.sync,
        join: rest.join,
        denylists: rest.denylists,
        watch_pods: rest.watch_pods,
        wake_after,
    }
}

/// What is no write.
#[derive(Default)]
struct Rest {
    sync: Option<SyncInput>,
    join: Option<JoinOrder>,
    denylists: Vec<DenyPush>,
    watch_pods: bool,
}

fn without_ground(world: &World, missing: Missing<'_>, draft: &mut Draft) -> Rest {
    let mut rest = Rest::default();
    match missing {
        Missing::Mesh => {
            peers::delete_slices(world, draft);
            nodes::delete_all(world, draft);
            relays::delete_all(world, draft);
            peers::without_mesh(world, draft);
            invites::without_mesh(world, draft);
            rest.denylists = revocation::without_mesh(world, draft);
        }
        Missing::Identity => identity::create(world, draft),
        Missing::Broken(mesh) => mesh::refuse(mesh, "BadIdentitySecret", identity::BROKEN, draft),
    }
    rest
}

fn on_ground(ground: Ground<'_>, draft: &mut Draft) -> Rest {
    let own = relays::own_sites(ground);
    let peers = peers::judge(ground, &own);
    let admitted: Vec<_> = peers.iter().filter(|peer| peer.is_admitted()).collect();
    let with_relays: Vec<_> = admitted.iter().map(|peer| peer.peer).collect();
    let sites = relays::known_sites(&own, &with_relays);
    let identities: Vec<_> = admitted.iter().filter_map(|peer| peer.identity).collect();

    relays::write(ground, &revocation::admit_file(ground, &peers), draft);
    revocation::remember(ground, &own, &peers, draft);
    let joining = plan_join(ground, &sites, &peers, draft);
    let passes = Passes::collect(ground, joining.membership);
    passes.keep(ground, &identities, draft);
    nodes::write(ground, &sites, &passes, &peers, draft);
    let outcomes = peers::write_slices(ground, &sites, &peers, draft);
    let ready_peers = peers::statuses(ground, &peers, outcomes, draft);
    invites::write(ground, &sites, draft);
    let facts = mesh::Facts {
        sites: &sites,
        sites_left_out: relays::left_out(&own, &with_relays),
        nodes: nodes::count(ground.world),
        ready_peers,
        peers: peers.len(),
        joined: joining.finding,
    };
    mesh::status(ground, facts, draft);
    Rest {
        sync: sync_input(ground, &sites, &passes, &identities),
        join: joining.order,
        denylists: revocation::pushes(ground, &sites),
        watch_pods: nodes::needs_pods(ground),
    }
}

fn sync_input(
    ground: Ground<'_>,
    sites: &[Site],
    passes: &Passes<'_>,
    peers: &[ClusterIdentity],
) -> Option<SyncInput> {
    let relay = |site: &Site| Some(passes::sync_relay(passes, site, site.url.clone()?));
    // Who is given one must be remembered first: else it could be taken back by nobody.
    let members = peers.iter().filter(|peer| passes.remembers(**peer));
    let membership = |peer: &ClusterIdentity| (*peer, passes.for_cluster(*peer));
    Some(SyncInput {
        cluster_name: ground.mesh.spec.cluster_name.parse().ok()?,
        relays: sites.iter().filter_map(relay).collect(),
        peers: peers.iter().copied().collect(),
        records: nodes::records(ground.world),
        invites: invites::heard(ground.world, ground.now),
        memberships: members.map(membership).collect(),
    })
}
