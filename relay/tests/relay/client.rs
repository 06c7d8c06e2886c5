use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_relay::{AdmitRule, Server};
use derp::client::{Client, Config, Event, Frame, Inbox};
use derp::websocket::{Side, WebSocketBytes, derive_accept_key};
use derp::{NodeKey, PeerGoneReason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{PATIENCE, Raw, config, key, read_head, relay, secret, until};

/// Passes packets on to a channel.
pub(crate) struct Collected(mpsc::UnboundedSender<(NodeKey, Vec<u8>)>);

impl Collected {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<(NodeKey, Vec<u8>)>) {
        let (packets_in, packets) = mpsc::unbounded_channel();
        (Arc::new(Self(packets_in)), packets)
    }
}

impl Inbox for Collected {
    fn receive(&self, frames: &[Frame<'_>]) {
        for frame in frames {
            self.0.send((frame.source, frame.bytes.to_vec())).unwrap();
        }
    }
}

pub(crate) fn client_config(url: &str, seed: u8) -> Config {
    Config::new(url.parse().unwrap(), secret(seed))
}

pub(crate) async fn next_event(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(PATIENCE, events.recv())
        .await
        .expect("no event")
        .unwrap()
}

struct Running {
    client: Client,
    events: mpsc::Receiver<Event>,
    packets: mpsc::UnboundedReceiver<(NodeKey, Vec<u8>)>,
}

fn start(config: Config) -> Running {
    let (inbox, packets) = Collected::new();
    let (events_in, events) = mpsc::channel(64);
    Running {
        client: Client::spawn(config, inbox, events_in),
        events,
        packets,
    }
}

fn start_at(address: std::net::SocketAddr, seed: u8) -> Running {
    start(client_config(&format!("http://{address}"), seed))
}

impl Running {
    /// The next event that is not a measurement.
    async fn next(&mut self) -> Event {
        loop {
            let event = next_event(&mut self.events).await;
            if !matches!(event, Event::Rtt(_)) {
                return event;
            }
        }
    }

    async fn expect_connected(&mut self) {
        let event = self.next().await;
        assert!(matches!(event, Event::Connected { .. }), "{event:?}");
    }

    async fn expect_disconnected(&mut self) -> String {
        let event = self.next().await;
        let Event::Disconnected { error } = event else {
            panic!("{event:?}")
        };
        error
    }
}

#[tokio::test]
async fn batches_arrive_whole_and_in_order() {
    let server = relay().await;
    let (mut one, mut two) = (start_at(server.address(), 1), start_at(server.address(), 2));
    one.expect_connected().await;
    two.expect_connected().await;
    assert!(one.client.is_connected());
    for number in 4..54_u8 {
        one.client.outbox().push(&key(2), &[number; 10_100], 1000);
    }
    let mut sizes = Vec::new();
    while sizes.len() < 50 * 11 {
        let (source, packet) = timeout(PATIENCE, two.packets.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(source, key(1));
        assert_eq!(usize::from(packet[0]), 4 + sizes.len() / 11);
        sizes.push(packet.len());
    }
    assert_eq!(
        sizes[..11],
        [
            1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 100
        ]
    );
    until("the round trip is known", async || {
        one.client.rtt().is_some()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_is_not_admitted_is_told_and_does_not_hammer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    std::fs::write(&path, key(1).to_string()).unwrap();
    let mut config = config();
    config.admit = AdmitRule::File(path);
    let server = Server::start(config).await.unwrap();
    let mut stranger = start_at(server.address(), 2);
    let started = Instant::now();
    for _ in 0..5 {
        let event = stranger.next().await;
        assert!(
            matches!(&event, Event::Health(text) if text.contains("not admitted")),
            "{event:?}"
        );
        assert!(
            stranger
                .expect_disconnected()
                .await
                .contains("not admitted")
        );
    }
    assert!(started.elapsed() > Duration::from_millis(300), "backs off");
    assert!(!stranger.client.is_connected());
}

#[tokio::test]
async fn clients_come_back_to_a_relay_that_was_killed() {
    let server = relay().await;
    let address = server.address();
    let mut one = start_at(address, 1);
    one.expect_connected().await;
    until("a ping is answered", async || one.client.rtt().is_some()).await;
    drop(server);
    one.expect_disconnected().await;
    assert!(!one.client.is_connected());
    // What is pushed now is too old when the relay is back.
    one.client.outbox().push(&key(2), &[4; 100], 0);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut config = config();
    config.listen = address;
    let started = Instant::now();
    let server = Server::start(config).await.unwrap();
    let mut two = Raw::joined(&server, 2).await;
    until("the client is back", async || one.client.is_connected()).await;
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    one.client.outbox().push(&key(2), &[5; 100], 0);
    two.expect_packet(1, &[5; 100]).await;
    assert_eq!(one.client.outbox().dropped(), 1);
}

#[tokio::test]
async fn after_a_reset_the_next_dial_comes_at_once() {
    let server = relay().await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut one = start_at(front.local_addr().unwrap(), 1);
    for _ in 0..3 {
        let (mut outside, _) = front.accept().await.unwrap();
        let mut inside = TcpStream::connect(server.address()).await.unwrap();
        let pump = tokio::io::copy_bidirectional(&mut outside, &mut inside);
        tokio::select! {
            _ = pump => panic!("closed"),
            () = one.expect_connected() => {}
        }
        let pump = tokio::io::copy_bidirectional(&mut outside, &mut inside);
        tokio::select! {
            _ = pump => panic!("closed"),
            event = next_event(&mut one.events) => assert!(matches!(event, Event::Rtt(_)), "{event:?}"),
        }
        socket2::SockRef::from(&outside)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(outside);
        let reset = Instant::now();
        let (again, _) = timeout(PATIENCE, front.accept()).await.unwrap().unwrap();
        assert!(
            reset.elapsed() < Duration::from_millis(100),
            "{:?}",
            reset.elapsed()
        );
        drop(again);
        one.expect_disconnected().await;
        one.expect_disconnected().await;
    }
}

#[tokio::test]
async fn a_relay_that_falls_silent_is_left() {
    let server = relay().await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = client_config(&format!("http://{}", front.local_addr().unwrap()), 1);
    config.ping_interval = Duration::from_millis(100);
    config.pong_timeout = Duration::from_millis(200);
    let mut one = start(config);
    let (mut outside, _) = front.accept().await.unwrap();
    let mut inside = TcpStream::connect(server.address()).await.unwrap();
    let pump = tokio::io::copy_bidirectional(&mut outside, &mut inside);
    tokio::select! {
        _ = pump => panic!("closed"),
        () = one.expect_connected() => {}
    }
    // Nobody pumps any more.
    let error = one.expect_disconnected().await;
    assert!(error.contains("pings"), "{error}");
}

#[tokio::test]
async fn a_dial_that_is_swallowed_is_followed_by_another_soon() {
    let server = relay().await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let began = Instant::now();
    let mut one = start_at(front.local_addr().unwrap(), 1);
    let (_swallowed, _) = front.accept().await.unwrap();
    let (mut outside, _) = timeout(PATIENCE, front.accept()).await.unwrap().unwrap();
    let mut inside = TcpStream::connect(server.address()).await.unwrap();
    let pump = tokio::io::copy_bidirectional(&mut outside, &mut inside);
    let error = one.expect_disconnected().await;
    assert!(error.contains("3 s"), "{error}");
    tokio::select! {
        _ = pump => panic!("closed"),
        () = one.expect_connected() => {}
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_check_finds_a_dead_connection_soon() {
    let server = relay().await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut one = start_at(front.local_addr().unwrap(), 1);
    let (mut outside, _) = front.accept().await.unwrap();
    let mut inside = TcpStream::connect(server.address()).await.unwrap();
    let pump = tokio::io::copy_bidirectional(&mut outside, &mut inside);
    tokio::select! {
        _ = pump => panic!("closed"),
        () = until("a round trip is known", async || one.client.rtt().is_some()) => {}
    }
    one.expect_connected().await;
    let started = Instant::now();
    one.client.check_now();
    one.expect_disconnected().await;
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn proxies_that_pass_only_websockets_are_passed() {
    let server = relay().await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut one = start_at(front.local_addr().unwrap(), 1);
    let (mut refused, _) = front.accept().await.unwrap();
    let (head, _) = read_head(&mut refused).await;
    assert!(head.contains("Upgrade: DERP"), "{head}");
    refused
        .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let (mut stream, _) = front.accept().await.unwrap();
    let (head, rest) = read_head(&mut stream).await;
    assert!(head.contains("Sec-WebSocket-Protocol: derp"), "{head}");
    let asked = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = derive_accept_key(asked.as_bytes());
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = WebSocketBytes::new(stream, Side::Server, rest).await;
    let mut inside = Raw::upgraded(server.address()).await;
    bytes.write_all(inside.buffer.remaining()).await.unwrap();
    bytes.flush().await.unwrap();
    let pump = tokio::io::copy_bidirectional(&mut bytes, &mut inside.stream);
    tokio::select! {
        _ = pump => panic!("closed"),
        () = one.expect_connected() => {}
    }
}

#[tokio::test]
async fn the_whereabouts_of_peers_become_events() {
    let server = relay().await;
    let mut one = start_at(server.address(), 1);
    one.expect_connected().await;
    let mut initiation = [0; 148];
    initiation[0] = 1;
    one.client.outbox().push(&key(2), &initiation, 0);
    assert_eq!(
        one.next().await,
        Event::PeerGone {
            key: key(2),
            reason: PeerGoneReason::NotHere
        }
    );
    let mut two = Raw::joined(&server, 2).await;
    assert_eq!(one.next().await, Event::PeerPresent { key: key(2) });
    two.send_packet(1, b"hello").await;
    one.packets.recv().await.unwrap();
    drop(two);
    assert_eq!(
        one.next().await,
        Event::PeerGone {
            key: key(2),
            reason: PeerGoneReason::Disconnected
        }
    );
    server.shutdown().await;
    assert!(matches!(one.next().await, Event::Restarting { .. }));
}

#[tokio::test]
async fn dropping_the_client_closes_the_connection() {
    let server = relay().await;
    let mut one = start_at(server.address(), 1);
    one.expect_connected().await;
    let mut two = Raw::joined(&server, 2).await;
    one.client.outbox().push(&key(2), &[4; 10], 0);
    two.expect_packet(1, &[4; 10]).await;
    drop(one);
    assert_eq!(two.next().await.unwrap()[0], 0x08);
}

#[tokio::test]
async fn something_that_is_no_relay_is_named() {
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut one = start_at(front.local_addr().unwrap(), 1);
    let serve = async {
        loop {
            let (mut stream, _) = front.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\n\r\n")
                .await
                .unwrap();
        }
    };
    let error = tokio::select! {
        () = serve => unreachable!("serves for ever"),
        error = one.expect_disconnected() => error,
    };
    assert!(error.contains("404"), "{error}");
}
