//! Whether the operator lives and is ready, over HTTP, and its metrics.
//!
//! One request a connection, and no more of HTTP than that takes.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Connections served at a time.
const CONNECTIONS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const MAX_REQUEST: usize = 8192;
/// How long a loop may take for one turn.
const STALLED: Duration = Duration::from_secs(90);
/// How long the API server may be silent.
const OUT_OF_SIGHT: Duration = Duration::from_secs(12);
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the loops say about themselves.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// When the loops last turned, each in its place.
    turns: Mutex<[Option<Instant>; 2]>,
    /// When the API server last answered.
    seen: Mutex<Option<Instant>>,
    /// Whether this replica leads and has not yet seen everything once.
    catching_up: AtomicBool,
}

/// Loops that have to turn.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loop {
    /// Takes part in the election.
    Election,
    /// Looks and acts.
    Reconcile,
}

impl Health {
    /// Notes that a loop has turned.
    pub(crate) fn turned(&self, which: Loop, now: Instant) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        match which {
            Loop::Election => turns[0] = Some(now),
            Loop::Reconcile => turns[1] = Some(now),
        }
    }

    /// Notes that the API server has answered.
    pub(crate) fn api_seen(&self, now: Instant) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Notes whether this replica leads and has yet to see everything once.
    pub(crate) fn catching_up(&self, yes: bool) {
        self.catching_up.store(yes, Ordering::Release);
    }

    /// Whether all loops that have begun turn.
    fn lives(&self, now: Instant) -> bool {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.iter().flatten().all(|turn| now < *turn + STALLED)
    }

    /// Whether the API server is in sight, and everything has been seen if it must.
    fn is_ready(&self, now: Instant) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| now < seen + OUT_OF_SIGHT)
            && !self.catching_up.load(Ordering::Acquire)
    }
}

/// Answers at one address.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Listens at `address`.
    pub(crate) async fn bind(
        address: SocketAddr,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| {
            format!("cannot listen at {address}; give --health and --metrics free ports")
        })?;
        Ok(Self {
            listener,
            health,
            metrics,
        })
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (health, metrics) = (Arc::clone(&self.health), Arc::clone(&self.metrics));
                    tokio::spawn(async move {
                        let answered =
                            tokio::time::timeout(PATIENCE, answer(stream, &health, &metrics)).await;
                        tracing::trace!(?answered, "asked for health or metrics");
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Most likely no file descriptor is left; the next moment may be better.
                    tracing::warn!(%error, "cannot accept a connection for health or metrics");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

async fn answer(mut stream: TcpStream, health: &Health, metrics: &Metrics) -> io::Result<()> {
    let request = read_request(&mut stream).await?;
    let (status, kind, body) = respond(path(&request), health, metrics, Instant::now());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn respond(
    path: Option<&str>,
    health: &Health,
    metrics: &Metrics,
    now: Instant,
) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain";
    let yes_or_no = |yes: bool, no: &str| match yes {
        true => ("200 OK", TEXT, "ok\n".to_owned()),
        false => ("503 Service Unavailable", TEXT, format!("{no}\n")),
    };
    match path {
        Some("/livez") => yes_or_no(health.lives(now), "a loop hangs"),
        Some("/readyz") => yes_or_no(health.is_ready(now), "the API server is not in sight"),
        Some("/metrics") => match metrics.render() {
            Ok(text) => ("200 OK", METRICS_TYPE, text),
            Err(error) => ("500 Internal Server Error", TEXT, format!("{error}\n")),
        },
        Some(_) => (
            "404 Not Found",
            TEXT,
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
        None => (
            "400 Bad Request",
            TEXT,
            "only GET is understood\n".to_owned(),
        ),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(health: &Health, request: &[u8], now: Instant) -> &'static str {
        respond(path(request), health, &Metrics::default(), now).0
    }

    #[test]
    fn ready_means_that_the_api_server_was_seen_lately() {
        let (health, now) = (Health::default(), Instant::now());
        let ready = |after| status(&health, b"GET /readyz HTTP/1.1\r\n\r\n", now + after);
        assert!(ready(Duration::ZERO).starts_with("503"));
        health.api_seen(now);
        assert_eq!(ready(Duration::ZERO), "200 OK");
        assert!(ready(OUT_OF_SIGHT).starts_with("503"));
        health.catching_up(true);
        assert!(ready(Duration::ZERO).starts_with("503"));
    }

    #[test]
    fn live_means_that_every_loop_turns() {
        let (health, now) = (Health::default(), Instant::now());
        let lives =
            |after| status(&health, b"GET /livez HTTP/1.1\r\n\r\n", now + after) == "200 OK";
        assert!(lives(STALLED));
        health.turned(Loop::Election, now + STALLED);
        health.turned(Loop::Reconcile, now);
        assert!(lives(Duration::ZERO) && !lives(STALLED));
        health.turned(Loop::Reconcile, now + STALLED);
        assert!(lives(STALLED));
    }

    #[test]
    fn other_requests_are_answered_too() {
        let (health, now) = (Health::default(), Instant::now());
        let status = |request: &[u8]| status(&health, request, now);
        assert_eq!(status(b"GET /metrics?x HTTP/1.1\r\n\r\n"), "200 OK");
        assert!(status(b"GET / HTTP/1.1\r\n\r\n").starts_with("404"));
        assert!(status(b"POST /livez HTTP/1.1\r\n\r\n").starts_with("400"));
        assert!(status(b"\xff\xff\r\n\r\n").starts_with("400"));
    }
}
