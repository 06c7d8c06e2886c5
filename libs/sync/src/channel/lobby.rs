//! Who may come to join: the holders of invites that are open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use derp::{ClusterIdentity, NodeKey};
use quinn::Incoming;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::join::{Guest, JoinRequest};
use crate::quic::Endpoint;

/// Invites that may be open at the same time.
const MAX_INVITES: usize = 256;
/// Connections of all invites that are dealt with at the same time.
const MAX_SEATS: usize = 8;
/// Connections of one invite that wait to be answered.
const MAX_WAITING: usize = 4;
/// Requests that wait to be decided.
pub(super) const MAX_REQUESTS: usize = 8;

/// Open invites, each with a task that serves whoever holds it.
pub(super) struct Lobby {
    us: ClusterIdentity,
    endpoint: Arc<Endpoint>,
    requests: mpsc::Sender<JoinRequest>,
    seats: Arc<Semaphore>,
    guests: BTreeMap<ClusterIdentity, Door>,
}

/// Where a guest comes in. Dropping it ends the invite, but no request that is being decided.
struct Door {
    address: SocketAddr,
    incoming: mpsc::Sender<Incoming>,
}

impl Lobby {
    pub(super) fn new(
        us: ClusterIdentity,
        endpoint: Arc<Endpoint>,
        requests: mpsc::Sender<JoinRequest>,
    ) -> Self {
        Self {
            us,
            endpoint,
            requests,
            seats: Arc::new(Semaphore::new(MAX_SEATS)),
            guests: BTreeMap::new(),
        }
    }

    /// These invites and no others from now on. One whose address on relays is taken is left out.
    pub(super) fn set(
        &mut self,
        wanted: &BTreeSet<ClusterIdentity>,
        is_taken: impl Fn(&NodeKey) -> bool,
        tasks: &mut JoinSet<()>,
    ) {
        self.guests.retain(|invite, _| wanted.contains(invite));
        for invite in wanted {
            let key = invite.relay_key();
            if self.guests.contains_key(invite) {
                continue;
            }
            if self.guests.len() >= MAX_INVITES || is_taken(&key) || self.knows(&key) {
                tracing::warn!(
                    ?invite,
                    "this invite cannot be opened: too many, or its key is in use"
                );
                continue;
            }
            self.open(*invite, tasks);
        }
    }

    /// Whether an invite has this address on relays.
    pub(super) fn knows(&self, key: &NodeKey) -> bool {
        self.guests.keys().any(|invite| invite.relay_key() == *key)
    }

    /// Takes a connection from an address; gives it back if that is nobody's.
    pub(super) fn accept(&self, address: SocketAddr, incoming: Incoming) -> Option<Incoming> {
        let Some(door) = self.guests.values().find(|door| door.address == address) else {
            return Some(incoming);
        };
        if let Err(full) = door.incoming.try_send(incoming) {
            full.into_inner().refuse();
        }
        None
    }

    fn open(&mut self, invite: ClusterIdentity, tasks: &mut JoinSet<()>) {
        let address = self.endpoint.switch().pin(invite.relay_key());
        let (incoming, waiting) = mpsc::channel(MAX_WAITING);
        let guest = Guest {
            inviter: self.us,
            invite,
            endpoint: Arc::clone(&self.endpoint),
            requests: self.requests.clone(),
            seats: Arc::clone(&self.seats),
        };
        let endpoint = Arc::clone(&self.endpoint);
        tasks.spawn(async move {
            guest.run(waiting).await;
            endpoint.switch().forget(address);
        });
        self.guests.insert(invite, Door { address, incoming });
    }
}
