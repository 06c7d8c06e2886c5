//! The agent on Kubernetes: objects of the API server in the place of manifests, and a status that goes back there.
//!
//! * [`watch()`] follows `Mesh`, `Peer`, `PeerSlice` and this node's own `MeshNode`, and nothing else. It tells nothing until
//!   all four have been listed, and goes on with what it knows while the API server is away.
//! * [`Kubernetes`] is the agent's [`Source`] made of that.
//! * [`Writer`] reports to the status of the `MeshNode`.

mod objects;
mod status;
mod watch;
mod writer;

pub use objects::Objects;
pub(crate) use watch::{Outlets, watch};
pub(crate) use writer::Writer;

use api::{ClusterObjects, FolderRead, MeshNodeStatus};
use tokio::sync::watch::Receiver;

use crate::{Read, Source};

/// The agent's view of the API server.
#[derive(Debug)]
pub struct Kubernetes {
    objects: Receiver<Option<ClusterObjects>>,
    /// Whether there is something that has not been looked at.
    news: bool,
    last: Option<FolderRead>,
}

/// The `MeshNode` of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OwnNode {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// `metadata.generation`.
    pub(crate) generation: Option<i64>,
    /// `status`, as far as it can be read.
    pub(crate) status: MeshNodeStatus,
}

impl Kubernetes {
    /// A source of what is in `objects`; `None` as long as not all has been read once.
    pub fn new(objects: Receiver<Option<ClusterObjects>>) -> Self {
        Self {
            objects,
            news: true,
            last: None,
        }
    }
}

impl Source for Kubernetes {
    async fn changed(&mut self) {
        match self.objects.changed().await {
            Ok(()) => self.news = true,
            // Whoever watches has ended; the loop goes on with what it has.
            Err(_) => std::future::pending().await,
        }
    }

    fn look(&mut self) -> Option<Read> {
        if !std::mem::take(&mut self.news) && !self.objects.has_changed().unwrap_or(false) {
            return None;
        }
        let read = match &*self.objects.borrow_and_update() {
            Some(objects) => FolderRead::Objects(objects.clone()),
            None => FolderRead::Waiting {
                what: "the API server".to_owned(),
            },
        };
        let changed = self.last.as_ref() != Some(&read);
        changed.then(|| self.last.insert(read).clone().into())
    }
}

#[cfg(test)]
mod tests;
