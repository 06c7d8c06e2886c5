use proptest::prelude::*;

use super::*;
use crate::key::NodeSecret;

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

fn read_all(buffer: &mut FrameBuffer) -> Result<Vec<(FrameType, Vec<u8>)>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = buffer.next_frame()? {
        frames.push((frame.kind, frame.payload.to_vec()));
    }
    Ok(frames)
}

fn feed(
    buffer: &mut FrameBuffer,
    mut bytes: &[u8],
) -> Result<Vec<(FrameType, Vec<u8>)>, FrameError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let space = buffer.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        buffer.filled(count);
        bytes = &bytes[count..];
        frames.extend(read_all(buffer)?);
    }
    Ok(frames)
}

fn only(message: Message<'_>) -> (FrameType, Vec<u8>) {
    let mut frames = feed(&mut FrameBuffer::default(), &message.to_vec()).unwrap();
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

fn assert_round_trip(message: Message<'_>) {
    let (kind, payload) = only(message);
    assert_eq!(
        Message::decode(RawFrame {
            kind,
            payload: &payload
        }),
        Ok(message)
    );
}

#[test]
fn every_type_round_trips() {
    let (one, two) = (key(1), key(2));
    let address = Some("192.0.2.1:41641".parse().unwrap());
    let second = Duration::from_secs(1);
    for message in [
        Message::ServerKey { key: one },
        Message::ClientInfo { sealed: &[7; 80] },
        Message::ServerInfo { sealed: &[7; 80] },
        Message::SendPacket {
            destination: one,
            packet: b"hello",
        },
        Message::RecvPacket {
            source: one,
            packet: b"",
        },
        Message::KeepAlive,
        Message::NotePreferred(true),
        Message::NotePreferred(false),
        Message::PeerGone {
            key: one,
            reason: PeerGoneReason::NotHere,
        },
        Message::PeerPresent {
            key: one,
            address,
            flags: 1,
        },
        Message::PeerPresent {
            key: one,
            address: None,
            flags: 0,
        },
        Message::ForwardPacket {
            source: one,
            destination: two,
            packet: b"x",
        },
        Message::WatchConns,
        Message::ClosePeer { key: two },
        Message::Ping([1, 2, 3, 4, 5, 6, 7, 8]),
        Message::Pong([1, 2, 3, 4, 5, 6, 7, 8]),
        Message::Health("no"),
        Message::Health(""),
        Message::Restarting {
            reconnect_in: second,
            try_for: 2 * second,
        },
    ] {
        assert_round_trip(message);
    }
}

#[test]
fn known_bytes() {
    let client =
        NodeKey::from_hex("358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254")
            .unwrap();
    let server =
        NodeKey::from_hex("8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f")
            .unwrap();
    let packet = Message::SendPacket {
        destination: client,
        packet: b"hello",
    };
    assert_eq!(
        hex::encode(packet.to_vec()),
        "0400000025358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd16625468656c6c6f"
    );
    assert_eq!(
        hex::encode(Message::ServerKey { key: server }.to_vec()),
        "010000002844455250f09f94918f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
    );
}

#[test]
fn headers_of_packets_are_those_of_messages() {
    let mut out = Vec::new();
    put_packet_header(&mut out, FrameType::RecvPacket, &key(1), 3);
    out.extend_from_slice(b"abc");
    assert_eq!(
        out,
        Message::RecvPacket {
            source: key(1),
            packet: b"abc"
        }
        .to_vec()
    );
}

#[test]
fn peer_gone_needs_no_reason() {
    let key = key(1);
    let frame = RawFrame {
        kind: FrameType::PeerGone,
        payload: key.as_bytes(),
    };
    let reason = PeerGoneReason::Disconnected;
    assert_eq!(
        Message::decode(frame),
        Ok(Message::PeerGone { key, reason })
    );
    for byte in 0..=255 {
        assert_eq!(PeerGoneReason::from_byte(byte).to_byte(), byte);
    }
}

#[test]
fn peer_present_comes_in_several_lengths() {
    let key = key(1);
    let full = Message::PeerPresent {
        key,
        address: Some("[2001:db8::1]:7".parse().unwrap()),
        flags: 4,
    };
    let (kind, mut payload) = only(full);
    assert_eq!(payload.len(), 51);
    payload.extend_from_slice(&[9; 10]);
    assert_eq!(
        Message::decode(RawFrame {
            kind,
            payload: &payload
        }),
        Ok(full)
    );
    let without_flags = Message::decode(RawFrame {
        kind,
        payload: &payload[..50],
    })
    .unwrap();
    assert!(matches!(
        without_flags,
        Message::PeerPresent {
            address: Some(_),
            flags: 0,
            ..
        }
    ));
    let bare = Message::decode(RawFrame {
        kind,
        payload: &payload[..32],
    })
    .unwrap();
    assert_eq!(
        bare,
        Message::PeerPresent {
            key,
            address: None,
            flags: 0
        }
    );
}

#[test]
fn limits_are_checked_before_the_payload_comes() {
    for (kind, length) in [
        (0x01, 39),
        (0x01, 1025),
        (0x02, 55),
        (0x02, 262_145),
        (0x03, 1 << 21),
        (0x04, 31),
        (0x04, 65_569),
        (0x05, 65_569),
        (0x07, 2),
        (0x12, 7),
        (0x12, 1001),
        (0x14, u32::MAX),
    ] {
        let mut header = vec![kind];
        header.extend_from_slice(&u32::to_be_bytes(length));
        assert!(
            matches!(split_frame(&header), Err(FrameError::Length { .. })),
            "{kind:#x} {length}"
        );
    }
    assert!(matches!(
        split_frame(&[0x04, 0, 1, 0, 32]),
        Ok(Split::Incomplete { needed: 65_573 })
    ));
}

#[test]
fn weak_keys_are_malformed() {
    let frame = RawFrame {
        kind: FrameType::SendPacket,
        payload: &[0; 40],
    };
    assert_eq!(
        Message::decode(frame),
        Err(FrameError::Payload {
            kind: FrameType::SendPacket
        })
    );
}

#[test]
fn unknown_types_are_skipped_without_buffering() {
    let mut bytes = vec![0x7f];
    bytes.extend_from_slice(&500_000_u32.to_be_bytes());
    bytes.resize(500_005, 0xaa);
    Message::KeepAlive.encode(&mut bytes);
    let mut buffer = FrameBuffer::default();
    assert_eq!(
        feed(&mut buffer, &bytes).unwrap(),
        [(FrameType::KeepAlive, Vec::new())]
    );
    assert!(buffer.capacity() <= 4 * MAX_BUFFER, "{}", buffer.capacity());
}

const MAX_BUFFER: usize = 64 << 10;

#[test]
fn the_buffer_shrinks_when_reads_are_small() {
    let mut buffer = FrameBuffer::default();
    let big = Message::SendPacket {
        destination: key(1),
        packet: &[1; 60_000],
    }
    .to_vec();
    feed(&mut buffer, &big.repeat(4)).unwrap();
    for _ in 0..8 {
        feed(&mut buffer, &Message::KeepAlive.to_vec()).unwrap();
        buffer.space();
    }
    assert!(buffer.capacity() <= 8 << 10, "{}", buffer.capacity());
}

proptest! {
    #[test]
    fn splitting_a_stream_changes_nothing(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..12),
        cut in 1_usize..700,
    ) {
        let mut stream = Vec::new();
        for packet in &packets {
            Message::RecvPacket { source: key(1), packet }.encode(&mut stream);
        }
        let mut buffer = FrameBuffer::default();
        let mut seen = Vec::new();
        for part in stream.chunks(cut) {
            seen.extend(feed(&mut buffer, part).unwrap());
        }
        let got: Vec<Vec<u8>> = seen.into_iter().map(|(_, payload)| payload[32..].to_vec()).collect();
        prop_assert_eq!(got, packets);
        prop_assert!(buffer.remaining().is_empty());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut buffer = FrameBuffer::default();
        if let Ok(frames) = feed(&mut buffer, &bytes) {
            for (kind, payload) in &frames {
                let _ = Message::decode(RawFrame { kind: *kind, payload });
            }
        }
        prop_assert!(buffer.capacity() <= MAX_FRAME + 2 * MAX_BUFFER);
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_meaning(kind in 1_u8..0x16, payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let Some(kind) = FrameType::from_byte(kind) else { return Ok(()) };
        if let Ok(message) = Message::decode(RawFrame { kind, payload: &payload }) {
            let again = message.to_vec();
            let Ok(Split::Frame { frame, consumed }) = split_frame(&again) else { panic!("no frame") };
            prop_assert_eq!(consumed, again.len());
            prop_assert_eq!(Message::decode(frame), Ok(message));
        }
    }
}
