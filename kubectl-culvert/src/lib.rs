//! `kubectl culvert`: invites clusters and hosts, and shows how peers are reached.
//!
//! Each command reads objects, decides on plain data what to say, and prints it: results on stdout, everything else on
//! stderr. `status`, `peers` and `identity` only read; `invite` makes an Invite, `ping` a pod that it removes again.

mod args;
mod cluster;
mod identity;
mod invite;
mod output;
mod peers;
mod ping;
mod status;
mod table;

pub use args::Args;
