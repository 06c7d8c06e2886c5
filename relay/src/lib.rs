//! The relay: forwards sealed packets between node keys over DERP, and answers STUN.
//!
//! Life of a packet: a connection's reading half (`conn`) takes all frames of one read, sorts runs of them by
//! destination, finds the receiver in the `registry` and puts them into its `queue`; the receiver's writing half drains
//! that queue into one write. Nothing waits for a slow receiver: its queue drops the oldest frames, per sender.
//!
//! Who is let in is for `admit` to say, at the handshake and again whenever the admit file, a deny list or the time may
//! have changed the answer. A client in the lobby meets one key only, and for all
//! others it is not here.

mod accept;
mod admit;
mod args;
mod bucket;
mod conn;
mod denylist;
mod http;
mod keyfile;
mod lobby;
mod metrics;
mod queue;
mod registry;
mod server;
mod stun;
mod tls;
mod waiting;

pub use admit::{AdmitError, AdmitRule, BadLine};
pub use args::{Args, raise_file_limit};
pub use keyfile::KeyFileError;
pub use server::{Config, Limits, Server, StartError, Timing, TlsFiles};
pub use tls::TlsError;
