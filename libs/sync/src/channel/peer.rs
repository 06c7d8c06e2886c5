//! One peer: dialled while there is no connection, answered always.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use derp::ClusterIdentity;
use quinn::Incoming;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::DownReason;
use super::backoff::Backoff;
use super::door::preferred;
use super::talk::{Context, Ended};
use crate::message::CloseReason;
use crate::quic::Endpoint;
use crate::session::{Bucket, Dialler};

/// Connections that may be on their way at once; more get no answer.
const MAX_TALKS: usize = 8;
/// By how much the side that would lose the tie lets the other go first.
const GRACE: Duration = Duration::from_millis(250);
/// The least time between two dials, whoever asks for them.
const LEAST: Duration = Duration::from_millis(500);
/// How long a connection must last to be worth another at once. Two processes that take it from each other do not fight.
const STABLE: Duration = Duration::from_secs(5);
/// Connections of the peer that are answered at once, and then each second.
const ANSWERS_BURST: u32 = 16;
const ANSWERS_RATE: u32 = 2;
/// How long not to dial when a newer process has taken our place. Whether we go on at all is for others to decide.
const SUPERSEDED: Duration = Duration::from_secs(60);
/// How long the last words to a peer that is no more may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How to reach a peer's task. Dropping it, or sending a reason, ends it.
#[derive(Debug)]
pub(super) struct PeerHandle {
    pub(super) address: SocketAddr,
    pub(super) incoming: mpsc::Sender<Incoming>,
    /// A relay is connected, or the peer has come to one.
    pub(super) wake: Arc<Notify>,
    pub(super) stop: oneshot::Sender<CloseReason>,
}

/// The task of a peer.
pub(super) struct Peer {
    address: SocketAddr,
    endpoint: Arc<Endpoint>,
    context: Context,
    talks: JoinSet<Ended>,
    dialling: bool,
    answers: Bucket,
    backoff: Backoff,
    grace: Duration,
    next_dial: Instant,
    /// Nobody's wish brings the next dial before this.
    not_before: Instant,
}

impl Peer {
    pub(super) fn new(
        us: ClusterIdentity,
        address: SocketAddr,
        endpoint: Arc<Endpoint>,
        context: Context,
    ) -> Self {
        let grace = match preferred(us, context.peer) {
            Dialler::Us => Duration::ZERO,
            Dialler::Them => GRACE,
        };
        let now = Instant::now();
        Self {
            address,
            endpoint,
            backoff: Backoff::new(context.config.timing.retry),
            context,
            talks: JoinSet::new(),
            dialling: false,
            answers: Bucket::new(now.into(), ANSWERS_BURST, ANSWERS_RATE),
            grace,
            next_dial: now + grace,
            not_before: now,
        }
    }

    /// Runs until the handle is gone.
    pub(super) async fn run(
        mut self,
        mut incoming: mpsc::Receiver<Incoming>,
        wake: Arc<Notify>,
        mut stop: oneshot::Receiver<CloseReason>,
    ) {
        let reason = loop {
            tokio::select! {
                reason = &mut stop => break reason.unwrap_or(CloseReason::Shutdown),
                Some(one) = incoming.recv() => self.answer(one),
                Some(ended) = self.talks.join_next() => self.ended(ended.ok()),
                () = wake.notified() => self.hurry(),
                () = sleep_until(self.next_dial), if self.may_dial() => self.dial(),
            }
        };
        self.finish(reason).await;
    }

    fn may_dial(&self) -> bool {
        !self.dialling && !self.context.door.is_live() && self.endpoint.switch().is_connected()
    }

    /// Brings the next dial forward. One that only waited for a relay is put off by as much as the other side goes first.
    fn hurry(&mut self) {
        let now = Instant::now();
        let soon = self.not_before.max(now + self.grace);
        if self.next_dial <= now || soon < self.next_dial {
            self.next_dial = soon;
        }
    }

    fn dial(&mut self) {
        if !self.may_dial() {
            return;
        }
        self.dialling = true;
        self.not_before = Instant::now() + LEAST;
        let endpoint = Arc::clone(&self.endpoint);
        let context = self.context.clone();
        let address = self.address;
        self.talks.spawn(async move {
            let link = endpoint.dial(context.peer, address).await;
            context.talk(link, Dialler::Us).await
        });
    }

    fn answer(&mut self, incoming: Incoming) {
        if self.talks.len() >= MAX_TALKS || !self.answers.take(Instant::now().into()) {
            return incoming.ignore();
        }
        let endpoint = Arc::clone(&self.endpoint);
        let context = self.context.clone();
        self.talks.spawn(async move {
            let link = endpoint.answer(incoming, context.peer).await;
            context.talk(link, Dialler::Them).await
        });
    }

    fn ended(&mut self, ended: Option<Ended>) {
        let Some(ended) = ended else {
            // A task that panicked has not said who dialled.
            self.dialling = false;
            return;
        };
        let ours = ended.dialler == Dialler::Us;
        tracing::debug!(peer = ?self.context.peer, error = %ended.error, ours, "connection ended");
        if ours {
            self.dialling = false;
        }
        if ended.was_live && ended.lasted >= STABLE {
            self.backoff.reset();
        }
        if ours || ended.was_live {
            self.plan(&ended);
        }
        // The other side may keep another connection, which will show itself.
        let may_remain = is_duplicate(&ended) && !self.talks.is_empty();
        if !ended.error.is_our_will() && !may_remain {
            let reason = ended.error.down_reason(ended.was_live);
            let no_relay = reason.may_be_the_relay() && !self.endpoint.switch().is_connected();
            let shown = if no_relay {
                DownReason::NoRelay
            } else {
                reason
            };
            self.context.door.show_down(shown);
        }
    }

    fn plan(&mut self, ended: &Ended) {
        let now = Instant::now();
        let delay = self.backoff.next_delay(rand::random());
        self.next_dial = now + delay;
        if ended.error.is_superseded() {
            self.next_dial = now + SUPERSEDED;
            self.not_before = self.next_dial;
        }
    }

    /// Says goodbye, and frees the address when that has been sent.
    async fn finish(mut self, reason: CloseReason) {
        self.context.door.close(reason);
        let farewell = async { while self.talks.join_next().await.is_some() {} };
        let _ = timeout(FAREWELL, farewell).await;
        self.talks.abort_all();
        sleep(FAREWELL).await;
        self.endpoint.switch().forget(self.address);
    }
}

/// The other side prefers another connection. If that is none of ours, another process has our identity.
fn is_duplicate(ended: &Ended) -> bool {
    ended.error.down_reason(ended.was_live) == DownReason::Told(CloseReason::Duplicate)
}
