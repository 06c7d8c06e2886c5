//! A simulated internet in virtual time: two nodes, their NATs, a relay and a STUN server with two addresses.
//!
//! Every site's WAN is a link of its own to a core router, so that an opener with a low time to live has a hop to die
//! on. Delays, loss and order come from a seed; a run with the same settings is the same run.

mod nat;
mod node;
mod random;
mod world;

mod kept;
mod profiles;
mod properties;
mod stories;

pub(crate) use self::nat::{Kind, Nat};
pub(crate) use self::node::Node;
pub(crate) use self::random::Random;
pub(crate) use self::world::{Settings, World};
