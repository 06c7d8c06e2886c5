//! Messages out of a stream of bytes.

use super::wire::DecodeError;
use super::{LENGTH_BYTES, MAX_MESSAGE, Message};

/// Takes bytes as they come and gives messages. Holds no more than one message and what came with its last bytes.
#[derive(Debug, Default)]
pub struct MessageBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that have been read.
    head: usize,
}

impl MessageBuffer {
    /// Adds bytes. Take all messages out before the next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.head);
        self.head = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if it is complete.
    ///
    /// # Errors
    /// When it is too long or no message; the stream is then of no more use.
    pub fn next_message(&mut self) -> Result<Option<Message>, DecodeError> {
        let frame = self.next_frame(MAX_MESSAGE)?;
        frame.map(Message::decode).transpose()
    }

    /// The bytes of the next message, if it is complete, of a conversation whose messages may be that long.
    pub(crate) fn next_frame(&mut self, longest: usize) -> Result<Option<&[u8]>, DecodeError> {
        let rest = self.bytes.get(self.head..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > longest {
            return Err(DecodeError::Long);
        }
        let frame = rest.get(..length);
        if frame.is_some() {
            self.head += LENGTH_BYTES + length;
        }
        Ok(frame)
    }
}
