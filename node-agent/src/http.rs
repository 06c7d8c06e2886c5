//! Just enough of HTTP to answer GET: one request a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections served at a time.
const CONNECTIONS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const MAX_REQUEST: usize = 8192;
/// Plain text.
pub(crate) const TEXT: &str = "text/plain";

/// What is to be had.
pub(crate) trait Site: Clone + Send + Sync + 'static {
    /// The page at a path; `None` if there is none.
    fn page(&self, path: &str) -> impl Future<Output = Option<Page>> + Send;

    /// What there is, for whoever asks for something else.
    fn index(&self) -> &'static str;
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Code and phrase.
    pub(crate) status: &'static str,
    /// Media type.
    pub(crate) kind: &'static str,
    /// The text itself.
    pub(crate) body: String,
}

impl Page {
    /// A line of plain text.
    pub(crate) fn text(status: &'static str, line: &str) -> Self {
        Self {
            status,
            kind: TEXT,
            body: format!("{line}\n"),
        }
    }
}

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, site: impl Site) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = site.clone();
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(PATIENCE, answer(stream, &site)).await;
                    tracing::trace!(?answered, "asked over HTTP");
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely no file descriptor is left; the next moment may be better.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Listens.
///
/// # Errors
/// What the system says.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn answer(mut stream: TcpStream, site: &impl Site) -> io::Result<()> {
    let request = read_request(&mut stream).await?;
    let page = match path(&request) {
        Some(path) => site
            .page(path)
            .await
            .unwrap_or_else(|| Page::text("404 Not Found", site.index())),
        None => Page::text("400 Bad Request", "only GET is understood"),
    };
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.status,
        page.kind,
        page.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(page.body.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(request)
}

fn path(request: &[u8]) -> Option<&str> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line)
        .ok()?
        .strip_prefix("GET ")?
        .split(' ');
    let path = words.next()?;
    Some(path.split_once('?').map_or(path, |(path, _)| path))
}
