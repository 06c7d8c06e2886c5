//! The state folder: what has to outlive the process.
//!
//! | file | content |
//! |---|---|
//! | `key` | private key, base64, mode 0600; made once |
//! | `port` | UDP port of direct paths; made once |
//! | `manifests.json` | last good state of every object |
//! | `host.json` | what was changed on the host, kept by `netconf` |
//! | `identity` | cluster identity of a host that has joined a mesh, base64, mode 0600; made once |
//! | `joined/` | manifests that `culvert-agent join` has written |
//! | `memberships.json` | what lets this host use its peers' relays, and how often it has been started |
//! | `lock` | locked by the running agent, holds its process id |
//! | `agent.sock` | socket for `culvert-agent status` |
//!
//! Only its owner can look into it. Files are replaced in one step, so that a crash leaves the old one or the new one.

mod file;
mod joined;
mod lock;

pub(crate) use joined::{JOINED, Memberships};
pub use lock::Lock;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::SavedState;
use derp::NodeSecret;
use rand::Rng;

/// Range of random ports: outside those of Kubernetes services and of the kernel's own choices.
const PORTS: std::ops::RangeInclusive<u16> = 10_000..=29_999;
/// Set-user-ID, set-group-ID and sticky.
const SPECIAL: u32 = 0o7000;
/// Bits of a mode that let others in.
const OTHERS: u32 = 0o077;

const KEY: &str = "key";
const PORT: &str = "port";
const MANIFESTS: &str = "manifests.json";
const JOURNAL: &str = "host.json";
const LOCK: &str = "lock";
const SOCKET: &str = "agent.sock";

/// The state folder.
#[derive(Clone, Debug)]
pub struct StateFolder {
    path: PathBuf,
}

/// The state folder, or something in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made, or is not ours.
    #[error("cannot use the state folder {}: {cause}; name one with --state that this user may write to, or run as root", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {cause}; it has to belong to the user that runs the agent", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {cause}; the state folder has to be writable and its disk not full", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file of the host's identity holds none.
    #[error("{} holds no identity; restore it, or remove it and join again with a new token", .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// The key file holds no key.
    #[error("{} holds no private key; restore it, or remove it to get a new key with `culvert-agent keygen` and tell the other sites", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// Another agent has the folder.
    #[error("another agent ({owner}) runs with the state folder {}; stop it, or give this one its own folder", .path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// `pid N`, or that it is not known.
        owner: String,
    },
}

impl StateFolder {
    /// Makes the folder, or takes it as it is and locks others out of it.
    ///
    /// # Errors
    ///
    /// [`StateError::Folder`]
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.and_then(|()| tighten(path))
            .map_err(|cause| StateError::Folder {
                path: path.to_owned(),
                cause,
            })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket on which a running agent answers.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.path)
    }

    /// The record of what was changed on the host.
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// The node's key; makes one if there is none.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`], [`StateError::Write`], or [`StateError::Key`] if the file is damaged.
    pub fn key(&self) -> Result<NodeSecret, StateError> {
        let path = self.path.join(KEY);
        if let Some(key) = read_key(&path)? {
            return Ok(key);
        }
        file::create(
            &path,
            format!("{}\n", NodeSecret::generate().to_base64()).as_bytes(),
        )?;
        // Another process may have been first; its key counts.
        read_key(&path)?.ok_or(StateError::Key { path })
    }

    /// The UDP port for direct paths; chooses one if there is none, or the file is damaged.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`], [`StateError::Write`]
    pub fn port(&self) -> Result<u16, StateError> {
        let path = self.path.join(PORT);
        let text = file::read(&path)?;
        let known = text
            .and_then(|text| text.trim().parse().ok())
            .filter(|port| PORTS.contains(port));
        match known {
            Some(port) => Ok(port),
            None => self.choose_port(),
        }
    }

    /// Chooses another UDP port for direct paths, for when the one so far is taken, and keeps it.
    ///
    /// # Errors
    ///
    /// [`StateError::Write`]
    pub fn choose_port(&self) -> Result<u16, StateError> {
        let port = rand::rng().random_range(PORTS);
        file::replace(&self.path.join(PORT), format!("{port}\n").as_bytes())?;
        Ok(port)
    }

    /// The last good state of the manifests. A damaged file counts as none: the manifests themselves are still there.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`]
    pub fn saved(&self) -> Result<Option<SavedState>, StateError> {
        let path = self.path.join(MANIFESTS);
        let Some(text) = file::read(&path)? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(saved) => Ok(Some(saved)),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the last good state of the manifests is damaged; going on without it");
                Ok(None)
            }
        }
    }

    /// Keeps the last good state of the manifests.
    ///
    /// # Errors
    ///
    /// [`StateError::Write`]
    pub fn save(&self, saved: &SavedState) -> Result<(), StateError> {
        let path = self.path.join(MANIFESTS);
        let text = serde_json::to_vec(saved).map_err(|error| StateError::Write {
            path: path.clone(),
            cause: error.into(),
        })?;
        file::replace(&path, &text)
    }

    /// Makes this the only agent of the folder.
    ///
    /// # Errors
    ///
    /// [`StateError::Locked`] names the other one; [`StateError::Write`]
    pub fn lock(&self) -> Result<Lock, StateError> {
        Lock::take(&self.path, &self.path.join(LOCK))
    }

    /// Removes what the agent keeps here. The key, the port and what joining has brought stay unless `purge`, which also
    /// removes the folder if nothing foreign is in it. The caller holds the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::Write`]
    pub fn clear(&self, purge: bool) -> Result<(), StateError> {
        let names: &[&str] = if purge {
            &[SOCKET, MANIFESTS, KEY, PORT, LOCK, JOURNAL]
        } else {
            &[SOCKET, MANIFESTS, LOCK]
        };
        for name in names {
            file::remove(&self.path.join(name))?;
        }
        if purge {
            self.forget_joining()?;
            file::remove_left_over(&self.path);
            remove_folder(&self.path);
        }
        Ok(())
    }
}

/// The socket of an agent whose state folder is `folder`.
pub(crate) fn socket_in(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// In a container the folder is a mount, which only its host can remove.
fn remove_folder(path: &Path) {
    let Err(error) = fs::remove_dir(path) else {
        return;
    };
    if error.kind() == io::ErrorKind::ResourceBusy {
        tracing::info!(folder = %path.display(), "the state folder is empty; it is mounted here and stays");
    } else {
        tracing::warn!(folder = %path.display(), %error, "the state folder is not empty and stays");
    }
}

/// Takes the rights of others away, and makes sure that we may write.
fn tighten(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & (OTHERS | SPECIAL) != 0 {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
        tracing::info!(folder = %path.display(), "the state folder is now for its owner only");
    }
    nix::unistd::access(
        path,
        nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK,
    )?;
    Ok(())
}

fn read_key(path: &Path) -> Result<Option<NodeSecret>, StateError> {
    let Some(text) = file::read(path)? else {
        return Ok(None);
    };
    tighten_key(path)?;
    match NodeSecret::from_base64(text.trim()) {
        Ok(key) => Ok(Some(key)),
        Err(_) => Err(StateError::Key {
            path: path.to_owned(),
        }),
    }
}

fn tighten_key(path: &Path) -> Result<(), StateError> {
    let done = fs::metadata(path).and_then(|metadata| {
        let mode = metadata.permissions().mode();
        if mode & OTHERS == 0 {
            return Ok(());
        }
        tracing::warn!(file = %path.display(), "the key could be read by others; taking their rights away");
        fs::set_permissions(path, Permissions::from_mode(0o600))
    });
    done.map_err(|cause| StateError::Write {
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests;
