use derp::{Message, PeerGoneReason};

use crate::support::{Raw, key, relay};

fn initiation() -> Vec<u8> {
    let mut packet = vec![1, 0, 0, 0];
    packet.resize(148, 7);
    packet
}

fn not_here(seed: u8) -> Message<'static> {
    Message::PeerGone {
        key: key(seed),
        reason: PeerGoneReason::NotHere,
    }
}

#[tokio::test]
async fn packets_arrive_in_order() {
    let server = relay().await;
    let (mut one, mut two) = (Raw::joined(&server, 1).await, Raw::joined(&server, 2).await);
    let mut flight = Vec::new();
    for number in 0..300_u16 {
        let mut packet = vec![4; 1000];
        packet[4..6].copy_from_slice(&number.to_be_bytes());
        Message::SendPacket {
            destination: key(2),
            packet: &packet,
        }
        .encode(&mut flight);
    }
    one.send_bytes(&flight).await;
    for number in 0..300_u16 {
        let frame = two.next().await.unwrap();
        assert_eq!(frame[37 + 4..37 + 6], number.to_be_bytes());
    }
    two.send_packet(1, b"").await;
    one.expect_packet(2, b"").await;
}

#[tokio::test]
async fn the_largest_packet_passes() {
    let server = relay().await;
    let (mut one, mut two) = (Raw::joined(&server, 1).await, Raw::joined(&server, 2).await);
    let packet = vec![5; 65_536];
    one.send_packet(2, &packet).await;
    two.expect_packet(1, &packet).await;
}

#[tokio::test]
async fn receivers_hear_of_a_departure_once() {
    let server = relay().await;
    let gone = Message::PeerGone {
        key: key(1),
        reason: PeerGoneReason::Disconnected,
    };
    let (mut two, mut three) = (Raw::joined(&server, 2).await, Raw::joined(&server, 3).await);
    for _ in 0..2 {
        let mut one = Raw::joined(&server, 1).await;
        one.send_packet(2, b"hello").await;
        two.expect_packet(1, b"hello").await;
        drop(one);
        two.expect(gone).await;
    }
    two.settle().await;
    three.settle().await;
}

#[tokio::test]
async fn senders_hear_that_nobody_is_here_and_when_somebody_comes() {
    let server = relay().await;
    let mut one = Raw::joined(&server, 1).await;
    one.send_packet(2, b"data is not worth an answer").await;
    one.settle().await;
    let mut disco = b"\x54\x53\xf0\x9f\x92\xac".to_vec();
    disco.resize(62, 0);
    one.send_packet(2, &disco[..61]).await;
    one.settle().await;
    one.send_packet(2, &disco).await;
    one.expect(not_here(2)).await;
    one.send_packet(2, &initiation()).await;
    one.expect(not_here(2)).await;
    let _two = Raw::joined(&server, 2).await;
    let present = Message::PeerPresent {
        key: key(2),
        address: None,
        flags: 0,
    };
    assert_eq!(present.to_vec().len(), 5 + 51);
    one.expect(present).await;
    one.settle().await;
}

#[tokio::test]
async fn answers_about_absent_keys_are_limited() {
    let server = relay().await;
    let mut one = Raw::joined(&server, 1).await;
    let mut flight = Vec::new();
    for _ in 0..1000 {
        Message::SendPacket {
            destination: key(2),
            packet: &initiation(),
        }
        .encode(&mut flight);
        // Another destination in between, so that each is looked at by itself.
        Message::SendPacket {
            destination: key(3),
            packet: b"",
        }
        .encode(&mut flight);
    }
    Message::Ping([9; 8]).encode(&mut flight);
    one.send_bytes(&flight).await;
    let mut answers = 0;
    while one.next().await.unwrap() != Message::Pong([9; 8]).to_vec() {
        answers += 1;
    }
    assert!((100..600).contains(&answers), "{answers}");
}

#[tokio::test]
async fn the_newest_connection_of_a_key_is_active_and_the_older_is_told() {
    let server = relay().await;
    let mut sender = Raw::joined(&server, 1).await;
    let mut older = Raw::joined(&server, 2).await;
    let mut newer = Raw::joined(&server, 2).await;
    let health = older.next().await.unwrap();
    assert_eq!(health[0], 0x14);
    assert!(String::from_utf8_lossy(&health[5..]).contains("same key"));
    sender.send_packet(2, b"newest").await;
    newer.expect_packet(1, b"newest").await;
    older.settle().await;
    sender.send_packet(2, b"whoever spoke last").await;
    older.expect_packet(1, b"whoever spoke last").await;
    drop(newer);
    older.expect(Message::Health("")).await;
    sender.send_packet(2, b"the only one").await;
    older.expect_packet(1, b"the only one").await;
}

#[tokio::test]
async fn handshakes_overtake_data_in_the_queue() {
    let server = relay().await;
    let (mut one, mut two) = (Raw::joined(&server, 1).await, Raw::joined(&server, 2).await);
    let data = vec![4; 60_000];
    let mut flight = Vec::new();
    for _ in 0..200 {
        Message::SendPacket {
            destination: key(2),
            packet: &data,
        }
        .encode(&mut flight);
    }
    Message::SendPacket {
        destination: key(2),
        packet: &initiation(),
    }
    .encode(&mut flight);
    one.send_bytes(&flight).await;
    one.settle().await;
    let mut seen = 0;
    while two.next().await.unwrap()[37] != 1 {
        seen += 1;
    }
    assert!(seen < 150, "{seen} frames before the initiation");
}
