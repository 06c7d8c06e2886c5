//! Vectors of RFC 5769 and malformed messages.

use proptest::prelude::*;

use super::server::{parse_request, response};
use super::*;

const ID: TransactionId = TransactionId([
    0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
]);

/// RFC 5769 section 2.1.
const REQUEST: &str = "00010058 2112a442 b7e7a701bc34d686fa87dfae \
    80220010 5354554e207465737420636c69656e74 00240004 6e0001ff 80290008 932ff9b151263b36 \
    00060009 6576746a3a68367659202020 00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004 e57a3bcf";
/// RFC 5769 section 2.2.
const IPV4: &str = "0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 \
    00200008 0001a147e112a643 00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96";
/// RFC 5769 section 2.3.
const IPV6: &str = "01010048 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 \
    00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9 \
    00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c";
/// The shortest request that DERP servers answer.
const DERP: &str =
    "00010014 2112a442 0102030405060708090a0b0c 80220008 7461696c6e6f6465 80280004 b32c370f";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

#[test]
fn rfc_5769_request() {
    assert!(is_stun(&bytes(REQUEST)));
    assert_eq!(parse_request(&bytes(REQUEST)), Some((ID, Change::Nothing)));
    assert_eq!(
        parse_response(&bytes(REQUEST)),
        Err(ParseError::Type(BINDING_REQUEST))
    );
}

#[test]
fn rfc_5769_responses() {
    let v4 = parse_response(&bytes(IPV4)).unwrap();
    assert_eq!(
        (v4.transaction, v4.mapped),
        (ID, "192.0.2.1:32853".parse().unwrap())
    );
    let v6 = parse_response(&bytes(IPV6)).unwrap();
    assert_eq!(
        v6.mapped,
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
            .parse()
            .unwrap()
    );
}

#[test]
fn derp_request_is_the_shape_of_ours() {
    let id = TransactionId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(parse_request(&bytes(DERP)), Some((id, Change::Nothing)));
    let ours = request(id, Change::Nothing);
    assert_eq!(ours[20..32], bytes(DERP)[20..32]);
    assert_eq!(ours[ours.len() - 8..ours.len() - 4], [0x80, 0x28, 0, 4]);
}

#[test]
fn requests_are_long_enough_and_say_what_to_change() {
    for change in [Change::Nothing, Change::Port, Change::IpAndPort] {
        let request = request(ID, change);
        assert!(is_stun(&request));
        assert_eq!(request.len(), MIN_REQUEST);
        assert_eq!(parse_request(&request), Some((ID, change)));
    }
}

#[test]
fn longest_answer_fits_our_request() {
    let address = "[2001:db8::1]:1".parse().unwrap();
    assert!(response(ID, address, Some(address)).len() <= MIN_REQUEST);
}

#[test]
fn other_address_is_read_plain() {
    let (mapped, other) = (
        "198.51.100.7:4000".parse().unwrap(),
        "203.0.113.21:3479".parse().unwrap(),
    );
    let read = parse_response(&response(ID, mapped, Some(other))).unwrap();
    assert_eq!((read.mapped, read.other), (mapped, Some(other)));
}

#[test]
fn first_of_repeated_attributes_counts_and_xor_beats_plain() {
    let body = "0001000800010001c6336401 00200008 0001a147e112a643 00200008 0001a147e112a644";
    let message = bytes(&format!(
        "01010024 2112a442 b7e7a701bc34d686fa87dfae {body}"
    ));
    assert_eq!(
        parse_response(&message).unwrap().mapped,
        "192.0.2.1:32853".parse().unwrap()
    );
}

#[test]
fn old_attribute_number_is_understood() {
    let message = bytes("0101000c 2112a442 b7e7a701bc34d686fa87dfae 80200008 0001a147e112a643");
    assert_eq!(
        parse_response(&message).unwrap().mapped,
        "192.0.2.1:32853".parse().unwrap()
    );
}

#[test]
fn malformed_messages_are_refused() {
    let header = "2112a442 b7e7a701bc34d686fa87dfae";
    let cases = [
        (format!("01010004 {header} 00200000"), ParseError::Address),
        (
            format!("01010008 {header} 00200004 0001a147"),
            ParseError::Address,
        ),
        (
            format!("0101000c {header} 00200008 0003a147e112a643"),
            ParseError::Address,
        ),
        (
            format!("0101000c {header} 00200018 0001a147e112a643"),
            ParseError::Attributes,
        ),
        (format!("01010002 {header} 0020"), ParseError::Attributes),
        (format!("01010000 {header}"), ParseError::Mapped),
        (
            format!("0101000c {header} 00010008 0001a14700000000"),
            ParseError::Mapped,
        ),
        (
            format!("0101000c {header} 00010008 00010000c0000201"),
            ParseError::Mapped,
        ),
        (
            format!("0101000c {header} 00010008 0001a1477f000001"),
            ParseError::Mapped,
        ),
        (format!("01110000 {header}"), ParseError::Type(0x0111)),
        (format!("01010004 {header}"), ParseError::NotStun),
        (
            "0101000021 12a443 b7e7a701bc34d686fa87dfae".into(),
            ParseError::NotStun,
        ),
    ];
    for (hex, error) in cases {
        assert_eq!(parse_response(&bytes(&hex)), Err(error), "{hex}");
    }
}

#[test]
fn attributes_are_counted() {
    let body = "80220000".repeat(33);
    let message = bytes(&format!(
        "01010084 2112a442 b7e7a701bc34d686fa87dfae {body}"
    ));
    assert_eq!(parse_response(&message), Err(ParseError::Attributes));
}

#[test]
fn a_changed_byte_breaks_the_fingerprint() {
    let mut message = bytes(IPV4);
    message[30] ^= 1;
    assert_eq!(parse_response(&message), Err(ParseError::Fingerprint));
}

#[test]
fn wireguard_is_not_stun() {
    for kind in 1..=4 {
        let mut datagram = vec![0; 148];
        datagram[0] = kind;
        assert!(!is_stun(&datagram));
    }
    assert!(!is_stun(&[]));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_response(&bytes);
        prop_assert!(!is_stun(&bytes) || bytes.len() >= HEADER);
    }

    #[test]
    fn any_attributes_are_survived(body in proptest::collection::vec(any::<u8>(), 0..120)) {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[1, 1][..], &len, &MAGIC_COOKIE.to_be_bytes(), &ID.0, &body].concat();
        if let Ok(response) = parse_response(&message) {
            prop_assert!(response.mapped.port() != 0);
        }
    }

    #[test]
    fn answers_round_trip(ip in any::<IpAddr>(), port in 1u16.., id in any::<[u8; 12]>()) {
        let mapped = SocketAddr::new(ip, port);
        prop_assume!(usable(&mapped));
        let read = parse_response(&response(TransactionId(id), mapped, None)).unwrap();
        prop_assert_eq!((read.transaction, read.mapped), (TransactionId(id), mapped));
    }
}
