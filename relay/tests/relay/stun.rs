use std::net::SocketAddr;
use std::time::Duration;

use culvert_relay::Server;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::{PATIENCE, config};

async fn relay(addresses: &[&str]) -> Server {
    let mut config = config();
    config.stun = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Server::start(config).await.unwrap()
}

/// A binding request, padded with an optional attribute.
fn request(change: Option<u8>, padding: usize) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(flags) = change {
        body.extend_from_slice(&[0, 3, 0, 4, 0, 0, 0, flags]);
    }
    if padding > 0 {
        body.extend_from_slice(&[0x80, 0x22, 0, u8::try_from(padding).unwrap()]);
        body.resize(body.len() + padding, b'x');
    }
    let mut bytes = vec![
        0,
        1,
        0,
        u8::try_from(body.len()).unwrap(),
        0x21,
        0x12,
        0xa4,
        0x42,
    ];
    bytes.extend_from_slice(b"transactions");
    bytes.extend(body);
    bytes
}

async fn ask(socket: &UdpSocket, to: SocketAddr, request: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
    socket.send_to(request, to).await.unwrap();
    let mut answer = vec![0; 1500];
    let (length, from) = timeout(Duration::from_millis(500), socket.recv_from(&mut answer))
        .await
        .ok()?
        .unwrap();
    answer.truncate(length);
    Some((answer, from))
}

/// The XOR-mapped address that a success begins with.
fn mapped_v4(answer: &[u8]) -> SocketAddr {
    assert_eq!(answer[..2], [1, 1]);
    assert_eq!(answer[20..26], [0, 0x20, 0, 8, 0, 1]);
    let port = u16::from_be_bytes([answer[26] ^ 0x21, answer[27] ^ 0x12]);
    let ip = [
        answer[28] ^ 0x21,
        answer[29] ^ 0x12,
        answer[30] ^ 0xa4,
        answer[31] ^ 0x42,
    ];
    SocketAddr::from((ip, port))
}

#[tokio::test]
async fn clients_learn_their_address_and_another_server() {
    let server = relay(&["127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"]).await;
    let stun = server.stun_addresses().to_vec();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (index, other) in [(0, 2), (1, 2), (2, 0)] {
        let (answer, from) = ask(&socket, stun[index], &request(None, 0)).await.unwrap();
        assert_eq!(from, stun[index]);
        assert_eq!(mapped_v4(&answer), socket.local_addr().unwrap());
        assert_eq!(answer.len(), 44, "exactly one OTHER-ADDRESS");
        assert_eq!(answer[32..38], [0x80, 0x2c, 0, 8, 0, 1]);
        assert_eq!(answer[38..40], stun[other].port().to_be_bytes());
    }
}

#[tokio::test]
async fn answers_over_ipv6_grow_only_with_the_request() {
    let server = relay(&["[::1]:0", "[::1]:0"]).await;
    let to = server.stun_addresses()[0];
    let socket = UdpSocket::bind("[::1]:0").await.unwrap();
    let (short, _) = ask(&socket, to, &request(None, 0)).await.unwrap();
    assert_eq!(short.len(), 44);
    let (long, _) = ask(&socket, to, &request(None, 60)).await.unwrap();
    assert_eq!(long.len(), 68);
}

#[tokio::test]
async fn changes_are_honoured_with_two_addresses() {
    let server = relay(&["127.0.0.1:0", "127.0.0.2:0"]).await;
    let stun = server.stun_addresses().to_vec();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (_, other_ip) = ask(&socket, stun[0], &request(Some(4), 0)).await.unwrap();
    assert_eq!(other_ip, stun[1]);
    let (_, other_port) = ask(&socket, stun[0], &request(Some(2), 0)).await.unwrap();
    assert_eq!(other_port.ip(), stun[0].ip());
    assert_ne!(other_port.port(), stun[0].port());
    let (_, both) = ask(&socket, stun[0], &request(Some(6), 0)).await.unwrap();
    assert_eq!(both.ip(), stun[1].ip());
    assert_ne!(both.port(), stun[1].port());
}

#[tokio::test]
async fn changes_are_refused_with_one_address() {
    let server = relay(&["127.0.0.1:0", "127.0.0.1:0"]).await;
    let to = server.stun_addresses()[0];
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let padded = request(Some(2), 20);
    let (refusal, _) = ask(&socket, to, &padded).await.unwrap();
    assert_eq!(refusal[..2], [1, 0x11]);
    assert!(refusal.len() <= padded.len());
    assert!(
        ask(&socket, to, &request(Some(2), 0)).await.is_none(),
        "an error would be longer than the request"
    );
}

#[tokio::test]
async fn one_source_cannot_ask_for_ever_and_garbage_changes_nothing() {
    let server = relay(&["127.0.0.1:0"]).await;
    let to = server.stun_addresses()[0];
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in 0..200_usize {
        flood.send_to(&vec![0; length], to).await.unwrap();
    }
    assert!(ask(&flood, to, &request(None, 0)).await.is_some());
    let mut answers = 0_usize;
    for _ in 0..600 {
        flood.send_to(&request(None, 0), to).await.unwrap();
        while flood.try_recv(&mut [0; 100]).is_ok() {
            answers += 1;
        }
    }
    let drain = async {
        while timeout(Duration::from_millis(200), flood.recv(&mut [0; 100]))
            .await
            .is_ok()
        {
            answers += 1;
        }
    };
    timeout(PATIENCE, drain).await.unwrap();
    assert!((150..500).contains(&answers), "{answers}");
    let other = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    assert!(
        ask(&other, to, &request(None, 0)).await.is_some(),
        "another source has its own bucket"
    );
}
