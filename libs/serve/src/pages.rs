//! Just enough of HTTP to answer GET: one request a connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections served at a time.
const CONNECTIONS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be accepted.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest request, in bytes.
const MAX_REQUEST: usize = 8192;
const TEXT: &str = "text/plain";
/// What Prometheus reads.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is to be had.
pub trait Site: Send + Sync + 'static {
    /// The page at a path, which has no query any more; `None` if there is none.
    fn page(&self, path: &str) -> impl Future<Output = Option<Page>> + Send;

    /// What there is, for whoever asks for something else.
    fn index(&self) -> &'static str;
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Code and phrase, such as `200 OK`.
    pub status: &'static str,
    /// Media type.
    pub kind: &'static str,
    /// The text itself.
    pub body: String,
}

impl Page {
    /// A line of plain text.
    #[must_use]
    pub fn text(status: &'static str, line: &str) -> Self {
        Self {
            status,
            kind: TEXT,
            body: format!("{line}\n"),
        }
    }

    /// All is well.
    #[must_use]
    pub fn ok(line: &str) -> Self {
        Self::text("200 OK", line)
    }

    /// Something is not as it should be, and what.
    #[must_use]
    pub fn unavailable(line: &str) -> Self {
        Self::text("503 Service Unavailable", line)
    }

    /// Metrics in the text format of OpenMetrics, or why there are none.
    pub fn metrics<E: ToString>(rendered: Result<String, E>) -> Self {
        match rendered {
            Ok(body) => Self {
                status: "200 OK",
                kind: METRICS,
                body,
            },
            Err(error) => Self::text("500 Internal Server Error", &error.to_string()),
        }
    }

    fn head(&self) -> String {
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
    }
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, site: Arc<impl Site>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = Arc::clone(&site);
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(PATIENCE, answer(stream, &*site)).await;
                    tracing::trace!(?answered, "asked over HTTP");
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely no file descriptor is left; the next moment may be better.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
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
    stream.write_all(page.head().as_bytes()).await?;
    stream.write_all(page.body.as_bytes()).await?;
    stream.shutdown().await
}

/// Everything up to the empty line.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(request)
}

/// The path of a GET, without its query.
fn path(request: &[u8]) -> Option<&str> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line)
        .ok()?
        .strip_prefix("GET ")?
        .split(' ');
    let path = words.next()?;
    Some(path.split_once('?').map_or(path, |(path, _)| path))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop;

    impl Site for Shop {
        async fn page(&self, path: &str) -> Option<Page> {
            match path {
                "/livez" => Some(Page::ok("yes")),
                "/metrics" => Some(Page::metrics(Ok::<_, String>("a 1\n".to_owned()))),
                _ => None,
            }
        }

        fn index(&self) -> &'static str {
            "there is /livez"
        }
    }

    /// What a request gets; empty if the connection is closed without an answer.
    async fn ask(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(serve(listener, Arc::new(Shop)));
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request).await.expect("writes");
        stream.shutdown().await.expect("ends");
        let mut answer = String::new();
        // A connection that is closed with bytes unread is reset.
        let _ = stream.read_to_string(&mut answer).await;
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn pages_are_found_by_their_path() {
        let page = ask(b"GET /livez?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\nyes\n"));
        let metrics = ask(b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(metrics.contains("openmetrics") && metrics.contains("Content-Length: 4\r\n"));
        let other = ask(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404") && other.ends_with("there is /livez\n"));
    }

    #[tokio::test]
    async fn whatever_is_no_get_is_refused() {
        for bad in [&b"POST /livez HTTP/1.1\r\n\r\n"[..], b"\xff\xff\r\n\r\n"] {
            assert!(ask(bad).await.starts_with("HTTP/1.1 400"), "{bad:?}");
        }
        assert_eq!(ask(b"GET /livez HTTP/1.1\r\n").await, "", "it has no end");
    }

    #[tokio::test]
    async fn a_request_is_bounded() {
        let endless = vec![b'a'; 4 * MAX_REQUEST];
        let read = read_request(&mut endless.as_slice()).await;
        assert_eq!(
            read.expect_err("too long").kind(),
            io::ErrorKind::InvalidData
        );
    }
}
