//! Messages that nobody should send: almost right in every way there is.

use rand::rngs::ThreadRng;
use rand::{Rng, RngCore};

/// RFC 8489 section 5.
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The longest datagram there is over IPv4.
const LONGEST: usize = 65_507;

/// A datagram for a WireGuard or STUN port.
pub(super) fn datagram() -> Vec<u8> {
    let rng = &mut rand::rng();
    match rng.random_range(0..10) {
        0 => noise_up_to(rng, 1400),
        1 => truncated_stun(rng),
        2 => stun_of_another_length(rng),
        3 => stun_with_broken_attributes(rng),
        4 => uninvited_stun_response(rng),
        5 => wireguard_of_another_length(rng),
        6 => wireguard(rng, 1, 148),
        7 => {
            let (kind, length) = [(2, 92), (3, 64)][rng.random_range(0..2)];
            wireguard(rng, kind, length)
        }
        8 => {
            let length = 16 * rng.random_range(1..90);
            wireguard(rng, 4, length)
        }
        _ if rng.random_ratio(1, 20) => oversized(rng),
        _ => noise_up_to(rng, 4),
    }
}

/// What a connection to a relay says first.
pub(super) fn greeting(kind: u64) -> Vec<u8> {
    let rng = &mut rand::rng();
    match kind % 14 {
        0 => noise_up_to(rng, 1400),
        1 => b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(),
        2 => upgraded(&noise_up_to(rng, 200)),
        3 => upgraded(&frame(2, u32::MAX, &[])),
        4 => upgraded(&frame(4, 1 << 24, &noise(rng, 1000))),
        5 => upgraded(&frame(2, 3, &[1, 2, 3])),
        6 => upgraded(&frame(2, 200, &noise(rng, 200))),
        7 => upgraded(&frame(4, 64, &noise(rng, 64))),
        8 => upgraded(&frame(0xff, 0, &[])),
        9 => [b"GET /derp HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 9000]].concat(),
        10 => [
            b"POST /derp HTTP/1.1\r\n".as_slice(),
            &b"a: b\r\n".repeat(500),
        ]
        .concat(),
        11 => websocket(&[0x82, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        12 => websocket(&[0xf3, 0x05, 1, 2, 3]),
        // The start of a TLS ClientHello, as to a port that speaks TLS.
        _ => [
            &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..],
            &noise(rng, 300),
        ]
        .concat(),
    }
}

/// A request that a slow client sends a byte at a time.
pub(super) const UPGRADE: &[u8] =
    b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";

fn upgraded(rest: &[u8]) -> Vec<u8> {
    [UPGRADE, rest].concat()
}

fn websocket(rest: &[u8]) -> Vec<u8> {
    let head = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: derp\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    [head.as_slice(), rest].concat()
}

/// A DERP frame that says it is `length` bytes long.
fn frame(kind: u8, length: u32, content: &[u8]) -> Vec<u8> {
    [&[kind], &length.to_be_bytes()[..], content].concat()
}

fn noise(rng: &mut ThreadRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn noise_up_to(rng: &mut ThreadRng, longest: usize) -> Vec<u8> {
    let length = rng.random_range(0..longest);
    noise(rng, length)
}

/// Now and then it has to be put together from fragments.
fn oversized(rng: &mut ThreadRng) -> Vec<u8> {
    let length = rng.random_range(1500..LONGEST);
    let mut bytes = noise(rng, length);
    let head = if rng.random() {
        [4, 0, 0, 0]
    } else {
        [0, 1, 0xff, 0xfc]
    };
    overwrite(&mut bytes, 0, &head);
    overwrite(&mut bytes, 4, &MAGIC_COOKIE);
    bytes
}

/// A header that tells `told` bytes of attributes, and `attributes`.
fn stun(rng: &mut ThreadRng, kind: u16, told: u16, attributes: &[u8]) -> Vec<u8> {
    let mut message = Vec::from(kind.to_be_bytes());
    message.extend(told.to_be_bytes());
    message.extend(MAGIC_COOKIE);
    message.extend(noise(rng, 12));
    message.extend_from_slice(attributes);
    message
}

fn truncated_stun(rng: &mut ThreadRng) -> Vec<u8> {
    let mut message = stun(rng, 1, 0, &[]);
    message.truncate(rng.random_range(0..20));
    message
}

fn stun_of_another_length(rng: &mut ThreadRng) -> Vec<u8> {
    let told = [1, 3, 4, 100, 1400, u16::MAX - 3, u16::MAX][rng.random_range(0..7)];
    let attributes = noise_up_to(rng, 64);
    stun(rng, 1, told, &attributes)
}

/// Attributes that reach past the end, have no length, come in hundreds, or that everybody has to understand.
fn stun_with_broken_attributes(rng: &mut ThreadRng) -> Vec<u8> {
    let attributes: Vec<u8> = match rng.random_range(0..5) {
        0 => vec![0, 6, 0xff, 0xff, 1, 2, 3, 4],
        1 => vec![0, 3, 0, 0],
        2 => [0x80, 0x22, 0, 0].repeat(300),
        3 => vec![0x7f, 0xff, 0, 4, 9, 9, 9, 9],
        _ => vec![0x80, 0x28, 0, 4, 0, 0, 0, 0],
    };
    let told = u16::try_from(attributes.len()).unwrap_or(u16::MAX);
    stun(rng, 1, told, &attributes)
}

/// A success that names an address, to a request that nobody made.
fn uninvited_stun_response(rng: &mut ThreadRng) -> Vec<u8> {
    let mapped = [0, 0x20, 0, 8, 0, 1, 1, 2, 3, 4, 5, 6];
    stun(rng, 0x0101, 12, &mapped)
}

fn wireguard(rng: &mut ThreadRng, kind: u8, length: usize) -> Vec<u8> {
    let mut message = noise(rng, length);
    overwrite(&mut message, 0, &[kind, 0, 0, 0]);
    message
}

fn wireguard_of_another_length(rng: &mut ThreadRng) -> Vec<u8> {
    let right = [(1, 148), (2, 92), (3, 64), (4, 32)];
    let (kind, length) = right[rng.random_range(0..right.len())];
    let length = match rng.random_range(0..4) {
        0 => length - 1,
        1 => length + 1,
        2 => 4,
        _ => rng.random_range(5..length),
    };
    wireguard(rng, kind, length)
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + with.len()) {
        place.copy_from_slice(with);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_wrong_occurs() {
        let all: Vec<_> = (0..5000).map(|_| datagram()).collect();
        let has = |test: &dyn Fn(&[u8]) -> bool| all.iter().any(|bytes| test(bytes));
        assert!(has(&|bytes| bytes.is_empty()));
        assert!(has(&|bytes| bytes.len() > 2000));
        assert!(has(
            &|bytes| bytes.starts_with(&[1, 0, 0, 0]) && bytes.len() == 148
        ));
        assert!(has(
            &|bytes| bytes.starts_with(&[1, 0, 0, 0]) && bytes.len() == 147
        ));
        assert!(has(
            &|bytes| bytes.starts_with(&[0, 1, 0, 0]) && bytes.len() < 20
        ));
        assert!(has(
            &|bytes| bytes.get(2..8) == Some(&[0xff, 0xff, 0x21, 0x12, 0xa4, 0x42])
        ));
        assert!(all.iter().all(|bytes| bytes.len() <= LONGEST));
    }

    #[test]
    fn greetings_differ() {
        let kinds: BTreeSet<_> = (0..14).map(greeting).collect();
        assert_eq!(kinds.len(), 14);
    }
}
