//! One connection to a relay, kept up: dialled, pinged, dialled again.
//!
//! * [`Client::spawn`] starts it on the running tokio runtime; dropping the [`Client`] closes it.
//! * [`Outbox`] takes batches of packets from any thread, [`Inbox`] gets those that arrive, all of one read at once.
//! * [`Event`]s tell the rest. Those about single peers are dropped when nobody takes them.

mod backoff;
mod dial;
mod outbox;
mod pinger;
mod session;
mod tls;
mod upgrade;

pub use outbox::Outbox;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::frame::PeerGoneReason;
use crate::key::{NodeKey, NodeSecret};
use crate::refusal::Refusal;
use crate::url::RelayUrl;
use backoff::Backoff;
use dial::Dialer;
use session::Ended;

/// How old a dial must be before [`Client::check_now`] abandons it for a new one.
const STALE_DIAL: Duration = Duration::from_secs(1);
/// The longest wait that a restarting relay can ask for.
const MAX_RESTART_WAIT: Duration = Duration::from_secs(30);

/// How to connect.
#[derive(Debug, Clone)]
pub struct Config {
    /// The relay. Its certificate must be for this host.
    pub url: RelayUrl,
    /// Where to connect instead, and whether with TLS.
    pub dial: Option<RelayUrl>,
    /// Our key.
    pub secret: NodeSecret,
    /// Certificates (PEM) to trust instead of the public ones.
    pub ca_bundle: Option<String>,
    /// The pass to show, if there is one; see [`Client::set_pass`].
    pub pass: Option<String>,
    /// The longest time between two pings; each interval is 80 to 100 % of it.
    pub ping_interval: Duration,
    /// How long to wait for an answer to a ping. Two without one end the connection.
    pub pong_timeout: Duration,
    /// How long nothing at all may arrive.
    pub read_timeout: Duration,
}

impl Config {
    /// The usual configuration.
    #[must_use]
    pub fn new(url: RelayUrl, secret: NodeSecret) -> Self {
        Self {
            url,
            dial: None,
            secret,
            ca_bundle: None,
            pass: None,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(120),
        }
    }
}

/// What happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The relay has let us in.
    Connected {
        /// The relay's key.
        server: NodeKey,
        /// Time from the start of the dial.
        handshake: Duration,
    },
    /// The connection ended, or could not be made; the next attempt follows by itself.
    Disconnected {
        /// Why.
        error: String,
    },
    /// A key cannot be reached at this relay (any more).
    PeerGone {
        /// The key.
        key: NodeKey,
        /// Why.
        reason: PeerGoneReason,
    },
    /// A key that we wanted to reach has connected to this relay.
    PeerPresent {
        /// The key.
        key: NodeKey,
    },
    /// What the relay finds wrong with this connection; empty when all is well again. When it is why we are not let in,
    /// [`Refusal::from_health`] and [`Client::refusal`] say so.
    Health(String),
    /// The round trip to the relay and back.
    Rtt(Duration),
    /// The relay restarts.
    Restarting {
        /// When it wants us back.
        reconnect_in: Duration,
        /// For how long to try.
        try_for: Duration,
    },
}

/// A packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Who sent it; the relay vouches for that.
    pub source: NodeKey,
    /// The packet.
    pub bytes: &'a [u8],
}

/// Where packets go that arrive.
pub trait Inbox: Send + Sync + 'static {
    /// Takes all packets of one read, in order. Must not block.
    fn receive(&self, frames: &[Frame<'_>]);
}

/// A connection to a relay that is kept up until this is dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What the client's handle and its task both hold.
#[derive(Debug, Default)]
struct Shared {
    outbox: Arc<Outbox>,
    connected: AtomicBool,
    /// Microseconds; 0 until known.
    rtt: AtomicU64,
    check: Notify,
    pass: Mutex<Option<String>>,
    refusal: Mutex<Option<Refusal>>,
}

impl Client {
    /// Starts connecting.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn(config: Config, inbox: Arc<dyn Inbox>, events: mpsc::Sender<Event>) -> Self {
        let shared = Arc::new(Shared {
            pass: Mutex::new(config.pass.clone()),
            ..Shared::default()
        });
        let task = Task {
            shared: Arc::clone(&shared),
            inbox,
            events,
            config,
        };
        let task = tokio::spawn(task.run()).abort_handle();
        Self { shared, task }
    }

    /// Where packets to send are put.
    #[must_use]
    pub fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.shared.outbox)
    }

    /// Whether the relay has let us in and the connection is not known to be broken.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// The last measured round trip on the present connection or the one before.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        let micros = self.shared.rtt.load(Ordering::Acquire);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Replaces the pass. A connection that stands is left alone; the next dial shows the new one, and comes at once if
    /// there is no connection.
    pub fn set_pass(&self, pass: Option<String>) {
        let before = std::mem::replace(&mut *lock(&self.shared.pass), pass.clone());
        if before != pass && !self.is_connected() {
            self.check_now();
        }
    }

    /// Why the relay has refused us or closed the connection that we had, if that is the last it has done and we have got
    /// no other pass since the dial. Known before the [`Event::Disconnected`] that it leads to.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        lock(&self.shared.refusal).clone()
    }

    /// Asks the relay for a sign of life at once, and dials anew if there is none within three round trips or 500 ms;
    /// dials at once if there is no connection.
    pub fn check_now(&self) {
        self.shared.check.notify_one();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.connected.store(false, Ordering::Release);
    }
}

/// The task behind a [`Client`].
struct Task {
    shared: Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    events: mpsc::Sender<Event>,
    config: Config,
}

impl Task {
    async fn run(self) {
        let mut dialer = Dialer::new(&self.config);
        let mut backoff = Backoff::default();
        loop {
            let shown = self.pass();
            let ended = self.connect_once(&mut dialer, shown.clone()).await;
            if ended.was_useful {
                backoff.reset();
            }
            if self.pass() != shown {
                // The one that came meanwhile has not been refused yet.
                backoff.reset();
                *lock(&self.shared.refusal) = None;
            }
            let error = ended.error;
            tracing::debug!(relay = %self.config.url, %error, "relay connection ended");
            if self
                .events
                .send(Event::Disconnected { error })
                .await
                .is_err()
            {
                return;
            }
            let delay = backoff.next_delay(rand::random());
            let asked = ended
                .restart_in
                .map_or(Duration::ZERO, |wait| restart_wait(wait, rand::random()));
            self.pause(delay + asked).await;
        }
    }

    async fn connect_once(&self, dialer: &mut Dialer, pass: Option<String>) -> Ended {
        let started = Instant::now();
        let dialled = tokio::select! {
            dialled = dialer.dial(pass) => dialled,
            () = self.abandoned(started) => Err(dial::DialError::Abandoned),
        };
        match dialled {
            Ok(connection) => {
                let handshake = started.elapsed();
                tracing::debug!(relay = %self.config.url, ?handshake, "relay connected");
                *lock(&self.shared.refusal) = None;
                let ended = session::run(self, connection, handshake).await;
                self.shared.connected.store(false, Ordering::Release);
                ended
            }
            Err(error) => {
                if let dial::DialError::Refused { reason } = &error {
                    *lock(&self.shared.refusal) = Some(Refusal::from_text(reason));
                    let _ = self.events.send(Event::Health(reason.clone())).await;
                }
                Ended::useless(error.to_string())
            }
        }
    }

    fn pass(&self) -> Option<String> {
        lock(&self.shared.pass).clone()
    }

    /// Waits until somebody asks for a check while the dial is already old.
    async fn abandoned(&self, started: Instant) {
        loop {
            self.shared.check.notified().await;
            if started.elapsed() > STALE_DIAL {
                return;
            }
        }
    }

    /// Waits, unless somebody asks for a check.
    async fn pause(&self, delay: Duration) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.shared.check.notified() => {
                // Whoever asks again and again still gets no more than a few dials a second.
                tokio::time::sleep(delay.min(Duration::from_millis(200))).await;
            }
        }
    }
}

/// Everybody is asked for the same wait, so nobody comes back exactly then; `random` is from 0 to 1.
fn restart_wait(asked: Duration, random: f64) -> Duration {
    asked.min(MAX_RESTART_WAIT).mul_f64(1.0 + random / 2.0)
}

/// Locks a mutex whose data stays good whatever its last holder did.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_waited_for_within_bounds_and_not_by_all_alike() {
        let asked = Duration::from_secs(1);
        assert_eq!(restart_wait(asked, 0.0), asked);
        assert_eq!(restart_wait(asked, 1.0), Duration::from_millis(1500));
        assert_eq!(restart_wait(Duration::MAX, 1.0), MAX_RESTART_WAIT * 3 / 2);
    }
}
