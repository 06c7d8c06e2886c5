//! QUIC whose datagrams ride on relays, between two identities that are known beforehand.
//!
//! TLS carries the identities as raw public keys (RFC 7250). Each connection is pinned to the one identity whose address
//! on relays is the other end, in both directions and before the handshake begins, so a relay that lies about a sender
//! gets nowhere.

mod socket;
mod tls;

pub(crate) use socket::{LinkInbox, Switch};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use derp::{ClusterIdentity, ClusterSecret};
use quinn::rustls::pki_types::CertificateDer;
use quinn::{
    ClientConfig, ConnectError, Connection, ConnectionError, EndpointConfig, IdleTimeout, Incoming,
    ReadError, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
    TransportErrorCode, VarInt,
};
use thiserror::Error;
use tokio::time::timeout;

use crate::message::{CloseReason, DecodeError, MessageBuffer};
use socket::{MAX_DATAGRAM, RelaySocket};
use tls::Tls;

/// What is sent in one datagram. Relays take 64 KiB, and fewer datagrams are less work for all.
const MTU: u16 = 8192;
/// What may arrive of a stream before it is read.
const STREAM_WINDOW: u32 = 512 << 10;
const SEND_WINDOW: u64 = 1 << 20;
/// Connections that nobody has answered yet, of all peers, and what may arrive on them.
const MAX_INCOMING: usize = 64;
const INCOMING_BYTES: u64 = 64 << 10;
/// The alert by which TLS says that a key is not the expected one (RFC 8446: access_denied).
const ACCESS_DENIED: u8 = 49;
/// How many keep-alive intervals nothing may come from a peer before the relay it was heard on is doubted.
const DOUBT: f64 = 1.5;
/// What TLS needs as a name. Nobody looks at it: the key counts.
const SERVER_NAME: &str = "cluster.invalid";

/// Why a cluster cannot speak to others at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// TLS with this key.
    #[error("no TLS: {0}")]
    Tls(#[from] quinn::rustls::Error),
    /// QUIC on this TLS.
    #[error("no QUIC: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The bounds of QUIC.
    #[error("no QUIC: {0}")]
    Bounds(#[from] quinn::ConfigError),
    /// The times of QUIC.
    #[error("no QUIC: {0}")]
    Times(#[from] quinn::VarIntBoundsExceeded),
    /// Its runtime.
    #[error("no QUIC: {0}")]
    Io(#[from] std::io::Error),
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("no answer in time")]
    Timeout,
    #[error("the other end is not who it should be")]
    WrongKey,
}

/// How a connection came to its end, as far as anybody has to care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The other end said why.
    Told(CloseReason),
    /// The other end does not have the pinned key.
    WrongKey,
    /// The other end expects another key than ours.
    RefusedKey,
    /// We closed it.
    Closed,
    /// Nothing arrives any more.
    Lost,
    /// The other end has no room for another connection.
    Full,
    /// QUIC or TLS could not go on.
    Broken,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkTiming {
    pub(crate) keep_alive: Duration,
    pub(crate) idle: Duration,
    pub(crate) handshake: Duration,
}

/// A connection and its one stream, on which the other end has yet to say something.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

/// Why there is no message on a stream.
#[derive(Debug, Error)]
pub(crate) enum FrameError {
    #[error("the connection ended: {0:?}")]
    Lost(LinkEnd),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the other end stopped speaking")]
    Finished,
}

/// Our end of all connections.
#[derive(Debug)]
pub(crate) struct Endpoint {
    inner: quinn::Endpoint,
    tls: Tls,
    timing: LinkTiming,
    switch: Arc<Switch>,
}

impl Endpoint {
    /// Must be called on a tokio runtime.
    pub(crate) fn new(secret: &ClusterSecret, timing: LinkTiming) -> Result<Self, SetupError> {
        let tls = Tls::new(secret)?;
        let switch = Arc::new(Switch::new(timing.keep_alive.mul_f64(DOUBT)));
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(MAX_DATAGRAM)?;
        // Incoming connections get a configuration of their own; this one lets nobody but ourselves in.
        let mut server = ServerConfig::with_crypto(tls.server(secret.identity())?);
        server
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES * 16);
        let inner = quinn::Endpoint::new_with_abstract_socket(
            config,
            Some(server),
            Arc::new(RelaySocket::new(Arc::clone(&switch))),
            Arc::new(TokioRuntime),
        )?;
        Ok(Self {
            inner,
            tls,
            timing,
            switch,
        })
    }

    /// Where keys become addresses and datagrams find their relay.
    pub(crate) fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// The next connection from a pinned key, and its address.
    pub(crate) async fn accept(&self) -> Option<(SocketAddr, Incoming)> {
        let incoming = self.inner.accept().await?;
        Some((incoming.remote_address(), incoming))
    }

    /// Connects to a peer at its address.
    pub(crate) async fn dial(
        &self,
        peer: ClusterIdentity,
        address: SocketAddr,
    ) -> Result<Link, LinkError> {
        self.switch.doubt(address);
        let mut config = ClientConfig::new(self.tls.client(peer)?);
        config.transport_config(Arc::new(self.transport()?));
        let connecting = self.inner.connect_with(config, address, SERVER_NAME)?;
        let connect = async {
            let connection = self.checked(connecting.await?, peer)?;
            let (send, receive) = connection.open_bi().await?;
            Ok(Link {
                connection,
                send,
                receive,
            })
        };
        self.in_time(connect).await
    }

    /// Lets a peer connect.
    pub(crate) async fn answer(
        &self,
        incoming: Incoming,
        peer: ClusterIdentity,
    ) -> Result<Link, LinkError> {
        let mut config = ServerConfig::with_crypto(self.tls.server(peer)?);
        config
            .transport_config(Arc::new(self.transport()?))
            .migration(false);
        let connecting = incoming.accept_with(Arc::new(config))?;
        let connect = async {
            let connection = self.checked(connecting.await?, peer)?;
            let (send, receive) = connection.accept_bi().await?;
            Ok(Link {
                connection,
                send,
                receive,
            })
        };
        self.in_time(connect).await
    }

    /// Tells everybody that we go away, and waits until they are told, for a second at most.
    pub(crate) async fn close(&self, reason: CloseReason) {
        self.inner.close(code(reason), b"");
        let _ = timeout(Duration::from_secs(1), self.inner.wait_idle()).await;
    }

    async fn in_time(
        &self,
        connect: impl Future<Output = Result<Link, LinkError>>,
    ) -> Result<Link, LinkError> {
        let connected = timeout(self.timing.handshake, connect).await;
        connected.unwrap_or(Err(LinkError::Timeout))
    }

    /// The verifier has seen the key already. This holds even if it were never asked.
    fn checked(
        &self,
        connection: Connection,
        peer: ClusterIdentity,
    ) -> Result<Connection, LinkError> {
        let chain = connection.peer_identity();
        let chain = chain.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let key = chain.as_deref().and_then(|chain| chain.first());
        let is_pinned = key.is_some_and(|key| key.as_ref() == peer.to_spki());
        let relay_key = self.switch.key_of(connection.remote_address());
        if is_pinned && relay_key == Some(peer.relay_key()) {
            return Ok(connection);
        }
        close(&connection, CloseReason::NotAdmitted);
        Err(LinkError::WrongKey)
    }

    fn transport(&self) -> Result<TransportConfig, SetupError> {
        let mut config = TransportConfig::default();
        config
            .max_idle_timeout(Some(IdleTimeout::try_from(self.timing.idle)?))
            .keep_alive_interval(Some(self.timing.keep_alive))
            .initial_rtt(self.switch.rtt())
            .initial_mtu(MTU)
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(STREAM_WINDOW))
            .send_window(SEND_WINDOW)
            .datagram_receive_buffer_size(None);
        Ok(config)
    }
}

impl Link {
    /// The bytes of the next message, which may be that long. For conversations in which nothing comes after it.
    pub(crate) async fn read_frame(&mut self, longest: usize) -> Result<Vec<u8>, FrameError> {
        let mut buffer = MessageBuffer::default();
        loop {
            if let Some(frame) = buffer.next_frame(longest)? {
                return Ok(frame.to_vec());
            }
            let chunk = self.receive.read_chunk(longest, true).await;
            let chunk = chunk.map_err(|error| FrameError::Lost(LinkEnd::from(&error)))?;
            buffer.push(&chunk.ok_or(FrameError::Finished)?.bytes);
        }
    }
}

impl From<&ReadError> for LinkEnd {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Broken,
        }
    }
}

impl From<&LinkError> for LinkEnd {
    fn from(error: &LinkError) -> Self {
        match error {
            LinkError::Setup(_) | LinkError::Connect(_) => Self::Broken,
            LinkError::Connection(error) => error.into(),
            LinkError::Timeout => Self::Lost,
            LinkError::WrongKey => Self::WrongKey,
        }
    }
}

impl From<&ConnectionError> for LinkEnd {
    fn from(error: &ConnectionError) -> Self {
        let denied = TransportErrorCode::crypto(ACCESS_DENIED);
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::Told(CloseReason::from_code(close.error_code.into_inner()))
            }
            ConnectionError::TransportError(error) if error.code == denied => Self::WrongKey,
            ConnectionError::ConnectionClosed(close) if close.error_code == denied => {
                Self::RefusedKey
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Full
            }
            ConnectionError::TimedOut | ConnectionError::Reset => Self::Lost,
            ConnectionError::LocallyClosed => Self::Closed,
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::CidsExhausted => Self::Broken,
        }
    }
}

/// Ends a connection and says why.
pub(crate) fn close(connection: &Connection, reason: CloseReason) {
    connection.close(code(reason), b"");
}

fn code(reason: CloseReason) -> VarInt {
    VarInt::from_u64(reason.code()).unwrap_or(VarInt::MAX)
}
