//! The operator of a cluster.
//!
//! Everything is decided from one look at everything: [`world::World`] is what was observed, [`plan::plan`] says what
//! that calls for, as an [`action::Plan`]. The rest of the crate makes looks and carries plans out: it watches the API
//! server, holds a lease so that one replica acts, writes what is to be written, and carries the conversations with peers.

pub mod action;
pub mod heard;
pub mod join;
pub mod plan;
pub mod world;

mod apply;
mod args;
mod backoff;
mod bridge;
mod check;
mod cleanup;
mod denylist;
mod health;
mod leader;
mod metrics;
mod network;
mod output;
mod reconcile;
mod run;
mod watch;

pub use args::Args;
