//! From a TCP connection to a transport on which DERP is spoken, within limits that strangers cannot pass.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use derp::FrameBuffer;
use derp::websocket::{Side, WebSocketBytes};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::bucket::{Buckets, Rate, source};
use crate::conn::{self, Agreed, Transport};
use crate::denylist;
use crate::http::{self, HeadError, Request, Upgrade};
use crate::metrics::Reject;
use crate::server::Context;

/// New connections of one source; many nodes may be behind one address.
const PER_SOURCE: Rate = Rate {
    per_second: 100.0,
    burst: 1000.0,
};
const MAX_SOURCES: usize = 16_384;
/// How long to wait when the process has no more file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long sent bytes may stay without acknowledgement.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Bytes that the kernel holds beyond what is on its way; more would only wait where we cannot reorder or drop it.
const UNSENT_BYTES: u32 = 128 << 10;
/// How long connections get to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Takes connections until it is told to stop, and then waits a moment for those that are open.
pub(crate) async fn run(
    context: Arc<Context>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut gate = Gate::new(&context);
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => gate.admit(&context, &mut connections, stream, from),
                Err(error) => gate.pause_after(&error).await,
            },
        }
    }
    drop(listener);
    let all_gone = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, all_gone).await.is_err() {
        tracing::debug!(left = connections.len(), "connections cut");
    }
}

/// Counts connections on which the handshake is not done.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    total: usize,
    per_source: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection on which the handshake is not done.
#[derive(Debug)]
pub(crate) struct HalfOpenGuard {
    half_open: Arc<HalfOpen>,
    source: IpAddr,
}

impl HalfOpen {
    pub(crate) fn new(total: usize, per_source: usize) -> Self {
        Self {
            total,
            per_source,
            counts: Mutex::default(),
        }
    }

    fn enter(self: &Arc<Self>, source: IpAddr) -> Option<HalfOpenGuard> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&source).copied().unwrap_or(0);
        if all >= self.total || own >= self.per_source {
            return None;
        }
        counts.insert(source, own + 1);
        Some(HalfOpenGuard {
            half_open: Arc::clone(self),
            source,
        })
    }
}

impl Drop for HalfOpenGuard {
    fn drop(&mut self) {
        let mut counts = self
            .half_open
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = counts.get(&self.source).map_or(0, |count| count - 1);
        if left == 0 {
            counts.remove(&self.source);
        } else {
            counts.insert(self.source, left);
        }
    }
}

/// What a new connection has to pass.
struct Gate {
    sources: Buckets<IpAddr>,
    places: Arc<Semaphore>,
    warned: Option<Instant>,
}

impl Gate {
    fn new(context: &Context) -> Self {
        Self {
            sources: Buckets::new(PER_SOURCE, MAX_SOURCES, Instant::now()),
            places: Arc::new(Semaphore::new(context.limits.connections)),
            warned: None,
        }
    }

    /// Serves the connection, or closes it at once.
    fn admit(
        &mut self,
        context: &Arc<Context>,
        tasks: &mut JoinSet<()>,
        stream: TcpStream,
        from: SocketAddr,
    ) {
        context.metrics.accepted.inc();
        let source = source(from.ip());
        if !self.sources.take(source, Instant::now()) {
            return context.metrics.count_rejected(Reject::too_fast);
        }
        let Some(half_open) = context.half_open.enter(source) else {
            return context.metrics.count_rejected(Reject::too_many_half_open);
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.warn("as many connections as are allowed; new ones are refused");
            return context.metrics.count_rejected(Reject::too_many_connections);
        };
        let context = Arc::clone(context);
        tasks.spawn(async move {
            handle(&context, stream, half_open).await;
            drop(place);
        });
    }

    async fn pause_after(&mut self, error: &io::Error) {
        tracing::debug!(%error, "a connection could not be accepted");
        // Errors of the connection itself are over; those of the process come again at once.
        let of_connection = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        );
        if !of_connection {
            self.warn("connections cannot be accepted; is the limit of open files too low?");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }

    fn warn(&mut self, what: &str) {
        let now = Instant::now();
        if self
            .warned
            .is_none_or(|warned| now.duration_since(warned) > Duration::from_secs(60))
        {
            self.warned = Some(now);
            tracing::warn!("{what}");
        }
    }
}

async fn handle(context: &Context, stream: TcpStream, half_open: HalfOpenGuard) {
    let agreed = timeout(context.timing.setup, agree(context, stream)).await;
    let agreed = match agreed {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(reject)) => {
            return reject
                .into_iter()
                .for_each(|reason| context.metrics.count_rejected(reason));
        }
        Err(_) => return context.metrics.count_rejected(Reject::timeout),
    };
    let Some(agreed) = agreed else { return };
    // The future of a served connection is large, and most connections of a flood never get here.
    if let Err(error) = Box::pin(conn::serve(context, agreed, half_open)).await {
        tracing::debug!(%error, "client not let in");
        error
            .reject()
            .into_iter()
            .for_each(|reason| context.metrics.count_rejected(reason));
    }
}

/// TLS and HTTP. `None` if the request was for something else and is answered.
async fn agree(context: &Context, stream: TcpStream) -> Result<Option<Agreed>, Option<Reject>> {
    tune(&stream).map_err(|_| None)?;
    let Some(tls) = &context.tls else {
        return agree_http(context, Box::new(stream)).await;
    };
    let accepted = TlsAcceptor::from(tls.config()).accept(stream).await;
    let stream = accepted.map_err(|_| Some(Reject::bad_tls))?;
    agree_http(context, Box::new(stream)).await
}

async fn agree_http(
    context: &Context,
    mut stream: Box<dyn Transport>,
) -> Result<Option<Agreed>, Option<Reject>> {
    let (request, rest) = match http::read_request(&mut stream).await {
        Ok(read) => read,
        Err(error) => return Err(refuse(&mut stream, &error).await),
    };
    let wants_derp = request.path == "/derp" && request.method == "GET";
    match &request.upgrade {
        Upgrade::Derp if wants_derp => Ok(Some(agree_derp(context, stream, &request, rest))),
        Upgrade::WebSocket { key } if wants_derp => {
            let agreed = agree_websocket(stream, key, rest).await;
            agreed.map(Some).map_err(|_| None)
        }
        Upgrade::None if denylist::is_for(&request) => {
            // It is rare, and what it holds would make the future of every connection larger.
            let answered = Box::pin(denylist::put(context, stream, &request, rest)).await;
            answered.map(|()| None).map_err(|_| None)
        }
        Upgrade::None | Upgrade::Derp | Upgrade::WebSocket { .. } => {
            say(&mut stream, &http::respond(&request)).await;
            Ok(None)
        }
    }
}

fn agree_derp(
    context: &Context,
    stream: Box<dyn Transport>,
    request: &Request,
    rest: Vec<u8>,
) -> Agreed {
    let preamble = if request.fast_start {
        String::new()
    } else {
        http::switching_to_derp(&context.public)
    };
    Agreed {
        stream,
        buffer: FrameBuffer::with(rest),
        preamble: preamble.into_bytes(),
    }
}

async fn agree_websocket(
    mut stream: Box<dyn Transport>,
    key: &str,
    rest: Vec<u8>,
) -> io::Result<Agreed> {
    stream
        .write_all(http::switching_to_websocket(key).as_bytes())
        .await?;
    stream.flush().await?;
    let stream = WebSocketBytes::new(stream, Side::Server, rest).await;
    Ok(Agreed {
        stream: Box::new(stream),
        buffer: FrameBuffer::default(),
        preamble: Vec::new(),
    })
}

async fn refuse(stream: &mut Box<dyn Transport>, error: &HeadError) -> Option<Reject> {
    let answer = http::respond_to_error(error)?;
    say(stream, &answer).await;
    Some(Reject::bad_http)
}

/// The last words on a connection; it does not matter whether they arrive.
async fn say(stream: &mut Box<dyn Transport>, text: &str) {
    let words = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = words.await;
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_connections_are_bounded_per_source_and_in_total() {
        let half_open = Arc::new(HalfOpen::new(3, 2));
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let first = half_open.enter(one).unwrap();
        let _second = half_open.enter(one).unwrap();
        assert!(half_open.enter(one).is_none());
        let _third = half_open.enter(two).unwrap();
        assert!(half_open.enter(two).is_none());
        drop(first);
        assert!(half_open.enter(two).is_some());
    }
}
