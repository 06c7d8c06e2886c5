//! Whether the agent lives, and whether it has done what it is for.
//!
//! * `/livez`: every loop has turned within the last minute. What fails here is cured by a restart.
//! * `/readyz`: this host is programmed as wanted, now or by an earlier agent. What fails here is told in the answer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serve::{Page, Site};
use tokio::net::TcpListener;

/// How long a loop may take for a turn. Programming a host runs other programs, which may wait for locks.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known about the agent's health, for all who have part in it.
#[derive(Debug, Default)]
pub struct Health {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    loops: BTreeMap<&'static str, Instant>,
    ready: bool,
    reason: String,
}

impl Health {
    /// A loop has turned. From the first call on it is missed when it stands still.
    pub fn beat(&self, name: &'static str, now: Instant) {
        self.with(|known| known.loops.insert(name, now));
    }

    /// The host is as wanted.
    pub fn ready(&self) {
        self.with(|known| known.ready = true);
    }

    /// It is not, and why.
    pub fn not_ready(&self, reason: &str) {
        self.with(|known| {
            known.ready = false;
            reason.clone_into(&mut known.reason);
        });
    }

    /// Loops that stand still, joined by commas; `None` if all turn.
    fn stuck(&self, now: Instant) -> Option<String> {
        self.with(|known| {
            let late = |at: &Instant| now.saturating_duration_since(*at) > PATIENCE;
            let stuck = known.loops.iter().filter(|(_, at)| late(at));
            let names: Vec<&str> = stuck.map(|(name, _)| *name).collect();
            (!names.is_empty()).then(|| names.join(", "))
        })
    }

    fn live_page(&self, now: Instant) -> Page {
        match self.stuck(now) {
            None => Page::ok("all loops turn"),
            Some(names) => {
                let line = format!("no turn for a minute: {names}");
                Page::unavailable(&line)
            }
        }
    }

    fn ready_page(&self) -> Page {
        self.with(|known| match (known.ready, known.reason.as_str()) {
            (true, _) => Page::ok("programmed"),
            (false, "") => Page::unavailable("starting"),
            (false, reason) => Page::unavailable(reason),
        })
    }

    #[cfg(test)]
    pub(crate) fn ready_line(&self) -> String {
        self.ready_page().body.trim_end().to_owned()
    }

    fn with<T>(&self, what: impl FnOnce(&mut Known) -> T) -> T {
        what(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Site for Health {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/livez" => Some(self.live_page(Instant::now())),
            "/readyz" => Some(self.ready_page()),
            _ => None,
        }
    }

    fn index(&self) -> &'static str {
        "there are /livez and /readyz"
    }
}

/// Serves the health.
#[derive(Debug)]
pub struct HealthServer {
    listener: TcpListener,
}

impl HealthServer {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// The address cannot be used.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve health at {address}; give --health a free port of this host")
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
    pub async fn serve(self, health: Arc<Health>) {
        serve::serve(self.listener, health).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_missed() {
        let (health, start) = (Health::default(), Instant::now());
        assert_eq!(health.live_page(start).status, "200 OK");
        health.beat("agent", start);
        health.beat("host", start);
        assert_eq!(health.live_page(start + PATIENCE).status, "200 OK");
        let later = start + PATIENCE + Duration::from_secs(1);
        health.beat("host", later);
        let page = health.live_page(later);
        assert!(page.status.starts_with("503") && page.body.ends_with(": agent\n"));
        health.beat("agent", later);
        assert_eq!(health.live_page(later).status, "200 OK");
    }

    #[test]
    fn ready_is_what_is_programmed() {
        let health = Health::default();
        assert!(health.ready_page().body.contains("starting"));
        health.ready();
        assert_eq!(health.ready_page().status, "200 OK");
        health.not_ready("no device");
        let page = health.ready_page();
        assert!(page.status.starts_with("503") && page.body == "no device\n");
    }
}
