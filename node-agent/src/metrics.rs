//! Metrics over HTTP, for Prometheus.
//!
//! `GET /metrics` and `GET /healthz`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use api::{PathKind, Status};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serve::{Page, Site};
use tokio::net::TcpListener;

use crate::StatusSource;

/// Serves metrics.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
}

impl MetricsServer {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// The address cannot be used.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| {
            format!("cannot serve metrics at {address}; give --metrics a free port of this host")
        })?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, source: StatusSource) {
        serve::serve(self.listener, Arc::new(source)).await;
    }
}

impl Site for StatusSource {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(Page::metrics(render(self, &self.status().await))),
            "/healthz" => Some(Page::ok("ok")),
            _ => None,
        }
    }

    fn index(&self) -> &'static str {
        "there are /metrics and /healthz"
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    path: String,
}

fn render(source: &StatusSource, status: &Status) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("culvert");
    let info = Info::new(vec![("version", status.agent.version.clone())]);
    registry.register("agent", "The agent", info);
    register_paths(&mut registry, status);
    let refused = status
        .manifests
        .iter()
        .filter(|manifest| !manifest.accepted)
        .count();
    register(
        &mut registry,
        "manifests",
        "Documents in the manifest folder",
        status.manifests.len(),
    );
    register(
        &mut registry,
        "manifests_refused",
        "Documents that are not in force as written",
        refused,
    );
    register(&mut registry, "peers", "Peers in force", status.peers.len());
    register(
        &mut registry,
        "relay_connected",
        "Whether a relay is connected",
        status.node.home_relay.iter().count(),
    );
    source.reporter.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn register_paths(registry: &mut Registry, status: &Status) {
    let family = Family::<PathLabels, Gauge>::default();
    for kind in [
        PathKind::Direct,
        PathKind::Relay,
        PathKind::Idle,
        PathKind::None,
    ] {
        let nodes = status.peers.iter().flat_map(|peer| &peer.nodes);
        let count = nodes.filter(|node| node.path == kind).count();
        let labels = PathLabels {
            path: kind.to_string(),
        };
        family
            .get_or_create(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("nodes", "Remote nodes by the path that data uses", family);
}

fn register(registry: &mut Registry, name: &str, help: &str, count: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}
