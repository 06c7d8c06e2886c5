//! Encoded frames one after the other, oldest first.

use std::collections::VecDeque;

/// Frames in one buffer.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Bytes at the front that are gone.
    head: usize,
    frames: VecDeque<usize>,
}

impl Chunk {
    /// An empty chunk that reuses a buffer.
    pub(super) fn with(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self {
            bytes,
            head: 0,
            frames: VecDeque::new(),
        }
    }

    /// Adds the frame that `write` appends; says how long it is.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - before;
        self.frames.push_back(length);
        length
    }

    /// Bytes in the chunk.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Frames in the chunk.
    pub(super) fn frames(&self) -> u64 {
        u64::try_from(self.frames.len()).unwrap_or(u64::MAX)
    }

    /// Drops the oldest frame; says how long it was, 0 if there is none.
    pub(super) fn drop_oldest(&mut self) -> usize {
        let length = self.frames.pop_front().unwrap_or(0);
        self.head += length;
        self.compact();
        length
    }

    /// Moves whole frames of at most `limit` bytes to `out`, but one in any case if `limit` is not 0; says how many bytes.
    pub(super) fn take(&mut self, out: &mut Vec<u8>, limit: usize) -> usize {
        if limit == 0 || self.frames.is_empty() {
            return 0;
        }
        if self.held() <= limit {
            return self.take_all(out);
        }
        let mut taken = self.frames.pop_front().unwrap_or(0);
        while let Some(next) = self
            .frames
            .front()
            .copied()
            .filter(|next| taken + next <= limit)
        {
            taken += next;
            self.frames.pop_front();
        }
        out.extend_from_slice(
            self.bytes
                .get(self.head..self.head + taken)
                .unwrap_or_default(),
        );
        self.head += taken;
        self.compact();
        taken
    }

    /// The buffer, for reuse.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    fn take_all(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.held();
        if out.is_empty() && self.head == 0 {
            std::mem::swap(out, &mut self.bytes);
        } else {
            out.extend_from_slice(self.bytes.get(self.head..).unwrap_or_default());
        }
        self.bytes.clear();
        self.frames.clear();
        self.head = 0;
        taken
    }

    fn compact(&mut self) {
        if self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }
}
