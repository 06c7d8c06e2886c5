//! Who of a peer's connections is in, and what others see of the peer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use derp::ClusterIdentity;
use quinn::Connection;
use tokio::sync::watch;

use super::{DownReason, PeerState, PeerView};
use crate::message::CloseReason;
use crate::quic;
use crate::session::{Arbiter, Dialler, Verdict};

/// Connections of one peer that may be up at the same time, until all but one are closed.
const MAX_OPEN: usize = 4;

/// Shared by all connections of one peer.
#[derive(Debug)]
pub(super) struct Door {
    peer: ClusterIdentity,
    views: watch::Sender<BTreeMap<ClusterIdentity, PeerView>>,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    arbiter: Arbiter,
    open: HashMap<u64, Connection>,
    last: u64,
    /// Nobody comes in any more.
    closed: Option<CloseReason>,
}

impl Door {
    pub(super) fn new(
        us: ClusterIdentity,
        peer: ClusterIdentity,
        views: watch::Sender<BTreeMap<ClusterIdentity, PeerView>>,
    ) -> Self {
        let inside = Inside {
            arbiter: Arbiter::new(preferred(us, peer)),
            open: HashMap::new(),
            last: 0,
            closed: None,
        };
        Self {
            peer,
            views,
            inside: Mutex::new(inside),
        }
    }

    /// Lets a connection in, and numbers it; or says why it is to be closed.
    pub(super) fn enter(&self, connection: Connection) -> Result<u64, CloseReason> {
        let mut inside = self.lock();
        if let Some(reason) = inside.closed {
            return Err(reason);
        }
        if inside.open.len() >= MAX_OPEN {
            return Err(CloseReason::TooFast);
        }
        inside.last += 1;
        let id = inside.last;
        inside.open.insert(id, connection);
        Ok(id)
    }

    /// The other end of a connection has greeted: it is the one from now on, or it is told to close.
    pub(super) fn greet(
        &self,
        id: u64,
        generation: u64,
        dialler: Dialler,
    ) -> Result<(), CloseReason> {
        let mut inside = self.lock();
        match inside
            .arbiter
            .hello(Instant::now(), id, generation, dialler)
        {
            Verdict::Keep => Ok(()),
            Verdict::Replace { old, reason } => {
                if let Some(connection) = inside.open.get(&old) {
                    quic::close(connection, reason);
                }
                Ok(())
            }
            Verdict::Refuse(reason) => Err(reason),
        }
    }

    /// A connection is gone; says whether it was the one.
    pub(super) fn leave(&self, id: u64) -> bool {
        let mut inside = self.lock();
        inside.open.remove(&id);
        inside.arbiter.closed(Instant::now(), id)
    }

    /// Sends all away, and lets nobody in again. The view shows what it shows.
    pub(super) fn close(&self, reason: CloseReason) {
        let mut inside = self.lock();
        inside.closed = Some(reason);
        for connection in inside.open.values() {
            quic::close(connection, reason);
        }
    }

    /// Whether one is in.
    pub(super) fn is_live(&self) -> bool {
        self.lock().arbiter.is_live()
    }

    /// Shows something of the connection that is the one.
    pub(super) fn show(&self, id: u64, change: impl FnOnce(&mut PeerView)) {
        let inside = self.lock();
        if inside.closed.is_none() && inside.arbiter.is_live_one(id) {
            self.change(change);
        }
    }

    /// Shows that none is in, if that is so. A peer that has said it does not know us is silent from then on, and what it
    /// said remains the better reason.
    pub(super) fn show_down(&self, reason: DownReason) {
        let inside = self.lock();
        if inside.closed.is_none() && !inside.arbiter.is_live() {
            self.change(|view| {
                let told = DownReason::Told(CloseReason::NotAdmitted);
                if reason != DownReason::Unreachable
                    || view.state != (PeerState::Down { reason: told })
                {
                    view.state = PeerState::Down { reason };
                }
                view.synced = false;
            });
        }
    }

    fn change(&self, change: impl FnOnce(&mut PeerView)) {
        self.views.send_if_modified(|views| {
            let Some(view) = views.get_mut(&self.peer) else {
                return false;
            };
            let before = view.clone();
            change(view);
            *view != before
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of two dials at the same time, the one by the lower identity counts.
pub(super) fn preferred(us: ClusterIdentity, peer: ClusterIdentity) -> Dialler {
    if us < peer {
        Dialler::Us
    } else {
        Dialler::Them
    }
}
