//! The bytes of a stream that have been read and not yet understood.

use super::{FrameError, RawFrame, Split, split_frame};

/// The smallest space offered to a reader, in bytes. Idle connections hold no more than this.
const MIN_SPACE: usize = 2 << 10;
/// The largest space offered to a reader, in bytes.
const MAX_SPACE: usize = 64 << 10;

/// Collects the bytes of a stream and gives out its frames.
///
/// 1. Read into [`space`](Self::space), and say with [`filled`](Self::filled) how much it was.
/// 2. Take all [`frames`](Self::frames), or one after the other with [`next_frame`](Self::next_frame).
///
/// The space grows with what reads bring, up to 64 KiB or twice what a long frame has brought so far, and shrinks
/// again: a length that is only claimed costs nothing.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    cursor: Cursor,
    last_read: usize,
}

/// The whole frames in a [`FrameBuffer`]. Frames of unknown type are passed over. Ends after the first error.
#[derive(Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    cursor: &'a mut Cursor,
}

#[derive(Debug, Default)]
struct Cursor {
    start: usize,
    end: usize,
    /// Bytes to come that belong to a frame of unknown type.
    skip: u64,
    /// Bytes of the frame at the front, as far as known.
    needed: usize,
    failed: bool,
}

impl FrameBuffer {
    /// A buffer whose first bytes are already there.
    #[must_use]
    pub fn with(bytes: Vec<u8>) -> Self {
        let cursor = Cursor {
            end: bytes.len(),
            ..Cursor::default()
        };
        Self {
            bytes,
            cursor,
            last_read: 0,
        }
    }

    /// Where the next read goes; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        let held = self.cursor.end - self.cursor.start;
        let missing = self.cursor.needed.saturating_sub(held);
        let wanted = self.last_read.saturating_mul(2).clamp(MIN_SPACE, MAX_SPACE);
        self.compact(held, held + wanted.max(missing.min(held)));
        self.bytes.get_mut(held..).unwrap_or_default()
    }

    /// Says that `count` bytes of the last [`space`](Self::space) have been filled.
    pub fn filled(&mut self, count: usize) {
        self.last_read = count;
        self.cursor.end = (self.cursor.end + count).min(self.bytes.len());
    }

    /// All whole frames, until more has been read.
    pub fn frames(&mut self) -> Frames<'_> {
        Frames {
            bytes: &self.bytes,
            cursor: &mut self.cursor,
        }
    }

    /// The next whole frame; `None` until more has been read.
    ///
    /// # Errors
    ///
    /// [`FrameError::Length`] if a frame is longer or shorter than its type allows. The stream is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<RawFrame<'_>>, FrameError> {
        self.frames().next().transpose()
    }

    /// The bytes that have not been given out.
    #[must_use]
    pub fn remaining(&self) -> &[u8] {
        self.bytes
            .get(self.cursor.start..self.cursor.end)
            .unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    fn compact(&mut self, held: usize, size: usize) {
        self.bytes
            .copy_within(self.cursor.start..self.cursor.end, 0);
        self.cursor.start = 0;
        self.cursor.end = held;
        self.bytes.resize(size, 0);
        if self.bytes.capacity() > 4 * size {
            self.bytes.shrink_to(size);
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<RawFrame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.cursor.failed {
            self.cursor.pass_over();
            let held = self
                .bytes
                .get(self.cursor.start..self.cursor.end)
                .unwrap_or_default();
            match split_frame(held) {
                Ok(Split::Skip { length }) => self.cursor.skip = length,
                Ok(Split::Incomplete { needed }) => {
                    self.cursor.needed = needed;
                    return None;
                }
                Ok(Split::Frame { frame, consumed }) => {
                    self.cursor.start += consumed;
                    return Some(Ok(frame));
                }
                Err(error) => {
                    self.cursor.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Cursor {
    fn pass_over(&mut self) {
        let held = self.end - self.start;
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(held);
        self.start += skipped;
        self.skip -= u64::try_from(skipped).unwrap_or(0);
    }
}
