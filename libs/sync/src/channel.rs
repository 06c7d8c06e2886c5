//! All peers of a cluster: relays, connections, conversations.
//!
//! * [`Sync::spawn`] takes what this side has and whom it may speak to, each as a `watch`, and follows their changes.
//! * [`Sync::join_requests`] gives what the holders of open invites ask for.
//! * [`Sync::peers`] shows what every peer is and proposes, [`Sync::relays`] how the relays are. Both show the present
//!   state, so whoever looks seldom misses nothing but history, and nothing piles up.
//!
//! Both sides dial; one connection is kept. A connection that is lost is dialled again, with waits from a quarter of a
//! second to a quarter of a minute; whoever comes to a relay where it is awaited is dialled at once.

mod backoff;
mod door;
mod hub;
mod lobby;
mod peer;
mod relays;
mod talk;

pub(crate) use backoff::Backoff;
pub(crate) use relays::Relays;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use derp::{ClusterIdentity, ClusterSecret, Refusal as RelayRefusal, RelayUrl};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::join::JoinRequest;
use crate::message::{CloseReason, ClusterName, Records, Refusal};
use crate::quic::{SetupError, Switch};
use crate::session::{Limits, SessionError};
use hub::Hub;

/// Who this side is.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this cluster calls itself.
    pub cluster_name: ClusterName,
    /// Rises with every process that takes over from another with the same identity: peers keep the newest.
    pub generation: u64,
    /// Times.
    pub timing: Timing,
    /// Bounds of a conversation.
    pub limits: Limits,
}

/// What a [`Sync`] follows. Each holds everything that there is: what is not in the latest value is gone.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The relays to be connected to; one for each URL.
    pub relays: watch::Receiver<Vec<Relay>>,
    /// Who may be spoken to.
    pub peers: watch::Receiver<BTreeSet<ClusterIdentity>>,
    /// Our nodes.
    pub records: watch::Receiver<Arc<Records>>,
    /// What each peer is given: the statement that it may use our relays. A text that is none, or longer than
    /// [`MAX_STATEMENT`](crate::MAX_STATEMENT), counts as none.
    pub memberships: watch::Receiver<BTreeMap<ClusterIdentity, String>>,
    /// The temporary identities of invites whose holders are heard; up to 256.
    pub invites: watch::Receiver<BTreeSet<ClusterIdentity>>,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two signs of life on a quiet connection.
    pub keep_alive: Duration,
    /// How long nothing may arrive.
    pub idle: Duration,
    /// How long a connection may take to come up.
    pub handshake: Duration,
    /// The longest wait before the next dial.
    pub retry: Duration,
}

/// A relay to be connected to.
#[derive(Clone, PartialEq, Eq)]
pub struct Relay {
    /// By what it is known.
    pub url: RelayUrl,
    /// Where it is dialled, if not there: what is in the same cluster can often not be reached by its public URL.
    pub dial: Option<RelayUrl>,
    /// Certificates (PEM) to trust instead of the public ones.
    pub ca_bundle: Option<String>,
    /// What is shown to it. A change is for the next dial, and ends no connection.
    pub pass: Option<String>,
}

/// How a relay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayState {
    /// Whether it has let us in.
    pub connected: bool,
    /// Why not, or what it finds wrong.
    pub problem: Option<String>,
    /// Why it does not let us in, if that is the last it has done.
    pub refusal: Option<RelayRefusal>,
    /// The last round trip to it.
    pub rtt: Option<Duration>,
    /// Tells one connection from the next, whoever looks seldom; 0: there has been none.
    pub connection: u64,
}

/// What a peer is and proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Whether we speak.
    pub state: PeerState,
    /// The nodes that it proposes; the last that it did if we do not speak now. `None` until it has said it all once.
    pub records: Option<Arc<Records>>,
    /// What it sent and is no node; the latest 64.
    pub refused: Arc<[Refusal]>,
    /// Whether the peer has taken over everything that this side has.
    pub synced: bool,
    /// The last statement that we may use the peer's relays, if it has not taken it back. Nobody has looked into it yet.
    pub membership: Option<String>,
}

/// Whether we speak to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerState {
    /// It has greeted.
    Up {
        /// What it calls itself. For people to read.
        cluster_name: ClusterName,
        /// Its process.
        generation: u64,
        /// The newest version that it speaks.
        version: u32,
    },
    /// We do not, and try again by ourselves unless the reason rules it out.
    Down {
        /// Why not.
        reason: DownReason,
    },
}

/// Why we do not speak to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// Nothing has been tried yet.
    #[error("not tried yet")]
    New,
    /// No relay is connected.
    #[error("no relay is connected")]
    NoRelay,
    /// It does not answer. Also the only sign of a peer that does not know us.
    #[error("the peer does not answer")]
    Unreachable,
    /// There was a connection, and nothing arrives any more.
    #[error("the connection was lost")]
    Lost,
    /// Who answers does not have the key that the peer should have.
    #[error("who answers does not have the peer's key")]
    WrongKey,
    /// The peer expects another key of us.
    #[error("the peer expects another key than ours")]
    RefusedKey,
    /// The peer ended the conversation.
    #[error("the peer: {0}")]
    Told(CloseReason),
    /// The peer broke a rule of the conversation.
    #[error("the peer's fault: {0}")]
    Misbehaved(SessionError),
    /// The peer sent what is no message.
    #[error("the peer sent what is no message")]
    BadMessage,
    /// QUIC or TLS could not go on.
    #[error("the connection broke")]
    Broken,
    /// Another peer has the same address on relays; no connection is tried.
    #[error("another peer has the same relay address")]
    SameAddress,
    /// The peer is ourselves; no connection is tried.
    #[error("this is our own identity")]
    Ourselves,
}

/// The conversations of a cluster with all its peers. Dropping it ends them.
#[derive(Debug)]
pub struct Sync {
    peers: watch::Receiver<BTreeMap<ClusterIdentity, PeerView>>,
    relays: watch::Receiver<BTreeMap<RelayUrl, RelayState>>,
    join_requests: Option<mpsc::Receiver<JoinRequest>>,
    switch: Arc<Switch>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(4),
            idle: Duration::from_secs(12),
            handshake: Duration::from_secs(6),
            retry: Duration::from_secs(15),
        }
    }
}

impl Config {
    /// The usual times and bounds.
    #[must_use]
    pub fn new(cluster_name: ClusterName, generation: u64) -> Self {
        Self {
            cluster_name,
            generation,
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for PeerView {
    fn default() -> Self {
        Self {
            state: PeerState::Down {
                reason: DownReason::New,
            },
            records: None,
            refused: Arc::default(),
            synced: false,
            membership: None,
        }
    }
}

impl Relay {
    /// A relay that is dialled at its URL and asks for no pass.
    #[must_use]
    pub fn new(url: RelayUrl) -> Self {
        Self {
            url,
            dial: None,
            ca_bundle: None,
            pass: None,
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("url", &self.url)
            .field("dial", &self.dial)
            .field("has_ca_bundle", &self.ca_bundle.is_some())
            .field("has_pass", &self.pass.is_some())
            .finish()
    }
}

impl DownReason {
    /// Whether this is nobody's fault, but the relays', if none is connected.
    fn may_be_the_relay(self) -> bool {
        matches!(
            self,
            Self::New | Self::Unreachable | Self::Lost | Self::Broken
        )
    }
}

impl PeerView {
    /// Whether we speak.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, PeerState::Up { .. })
    }
}

impl Sync {
    /// Starts on the running tokio runtime.
    ///
    /// # Errors
    /// When TLS or QUIC cannot be set up with this identity.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        config: Config,
        secret: ClusterSecret,
        inputs: Inputs,
    ) -> Result<Self, SetupError> {
        let (requests, join_requests) = mpsc::channel(lobby::MAX_REQUESTS);
        let hub = Hub::new(config, secret, inputs, requests)?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            peers: hub.peers(),
            relays: hub.relays(),
            join_requests: Some(join_requests),
            switch: hub.switch(),
            stop: Some(stop),
            task: tokio::spawn(hub.run(stopped)),
        })
    }

    /// Where the holders of open invites ask to be let in; at most one request of each invite at a time. The first call
    /// takes it. Requests that nobody answers are refused as [`Busy`](crate::RefusedCode::Busy).
    pub fn join_requests(&mut self) -> Option<mpsc::Receiver<JoinRequest>> {
        self.join_requests.take()
    }

    /// Every peer that may be spoken to.
    #[must_use]
    pub fn peers(&self) -> watch::Receiver<BTreeMap<ClusterIdentity, PeerView>> {
        self.peers.clone()
    }

    /// Every relay.
    #[must_use]
    pub fn relays(&self) -> watch::Receiver<BTreeMap<RelayUrl, RelayState>> {
        self.relays.clone()
    }

    /// The relay through which a peer speaks at present.
    #[must_use]
    pub fn relay_of(&self, peer: &ClusterIdentity) -> Option<RelayUrl> {
        self.switch.relay_of(&peer.relay_key(), Instant::now())
    }

    /// Whether it has ended although nobody has asked it to: it has failed, and does nothing any more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.task.is_finished()
    }

    /// Datagrams that were dropped on this side: too long, or more than a queue holds.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.switch.dropped()
    }

    /// Says goodbye to all peers, and waits for that, for about a second at most.
    pub async fn close(mut self) {
        self.stop.take();
        let _ = (&mut self.task).await;
    }
}

#[cfg(test)]
mod tests;
