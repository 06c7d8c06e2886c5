//! All peers of a cluster: relays, connections, conversations.
//!
//! * [`Sync::spawn`] takes what this side has and whom it may speak to, each as a `watch`, and follows their changes.
//! * [`Sync::peers`] shows what every peer is and proposes, [`Sync::relays`] how the relays are. Both show the present
//!   state, so whoever looks seldom misses nothing but history, and nothing piles up.
//!
//! Both sides dial; one connection is kept. A connection that is lost is dialled again, with waits from a quarter of a
//! second to a quarter of a minute; whoever comes to a relay where it is awaited is dialled at once.

mod backoff;
mod door;
mod hub;
mod peer;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use derp::RelayUrl;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::identity::{ClusterIdentity, ClusterSecret};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Where it is.
    pub url: RelayUrl,
    /// Certificates (PEM) to trust instead of the public ones.
    pub ca_bundle: Option<String>,
}

/// How a relay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayState {
    /// Whether it has let us in.
    pub connected: bool,
    /// Why not, or what it finds wrong.
    pub problem: Option<String>,
    /// The last round trip to it.
    pub rtt: Option<Duration>,
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
        }
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
    /// Starts on the running tokio runtime. The watches hold everything that there is: a peer, relay or record that is not
    /// in the latest value is gone.
    ///
    /// # Errors
    /// When TLS or QUIC cannot be set up with this identity.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        config: Config,
        secret: ClusterSecret,
        relays: watch::Receiver<Vec<Relay>>,
        peers: watch::Receiver<BTreeSet<ClusterIdentity>>,
        records: watch::Receiver<Arc<Records>>,
    ) -> Result<Self, SetupError> {
        let hub = Hub::new(config, secret, records)?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            peers: hub.peers(),
            relays: hub.relays(),
            switch: hub.switch(),
            stop: Some(stop),
            task: tokio::spawn(hub.run(relays, peers, stopped)),
        })
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
