//! From a byte stream to DERP: the HTTP upgrade and the handshake.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::dial::{DialError, Transport};
use crate::frame::{FrameBuffer, Message};
use crate::handshake::{BoxNonce, ClientInfo, ServerInfo};
use crate::key::{NodeKey, NodeSecret};
use crate::websocket::{PROTOCOL, Side, WebSocketBytes, derive_accept_key};

const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// A connection on which the handshake is done.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Transport>,
    pub(super) server: NodeKey,
    /// What has been read beyond the handshake.
    pub(super) buffer: FrameBuffer,
}

/// Who we are, and by whose leave we come.
pub(super) struct Greeting {
    pub(super) secret: NodeSecret,
    pub(super) pass: Option<String>,
}

impl Greeting {
    fn client_info(&self, server: &NodeKey, out: &mut Vec<u8>) -> Result<(), DialError> {
        let info = ClientInfo {
            pass: self.pass.clone(),
            ..ClientInfo::default()
        };
        let sealed = info.seal(&self.secret, server, BoxNonce::random()?);
        Message::ClientInfo { sealed: &sealed }.encode(out);
        Ok(())
    }
}

/// Asks for DERP and waits for the 101.
pub(super) async fn upgrade(
    mut stream: Box<dyn Transport>,
    authority: &str,
    us: &Greeting,
) -> Result<Connection, DialError> {
    stream
        .write_all(derp_request(authority, "").as_bytes())
        .await?;
    stream.flush().await?;
    let (response, rest) = read_response(&mut stream).await?;
    if response.status != 101 {
        return Err(DialError::Upgrade {
            status: response.status,
        });
    }
    handshake(stream, FrameBuffer::with(rest), us, None).await
}

/// Asks for DERP and greets in the same flight: the relay's key is known from its certificates.
pub(super) async fn fast_start(
    mut stream: Box<dyn Transport>,
    authority: &str,
    us: &Greeting,
    server: NodeKey,
) -> Result<Connection, DialError> {
    let mut flight = derp_request(authority, "Derp-Fast-Start: 1\r\n").into_bytes();
    us.client_info(&server, &mut flight)?;
    stream.write_all(&flight).await?;
    stream.flush().await?;
    handshake(stream, FrameBuffer::default(), us, Some(server)).await
}

/// Asks for a WebSocket that carries DERP.
pub(super) async fn websocket(
    mut stream: Box<dyn Transport>,
    authority: &str,
    us: &Greeting,
) -> Result<Connection, DialError> {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = format!(
        "GET /derp HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (response, rest) = read_response(&mut stream).await?;
    let accepted = response.accept.as_deref() == Some(derive_accept_key(key.as_bytes()).as_str());
    if response.status != 101 || !accepted {
        return Err(DialError::WebSocket {
            status: response.status,
        });
    }
    let stream = WebSocketBytes::new(stream, Side::Client, rest).await;
    handshake(Box::new(stream), FrameBuffer::default(), us, None).await
}

/// Exchanges ServerKey, ClientInfo and ServerInfo. With `greeted`, ClientInfo is already on its way.
async fn handshake(
    mut stream: Box<dyn Transport>,
    mut buffer: FrameBuffer,
    us: &Greeting,
    greeted: Option<NodeKey>,
) -> Result<Connection, DialError> {
    let mut server = greeted;
    loop {
        let Some(frame) = buffer.next_frame()? else {
            fill(&mut stream, &mut buffer).await?;
            continue;
        };
        match (Message::decode(frame)?, server) {
            (Message::ServerKey { key }, None) => {
                let mut flight = Vec::new();
                us.client_info(&key, &mut flight)?;
                stream.write_all(&flight).await?;
                stream.flush().await?;
                server = Some(key);
            }
            (Message::ServerKey { key }, Some(known)) if key == known => {}
            (Message::ServerInfo { sealed }, Some(server)) => {
                ServerInfo::open(sealed, &us.secret, &server)?;
                refuse_if_told(&mut buffer)?;
                return Ok(Connection {
                    stream,
                    server,
                    buffer,
                });
            }
            (message, _) => {
                return Err(DialError::Unexpected {
                    kind: message.kind(),
                });
            }
        }
    }
}

/// A relay that does not want us says why right behind its ServerInfo, before it closes.
fn refuse_if_told(buffer: &mut FrameBuffer) -> Result<(), DialError> {
    let ahead = buffer.remaining().to_vec();
    let Some(frame) = FrameBuffer::with(ahead)
        .next_frame()?
        .map(Message::decode)
        .transpose()?
        .map(health)
    else {
        return Ok(());
    };
    frame.map_or(Ok(()), |reason| Err(DialError::Refused { reason }))
}

fn health(message: Message<'_>) -> Option<String> {
    if let Message::Health(reason) = message {
        return Some(reason.to_owned()).filter(|reason| !reason.is_empty());
    }
    None
}

async fn fill(stream: &mut Box<dyn Transport>, buffer: &mut FrameBuffer) -> Result<(), DialError> {
    let count = stream.read(buffer.space()).await?;
    if count == 0 {
        return Err(DialError::Closed);
    }
    buffer.filled(count);
    Ok(())
}

fn derp_request(authority: &str, extra: &str) -> String {
    format!(
        "GET /derp HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n{extra}\r\n"
    )
}

/// What matters of the head of a response.
struct Response {
    status: u16,
    accept: Option<String>,
}

/// Reads the head of a response, and returns what came behind it.
async fn read_response(stream: &mut Box<dyn Transport>) -> Result<(Response, Vec<u8>), DialError> {
    let mut head = Vec::new();
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(DialError::Closed);
        }
        if let Some((response, length)) = parse_response(&head)? {
            return Ok((response, head.split_off(length)));
        }
        if head.len() > MAX_HEAD {
            return Err(DialError::Http);
        }
    }
}

fn parse_response(head: &[u8]) -> Result<Option<(Response, usize)>, DialError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(head).map_err(|_| DialError::Http)?
    else {
        return Ok(None);
    };
    let accept = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-accept"));
    let accept = accept.map(|header| String::from_utf8_lossy(header.value).into_owned());
    let status = response.code.ok_or(DialError::Http)?;
    Ok(Some((Response { status, accept }, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read_when_they_are_complete() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\nrest";
        for cut in 0..head.len() - 4 {
            assert!(parse_response(&head[..cut]).unwrap().is_none(), "{cut}");
        }
        let (response, length) = parse_response(head).unwrap().unwrap();
        assert_eq!((response.status, &head[length..]), (101, &b"rest"[..]));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse_response(b"\x01\0\0\0\x28DERP").is_err());
    }

    #[test]
    fn a_reason_behind_the_handshake_is_a_refusal() {
        let mut told = FrameBuffer::with(Message::Health("not admitted").to_vec());
        assert!(
            matches!(refuse_if_told(&mut told), Err(DialError::Refused { reason }) if reason == "not admitted")
        );
        let mut other = FrameBuffer::with(Message::KeepAlive.to_vec());
        assert!(refuse_if_told(&mut other).is_ok());
        assert_eq!(other.remaining().len(), 5, "nothing is consumed");
    }
}
