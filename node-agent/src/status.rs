//! The status: one JSON document for every connection to a Unix socket in the state folder.

mod client;
mod server;
mod text;

pub use client::{StatusError, fetch};
pub use server::StatusServer;
pub(crate) use text::text;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use api::{AgentReport, ManifestStatus, NodeReport, Status};
use derp::NodeKey;
use jiff::Timestamp;

use crate::Reporter;

/// What became of the manifests, for all to see.
#[derive(Debug, Default)]
pub struct ManifestBoard(Mutex<Arc<[ManifestStatus]>>);

impl ManifestBoard {
    /// Puts up new statuses.
    pub fn post(&self, statuses: &[ManifestStatus]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = statuses.into();
    }

    pub(crate) fn read(&self) -> Arc<[ManifestStatus]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything the status is made of.
#[derive(Clone)]
pub struct StatusSource {
    /// When the process started.
    pub started_at: Timestamp,
    /// This node's key.
    pub public_key: NodeKey,
    /// The port kept in the state folder, told while the engine has none.
    pub port: u16,
    /// What became of the manifests.
    pub manifests: Arc<ManifestBoard>,
    /// The engine.
    pub reporter: Arc<dyn Reporter>,
}

impl fmt::Debug for StatusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusSource")
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

impl StatusSource {
    /// The status now.
    pub async fn status(&self) -> Status {
        let snapshot = self.reporter.snapshot().await;
        Status {
            agent: AgentReport {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: self.started_at,
            },
            node: NodeReport {
                public_key: self.public_key,
                listen_port: snapshot.listen_port.unwrap_or(self.port),
                home_relay: snapshot.home_relay,
                nat: snapshot.nat,
            },
            relays: snapshot.relays,
            manifests: self.manifests.read().to_vec(),
            peers: snapshot.peers,
        }
    }
}
