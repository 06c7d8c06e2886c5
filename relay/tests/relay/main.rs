//! The relay as its clients see it.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, like the test"
)]

mod admission;
mod binary;
mod client;
mod denylist;
mod forwarding;
mod http;
mod limits;
mod passes;
mod protocol;
mod stun;
mod support;
mod throughput;
mod tls;
