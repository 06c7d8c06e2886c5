use std::net::SocketAddr;

use culvert_relay::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, Raw, config, relay, until};

pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut text))
        .await
        .expect("no end");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn paths_beside_derp_are_answered() {
    let server = relay().await;
    for (request, expected) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        (
            "GET /generate_204 HTTP/1.1\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n",
        ),
        ("GET /derp/probe HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        (
            "PUT /derp/latency-check HTTP/1.1\r\n\r\n",
            "HTTP/1.1 405 Method Not Allowed\r\n",
        ),
        (
            "GET /derp HTTP/1.1\r\n\r\n",
            "HTTP/1.1 426 Upgrade Required\r\n",
        ),
        (
            "GET /derp HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 426 Upgrade Required\r\n",
        ),
        (
            "GET /metrics HTTP/1.1\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n",
        ),
        ("nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
    ] {
        let answer = ask(server.address(), request).await;
        assert!(answer.starts_with(expected), "{request}: {answer}");
    }
}

#[tokio::test]
async fn metrics_are_served_on_their_own_address() {
    let mut config = config();
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let server = Server::start(config).await.unwrap();
    let (mut one, mut two) = (Raw::joined(&server, 1).await, Raw::joined(&server, 2).await);
    one.send_packet(2, b"counted").await;
    two.expect_packet(1, b"counted").await;
    one.send_packet(3, b"lost").await;
    one.settle().await;
    let text = ask(
        server.metrics_address().unwrap(),
        "GET /metrics HTTP/1.1\r\n\r\n",
    )
    .await;
    for line in [
        "culvert_relay_connections 2",
        "culvert_relay_packets_in_total 2",
        "culvert_relay_bytes_in_total 11",
        "culvert_relay_packets_dropped_total{reason=\"unknown_dest\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn only_who_was_not_let_in_counts_as_rejected() {
    let mut config = config();
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let server = Server::start(config).await.unwrap();
    let mut member = Raw::joined(&server, 1).await;
    member.send(derp::Message::WatchConns).await;
    member.expect_end().await;
    let mut member = Raw::joined(&server, 1).await;
    member.send_bytes(&[0x12, 0, 0, 0, 1, 0]).await;
    member.expect_end().await;
    let mut stranger = Raw::upgraded(server.address()).await;
    stranger.next().await;
    stranger.send(derp::Message::KeepAlive).await;
    stranger.expect_end().await;
    let metrics = server.metrics_address().unwrap();
    until("the stranger is counted, and nobody else", async || {
        let text = ask(metrics, "GET /metrics HTTP/1.1\r\n\r\n").await;
        let counted = |line: &str| text.contains(line);
        assert!(
            !counted("rejected_total{reason=\"bad_handshake\"} 2"),
            "{text}"
        );
        counted("rejected_total{reason=\"bad_handshake\"} 1")
            && counted("culvert_relay_admitted_total 2")
    })
    .await;
}
