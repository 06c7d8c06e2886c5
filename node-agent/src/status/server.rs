//! The end of the socket that answers.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::StatusSource;

/// Connections served at a time.
const CONNECTIONS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers every connection with the status.
#[derive(Debug)]
pub struct StatusServer {
    listener: UnixListener,
}

impl StatusServer {
    /// Listens at `socket`, in the place of whoever did before: the caller holds the lock of the state folder.
    ///
    /// # Errors
    ///
    /// The socket cannot be made there.
    pub fn bind(socket: &Path) -> anyhow::Result<Self> {
        let listener = listen(socket).with_context(|| {
            format!("cannot listen at {}: the state folder has to be writable and its path shorter than 100 characters", socket.display())
        })?;
        Ok(Self { listener })
    }

    /// Answers until it is dropped.
    pub async fn serve(self, source: StatusSource) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let source = source.clone();
                    tokio::spawn(async move {
                        let answered =
                            tokio::time::timeout(PATIENCE, answer(stream, &source)).await;
                        tracing::trace!(?answered, "status asked for");
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Most likely no file descriptor is left; the next moment may be better.
                    tracing::warn!(%error, "cannot accept a connection for the status");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(mut stream: UnixStream, source: &StatusSource) -> io::Result<()> {
    let text = serde_json::to_vec(&source.status().await)?;
    stream.write_all(&text).await?;
    stream.shutdown().await
}
