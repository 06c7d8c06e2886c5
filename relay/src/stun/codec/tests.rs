use proptest::prelude::*;

use super::*;

const TRANSACTION: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A request with these attributes.
fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = [BINDING_REQUEST.as_slice(), &[0, 0], &COOKIE, &TRANSACTION].concat();
    for (kind, value) in attributes {
        put_attribute(&mut bytes, *kind, value);
    }
    finish(bytes)
}

fn success(request: &[u8], from: &str, other: Option<&str>) -> Vec<u8> {
    let other = other.map(|text| text.parse().unwrap());
    match Request::parse(request)
        .unwrap()
        .answer(from.parse().unwrap(), other)
    {
        Some(Answer::Success(bytes)) => bytes,
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn requests_of_other_implementations_are_read() {
    for text in [
        "000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f",
        "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932f\
         f9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
    ] {
        let bytes = hex::decode(text).unwrap();
        let request = Request::parse(&bytes).unwrap();
        assert!(request.unknown.is_empty());
        let mut damaged = bytes;
        damaged[9] ^= 1;
        assert_eq!(Request::parse(&damaged), None, "the fingerprint is checked");
    }
}

#[test]
fn addresses_are_encoded_as_the_standard_says() {
    let v4 = success(&request(&[]), "192.0.2.1:32853", None);
    assert_eq!(hex::encode(&v4[20..]), "002000080001a147e112a643");
    let bytes = [request(&[])].concat();
    let mut with_id = bytes;
    with_id[8..20].copy_from_slice(&hex::decode("b7e7a701bc34d686fa87dfae").unwrap());
    let v6 = success(
        &with_id,
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
        None,
    );
    assert_eq!(
        hex::encode(&v6[20..]),
        "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    );
}

#[test]
fn other_address_comes_only_where_it_fits() {
    let v4 = success(&request(&[]), "192.0.2.1:1", Some("203.0.113.1:3478"));
    assert_eq!(hex::encode(&v4[32..]), "802c000800010d96cb007101");
    let (from, other) = ("[2001:db8::1]:1", Some("[2001:db8::2]:3478"));
    assert_eq!(success(&request(&[]), from, other).len(), 44);
    assert_eq!(
        success(&request(&[(0x8022, &[b'x'; 44])]), from, other).len(),
        68
    );
}

#[test]
fn changes_are_read() {
    let change = |flags: u8| {
        Request::parse(&request(&[(CHANGE_REQUEST, &[0, 0, 0, flags])]))
            .unwrap()
            .change
    };
    assert_eq!(
        change(6),
        Change {
            ip: true,
            port: true
        }
    );
    assert_eq!(
        change(2),
        Change {
            ip: false,
            port: true
        }
    );
    assert!(!change(0).is_wanted());
}

#[test]
fn unknown_attributes_are_refused_only_in_short_answers() {
    let short = request(&[(0x0027, &[0; 4])]);
    let from = "192.0.2.1:1".parse().unwrap();
    assert_eq!(Request::parse(&short).unwrap().answer(from, None), None);
    let long = request(&[(0x0027, &[0; 4]), (0x0026, &[0; 8])]);
    let Some(Answer::Refused(bytes)) = Request::parse(&long).unwrap().answer(from, None) else {
        panic!("no error")
    };
    assert!(bytes.len() <= long.len());
    assert_eq!(
        hex::encode(&bytes[20..]),
        "0009000400000414000a000200270000"
    );
}

#[test]
fn anything_else_is_not_a_request() {
    let good = request(&[(0x8022, b"x")]);
    assert!(Request::parse(&good).is_some());
    for cut in 0..good.len() {
        assert_eq!(Request::parse(&good[..cut]), None, "{cut}");
    }
    let mut answer = good;
    answer[0] = 1;
    assert_eq!(Request::parse(&answer), None);
    let mut wireguard = vec![1, 0, 0, 0];
    wireguard.resize(148, 7);
    assert_eq!(Request::parse(&wireguard), None);
    let many: Vec<(u16, &[u8])> = vec![(0x8022, b""); 40];
    assert_eq!(Request::parse(&request(&many)), None);
    assert_eq!(Request::parse(&request(&[(CHANGE_REQUEST, &[0; 3])])), None);
}

proptest! {
    #[test]
    fn answers_are_never_longer_than_allowed(
        attributes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..60)), 0..8),
        v6: bool,
        cut in 0_usize..600,
    ) {
        let attributes: Vec<(u16, &[u8])> = attributes.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        let mut bytes = request(&attributes);
        let length = bytes.len();
        bytes.truncate(cut.max(20).min(length));
        if bytes.len() < length {
            prop_assert!(Request::parse(&bytes).is_none());
        } else if let Some(request) = Request::parse(&bytes) {
            let (from, other) = if v6 { ("[2001:db8::1]:1", "[2001:db8::2]:2") } else { ("192.0.2.1:1", "192.0.2.2:2") };
            match request.answer(from.parse().unwrap(), Some(other.parse().unwrap())) {
                Some(Answer::Success(answer)) => prop_assert!(answer.len() <= length.max(FREE_LEN)),
                Some(Answer::Refused(answer)) => prop_assert!(answer.len() <= length),
                None => {}
            }
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes);
    }
}
