//! Metrics over HTTP, for Prometheus.
//!
//! `GET /metrics` and `GET /healthz`, one request a connection, and no more of HTTP than that takes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::{PathKind, Status};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::StatusSource;

/// Connections served at a time.
const CONNECTIONS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const MAX_REQUEST: usize = 8192;
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let source = source.clone();
                    tokio::spawn(async move {
                        let answered =
                            tokio::time::timeout(PATIENCE, answer(stream, &source)).await;
                        tracing::trace!(?answered, "metrics asked for");
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Most likely no file descriptor is left; the next moment may be better.
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

async fn answer(mut stream: TcpStream, source: &StatusSource) -> io::Result<()> {
    let request = read_request(&mut stream).await?;
    let (status, kind, body) = match path(&request) {
        Some("/metrics") => match render(source, &source.status().await) {
            Ok(text) => ("200 OK", METRICS_TYPE, text),
            Err(error) => (
                "500 Internal Server Error",
                "text/plain",
                format!("{error}\n"),
            ),
        },
        Some("/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
        Some(_) => (
            "404 Not Found",
            "text/plain",
            "there are /metrics and /healthz\n".to_owned(),
        ),
        None => (
            "400 Bad Request",
            "text/plain",
            "only GET is understood\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(request)
}

fn path(request: &[u8]) -> Option<&str> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line)
        .ok()?
        .strip_prefix("GET ")?
        .split(' ');
    let path = words.next()?;
    Some(path.split_once('?').map_or(path, |(path, _)| path))
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
