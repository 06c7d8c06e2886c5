//! One request to a relay, and no more of HTTP than it takes.

use std::io;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use derp::RelayUrl;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::action::DenyPush;

/// How much of an answer is read, in bytes.
const MAX_ANSWER: usize = 4096;

/// Has a relay take a list. That it has a newer one is well, too.
pub(super) async fn put(push: &DenyPush) -> anyhow::Result<()> {
    let dial = &push.dial;
    let stream = TcpStream::connect((dial.host(), dial.port())).await;
    let stream = stream.with_context(|| format!("cannot connect to {dial}"))?;
    let status = if dial.is_tls() {
        let connector = TlsConnector::from(Arc::new(tls(push.ca_bundle.as_deref())?));
        let stream = connector.connect(server_name(dial)?, stream).await;
        exchange(stream.context("no TLS with the relay")?, push).await?
    } else {
        exchange(stream, push).await?
    };
    match status {
        200..=299 | 409 => Ok(()),
        _ => bail!("the relay answers {status}"),
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    push: &DenyPush,
) -> anyhow::Result<u16> {
    let head = format!(
        "PUT /denylist HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        push.dial.authority(),
        push.json.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(push.json.as_bytes()).await?;
    stream.flush().await?;
    let answer = read_head(&mut stream).await.context("no answer")?;
    status(&answer).context("the answer is not HTTP")
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

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
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

    /// What a server that answers so made of the request, and what we make of its answer.
    async fn against(answer: &'static str) -> (String, anyhow::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let url: RelayUrl = format!("http://127.0.0.1:{port}").parse().expect("a URL");
        let push = DenyPush {
            relay: url.clone(),
            dial: url,
            ca_bundle: None,
            serial: 1,
            json: "{\"a\":1}".to_owned(),
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert_ne!(stream.read_buf(&mut request).await.expect("reads"), 0);
            }
            stream.write_all(answer.as_bytes()).await.expect("writes");
            String::from_utf8(request).expect("text")
        });
        let result = put(&push).await;
        (server.await.expect("serves"), result)
    }

    #[tokio::test]
    async fn a_list_is_put() {
        let (request, result) = against("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(
            request.starts_with("PUT /denylist HTTP/1.1\r\nHost: 127.0.0.1:"),
            "{request}"
        );
        assert!(request.contains("\r\nContent-Length: 7\r\n") && request.ends_with("{\"a\":1}"));
        assert!(result.is_ok(), "{result:?}");
    }

    #[tokio::test]
    async fn a_newer_list_is_well_and_a_refusal_is_not() {
        let outcome = |answer| async move { against(answer).await.1.is_ok() };
        assert!(outcome("HTTP/1.1 409 Conflict\r\n\r\n").await);
        assert!(!outcome("HTTP/1.1 403 Forbidden\r\n\r\n").await);
        assert!(!outcome("hello\r\n\r\n").await);
        assert!(!outcome("").await);
    }

    #[test]
    fn bundles() {
        assert!(tls(None).is_ok() && tls(Some(" ")).is_ok());
        assert!(tls(Some("nonsense")).is_err());
    }
}
