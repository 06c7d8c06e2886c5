//! From a URL to a connection on which the handshake is done.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Config;
use super::tls::{self, TlsSetupError};
use super::upgrade::{self, Connection, Greeting};
use crate::frame::{FrameError, FrameType};
use crate::handshake::OpenError;
use crate::key::{NoRandomness, NodeKey};
use crate::url::RelayUrl;

/// For everything from the name lookup to ServerInfo, in the first dial; the next ones that get no answer have twice as
/// long each, up to [`LONGEST_DIAL`]. What swallowed the connection before may swallow the next dial too, and be well again
/// a moment later; a relay that is far away, or whose name takes long, is reached all the same.
const FIRST_DIAL: Duration = Duration::from_secs(3);
const LONGEST_DIAL: Duration = Duration::from_secs(10);
/// How much later each further address is tried.
const STAGGER: Duration = Duration::from_millis(250);
const MAX_ADDRESSES: usize = 8;
/// How long sent bytes may stay without acknowledgement.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Any transport: TCP, TLS, or a WebSocket on one of them.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// How to ask for DERP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// In one flight if the relay's certificates allow it.
    Fast,
    /// With the ordinary upgrade.
    Plain,
    /// In a WebSocket, for proxies that pass no other upgrade.
    WebSocket,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no connection within {} s", .patience.as_secs())]
    Timeout { patience: Duration },
    #[error("given up for a new attempt")]
    Abandoned,
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error(transparent)]
    TlsSetup(#[from] TlsSetupError),
    #[error("the host is no name for TLS")]
    TlsName,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the relay closed the connection")]
    Closed,
    #[error("not an HTTP response")]
    Http,
    #[error("the upgrade to DERP was answered with HTTP status {status}")]
    Upgrade { status: u16 },
    #[error("the upgrade to a WebSocket was answered with HTTP status {status}")]
    WebSocket { status: u16 },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("a {kind:?} frame in the handshake")]
    Unexpected { kind: FrameType },
    #[error("the relay refuses us: {reason}")]
    Refused { reason: String },
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Dials one relay again and again, and remembers which manner of asking works.
pub(super) struct Dialer {
    /// What the relay is called.
    url: RelayUrl,
    /// Where it is.
    address: RelayUrl,
    us: Greeting,
    tls: Option<Result<Arc<ClientConfig>, TlsSetupError>>,
    manner: Manner,
    patience: Duration,
}

impl Dialer {
    pub(super) fn new(config: &Config) -> Self {
        let address = config.dial.as_ref().unwrap_or(&config.url);
        let tls = address
            .is_tls()
            .then(|| tls::client_config(config.ca_bundle.as_deref()));
        Self {
            url: config.url.clone(),
            address: address.clone(),
            us: Greeting {
                secret: config.secret.clone(),
                pass: None,
            },
            tls,
            manner: Manner::Fast,
            patience: FIRST_DIAL,
        }
    }

    /// Shows this pass in one attempt, or two where the first is answered by something that does not know DERP.
    pub(super) async fn dial(&mut self, pass: Option<String>) -> Result<Connection, DialError> {
        self.us.pass = pass;
        let patience = self.patience;
        let attempt = async {
            let first = self.attempt().await;
            match first {
                Err(DialError::Upgrade { .. }) => {
                    self.manner = Manner::WebSocket;
                    self.attempt().await
                }
                other => other,
            }
        };
        let result = tokio::time::timeout(patience, attempt)
            .await
            .unwrap_or(Err(DialError::Timeout { patience }));
        self.learn(result.as_ref().err());
        result
    }

    /// What the end of a dial says about the next one.
    fn learn(&mut self, error: Option<&DialError>) {
        self.patience = match error {
            Some(DialError::Timeout { patience }) => (*patience * 2).min(LONGEST_DIAL),
            Some(_) | None => FIRST_DIAL,
        };
        if let Some(error) = error {
            self.manner = self.manner.after(error);
        }
    }

    async fn attempt(&self) -> Result<Connection, DialError> {
        let tcp = connect_tcp(&self.address).await?;
        let (stream, early_key) = self.secure(tcp).await?;
        let authority = self.url.authority();
        match (self.manner, early_key) {
            (Manner::Fast, Some(key)) => {
                upgrade::fast_start(stream, &authority, &self.us, key).await
            }
            (Manner::Fast | Manner::Plain, _) => {
                upgrade::upgrade(stream, &authority, &self.us).await
            }
            (Manner::WebSocket, _) => upgrade::websocket(stream, &authority, &self.us).await,
        }
    }

    async fn secure(
        &self,
        tcp: TcpStream,
    ) -> Result<(Box<dyn Transport>, Option<NodeKey>), DialError> {
        let Some(config) = &self.tls else {
            return Ok((Box::new(tcp), None));
        };
        let config = config.clone()?;
        let name = tls::server_name(&self.url).ok_or(DialError::TlsName)?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(DialError::Tls)?;
        let early_key = tls::early_server_key(stream.get_ref().1);
        Ok((Box::new(stream), early_key))
    }
}

impl Manner {
    /// What to try after a failure: errors of HTTP or DERP may come from something in between.
    fn after(self, error: &DialError) -> Self {
        match error {
            DialError::Upgrade { .. } => Self::WebSocket,
            DialError::WebSocket { .. } => Self::Fast,
            DialError::Http
            | DialError::Frame(_)
            | DialError::Open(_)
            | DialError::Unexpected { .. }
            | DialError::Closed => self.other(),
            DialError::Timeout { .. }
            | DialError::Abandoned
            | DialError::Resolve(_)
            | DialError::NoAddress
            | DialError::TlsSetup(_)
            | DialError::TlsName
            | DialError::Tls(_)
            | DialError::Io(_)
            | DialError::Refused { .. }
            | DialError::Randomness(_) => self,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Fast => Self::Plain,
            Self::Plain | Self::WebSocket => Self::Fast,
        }
    }
}

async fn connect_tcp(url: &RelayUrl) -> Result<TcpStream, DialError> {
    let addresses = resolve(url).await?;
    let mut attempts = JoinSet::new();
    for (delay, address) in
        std::iter::successors(Some(Duration::ZERO), |delay| Some(*delay + STAGGER)).zip(addresses)
    {
        attempts.spawn(async move {
            tokio::time::sleep(delay).await;
            TcpStream::connect(address).await
        });
    }
    let mut failure = DialError::NoAddress;
    while let Some(joined) = attempts.join_next().await {
        match joined.map_err(io::Error::other).flatten() {
            Ok(stream) => {
                tune(&stream)?;
                return Ok(stream);
            }
            Err(error) => failure = DialError::Io(error),
        }
    }
    Err(failure)
}

async fn resolve(url: &RelayUrl) -> Result<Vec<SocketAddr>, DialError> {
    if let Some(address) = url.address() {
        return Ok(vec![SocketAddr::new(address, url.port())]);
    }
    let found = tokio::net::lookup_host((url.host(), url.port())).await;
    Ok(interleave(found.map_err(DialError::Resolve)?))
}

/// Takes turns between the families, beginning with the one named first.
fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let all: Vec<SocketAddr> = addresses.collect();
    let first_v6 = all.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut two): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|address| address.is_ipv6() == first_v6);
    one.reverse();
    two.reverse();
    let mut turns = Vec::new();
    while turns.len() < MAX_ADDRESSES && !(one.is_empty() && two.is_empty()) {
        turns.extend(one.pop());
        turns.extend(two.pop());
    }
    turns
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses =
            ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"].map(|text| text.parse().unwrap());
        let turns = interleave(addresses.into_iter());
        assert_eq!(turns, [addresses[0], addresses[2], addresses[1]]);
    }

    #[test]
    fn a_refused_upgrade_leads_to_a_websocket_and_back() {
        let manner = Manner::Fast.after(&DialError::Upgrade { status: 400 });
        assert_eq!(manner, Manner::WebSocket);
        assert_eq!(
            manner.after(&DialError::WebSocket { status: 400 }),
            Manner::Fast
        );
        assert_eq!(Manner::Fast.after(&DialError::Closed), Manner::Plain);
        assert_eq!(
            Manner::WebSocket.after(&DialError::Abandoned),
            Manner::WebSocket
        );
    }

    #[test]
    fn dials_without_an_answer_get_longer_and_an_answer_makes_them_short_again() {
        let secret = crate::key::NodeSecret::from_bytes([1; 32]);
        let mut dialer = Dialer::new(&Config::new("http://192.0.2.1".parse().unwrap(), secret));
        let mut spent = Vec::new();
        for _ in 0..4 {
            let patience = dialer.patience;
            spent.push(patience.as_secs());
            dialer.learn(Some(&DialError::Timeout { patience }));
        }
        assert_eq!(spent, [3, 6, 10, 10]);
        dialer.learn(Some(&DialError::Closed));
        assert_eq!(
            (dialer.patience, dialer.manner),
            (FIRST_DIAL, Manner::Plain)
        );
    }
}
