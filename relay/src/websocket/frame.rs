//! Frames to a client, finished: a header and what it is of (RFC 6455 §5.2).

use std::sync::Arc;

use bytes::Bytes;

use crate::memory::Memory;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8a;

/// A ping of nothing.
pub(super) const PING: Bytes = Bytes::from_static(&[0x89, 0]);

/// A text with its header, made once and shared by all who are to have it. It counts in [`Memory`] as long as anybody
/// holds it.
#[derive(Clone, Debug)]
pub(crate) struct TextFrame(Bytes);

impl TextFrame {
    pub(crate) fn new(text: String, memory: &Arc<Memory>) -> Self {
        let mut bytes = text.into_bytes();
        let (header, length) = header(TEXT, bytes.len());
        bytes.splice(0..0, header.into_iter().take(length));
        Self(memory.hold(bytes))
    }

    /// How much is written.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.0
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The text alone.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        let header = match self.0[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        std::str::from_utf8(&self.0[header..]).expect("it was made of a text")
    }
}

/// The answer to a ping of at most 125 bytes.
pub(super) fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// The reason is cut to what a close frame has room for.
pub(super) fn close(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    control(CLOSE, &[&code.to_be_bytes(), &reason.as_bytes()[..end]].concat())
}

/// The answer to a close frame that gave no code.
pub(super) fn close_without_code() -> Bytes {
    control(CLOSE, &[])
}

/// A control frame has 125 bytes (RFC 6455 §5.5), less the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

fn control(kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(2 + payload.len());
    frame.extend([kind, payload.len() as u8]);
    frame.extend(payload);
    frame.into()
}

/// A header, and how many bytes of it count.
fn header(kind: u8, length: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = kind;
    let count = match length {
        0..=125 => {
            header[1] = length as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    (header, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_the_length_in_as_few_bytes_as_it_takes() {
        let memory = Memory::new(usize::MAX);
        for (length, header) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xff, 0xff]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let text = "x".repeat(length);
            let frame = TextFrame::new(text.clone(), &memory);
            assert_eq!(frame.bytes()[..header.len()], *header);
            assert_eq!(frame.text(), text);
        }
    }

    #[test]
    fn a_close_frame_has_room_for_its_reason_or_cuts_it_between_characters() {
        assert_eq!(close(1001, "bye")[..], *b"\x88\x05\x03\xe9bye");
        let long = close(4501, &"\u{20ac}".repeat(100));
        assert_eq!(long.len(), 2 + 2 + 123);
        assert!(std::str::from_utf8(&long[4..]).is_ok());
        assert_eq!(close_without_code()[..], [0x88, 0]);
        assert_eq!(pong(b"x")[..], [0x8a, 1, b'x']);
    }
}
