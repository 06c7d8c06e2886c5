//! Clusters in this process, over real relays on loopback.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, like the test"
)]

mod identities;
mod joining;
mod linking;
mod outages;
mod passes;
mod support;
