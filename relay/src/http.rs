//! The heads of HTTP requests, and the answers to those that are not for DERP.

use std::io;

use derp::NodeKey;
use derp::pass::DENY_LIST_SERIAL;
use derp::websocket::{PROTOCOL, derive_accept_key};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const MAX_HEAD: usize = 8 << 10;
const FIRST_READ: usize = 1 << 10;
const MAX_HEADERS: usize = 64;
const MAX_CHALLENGE: usize = 64;
/// What a client that waits is told before it sends the body.
pub(crate) const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

/// What matters of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) upgrade: Upgrade,
    /// The client wants no response, and speaks DERP at once.
    pub(crate) fast_start: bool,
    /// To be echoed, so that captive portals are noticed.
    pub(crate) challenge: Option<String>,
    /// Bytes of the body, if the client says how many.
    pub(crate) length: Option<usize>,
    /// The client waits to be asked for the body.
    pub(crate) expects_continue: bool,
}

/// What a request wants its connection to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// Nothing that we know.
    None,
    /// DERP frames as they are.
    Derp,
    /// DERP frames in a WebSocket.
    WebSocket {
        /// What the client wants to see hashed.
        key: String,
    },
}

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("not an HTTP request")]
    Malformed,
    #[error("the head of the request is too long")]
    TooLong,
    #[error("closed before the head was complete")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the head of a request, and returns what came behind it. The caller sets the deadline.
pub(crate) async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(Request, Vec<u8>), HeadError> {
    let mut head = Vec::with_capacity(FIRST_READ);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(HeadError::Closed);
        }
        if let Some((request, length)) = parse(&head)? {
            return Ok((request, head.split_off(length)));
        }
        if head.len() > MAX_HEAD {
            return Err(HeadError::TooLong);
        }
    }
}

/// The head of the response that turns a connection into DERP.
pub(crate) fn switching_to_derp(server: &NodeKey) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: {}\r\n\
         Derp-Public-Key: {}\r\n\r\n",
        derp::VERSION,
        server.to_hex()
    )
}

/// The head of the response that turns a connection into a WebSocket.
pub(crate) fn switching_to_websocket(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
}

/// The response to a request that is not an upgrade to DERP.
pub(crate) fn respond(request: &Request) -> String {
    let reads = matches!(request.method.as_str(), "GET" | "HEAD");
    match request.path.as_str() {
        "/derp" => response(
            "426 Upgrade Required",
            "Upgrade: DERP\r\n",
            "this is a relay: it speaks DERP\n",
        ),
        "/denylist" => response("405 Method Not Allowed", "Allow: PUT\r\n", ""),
        "/generate_204" => response("204 No Content", &no_content_headers(request), ""),
        "/healthz" | "/derp/probe" | "/derp/latency-check" if !reads => {
            response("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "")
        }
        "/healthz" if request.method == "HEAD" => response("200 OK", "", ""),
        "/healthz" => response("200 OK", "", "ok\n"),
        "/derp/probe" | "/derp/latency-check" => {
            response("200 OK", "Access-Control-Allow-Origin: *\r\n", "")
        }
        _ => response("404 Not Found", "", ""),
    }
}

/// The response to what is done and leaves nothing to say.
pub(crate) fn no_content() -> String {
    response("204 No Content", "", "")
}

/// The response to a deny list, with what there is to say about it.
pub(crate) fn denylist_response(status: &str, text: &str) -> String {
    response(status, "Content-Type: text/plain; charset=utf-8\r\n", text)
}

/// The response to a deny list that comes after one with this serial.
pub(crate) fn stale_denylist_response(in_force: u64, text: &str) -> String {
    let headers =
        format!("{DENY_LIST_SERIAL}: {in_force}\r\nContent-Type: text/plain; charset=utf-8\r\n");
    response("409 Conflict", &headers, text)
}

/// The response to something that is no request.
pub(crate) fn respond_to_error(error: &HeadError) -> Option<String> {
    match error {
        HeadError::Malformed => Some(response("400 Bad Request", "", "")),
        HeadError::TooLong => Some(response("431 Request Header Fields Too Large", "", "")),
        HeadError::Closed | HeadError::Io(_) => None,
    }
}

/// The response to a scrape.
pub(crate) fn metrics_response(text: &str) -> String {
    response(
        "200 OK",
        "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n",
        text,
    )
}

fn parse(head: &[u8]) -> Result<Option<(Request, usize)>, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) =
        parsed.parse(head).map_err(|_| HeadError::Malformed)?
    else {
        return Ok(None);
    };
    if length > MAX_HEAD {
        return Err(HeadError::TooLong);
    }
    let path = parsed
        .path
        .and_then(|path| path.split('?').next())
        .ok_or(HeadError::Malformed)?;
    let header = |name: &str| find(parsed.headers, name);
    let request = Request {
        method: parsed.method.ok_or(HeadError::Malformed)?.to_owned(),
        path: path.to_owned(),
        upgrade: upgrade(&header),
        fast_start: header("derp-fast-start") == Some("1"),
        challenge: header("x-tailscale-challenge")
            .filter(|text| is_challenge(text))
            .map(str::to_owned),
        length: header("content-length").and_then(|text| text.parse().ok()),
        expects_continue: header("expect")
            .is_some_and(|text| text.eq_ignore_ascii_case("100-continue")),
    };
    Ok(Some((request, length)))
}

fn find<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let header = headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok().map(str::trim)
}

/// A WebSocket without our sub-protocol is an old client that sends frames as they are.
fn upgrade<'a>(header: &impl Fn(&str) -> Option<&'a str>) -> Upgrade {
    let wanted = header("upgrade").unwrap_or_default();
    if wanted.eq_ignore_ascii_case("derp") {
        return Upgrade::Derp;
    }
    if !wanted.eq_ignore_ascii_case("websocket") {
        return Upgrade::None;
    }
    let protocols = header("sec-websocket-protocol").unwrap_or_default();
    if !protocols
        .split(',')
        .any(|protocol| protocol.trim().eq_ignore_ascii_case(PROTOCOL))
    {
        return Upgrade::Derp;
    }
    header("sec-websocket-key").map_or(Upgrade::None, |key| Upgrade::WebSocket {
        key: key.to_owned(),
    })
}

fn is_challenge(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    !text.is_empty() && text.len() <= MAX_CHALLENGE && text.bytes().all(allowed)
}

fn no_content_headers(request: &Request) -> String {
    let echo = request
        .challenge
        .as_ref()
        .map(|text| format!("X-Tailscale-Response: response {text}\r\n"));
    format!(
        "Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n{}",
        echo.unwrap_or_default()
    )
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = if status.starts_with("204") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn upgrades_are_told_apart() {
        let with = |headers: &str| request(&format!("GET /derp HTTP/1.1\r\n{headers}\r\n")).upgrade;
        assert_eq!(with("Upgrade: dErP\r\n"), Upgrade::Derp);
        assert_eq!(with("Upgrade: websocket\r\n"), Upgrade::Derp);
        assert_eq!(with("Upgrade: h2c\r\n"), Upgrade::None);
        assert_eq!(with(""), Upgrade::None);
        let websocket = with(
            "Upgrade: WebSocket\r\nSec-WebSocket-Key: abc\r\nSec-WebSocket-Protocol: x, derp\r\n",
        );
        assert_eq!(
            websocket,
            Upgrade::WebSocket {
                key: "abc".to_owned()
            }
        );
    }

    #[test]
    fn paths_have_their_answers() {
        let status = |method: &str, path: &str| {
            let text = respond(&request(&format!("{method} {path} HTTP/1.1\r\n\r\n")));
            text.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
        };
        for (method, path, expected) in [
            ("GET", "/derp", 426),
            ("GET", "/healthz", 200),
            ("HEAD", "/healthz", 200),
            ("GET", "/derp/probe", 200),
            ("HEAD", "/derp/latency-check?x=1", 200),
            ("POST", "/derp/probe", 405),
            ("GET", "/generate_204", 204),
            ("GET", "/", 404),
            ("GET", "/derp/", 404),
            ("GET", "/denylist", 405),
        ] {
            assert_eq!(status(method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn challenges_are_echoed_if_they_are_harmless() {
        let echo = |challenge: &str| {
            let head =
                format!("GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: {challenge}\r\n\r\n");
            respond(&request(&head))
                .contains(&format!("X-Tailscale-Response: response {challenge}\r\n"))
        };
        assert!(echo("ts_1.example:80-x".replace('_', ".").as_str()));
        assert!(!echo("<script>"));
        assert!(!echo(&"a".repeat(65)));
    }

    #[tokio::test]
    async fn heads_are_bounded_and_the_rest_is_kept() {
        let head = b"GET /derp HTTP/1.1\r\nDerp-Fast-Start: 1\r\n\r\nframes";
        let (request, rest) = read_request(&mut &head[..]).await.unwrap();
        assert!(request.fast_start);
        assert_eq!(rest, b"frames");
        let long = format!("GET /derp HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD));
        assert!(matches!(
            read_request(&mut long.as_bytes()).await,
            Err(HeadError::TooLong)
        ));
        assert!(matches!(
            read_request(&mut &b"\x16\x03\x01\0"[..]).await,
            Err(HeadError::Malformed)
        ));
        assert!(matches!(
            read_request(&mut &b"GET /"[..]).await,
            Err(HeadError::Closed)
        ));
    }
}
