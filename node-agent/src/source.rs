//! Where what shall be comes from: a folder of manifests, or the API server.

use api::{Accepted, FolderRead, NodeSpec};
use derp::{ClusterIdentity, RelayUrl};

/// Where what shall be comes from.
pub trait Source: Send {
    /// Resolves when [`look`](Self::look) has something new. A source that has to be looked at to know it never does; it
    /// is looked at twice a second anyway. May be cancelled at any point.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Looks once. `None` if all is as it was at the last call that returned something.
    fn look(&mut self) -> Option<Read>;

    /// Is told what has come into force.
    fn in_force(&mut self, _accepted: &Accepted) {}

    /// The pass to show to a relay that comes without one.
    fn pass(&self, _relay: &RelayUrl) -> Option<String> {
        None
    }
}

/// What a source holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The objects.
    pub folder: FolderRead,
    /// What Peers tell of their nodes, if that does not come with the objects.
    pub told: Vec<Told>,
}

/// What a Peer tells of its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Name of the Peer.
    pub peer: String,
    /// Who tells it.
    pub identity: ClusterIdentity,
    /// Its nodes.
    pub nodes: Vec<NodeSpec>,
}

impl From<FolderRead> for Read {
    fn from(folder: FolderRead) -> Self {
        Self {
            folder,
            told: Vec::new(),
        }
    }
}
