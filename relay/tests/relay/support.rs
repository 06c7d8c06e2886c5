//! A relay in this process, and a client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_relay::{AdmitRule, Config, Server};
use derp::pass::Pass;
use derp::{BoxNonce, ClientInfo, FrameBuffer, Message, NodeKey, NodeSecret, Refusal, ServerInfo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than anything should take, shorter than a person waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) fn config() -> Config {
    Config::new("127.0.0.1:0".parse().unwrap(), AdmitRule::Any)
}

pub(crate) async fn relay() -> Server {
    Server::start(config()).await.unwrap()
}

pub(crate) fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes([seed; 32])
}

pub(crate) fn key(seed: u8) -> NodeKey {
    secret(seed).public()
}

pub(crate) const UPGRADE: &str =
    "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";

/// A connection to a relay.
pub(crate) struct Raw {
    pub(crate) stream: Box<dyn Io>,
    pub(crate) buffer: FrameBuffer,
}

impl Raw {
    /// Connects and lets the relay do its part of the upgrade.
    pub(crate) async fn upgraded(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
        let (head, rest) = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self {
            stream: Box::new(stream),
            buffer: FrameBuffer::with(rest),
        }
    }

    /// Connects as the key of this seed, up to ServerInfo.
    pub(crate) async fn joined(server: &Server, seed: u8) -> Self {
        let mut raw = Self::upgraded(server.address()).await;
        raw.handshake(server.public_key(), &secret(seed)).await;
        raw
    }

    /// Connects with a secret and a pass, up to ServerInfo.
    pub(crate) async fn shown(server: &Server, secret: &NodeSecret, pass: Option<&Pass>) -> Self {
        let mut raw = Self::upgraded(server.address()).await;
        let info = ClientInfo {
            pass: pass.map(Pass::to_string),
            ..ClientInfo::default()
        };
        let nonce = BoxNonce::random().unwrap();
        let sealed = info.seal(secret, &server.public_key(), nonce);
        raw.next().await.expect("ServerKey");
        raw.send(Message::ClientInfo { sealed: &sealed }).await;
        raw.expect_server_info(server.public_key(), secret).await;
        raw
    }

    /// The relay gives this reason and closes the connection.
    pub(crate) async fn expect_refusal(&mut self, refusal: Refusal) {
        let frame = self.next().await.expect("closed without a reason");
        assert_eq!(frame[0], 0x14, "{frame:?}");
        let text = String::from_utf8(frame[5..].to_vec()).unwrap();
        assert_eq!(Refusal::from_health(&text), Some(refusal), "{text}");
        self.expect_end().await;
    }

    pub(crate) async fn handshake(&mut self, server: NodeKey, secret: &NodeSecret) {
        assert_eq!(
            self.next().await,
            Some(Message::ServerKey { key: server }.to_vec())
        );
        self.send(Message::ClientInfo {
            sealed: &client_info(secret, &server),
        })
        .await;
        self.expect_server_info(server, secret).await;
    }

    pub(crate) async fn expect_server_info(&mut self, server: NodeKey, secret: &NodeSecret) {
        let frame = self.next().await.unwrap();
        assert_eq!(frame[0], 3, "ServerInfo is the first frame after ServerKey");
        assert_eq!(
            ServerInfo::open(&frame[5..], secret, &server),
            Ok(ServerInfo::default())
        );
    }

    pub(crate) async fn send(&mut self, message: Message<'_>) {
        self.send_bytes(&message.to_vec()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn send_packet(&mut self, to: u8, packet: &[u8]) {
        self.send(Message::SendPacket {
            destination: key(to),
            packet,
        })
        .await;
    }

    /// The next frame with its header; `None` when the relay has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        timeout(PATIENCE, self.next_patiently())
            .await
            .expect("no frame and no end")
    }

    async fn next_patiently(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = self.buffer.next_frame().unwrap() {
                return Some(Message::decode(frame).unwrap().to_vec());
            }
            let count = self.stream.read(self.buffer.space()).await.unwrap_or(0);
            if count == 0 {
                return None;
            }
            self.buffer.filled(count);
        }
    }

    pub(crate) async fn expect(&mut self, message: Message<'_>) {
        assert_eq!(self.next().await, Some(message.to_vec()), "{message:?}");
    }

    pub(crate) async fn expect_packet(&mut self, from: u8, packet: &[u8]) {
        self.expect(Message::RecvPacket {
            source: key(from),
            packet,
        })
        .await;
    }

    /// A round trip: everything sent before has been dealt with.
    pub(crate) async fn settle(&mut self) {
        self.send(Message::Ping(*b"settled?")).await;
        self.expect(Message::Pong(*b"settled?")).await;
    }

    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(self.next().await, None);
    }
}

pub(crate) fn client_info(secret: &NodeSecret, server: &NodeKey) -> Vec<u8> {
    ClientInfo::default().seal(secret, server, BoxNonce::random().unwrap())
}

/// The head of a response, and what came behind it.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).unwrap(), rest);
        }
        let count = timeout(PATIENCE, stream.read_buf(&mut bytes))
            .await
            .expect("no response")
            .unwrap();
        assert!(count > 0, "closed in the head: {bytes:?}");
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
