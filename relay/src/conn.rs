//! One client's connection, from the greeting to its end.

mod read;
mod write;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use derp::{
    BoxNonce, ClientInfo, FrameBuffer, FrameError, Message, NoRandomness, NodeKey, OpenError,
    Refusal, ServerInfo,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::accept::HalfOpenGuard;
use crate::bucket::{Buckets, Rate};
use crate::metrics::{DropReason, Reject};
use crate::registry::Member;
use crate::server::Context;

/// How long a connection that we end stays open for reading, so that the other end sees our last frame.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 1 << 20;
/// Between two looks at whether a pass has ended.
const MAX_WATCH: Duration = Duration::from_secs(60);
const MIN_WATCH: Duration = Duration::from_millis(10);

/// Anything that carries bytes both ways.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Tells of keys that were refused, so that their owners can be admitted: each once in a while, however often it knocks.
#[derive(Debug)]
pub(crate) struct Refusals(Mutex<Buckets<NodeKey>>);

impl Refusals {
    const RATE: Rate = Rate {
        per_second: 1.0 / 600.0,
        burst: 1.0,
    };
    const KEYS: usize = 1_024;

    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Buckets::new(Self::RATE, Self::KEYS, now)))
    }

    fn note(&self, key: NodeKey, refusal: &Refusal, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.take(key, now) {
            tracing::info!(%refusal, "a key was refused; at level debug it is named");
            tracing::debug!(%key, %refusal, "this key was refused");
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnError {
    #[error("closed")]
    Closed,
    #[error("not in time")]
    Timeout,
    #[error("nothing could be written for too long")]
    Stalled,
    #[error("the first frame is not ClientInfo")]
    NoClientInfo,
    #[error("{0}")]
    Refused(Refusal),
    #[error("a frame for relays of one mesh, without a mesh key")]
    NoMeshKey,
    #[error("a second ClientInfo")]
    SecondClientInfo,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnError {
    /// The label to count it by, as the reason why a client was not let in.
    pub(crate) fn reject(&self) -> Option<Reject> {
        match self {
            Self::Refused(refusal) => Some(Reject::of(refusal)),
            Self::Timeout => Some(Reject::timeout),
            Self::NoClientInfo | Self::Open(_) | Self::Frame(_) => Some(Reject::bad_handshake),
            Self::Closed
            | Self::Stalled
            | Self::NoMeshKey
            | Self::SecondClientInfo
            | Self::Randomness(_)
            | Self::Io(_) => None,
        }
    }
}

/// A transport on which DERP has been agreed.
pub(crate) struct Agreed {
    pub(crate) stream: Box<dyn Transport>,
    /// What has been read already.
    pub(crate) buffer: FrameBuffer,
    /// What is to be written before the first frame.
    pub(crate) preamble: Vec<u8>,
}

/// Greets the client, lets it in or not, and serves it until the connection ends.
///
/// # Errors
///
/// Why the client was not let in. How the connection of one that was let in ends is no error.
pub(crate) async fn serve(
    context: &Context,
    agreed: Agreed,
    half_open: HalfOpenGuard,
) -> Result<(), ConnError> {
    let Agreed {
        mut stream,
        mut buffer,
        preamble,
    } = agreed;
    let setup = context.timing.setup;
    timeout(setup, greet(context, &mut stream, preamble))
        .await
        .map_err(|_| ConnError::Timeout)??;
    let client = timeout(setup, read_client_info(context, &mut stream, &mut buffer));
    let (key, pass) = client.await.map_err(|_| ConnError::Timeout)??;
    let info = server_info(context, &key)?;
    let (admission, now) = (&context.admission, SystemTime::now());
    let grant = match admission.judge(&key, pass.as_deref(), now) {
        Ok(grant) => grant,
        Err(refusal) => {
            context.refusals.note(key, &refusal, Instant::now());
            return refuse(stream, info, refusal).await;
        }
    };
    // A stranger to whom we are saying why counts until it is gone.
    drop(half_open);
    context.metrics.admitted.inc();
    tracing::debug!(?key, "client connected");
    let now = Instant::now();
    let member = context.registry.register(now, key, grant, info);
    // The rules may have changed between the question and the registration.
    context.reconsider(&member, SystemTime::now());
    let reason = run(context, &member, stream, buffer).await;
    tracing::debug!(?key, %reason, "client gone");
    Ok(())
}

/// Serves a client that is registered, until its connection ends; says why it did.
async fn run(
    context: &Context,
    member: &Arc<Member>,
    stream: Box<dyn Transport>,
    buffer: FrameBuffer,
) -> ConnError {
    let (reader, writer) = tokio::io::split(stream);
    let mut reading = read::Reading::new(context, member, buffer);
    let result = tokio::select! {
        result = reading.run(reader) => result,
        result = write::run(context, member, writer) => result,
        () = watch_pass(context, member) => Ok(()),
    };
    context.registry.unregister(member, reading.into_reached());
    context
        .metrics
        .count_dropped(DropReason::gone_disconnected, member.queue.packets());
    result.err().unwrap_or(ConnError::Closed)
}

/// Ends the connection when its pass ends; never returns. The clock of the wall may be set, so that a long wait is taken
/// in steps.
async fn watch_pass(context: &Context, member: &Member) {
    while member.grant().has_pass() && !member.queue.is_closing() {
        let now = SystemTime::now();
        let ends = context.reconsider(member, now);
        let left = ends.map_or(MAX_WATCH, |ends| {
            ends.duration_since(now).unwrap_or_default()
        });
        tokio::time::sleep(left.clamp(MIN_WATCH, MAX_WATCH)).await;
    }
    std::future::pending().await
}

async fn greet(
    context: &Context,
    stream: &mut Box<dyn Transport>,
    mut bytes: Vec<u8>,
) -> Result<(), ConnError> {
    Message::ServerKey {
        key: context.public,
    }
    .encode(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_client_info(
    context: &Context,
    stream: &mut Box<dyn Transport>,
    buffer: &mut FrameBuffer,
) -> Result<(NodeKey, Option<String>), ConnError> {
    loop {
        if let Some(frame) = buffer.next_frame()? {
            let Message::ClientInfo { sealed } = Message::decode(frame)? else {
                return Err(ConnError::NoClientInfo);
            };
            let (key, info) = ClientInfo::open(sealed, &context.secret)?;
            return Ok((key, info.pass));
        }
        let count = stream.read(buffer.space()).await?;
        if count == 0 {
            return Err(ConnError::Closed);
        }
        buffer.filled(count);
    }
}

fn server_info(context: &Context, client: &NodeKey) -> Result<Vec<u8>, ConnError> {
    let sealed = ServerInfo::default().seal(&context.secret, client, BoxNonce::random()?);
    Ok(Message::ServerInfo { sealed: &sealed }.to_vec())
}

async fn refuse(
    mut stream: Box<dyn Transport>,
    mut bytes: Vec<u8>,
    refusal: Refusal,
) -> Result<(), ConnError> {
    Message::Health(&refusal.to_string()).encode(&mut bytes);
    let tell = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        linger(&mut stream).await
    };
    // Whatever goes wrong here, the client is not let in.
    let _ = timeout(LINGER, tell).await;
    Err(ConnError::Refused(refusal))
}

/// Reads to the end: closing with bytes unread would make the kernel send a reset, and our last words be lost.
pub(crate) async fn linger(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut total = 0;
    let mut scratch = [0; 1024];
    while total < MAX_LINGER_BYTES {
        let count = stream.read(&mut scratch).await?;
        if count == 0 {
            break;
        }
        total += count;
    }
    Ok(())
}
