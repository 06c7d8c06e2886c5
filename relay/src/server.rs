//! A relay as one object: start it, ask where it listens, stop it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use derp::pass::{self, DenyList};
use derp::{Message, NodeKey, NodeSecret};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, timeout};

use crate::accept::{self, HalfOpen};
use crate::admit::{Admission, AdmitError, AdmitRule, DenyRefused};
use crate::conn::Refusals;
use crate::http;
use crate::keyfile::{self, KeyFileError};
use crate::lobby::Lobby;
use crate::metrics::{Metrics, Reject};
use crate::registry::{Member, Registry};
use crate::stun::StunServer;
use crate::tls::{Tls, TlsError};

/// How often certificates are read again.
const TLS_RELOAD: Duration = Duration::from_secs(3600);
/// Scrapes served at the same time.
const MAX_SCRAPES: usize = 8;
/// When clients come back to a relay that restarts.
const SOONEST_BACK: Duration = Duration::from_millis(200);
const LATEST_BACK: Duration = Duration::from_secs(1);
/// How long clients try to come back to a relay that restarts.
const TRY_FOR: Duration = Duration::from_secs(30);

/// What a relay is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where DERP is served; port 0 for any.
    pub listen: SocketAddr,
    /// Certificate and key; plain HTTP without.
    pub tls: Option<TlsFiles>,
    /// Where STUN is served.
    pub stun: Vec<SocketAddr>,
    /// Who is let in.
    pub admit: AdmitRule,
    /// Where the relay's key is kept; a new one at each start without.
    pub key: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Times.
    pub timing: Timing,
    /// Sizes.
    pub limits: Limits,
}

/// Certificate chain and private key, both PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two KeepAlive frames; up to a twelfth more.
    pub keepalive: Duration,
    /// For TLS and HTTP, for the greeting, and for ClientInfo.
    pub setup: Duration,
    /// How long a client may take nothing while something waits for it.
    pub write_stall: Duration,
    /// Between two looks at the admit file.
    pub reload: Duration,
    /// For how long an expired pass is still taken, because clocks differ.
    pub pass_skew: Duration,
}

/// How much there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Connections on which the handshake is not done.
    pub half_open: usize,
    /// The same, for one source address.
    pub half_open_per_source: usize,
    /// Bytes that may wait for all receivers together. Beyond it a receiver has room for no more than 64 KiB, so that
    /// never more waits than this and 64 KiB for each connection.
    pub queued_bytes: usize,
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The admit file.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {what}: {source}{}", advice(source))]
    Bind {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A relay that runs. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    address: SocketAddr,
    stun: Vec<SocketAddr>,
    metrics: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: AbortOnDrop,
    _others: JoinSet<()>,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) secret: NodeSecret,
    pub(crate) public: NodeKey,
    pub(crate) admission: Admission,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tls: Option<Tls>,
    pub(crate) half_open: Arc<HalfOpen>,
    pub(crate) lobby: Lobby,
    pub(crate) refusals: Refusals,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
}

impl Config {
    /// A relay on this address, with the usual times and sizes.
    #[must_use]
    pub fn new(listen: SocketAddr, admit: AdmitRule) -> Self {
        Self {
            listen,
            tls: None,
            stun: Vec::new(),
            admit,
            key: None,
            metrics: None,
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(60),
            setup: Duration::from_secs(10),
            write_stall: Duration::from_secs(10),
            reload: Duration::from_secs(1),
            pass_skew: pass::SKEW,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            half_open: 1024,
            half_open_per_source: 256,
            queued_bytes: 256 << 20,
        }
    }
}

impl Server {
    /// Binds everything and starts serving on the running tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StartError`] if a file is of no use or an address cannot be listened on. Nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let context = Arc::new(Context::new(&config)?);
        let listener = bind(config.listen).await?;
        let address = listener
            .local_addr()
            .map_err(|source| cannot_bind(config.listen, source))?;
        let stun = StunServer::bind(&config.stun, Arc::clone(&context.metrics)).map_err(
            |(address, source)| StartError::Bind {
                what: format!("{address} (UDP)"),
                source,
            },
        )?;
        let (stop, stopped) = watch::channel(false);
        let mut others = JoinSet::new();
        let metrics = match config.metrics {
            Some(address) => Some(serve_metrics(&context, &mut others, address).await?),
            None => None,
        };
        let stun_addresses = spawn_stun(&mut others, stun);
        spawn_reloads(&mut others, &context);
        let accepting = tokio::spawn(accept::run(Arc::clone(&context), listener, stopped));
        let accepting = AbortOnDrop(accepting);
        Ok(Self {
            context,
            address,
            stun: stun_addresses,
            metrics,
            stop,
            accepting,
            _others: others,
        })
    }

    /// Where DERP is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where STUN is served, in the order of the configuration.
    #[must_use]
    pub fn stun_addresses(&self) -> &[SocketAddr] {
        &self.stun
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The relay's key.
    #[must_use]
    pub fn public_key(&self) -> NodeKey {
        self.context.public
    }

    /// Tells all clients to come back soon, closes their connections and stops.
    pub async fn shutdown(mut self) {
        // The receiver lives as long as the task, which ends only here.
        let _ = self.stop.send(true);
        self.context.registry.count(|member| {
            member.queue.close(goodbye());
            true
        });
        let _ = (&mut self.accepting.0).await;
    }
}

impl Context {
    /// Reads the files that the configuration names.
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        let secret = match &config.key {
            Some(path) => keyfile::load_or_make(path)?,
            None => NodeSecret::generate(),
        };
        let public = secret.public();
        let tls = config
            .tls
            .clone()
            .map(|files| Tls::new(files, public))
            .transpose()?;
        let limits = config.limits;
        Ok(Self {
            public,
            secret,
            admission: Admission::new(&config.admit, config.timing.pass_skew)?,
            registry: Registry::new(limits.queued_bytes),
            metrics: Arc::new(Metrics::new()),
            tls,
            half_open: Arc::new(HalfOpen::new(limits.half_open, limits.half_open_per_source)),
            lobby: Lobby::new(Instant::now()),
            refusals: Refusals::new(Instant::now()),
            timing: config.timing,
            limits,
        })
    }

    /// Puts an owner's deny list into force.
    pub(crate) fn deny(&self, list: DenyList) -> Result<(), DenyRefused> {
        let (serial, nodes, clusters) = (list.serial(), list.nodes().len(), list.clusters().len());
        self.admission.deny(list)?;
        let closed = self.reconsider_all();
        tracing::info!(serial, nodes, clusters, closed, "deny list in force");
        Ok(())
    }

    /// Ends the connection if the client would not be let in now, or not as it was. Says when to ask again.
    pub(crate) fn reconsider(&self, member: &Member, now: SystemTime) -> Option<SystemTime> {
        if member.queue.is_closing() {
            return None;
        }
        match self
            .admission
            .judge_again(member.key(), member.grant(), now)
        {
            Ok(grant) if grant.only == member.grant().only => grant.ends,
            // It shows its pass once more, and is let in as it should be.
            Ok(_) => {
                member.queue.close(goodbye());
                None
            }
            Err(refusal) => {
                if member.queue.close(Message::Health(&refusal.to_string())) {
                    self.metrics.count_closed(Reject::of(&refusal));
                }
                None
            }
        }
    }

    /// Asks again about all clients, and says how many of them have to go.
    fn reconsider_all(&self) -> usize {
        let now = SystemTime::now();
        self.registry.count(|member| {
            let before = member.queue.is_closing();
            self.reconsider(member, now);
            !before && member.queue.is_closing()
        })
    }

    fn reload_admission(&self, last_error: &mut String) {
        match self.admission.reload() {
            Ok(changed) => {
                last_error.clear();
                if changed {
                    let closed = self.reconsider_all();
                    tracing::info!(closed, "admit list changed");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if *last_error != text {
                    tracing::warn!(%error, "the admit list in force stays");
                    *last_error = text;
                }
            }
        }
    }
}

/// A task that does not outlive its handle.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| cannot_bind(address, source))
}

/// What clients are told when the relay stops: not all of them are to come back at the same moment.
fn goodbye() -> Message<'static> {
    Message::Restarting {
        reconnect_in: rand::random_range(SOONEST_BACK..=LATEST_BACK),
        try_for: TRY_FOR,
    }
}

/// What to do about an address that cannot be bound, where that can be said.
fn advice(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "; something listens there already: stop it, or give another port"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "; give an address that this machine has"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; ports below 1024 need root or CAP_NET_BIND_SERVICE: give another port, or that capability"
    } else {
        ""
    }
}

fn cannot_bind(address: SocketAddr, source: io::Error) -> StartError {
    StartError::Bind {
        what: address.to_string(),
        source,
    }
}

fn spawn_stun(tasks: &mut JoinSet<()>, stun: StunServer) -> Vec<SocketAddr> {
    let stun = Arc::new(stun);
    let addresses = stun.addresses();
    for index in 0..addresses.len() {
        let stun = Arc::clone(&stun);
        tasks.spawn(async move { stun.serve(index).await });
    }
    addresses
}

fn spawn_reloads(tasks: &mut JoinSet<()>, context: &Arc<Context>) {
    if context.admission.can_change() {
        tasks.spawn(reload_admission(Arc::clone(context)));
    }
    if context.tls.is_some() {
        tasks.spawn(reload_tls(Arc::clone(context)));
    }
}

async fn reload_admission(context: Arc<Context>) {
    let mut ticks = interval(context.timing.reload);
    let mut last_error = String::new();
    loop {
        ticks.tick().await;
        context.reload_admission(&mut last_error);
    }
}

async fn reload_tls(context: Arc<Context>) {
    loop {
        tokio::time::sleep(TLS_RELOAD).await;
        if let Some(Err(error)) = context.tls.as_ref().map(Tls::reload) {
            tracing::warn!(%error, "the certificate in force stays");
        }
    }
}

async fn serve_metrics(
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
    address: SocketAddr,
) -> Result<SocketAddr, StartError> {
    let listener = bind(address).await?;
    let bound = listener
        .local_addr()
        .map_err(|source| cannot_bind(address, source))?;
    tasks.spawn(scrapes(Arc::clone(context), listener));
    Ok(bound)
}

async fn scrapes(context: Arc<Context>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_SCRAPES));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let _ = timeout(context.timing.setup, scrape(&context, stream)).await;
            drop(place);
        });
    }
}

async fn scrape(context: &Context, mut stream: TcpStream) -> io::Result<()> {
    if http::read_request(&mut stream).await.is_err() {
        return Ok(());
    }
    let text = context.metrics.text(context.registry.load());
    stream
        .write_all(http::metrics_response(&text).as_bytes())
        .await?;
    stream.shutdown().await
}
