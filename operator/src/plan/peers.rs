//! Peers: which of them may be, and which of their nodes.

mod claims;
mod judge;
mod keys;
mod slices;
mod status;

#[cfg(test)]
mod tests;

pub(crate) use judge::{Verdict, judge, rival};
pub(crate) use slices::{delete_all as delete_slices, write as write_slices};
pub(crate) use status::{statuses, without_mesh};
