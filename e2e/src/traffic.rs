//! Traffic between pods, and what became of it by the receiver's own clock.

mod echo;
mod flood;
mod malformed;
mod ping;
mod transfer;

pub use echo::{Arrivals, Echo, Received};
pub use flood::Flood;
pub use ping::{PingReport, Pinger, probe};
pub use transfer::{Server, Transfer, TransferReport};

/// In every payload of the test traffic; nothing outside a tunnel may hold it.
pub const MARKER: [u8; 32] = *b"culvert-lab-plaintext-marker-\xf0\x9f\x9a";

/// Bytes of a ping without its padding: the marker, the flow's number, the sequence number.
const HEAD: usize = MARKER.len() + 4 + 8;

/// The payload of one ping, `size` bytes long or as long as its head.
fn payload(flow: u32, sequence: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size.max(HEAD));
    bytes.extend_from_slice(&MARKER);
    bytes.extend_from_slice(&flow.to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.resize(size.max(HEAD), 0x5a);
    bytes
}

/// Flow and sequence number of a ping.
fn parse(bytes: &[u8]) -> Option<(u32, u64)> {
    let (flow, rest) = bytes.strip_prefix(&MARKER)?.split_first_chunk()?;
    Some((
        u32::from_be_bytes(*flow),
        u64::from_be_bytes(*rest.first_chunk()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_read_back() {
        let bytes = payload(7, 1 << 40, 200);
        assert_eq!(bytes.len(), 200);
        assert_eq!(parse(&bytes), Some((7, 1 << 40)));
        assert_eq!(parse(&bytes[1..]), None);
        assert_eq!(parse(&bytes[..HEAD - 1]), None);
    }
}
