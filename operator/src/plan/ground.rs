//! What all decisions of one look stand on.

use derp::RelayUrl;
use jiff::Timestamp;
use kube::ResourceExt;
use sync::{ClusterIdentity, ClusterSecret};

use api::Mesh;

use super::discovery::Ranges;
use crate::world::World;

/// The Mesh in force, who we are in it, and our ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    /// Everything that was observed.
    pub(crate) world: &'a World,
    /// The time in whole seconds.
    pub(crate) now: Timestamp,
    /// The Mesh in force.
    pub(crate) mesh: &'a Mesh,
    /// This cluster's secret.
    pub(crate) secret: &'a ClusterSecret,
    /// This cluster's ranges.
    pub(crate) ranges: &'a Ranges,
}

impl Ground<'_> {
    /// Who this cluster is.
    pub(crate) fn identity(&self) -> ClusterIdentity {
        self.secret.identity()
    }

    /// Name of the Mesh in force.
    pub(crate) fn mesh_name(&self) -> String {
        self.mesh.name_any()
    }

    /// Whether the relay has let this operator in.
    pub(crate) fn is_connected(&self, url: &RelayUrl) -> bool {
        let state = self.world.sync.relays.get(url);
        state.is_some_and(|state| state.connected)
    }
}
