//! One request to a relay, and no more of HTTP than it takes.

use std::io;
use std::sync::Arc;

use anyhow::{Context, ensure};
use derp::RelayUrl;
use derp::pass::DENY_LIST_SERIAL;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::action::DenyPush;
use crate::world::DenyFault;

/// How much of an answer is read, in bytes.
const MAX_ANSWER: usize = 4096;

/// Why a list is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) fault: DenyFault,
    pub(super) message: String,
}

/// What a relay answers.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Of the list that is in force there.
    serial: Option<u64>,
}

/// Has a relay take a list. One that is in question is asked first whether it is ours.
pub(super) async fn put(push: &DenyPush) -> Result<(), Failure> {
    if let Some(question) = &push.question {
        let answer = exchange(push, question).await?;
        // That it has a list of ours already answers the question.
        if answer.status != 409 {
            answer.judge(push.serial)?;
        }
    }
    exchange(push, &push.json).await?.judge(push.serial)
}

impl Failure {
    /// There is no answer in time.
    pub(super) fn late() -> Self {
        anyhow::anyhow!("no answer").into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            fault: DenyFault::Other,
            message: format!("{error:#}"),
        }
    }
}

impl Answer {
    fn read(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        words.next().filter(|word| word.starts_with("HTTP/1."))?;
        let status = words.next()?.parse().ok()?;
        let mut headers = lines.filter_map(|line| line.split_once(':'));
        let serial = headers.find(|(name, _)| name.eq_ignore_ascii_case(DENY_LIST_SERIAL));
        Some(Self {
            status,
            serial: serial.and_then(|(_, value)| value.trim().parse().ok()),
        })
    }

    /// Whether a list of this serial has been taken.
    fn judge(&self, serial: u64) -> Result<(), Failure> {
        let fault = match self.status {
            200..=299 => return Ok(()),
            403 => DenyFault::NotOwner,
            404 | 405 | 501 => DenyFault::Unsupported,
            409 => DenyFault::Stale {
                in_force: self.serial.unwrap_or(serial),
            },
            _ => DenyFault::Other,
        };
        let message = format!("the relay answers {}", self.status);
        Err(Failure { fault, message })
    }
}

async fn exchange(push: &DenyPush, body: &str) -> anyhow::Result<Answer> {
    let dial = &push.dial;
    let stream = TcpStream::connect((dial.host(), dial.port())).await;
    let stream = stream.with_context(|| format!("cannot connect to {dial}"))?;
    if !dial.is_tls() {
        return ask(stream, dial, body).await;
    }
    let connector = TlsConnector::from(Arc::new(tls(push.ca_bundle.as_deref())?));
    let stream = connector.connect(server_name(dial)?, stream).await;
    ask(stream.context("no TLS with the relay")?, dial, body).await
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    dial: &RelayUrl,
    body: &str,
) -> anyhow::Result<Answer> {
    let head = format!(
        "PUT /denylist HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        dial.authority(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    let answer = read_head(&mut stream).await.context("no answer")?;
    Answer::read(&answer).context("the answer is not HTTP")
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER || stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

fn tls(ca_bundle: Option<&str>) -> anyhow::Result<ClientConfig> {
    let roots = match ca_bundle.filter(|text| !text.trim().is_empty()) {
        Some(text) => bundle_roots(text)?,
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn bundle_roots(text: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        roots.add(certificate.context("the relay's CA bundle is not PEM")?)?;
    }
    ensure!(
        !roots.is_empty(),
        "the relay's CA bundle holds no certificate"
    );
    Ok(roots)
}

fn server_name(url: &RelayUrl) -> anyhow::Result<ServerName<'static>> {
    match url.address() {
        Some(address) => Ok(ServerName::IpAddress(address.into())),
        None => ServerName::try_from(url.host().to_owned()).context("no name for TLS"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What a server that answers so, one connection after the other, made of the requests, and what we make of it all.
    async fn against(
        answers: &'static [&'static str],
        question: Option<&str>,
    ) -> (Vec<String>, Result<(), Failure>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let url: RelayUrl = format!("http://127.0.0.1:{port}").parse().expect("a URL");
        let push = DenyPush {
            relay: url.clone(),
            dial: url,
            ca_bundle: None,
            serial: 7,
            json: "{\"a\":1}".to_owned(),
            question: question.map(str::to_owned),
        };
        let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let server = tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    assert_ne!(stream.read_buf(&mut request).await.expect("reads"), 0);
                }
                stream.write_all(answer.as_bytes()).await.expect("writes");
                let text = String::from_utf8(request).expect("text");
                sender.send(text).expect("heard");
            }
        });
        let result = put(&push).await;
        server.abort();
        let mut heard = Vec::new();
        while let Ok(request) = requests.try_recv() {
            heard.push(request);
        }
        (heard, result)
    }

    const TAKEN: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\n\r\n";
    const STALE: &str = "HTTP/1.1 409 Conflict\r\ndeny-list-serial: 9\r\n\r\n";

    #[tokio::test]
    async fn a_list_is_put() {
        let (_, result) = against(&[TAKEN], None).await;
        assert_eq!(result, Ok(()));
        let (requests, _) = against(&[TAKEN, TAKEN], Some("{}")).await;
        let [request, ..] = requests.as_slice() else {
            panic!("a request");
        };
        assert!(
            request.starts_with("PUT /denylist HTTP/1.1\r\nHost: 127.0.0.1:"),
            "{request}"
        );
        assert!(request.contains("\r\nContent-Length: 2\r\n") && request.ends_with("{}"));
    }

    #[tokio::test]
    async fn a_refusal_is_no_consent() {
        let fault = |answers| async move {
            let (_, result) = against(answers, None).await;
            result.expect_err("refused").fault
        };
        assert_eq!(fault(&[STALE]).await, DenyFault::Stale { in_force: 9 });
        assert_eq!(
            fault(&["HTTP/1.1 409 Conflict\r\n\r\n"]).await,
            DenyFault::Stale { in_force: 7 }
        );
        assert_eq!(fault(&[FORBIDDEN]).await, DenyFault::NotOwner);
        assert_eq!(
            fault(&["HTTP/1.1 404 Not Found\r\n\r\n"]).await,
            DenyFault::Unsupported
        );
        for other in [&["HTTP/1.1 500 Oh\r\n\r\n"], &["hello\r\n\r\n"], &[""]] {
            assert_eq!(fault(other).await, DenyFault::Other);
        }
    }

    #[tokio::test]
    async fn a_relay_of_somebody_else_is_told_of_nobody() {
        let (requests, result) = against(&[FORBIDDEN, TAKEN], Some("{}")).await;
        assert_eq!(result.expect_err("refused").fault, DenyFault::NotOwner);
        assert!(requests.iter().all(|request| request.ends_with("\r\n{}")));
        let (_, result) = against(&[STALE, TAKEN], Some("{}")).await;
        assert_eq!(
            result,
            Ok(()),
            "that it has a list of ours says that it is ours"
        );
    }

    #[test]
    fn bundles() {
        assert!(tls(None).is_ok() && tls(Some(" ")).is_ok());
        assert!(tls(Some("nonsense")).is_err());
    }
}
