//! The node agent: links this node to the nodes of other sites.
//!
//! ```text
//! manifest folder -> [`Watcher`] -> [`api::Store`] -> what is in force -> [`Engine`] -> tunnels, host network
//!                                                                            |
//!                             status socket, metrics  <-  [`Reporter`]  <----+
//! ```
//!
//! [`run()`] drives that line. The [`Engine`] is all that touches the network; everything else is files, one Unix socket
//! and, if asked for, one HTTP port for metrics. What has to outlive the process is in the [`StateFolder`].

mod agent;
mod args;
mod cleanup;
mod engine;
mod folders;
mod health;
mod host;
mod join;
mod kubernetes;
mod manifests;
mod member;
mod metrics;
mod output;
mod ping;
mod probes;
mod run;
mod source;
mod state;
mod status;

pub use agent::{Agent, run};
pub use args::Args;
pub use engine::{Engine, HostReport, Plan, Reporter, Snapshot};
pub use health::{Health, HealthServer};
pub use kubernetes::{Kubernetes, Objects};
pub use manifests::Watcher;
pub use metrics::MetricsServer;
pub use source::{Read, Source, Told};
pub use state::{Lock, StateError, StateFolder};
pub use status::{ManifestBoard, StatusError, StatusServer, StatusSource, fetch};
