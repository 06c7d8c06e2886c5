//! Finding a path between two nodes behind NATs, as pure state machines.
//!
//! Nothing in here reads a clock, draws a random number, waits or opens a socket: time, randomness and packets are
//! arguments. Three machines are driven the same way:
//!
//! 1. hand in what happened (`handle_*`, each with the present `now`);
//! 2. take everything out of `poll_event` and `poll_transmit` until both say `None`;
//! 3. sleep until `poll_timeout`, call `handle_timeout`, and go back to 2.
//!
//! [`NatProber`] learns from STUN servers what kind of NAT this host is behind. [`Pair`] brings one pair of nodes from
//! the relay to a direct path and back; its messages ([`control::Control`]) travel inside the WireGuard session, so
//! whatever it is handed has been authenticated. [`stun`] is the codec.
//!
//! What is absent on purpose: encryption, the relay protocol, names, sockets, and any knowledge of more than one peer.

mod candidate;
pub mod control;
mod entropy;
mod nat;
mod pair;
pub mod stun;

#[cfg(test)]
mod sim;

pub use candidate::{Candidate, CandidateContext, CandidateKind, Refusal, acceptable};
pub use entropy::Entropy;
pub use nat::{Filtering, Mapping, NatEvent, NatProber, NatProfile, StunSocket, StunTransmit, Udp};
pub use pair::{Local, Pair, PairEvent, PairStatus, Path, PathState, Reason, Transmit};
