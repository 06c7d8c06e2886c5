use std::path::Path;
use std::sync::Arc;

use culvert_relay::{Server, StartError, TlsFiles};
use derp::client::{Client, Event};
use derp::{FrameBuffer, Message, metacert_key};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::{Collected, client_config, next_event};
use crate::support::{Raw, UPGRADE, client_info, config, key, secret};

struct Issued {
    files: TlsFiles,
    pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn issue(folder: &Path) -> Issued {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .unwrap();
    let files = TlsFiles {
        certificate: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    Issued {
        files,
        pem: made.cert.pem(),
        der: made.cert.der().clone(),
    }
}

async fn relay(issued: &Issued) -> Server {
    let mut config = config();
    config.tls = Some(issued.files.clone());
    Server::start(config).await.unwrap()
}

fn connector(issued: &Issued) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(issued.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn the_chain_ends_in_the_relays_key_and_saves_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let issued = issue(folder.path());
    let server = relay(&issued).await;
    for _ in 0..2 {
        let tcp = TcpStream::connect(server.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = connector(&issued).connect(name, tcp).await.unwrap();
        let chain = tls.get_ref().1.peer_certificates().unwrap();
        assert_eq!(chain.len(), 2, "the chain does not grow");
        assert_eq!(metacert_key(&chain[1]), Some(server.public_key()));
        let mut flight = UPGRADE
            .replace("\r\n\r\n", "\r\nDerp-Fast-Start: 1\r\n\r\n")
            .into_bytes();
        Message::ClientInfo {
            sealed: &client_info(&secret(1), &server.public_key()),
        }
        .encode(&mut flight);
        tls.write_all(&flight).await.unwrap();
        tls.flush().await.unwrap();
        let mut raw = Raw {
            stream: Box::new(tls),
            buffer: FrameBuffer::default(),
        };
        raw.expect(Message::ServerKey {
            key: server.public_key(),
        })
        .await;
        raw.expect_server_info(server.public_key(), &secret(1))
            .await;
        raw.settle().await;
    }
}

#[tokio::test]
async fn our_client_speaks_tls_with_a_ca_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let issued = issue(folder.path());
    let server = relay(&issued).await;
    let url = format!("https://127.0.0.1:{}", server.address().port());
    let start = |seed: u8, bundle: Option<&str>| {
        let (inbox, packets) = Collected::new();
        let (events_in, events) = tokio::sync::mpsc::channel(64);
        let mut config = client_config(&url, seed);
        config.ca_bundle = bundle.map(str::to_owned);
        (Client::spawn(config, inbox, events_in), events, packets)
    };
    let (one, mut one_events, _) = start(1, Some(&issued.pem));
    let (_two, mut two_events, mut packets) = start(2, Some(&issued.pem));
    for events in [&mut one_events, &mut two_events] {
        let event = next_event(events).await;
        assert!(
            matches!(event, Event::Connected { server: found, .. } if found == server.public_key()),
            "{event:?}"
        );
    }
    one.outbox().push(&key(2), &[4; 100_000], 1400);
    let mut got = 0;
    while got < 100_000 {
        got += packets.recv().await.unwrap().1.len();
    }
    assert_eq!(got, 100_000);
    let (_stranger, mut events, _) = start(3, None);
    let event = next_event(&mut events).await;
    assert!(
        matches!(&event, Event::Disconnected { error } if error.contains("TLS")),
        "{event:?}"
    );
}

/// A relay in a cluster: others know it by its public name, its own side connects to another address.
#[tokio::test]
async fn the_certificate_is_for_the_name_and_not_for_the_address_dialled() {
    let folder = tempfile::tempdir().unwrap();
    let issued = issue(folder.path());
    let server = relay(&issued).await;
    let dial = format!("https://127.0.0.1:{}", server.address().port());
    for (host, good) in [("localhost", true), ("relay.example.org", false)] {
        let (inbox, _) = Collected::new();
        let (events_in, mut events) = tokio::sync::mpsc::channel(64);
        let mut config = client_config(&format!("https://{host}:1"), 1);
        config.dial = Some(dial.parse().unwrap());
        config.ca_bundle = Some(issued.pem.clone());
        let _client = Client::spawn(config, inbox, events_in);
        let event = next_event(&mut events).await;
        assert_eq!(matches!(event, Event::Connected { .. }), good, "{event:?}");
    }
}

#[tokio::test]
async fn useless_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let issued = issue(folder.path());
    std::fs::write(&issued.files.key, "nonsense").unwrap();
    let mut config = config();
    config.tls = Some(issued.files.clone());
    let error = Server::start(config).await.unwrap_err();
    assert!(matches!(error, StartError::Tls(_)));
    assert!(error.to_string().contains("key.pem"), "{error}");
}
