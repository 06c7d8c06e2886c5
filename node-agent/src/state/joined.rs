//! What a host that has joined a mesh by token keeps: its identity, the manifests that were agreed, and what lets it use
//! its peers' relays.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use derp::ClusterIdentity;
use serde::{Deserialize, Serialize};
use sync::ClusterSecret;

use super::{StateError, StateFolder, file, tighten_key};

const IDENTITY: &str = "identity";
/// Name of the folder of the manifests that joining has written.
pub(crate) const JOINED: &str = "joined";
const MEMBERSHIPS: &str = "memberships.json";

/// What lets this host use its peers' relays.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memberships {
    /// How often the host has been started, so that peers keep to the newest process.
    pub(crate) generation: u64,
    /// By the owner of the relays.
    pub(crate) by_owner: BTreeMap<ClusterIdentity, String>,
}

impl StateFolder {
    /// The identity of this host among clusters, if it has one.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`], or [`StateError::Identity`] if the file is damaged.
    pub(crate) fn identity(&self) -> Result<Option<ClusterSecret>, StateError> {
        let path = self.path().join(IDENTITY);
        let Some(text) = file::read(&path)?.map(zeroize::Zeroizing::new) else {
            return Ok(None);
        };
        tighten_key(&path)?;
        let secret = ClusterSecret::from_base64(text.trim());
        secret.map(Some).map_err(|_| StateError::Identity { path })
    }

    /// The identity of this host among clusters; makes one if there is none.
    ///
    /// # Errors
    ///
    /// As [`identity`](Self::identity), and [`StateError::Write`].
    pub(crate) fn make_identity(&self) -> Result<ClusterSecret, StateError> {
        if let Some(secret) = self.identity()? {
            return Ok(secret);
        }
        let path = self.path().join(IDENTITY);
        let secret = ClusterSecret::generate().map_err(|error| StateError::Write {
            path: path.clone(),
            cause: std::io::Error::other(error),
        })?;
        file::create(&path, secret.to_base64().as_bytes())?;
        // Another process may have been first; its identity counts.
        self.identity()?.ok_or(StateError::Identity { path })
    }

    /// The folder of the manifests that joining has written; it may be missing.
    pub(crate) fn joined(&self) -> PathBuf {
        self.path().join(JOINED)
    }

    /// Writes one of these manifests.
    ///
    /// # Errors
    ///
    /// [`StateError::Write`]
    pub(crate) fn save_joined(&self, name: &str, text: &str) -> Result<(), StateError> {
        let folder = self.joined();
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.map_err(|cause| StateError::Write {
            path: folder.clone(),
            cause,
        })?;
        file::replace(&folder.join(name), text.as_bytes())
    }

    /// What lets this host use its peers' relays. A damaged file counts as none: the peers tell it again.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`]
    pub(crate) fn memberships(&self) -> Result<Memberships, StateError> {
        let text = file::read(&self.path().join(MEMBERSHIPS))?;
        Ok(text
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default())
    }

    /// Keeps what lets this host use its peers' relays.
    ///
    /// # Errors
    ///
    /// [`StateError::Write`]
    pub(crate) fn save_memberships(&self, memberships: &Memberships) -> Result<(), StateError> {
        let path = self.path().join(MEMBERSHIPS);
        let text = serde_json::to_vec(memberships).map_err(|error| StateError::Write {
            path: path.clone(),
            cause: error.into(),
        })?;
        file::replace(&path, &text)
    }

    /// Removes all of it.
    pub(super) fn forget_joining(&self) -> Result<(), StateError> {
        for name in [IDENTITY, MEMBERSHIPS] {
            file::remove(&self.path().join(name))?;
        }
        let folder = self.joined();
        for path in manifests(&folder) {
            file::remove(&path)?;
        }
        file::remove_left_over(&folder);
        // Not there, or somebody has put something else into it; then the state folder stays, too, and says so.
        let _ = fs::remove_dir(&folder);
        Ok(())
    }
}

fn manifests(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_yaml = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    };
    entries.map(|entry| entry.path()).filter(is_yaml).collect()
}
