//! Whether the operator lives and is ready, over HTTP, and its metrics.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serve::{Page, Site};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// How long a loop may take for one turn.
const STALLED: Duration = Duration::from_secs(90);
/// How long the API server may be silent.
const OUT_OF_SIGHT: Duration = Duration::from_secs(12);

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
    pages: Pages,
}

/// What there is to be had.
#[derive(Debug)]
struct Pages {
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
        let pages = Pages { health, metrics };
        Ok(Self { listener, pages })
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self) {
        serve::serve(self.listener, Arc::new(self.pages)).await;
    }
}

impl Pages {
    fn at(&self, path: &str, now: Instant) -> Option<Page> {
        let yes_or_no = |yes, no| match yes {
            true => Page::ok("ok"),
            false => Page::unavailable(no),
        };
        match path {
            "/livez" => Some(yes_or_no(self.health.lives(now), "a loop hangs")),
            "/readyz" => Some(yes_or_no(
                self.health.is_ready(now),
                "the API server is not in sight",
            )),
            "/metrics" => Some(Page::metrics(self.metrics.render())),
            _ => None,
        }
    }
}

impl Site for Pages {
    async fn page(&self, path: &str) -> Option<Page> {
        self.at(path, Instant::now())
    }

    fn index(&self) -> &'static str {
        "there are /livez, /readyz and /metrics"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(health: &Arc<Health>, path: &str, now: Instant) -> Option<&'static str> {
        let pages = Pages {
            health: Arc::clone(health),
            metrics: Arc::default(),
        };
        pages.at(path, now).map(|page| page.status)
    }

    #[test]
    fn ready_means_that_the_api_server_was_seen_lately() {
        let (health, now) = (Arc::<Health>::default(), Instant::now());
        let ready = |after| status(&health, "/readyz", now + after) == Some("200 OK");
        assert!(!ready(Duration::ZERO));
        health.api_seen(now);
        assert!(ready(Duration::ZERO) && !ready(OUT_OF_SIGHT));
        health.catching_up(true);
        assert!(!ready(Duration::ZERO));
    }

    #[test]
    fn live_means_that_every_loop_turns() {
        let (health, now) = (Arc::<Health>::default(), Instant::now());
        let lives = |after| status(&health, "/livez", now + after) == Some("200 OK");
        assert!(lives(STALLED));
        health.turned(Loop::Election, now + STALLED);
        health.turned(Loop::Reconcile, now);
        assert!(lives(Duration::ZERO) && !lives(STALLED));
        health.turned(Loop::Reconcile, now + STALLED);
        assert!(lives(STALLED));
    }

    #[test]
    fn there_are_metrics_and_no_more() {
        let (health, now) = (Arc::<Health>::default(), Instant::now());
        assert_eq!(status(&health, "/metrics", now), Some("200 OK"));
        assert_eq!(status(&health, "/", now), None);
    }
}
