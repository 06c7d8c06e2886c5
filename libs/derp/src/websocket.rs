//! A stream of bytes carried in the binary messages of a WebSocket (RFC 6455).
//!
//! Message boundaries mean nothing. Everything is bounded: a message is at most 1 MiB, from a client 256 KiB, because a
//! server has many.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
pub use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// The sub-protocol that means DERP.
pub const PROTOCOL: &str = "derp";

/// The longest message that a client takes.
const MAX_MESSAGE: usize = 1 << 20;
/// The longest message that a server takes, and that either end sends.
const MAX_SENT: usize = 256 << 10;
const BUFFER: usize = 16 << 10;

/// Which end of a WebSocket we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that asked for the upgrade; it masks what it sends.
    Client,
    /// The end that granted it.
    Server,
}

/// The bytes in the binary messages of a WebSocket.
#[derive(Debug)]
pub struct WebSocketBytes<S> {
    inner: WebSocketStream<S>,
    received: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// Takes a stream on which the upgrade has been agreed, and what was read from it beyond the HTTP head.
    pub async fn new(stream: S, side: Side, already_read: Vec<u8>) -> Self {
        let (role, most) = match side {
            Side::Client => (Role::Client, MAX_MESSAGE),
            Side::Server => (Role::Server, MAX_SENT),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(4 * MAX_MESSAGE)
            .max_message_size(Some(most))
            .max_frame_size(Some(most));
        let inner =
            WebSocketStream::from_partially_read(stream, already_read, role, Some(config)).await;
        Self {
            inner,
            received: Bytes::new(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let count = self.received.len().min(buf.remaining());
        buf.put_slice(&self.received.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(into_io)?;
        let count = buf.len().min(MAX_SENT);
        let message = Message::Binary(Bytes::copy_from_slice(buf.get(..count).unwrap_or_default()));
        Pin::new(&mut self.inner)
            .start_send(message)
            .map_err(into_io)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(into_io)
    }
}

fn into_io(error: Error) -> io::Error {
    if let Error::Io(error) = error {
        return error;
    }
    io::Error::other(error)
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use futures_util::SinkExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_server_refuses_a_message_that_is_too_long() {
        let (left, right) = tokio::io::duplex(1 << 20);
        let mut left = WebSocketBytes::new(left, Side::Client, Vec::new()).await;
        let mut right = WebSocketBytes::new(right, Side::Server, Vec::new()).await;
        let most = Message::Binary(vec![7; MAX_SENT].into());
        left.inner.send(most).await.unwrap();
        right.read_exact(&mut vec![0; MAX_SENT]).await.unwrap();
        let more = Message::Binary(vec![7; MAX_SENT + 1].into());
        left.inner.send(more).await.unwrap();
        assert!(right.read(&mut [0; 10]).await.is_err());
    }

    #[tokio::test]
    async fn carries_a_stream_both_ways() {
        let (left, right) = tokio::io::duplex(1000);
        let mut left = WebSocketBytes::new(left, Side::Client, Vec::new()).await;
        let mut right = WebSocketBytes::new(right, Side::Server, Vec::new()).await;
        let sent = vec![7; 700_000];
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            left.write_all(&sent).await.unwrap();
            left.flush().await.unwrap();
            let mut answer = [0; 2];
            left.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut got = vec![0; expected.len()];
        right.read_exact(&mut got).await.unwrap();
        right.write_all(b"ok").await.unwrap();
        right.flush().await.unwrap();
        assert_eq!(writer.await.unwrap(), *b"ok");
        assert_eq!(got, expected);
    }
}
