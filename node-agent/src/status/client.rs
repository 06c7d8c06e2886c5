//! The end of the socket that asks.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Status;

use crate::state::socket_in;

/// Longest answer, in bytes.
const MAX_BYTES: u64 = 256 << 20;
/// How long the agent may take between two pieces of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The status cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody answers.
    #[error("no agent runs with the state folder {}; start one with `culvert-agent run --manifests DIR --state {}`", .folder.display(), .folder.display())]
    NoAgent {
        /// The state folder.
        folder: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot ask the agent of the state folder {}: {cause}; call this as the user that runs the agent", .folder.display())]
    Refused {
        /// The state folder.
        folder: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The answer is not a status.
    #[error(
        "the agent's answer cannot be understood ({cause}); the agent and this program should be of one version"
    )]
    Garbled {
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// Asks the agent of a state folder.
///
/// # Errors
///
/// [`StatusError`]
pub fn fetch(folder: &Path) -> Result<Status, StatusError> {
    let text = ask(folder).map_err(|cause| {
        let folder = folder.to_owned();
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        if absent.contains(&cause.kind()) {
            StatusError::NoAgent { folder }
        } else {
            StatusError::Refused { folder, cause }
        }
    })?;
    serde_json::from_slice(&text).map_err(|cause| StatusError::Garbled { cause })
}

fn ask(folder: &Path) -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect(socket_in(folder))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}
