use std::time::Duration;

use culvert_relay::Server;
use derp::websocket::{Side, WebSocketBytes};
use derp::{FrameBuffer, Message, NodeKey, NodeSecret};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Raw, UPGRADE, client_info, config, key, read_head, relay, secret};

const SERVER_SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f";
const SERVER_KEY_FRAME: &str =
    "010000002844455250f09f94918f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f";
const CLIENT_SECRET: &str = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e7f";
const CLIENT_INFO: &str = "0200000068358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254000102030405060708090a0b0c0d0e0f101112131415161777c36a41cfb75cd14a2fa666e8ab4f1e18f0c9550e0b21c02f518cc30888b4f763f7e31611c0eeca0ebb12cbb089fdb9";
const CLIENT_INFO_EXTRA: &str = "0200000070358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254000102030405060708090a0b0c0d0e0f101112131415161747b62cd52c63a618c15ca82482e3649118f0c9550e0b21c02f518cc30888b4f763f7e31611c0eeca0ebb12cbb089fde8d6ed149f881a045a";
const SEND_HELLO: &str =
    "0400000025358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd16625468656c6c6f";

async fn known_relay(folder: &tempfile::TempDir) -> Server {
    let path = folder.path().join("key.json");
    std::fs::write(
        &path,
        format!("{{\"PrivateKey\":\"privkey:{SERVER_SECRET}\"}}"),
    )
    .unwrap();
    let mut config = config();
    config.key = Some(path);
    Server::start(config).await.unwrap()
}

fn known_client() -> NodeSecret {
    let bytes = hex::decode(CLIENT_SECRET).unwrap();
    NodeSecret::from_bytes(bytes.try_into().unwrap())
}

#[tokio::test]
async fn bytes_of_other_clients_are_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let server = known_relay(&folder).await;
    for info in [CLIENT_INFO, CLIENT_INFO_EXTRA] {
        let mut raw = Raw::upgraded(server.address()).await;
        assert_eq!(hex::encode(raw.next().await.unwrap()), SERVER_KEY_FRAME);
        raw.send_bytes(&hex::decode(info).unwrap()).await;
        raw.expect_server_info(server.public_key(), &known_client())
            .await;
        raw.send_bytes(&hex::decode(SEND_HELLO).unwrap()).await;
        raw.expect(Message::RecvPacket {
            source: known_client().public(),
            packet: b"hello",
        })
        .await;
    }
}

#[tokio::test]
async fn the_upgrade_names_version_and_key() {
    let server = relay().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    let (head, _) = read_head(&mut stream).await;
    let head = head.to_ascii_lowercase();
    for line in ["upgrade: derp", "connection: upgrade", "derp-version: 2"] {
        assert!(head.contains(line), "{line}: {head}");
    }
    assert!(head.contains(&format!(
        "derp-public-key: {}",
        server.public_key().to_hex()
    )));
}

#[tokio::test]
async fn packets_may_follow_client_info_at_once() {
    let server = relay().await;
    let mut receiver = Raw::joined(&server, 2).await;
    let mut raw = Raw::upgraded(server.address()).await;
    raw.next().await.unwrap();
    let mut flight = Message::ClientInfo {
        sealed: &client_info(&secret(1), &server.public_key()),
    }
    .to_vec();
    Message::NotePreferred(true).encode(&mut flight);
    Message::SendPacket {
        destination: key(2),
        packet: b"early",
    }
    .encode(&mut flight);
    raw.send_bytes(&flight).await;
    receiver.expect_packet(1, b"early").await;
}

#[tokio::test]
async fn fast_start_has_no_response() {
    let server = relay().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = UPGRADE.replace("\r\n\r\n", "\r\nDerp-Fast-Start: 1\r\n\r\n");
    let mut flight = head.into_bytes();
    Message::ClientInfo {
        sealed: &client_info(&secret(1), &server.public_key()),
    }
    .encode(&mut flight);
    stream.write_all(&flight).await.unwrap();
    let mut raw = Raw {
        stream: Box::new(stream),
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

#[tokio::test]
async fn websockets_carry_the_same_frames() {
    let server = relay().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: derp\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (head, rest) = read_head(&mut stream).await;
    assert!(
        head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
        "{head}"
    );
    assert!(head.contains("Sec-WebSocket-Protocol: derp\r\n"), "{head}");
    let stream = WebSocketBytes::new(stream, Side::Client, rest).await;
    let mut raw = Raw {
        stream: Box::new(stream),
        buffer: FrameBuffer::default(),
    };
    raw.handshake(server.public_key(), &secret(1)).await;
    let mut other = Raw::joined(&server, 2).await;
    raw.send_packet(2, &[7; 60_000]).await;
    other.expect_packet(1, &[7; 60_000]).await;
    other.send_packet(1, b"back").await;
    raw.expect_packet(2, b"back").await;
}

#[tokio::test]
async fn a_websocket_without_the_protocol_is_raw_derp() {
    let server = relay().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream
        .write_all(UPGRADE.replace("DERP", "WebSocket").as_bytes())
        .await
        .unwrap();
    let (_, rest) = read_head(&mut stream).await;
    let mut raw = Raw {
        stream: Box::new(stream),
        buffer: FrameBuffer::with(rest),
    };
    raw.handshake(server.public_key(), &secret(1)).await;
    raw.settle().await;
}

#[tokio::test]
async fn pings_are_answered_with_their_first_eight_bytes() {
    let server = relay().await;
    let mut raw = Raw::joined(&server, 1).await;
    for length in [8_u16, 9, 1000] {
        let mut ping = vec![0x12, 0, 0];
        ping.extend_from_slice(&length.to_be_bytes());
        ping.extend((0..length).map(|index| index.to_be_bytes()[1]));
        raw.send_bytes(&ping).await;
        raw.expect(Message::Pong([0, 1, 2, 3, 4, 5, 6, 7])).await;
    }
    raw.send_bytes(&[0x12, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7])
        .await;
    raw.expect_end().await;
}

#[tokio::test]
async fn unknown_frames_are_skipped() {
    let server = relay().await;
    let mut raw = Raw::joined(&server, 1).await;
    let mut bytes = vec![0x66, 0, 1, 0, 0];
    bytes.resize(5 + (1 << 16), 9);
    raw.send_bytes(&bytes).await;
    raw.settle().await;
}

#[tokio::test]
async fn frames_for_meshes_and_broken_ones_end_the_connection() {
    let server = relay().await;
    let weak = [&[4, 0, 0, 0, 33][..], &[0; 33]].concat();
    let long = [4, 0, 1, 0, 33].to_vec();
    let source = key(3);
    for bytes in [
        Message::WatchConns.to_vec(),
        Message::ClosePeer { key: key(2) }.to_vec(),
        Message::ForwardPacket {
            source,
            destination: key(2),
            packet: b"x",
        }
        .to_vec(),
        Message::ClientInfo {
            sealed: &client_info(&secret(1), &server.public_key()),
        }
        .to_vec(),
        weak,
        long,
    ] {
        let mut raw = Raw::joined(&server, 1).await;
        raw.send_bytes(&bytes).await;
        raw.expect_end().await;
    }
}

#[tokio::test]
async fn keepalives_come_by_themselves() {
    let mut config = config();
    config.timing.keepalive = Duration::from_millis(50);
    let server = Server::start(config).await.unwrap();
    let mut raw = Raw::joined(&server, 1).await;
    for _ in 0..3 {
        raw.expect(Message::KeepAlive).await;
    }
}

#[tokio::test]
async fn a_handshake_that_proves_nothing_is_the_end() {
    let server = relay().await;
    let other: NodeKey = key(9);
    let forged = client_info(&secret(1), &other);
    let mut stolen = client_info(&secret(1), &server.public_key());
    stolen[..32].copy_from_slice(key(2).as_bytes());
    for sealed in [forged, stolen] {
        let mut raw = Raw::upgraded(server.address()).await;
        raw.next().await.unwrap();
        raw.send(Message::ClientInfo { sealed: &sealed }).await;
        raw.expect_end().await;
    }
    let mut raw = Raw::upgraded(server.address()).await;
    raw.next().await.unwrap();
    raw.send_packet(2, b"no handshake").await;
    raw.expect_end().await;
}

#[tokio::test]
async fn a_relay_that_stops_says_so() {
    let server = relay().await;
    let mut raw = Raw::joined(&server, 1).await;
    let stopping = tokio::spawn(server.shutdown());
    let frame = raw.next().await.unwrap();
    assert_eq!((frame[0], frame.len()), (0x15, 13));
    raw.expect_end().await;
    drop(raw);
    stopping.await.unwrap();
}

#[tokio::test]
async fn not_all_clients_come_back_at_the_same_moment() {
    let server = relay().await;
    let mut members = Vec::new();
    for seed in 1..=16 {
        members.push(Raw::joined(&server, seed).await);
    }
    let stopping = tokio::spawn(server.shutdown());
    let mut waits = std::collections::BTreeSet::new();
    for member in &mut members {
        let frame = member.next().await.unwrap();
        let millis = u32::from_be_bytes(frame[5..9].try_into().unwrap());
        assert!((200..=1000).contains(&millis), "{millis}");
        waits.insert(millis);
    }
    assert!(waits.len() > 8, "{waits:?}");
    drop(members);
    stopping.await.unwrap();
}
