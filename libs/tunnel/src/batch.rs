//! The one buffer vocabulary of the data path: a batch of equal-sized sealed packets.

/// Segments one kernel call may carry (`UDP_MAX_SEGMENTS`).
pub(crate) const MAX_SEGMENTS: usize = 64;
/// Bytes of one batch: the largest UDP payload over IPv4 and IPv6, with room for the headers.
pub(crate) const MAX_BYTES: usize = 65_000;

const _: () = assert!(MAX_BYTES < 65_507);

/// Packets for one destination: all `segment_size` bytes long but the last, which may be shorter.
///
/// The outer ECN field (RFC 6040) is one per batch, because the kernel writes one per call.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    segment_size: usize,
    segments: usize,
    ecn: u8,
    closed: bool,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(MAX_BYTES),
            ..Self::default()
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        (self.segment_size, self.segments, self.ecn, self.closed) = (0, 0, 0, false);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments == 0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn segment_size(&self) -> usize {
        self.segment_size
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments
    }

    /// The two ECN bits of every packet in here.
    pub(crate) fn ecn(&self) -> u8 {
        self.ecn
    }

    /// Whether a packet of `len` bytes may join without breaking a rule of segmentation offload.
    pub(crate) fn fits(&self, len: usize, ecn: u8, max_segments: usize) -> bool {
        self.is_empty()
            || (!self.closed
                && len <= self.segment_size
                && ecn == self.ecn
                && self.segments < max_segments.min(MAX_SEGMENTS)
                && self.bytes.len() + len <= MAX_BYTES)
    }

    /// Appends a packet that [`fits`](Self::fits): `fill` writes `len` bytes and says whether it did.
    pub(crate) fn push(
        &mut self,
        len: usize,
        ecn: u8,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        let filled = self.bytes.get_mut(start..).is_some_and(fill);
        if !filled {
            self.bytes.truncate(start);
            return false;
        }
        if self.is_empty() {
            (self.segment_size, self.ecn) = (len, ecn);
        }
        self.closed = len < self.segment_size;
        self.segments += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(lengths: &[usize]) -> Batch {
        let mut batch = Batch::new();
        for &len in lengths {
            assert!(batch.fits(len, 0, MAX_SEGMENTS), "{len} fits");
            assert!(batch.push(len, 0, |_| true));
        }
        batch
    }

    #[test]
    fn a_shorter_tail_ends_the_batch() {
        let batch = filled(&[100, 100, 60]);
        assert_eq!(
            (batch.segment_size(), batch.segments(), batch.bytes().len()),
            (100, 3, 260)
        );
        assert!(!batch.fits(60, 0, MAX_SEGMENTS));
    }

    #[test]
    fn longer_packets_other_ecn_and_too_many_do_not_fit() {
        let batch = filled(&[100]);
        assert!(!batch.fits(101, 0, MAX_SEGMENTS));
        assert!(!batch.fits(100, 2, MAX_SEGMENTS));
        assert!(!batch.fits(100, 0, 1));
        assert!(!filled(&[100; MAX_SEGMENTS]).fits(100, 0, MAX_SEGMENTS));
        assert!(!filled(&[1_400; 46]).fits(1_400, 0, MAX_SEGMENTS));
    }

    #[test]
    fn a_refused_fill_leaves_the_batch_as_it_was() {
        let mut batch = filled(&[100]);
        assert!(!batch.push(100, 0, |_| false));
        assert_eq!((batch.segments(), batch.bytes().len()), (1, 100));
    }
}
