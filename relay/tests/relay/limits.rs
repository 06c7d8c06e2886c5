use std::time::{Duration, Instant};

use culvert_relay::Server;
use derp::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, Raw, config, key, relay, until};

/// Floods a receiver that does not read.
async fn flood(sender: &mut Raw, receiver: u8, megabytes: usize) {
    let mut flight = Vec::new();
    for _ in 0..50 {
        Message::SendPacket {
            destination: key(receiver),
            packet: &[4; 20_000],
        }
        .encode(&mut flight);
    }
    for _ in 0..megabytes {
        sender.send_bytes(&flight).await;
    }
    sender.settle().await;
}

#[tokio::test]
async fn a_slow_reader_harms_nobody() {
    let server = relay().await;
    let _slow = Raw::joined(&server, 9).await;
    let (mut flooder, mut one, mut two) = (
        Raw::joined(&server, 8).await,
        Raw::joined(&server, 1).await,
        Raw::joined(&server, 2).await,
    );
    let started = Instant::now();
    flood(&mut flooder, 9, 30).await;
    one.send_packet(2, b"meanwhile").await;
    two.expect_packet(1, b"meanwhile").await;
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_flood_evicts_nobody_else_from_a_full_queue() {
    let server = relay().await;
    let mut slow = Raw::joined(&server, 9).await;
    let (mut flooder, mut polite) = (Raw::joined(&server, 8).await, Raw::joined(&server, 1).await);
    flood(&mut flooder, 9, 10).await;
    for number in 0..50 {
        polite.send_packet(9, &[number; 1000]).await;
    }
    polite.settle().await;
    flood(&mut flooder, 9, 20).await;
    let mut next = 0;
    while next < 50 {
        let frame = slow.next().await.unwrap();
        if frame[5..37] == *key(1).as_bytes() {
            assert_eq!(frame[37], next, "a polite frame is missing");
            next += 1;
        }
    }
}

#[tokio::test]
async fn who_reads_nothing_for_too_long_is_cut_off() {
    let mut config = config();
    config.timing.write_stall = Duration::from_millis(200);
    let server = Server::start(config).await.unwrap();
    let _slow = Raw::joined(&server, 9).await;
    let mut flooder = Raw::joined(&server, 8).await;
    flood(&mut flooder, 9, 10).await;
    let mut one = Raw::joined(&server, 1).await;
    let mut initiation = vec![1, 0, 0, 0];
    initiation.resize(148, 0);
    until("the slow reader is gone", async || {
        one.send_packet(9, &initiation).await;
        one.send(Message::Ping([1; 8])).await;
        let first = one.next().await.unwrap();
        first[0] == 0x08
    })
    .await;
}

#[tokio::test]
async fn half_open_connections_are_bounded_and_end() {
    let mut config = config();
    config.timing.setup = Duration::from_millis(300);
    config.limits.half_open_per_source = 10;
    let server = Server::start(config).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..30 {
        open.push(TcpStream::connect(server.address()).await.unwrap());
    }
    for stream in &mut open {
        let ended = timeout(PATIENCE, stream.read(&mut [0; 10]))
            .await
            .expect("stays open");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    until("there is room again", async || {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.is_ok() && text.ends_with("ok\n")
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_client_info_for_ever() {
    let mut config = config();
    config.timing.setup = Duration::from_millis(100);
    let server = Server::start(config).await.unwrap();
    let mut raw = Raw::upgraded(server.address()).await;
    raw.expect(Message::ServerKey {
        key: server.public_key(),
    })
    .await;
    raw.expect_end().await;
}

#[tokio::test]
async fn random_bytes_are_survived() {
    let server = relay().await;
    let (mut one, mut two) = (Raw::joined(&server, 1).await, Raw::joined(&server, 2).await);
    for round in 0..200_u32 {
        let mut bytes: Vec<u8> = (0..round * 7 % 900).map(|_| rand::random()).collect();
        let in_derp = round % 2 == 0;
        if in_derp {
            bytes.splice(0..0, crate::support::UPGRADE.bytes());
        }
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut end = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut end)).await;
        assert!(ended.is_ok(), "round {round} stays open");
        one.send_packet(2, &round.to_be_bytes()).await;
        two.expect_packet(1, &round.to_be_bytes()).await;
    }
}
