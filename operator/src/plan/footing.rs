//! What has to be there before anything else can be decided.

use api::Mesh;
use jiff::Timestamp;
use sync::ClusterSecret;

use super::discovery::{self, Ranges};
use super::ground::Ground;
use super::identity::{self, Identity};
use super::mesh;
use crate::world::World;

/// The Mesh in force, the identity, and the ranges.
#[derive(Debug)]
pub(crate) struct Footing<'a> {
    mesh: &'a Mesh,
    secret: ClusterSecret,
    ranges: Ranges,
}

/// What is missing.
#[derive(Debug)]
pub(crate) enum Missing<'a> {
    /// There is no Mesh.
    Mesh,
    /// There is no identity yet.
    Identity,
    /// There is an identity's Secret without one.
    Broken(&'a Mesh),
}

impl<'a> Footing<'a> {
    /// Looks for all of it.
    pub(crate) fn of(world: &'a World) -> Result<Self, Missing<'a>> {
        let mesh = mesh::in_force(world).ok_or(Missing::Mesh)?;
        let secret = match identity::read(world) {
            Identity::Known(secret) => secret,
            Identity::Missing => return Err(Missing::Identity),
            Identity::Broken => return Err(Missing::Broken(mesh)),
        };
        Ok(Self {
            mesh,
            secret,
            ranges: discovery::discover(&mesh.spec, &world.networks, &world.nodes),
        })
    }

    /// The ground for a look at this time.
    pub(crate) fn ground(&'a self, world: &'a World, now: Timestamp) -> Ground<'a> {
        Ground {
            world,
            now,
            mesh: self.mesh,
            secret: &self.secret,
            ranges: &self.ranges,
        }
    }
}
