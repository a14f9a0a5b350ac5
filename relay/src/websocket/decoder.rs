//! What a client sends, from bytes to messages. Pure: bytes in, messages out, split wherever the network likes.
//!
//! Whatever a client claims, no more is held than what has come of one message, which is bounded.

use protocol::CloseCode;

/// A control frame's payload (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// The longest head of a client's frame: two bytes, eight of length, four of mask.
const HEAD_BYTES_MAX: usize = 14;
/// A message of the largest size may come in pieces of a byte, each with a head of six; empty ones without end may not.
const HEADS_PER_BYTE: usize = 7;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Text(String),
    Ping(Vec<u8>),
    Pong,
    /// With the code that was given.
    Close(Option<u16>),
}

/// Reads the frames of one client.
#[derive(Debug)]
pub(crate) struct Decoder {
    message_max: usize,
    /// What came of a frame's head.
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    /// The frame whose payload comes.
    payload: Option<Payload>,
    /// What came of a message, up to where it was checked, and whether more frames of it must come.
    text: Vec<u8>,
    checked: usize,
    is_open: bool,
    /// Bytes of the message's frames, their heads included.
    message_bytes: usize,
    /// What came of a control frame: one may stand between the frames of a message.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    opcode: u8,
    is_last: bool,
    mask: [u8; 4],
    left: usize,
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

impl Payload {
    fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }
}

impl Decoder {
    /// Of messages of at most so many bytes.
    pub(crate) fn new(message_max: usize) -> Self {
        Self {
            message_max,
            head: [0; HEAD_BYTES_MAX],
            head_len: 0,
            payload: None,
            text: Vec::new(),
            checked: 0,
            is_open: false,
            message_bytes: 0,
            control: Vec::new(),
        }
    }

    /// How many bytes are held.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held(&self) -> usize {
        self.text.capacity() + self.control.capacity()
    }

    /// The next thing that is complete; `input` is what it has not used yet. `None`: all was used.
    ///
    /// # Errors
    /// The code with which the connection must end.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, CloseCode> {
        loop {
            if self.payload.is_none() && !self.read_head(input)? {
                return Ok(None);
            }
            let Some(mut payload) = self.payload.take() else { return Ok(None) };
            self.read_payload(&mut payload, input)?;
            if payload.left > 0 {
                self.payload = Some(payload);
                return Ok(None);
            }
            if payload.is_control() {
                return self.end_control(payload.opcode).map(Some);
            }
            if payload.is_last {
                return self.end_text().map(Some);
            }
        }
    }

    /// Whether a head is complete now.
    fn read_head(&mut self, input: &mut &[u8]) -> Result<bool, CloseCode> {
        loop {
            let wanted = self.head_wanted();
            if self.head_len == wanted {
                self.begin_frame()?;
                return Ok(true);
            }
            let Some((part, rest)) =
                input.split_at_checked((wanted - self.head_len).min(input.len()))
            else {
                return Ok(false);
            };
            if part.is_empty() {
                return Ok(false);
            }
            self.head[self.head_len..self.head_len + part.len()].copy_from_slice(part);
            self.head_len += part.len();
            *input = rest;
        }
    }

    /// How long the head is, as far as that is known.
    fn head_wanted(&self) -> usize {
        if self.head_len < 2 {
            return 2;
        }
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn begin_frame(&mut self) -> Result<(), CloseCode> {
        let head = &self.head[..std::mem::take(&mut self.head_len)];
        let (first, second) = (head[0], head[1]);
        let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
        // No extension was agreed on, and a client masks.
        if first & 0x70 != 0 || second & 0x80 == 0 {
            return Err(CloseCode::ProtocolError);
        }
        let (length, mask) = head[2..].split_at(head.len() - 6);
        let claimed = length.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let claimed = if length.is_empty() { u64::from(second & 0x7f) } else { claimed };
        let left = usize::try_from(claimed).unwrap_or(usize::MAX);
        match opcode {
            TEXT if !self.is_open => self.is_open = true,
            CONTINUATION if self.is_open => {}
            BINARY if !self.is_open => return Err(CloseCode::Unsupported),
            CLOSE | PING | PONG if is_last && left <= CONTROL_BYTES_MAX => {}
            _ => return Err(CloseCode::ProtocolError),
        }
        if opcode < CLOSE {
            if left > self.message_max - self.text.len() {
                return Err(CloseCode::TooLarge);
            }
            self.message_bytes += head.len() + left;
            if self.message_bytes > HEADS_PER_BYTE * self.message_max.max(CONTROL_BYTES_MAX) {
                return Err(CloseCode::Unreadable);
            }
        }
        let mask = mask.try_into().map_err(|_| CloseCode::ProtocolError)?;
        self.payload = Some(Payload { opcode, is_last, mask, left });
        Ok(())
    }

    fn read_payload(&mut self, payload: &mut Payload, input: &mut &[u8]) -> Result<(), CloseCode> {
        let (part, rest) = input.split_at(payload.left.min(input.len()));
        *input = rest;
        let into = if payload.is_control() { &mut self.control } else { &mut self.text };
        let start = into.len();
        into.extend_from_slice(part);
        unmask(&mut into[start..], payload.mask);
        payload.mask.rotate_left(part.len() % 4);
        payload.left -= part.len();
        if payload.is_control() { Ok(()) } else { self.check_text() }
    }

    /// Text that cannot become UTF-8 any more is refused at once.
    fn check_text(&mut self) -> Result<(), CloseCode> {
        match std::str::from_utf8(&self.text[self.checked..]) {
            Ok(_) => self.checked = self.text.len(),
            Err(error) if error.error_len().is_some() => return Err(CloseCode::InvalidText),
            Err(error) => self.checked += error.valid_up_to(),
        }
        Ok(())
    }

    fn end_text(&mut self) -> Result<Received, CloseCode> {
        (self.is_open, self.checked, self.message_bytes) = (false, 0, 0);
        let text = String::from_utf8(std::mem::take(&mut self.text));
        text.map(Received::Text).map_err(|_| CloseCode::InvalidText)
    }

    fn end_control(&mut self, opcode: u8) -> Result<Received, CloseCode> {
        let payload = std::mem::take(&mut self.control);
        Ok(match opcode {
            PING => Received::Ping(payload),
            PONG => Received::Pong,
            _ => Received::Close(close_code(&payload)?),
        })
    }
}

/// The code of a close frame's payload (RFC 6455 §7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(CloseCode::ProtocolError) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseCode::ProtocolError);
    }
    std::str::from_utf8(reason).map_err(|_| CloseCode::InvalidText)?;
    Ok(Some(code))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let (fours, rest) = bytes.as_chunks_mut::<4>();
    for four in fours {
        *four = (u32::from_ne_bytes(*four) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64 * 1024;

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0xf3, 0x00, 0x7b];
        let mut frame = vec![first];
        match payload.len() {
            length @ ..=125 => frame.push(0x80 | length as u8),
            length @ ..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// All that comes of these pieces.
    fn decode<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Received>, Result<(), CloseCode>) {
        let (mut decoder, mut all) = (Decoder::new(MAX), Vec::new());
        for mut piece in pieces {
            loop {
                match decoder.next(&mut piece) {
                    Ok(Some(received)) => all.push(received),
                    Ok(None) => break,
                    Err(code) => return (all, Err(code)),
                }
            }
            assert!(piece.is_empty(), "all was used");
        }
        (all, Ok(()))
    }

    fn text(text: &str) -> Received {
        Received::Text(text.to_owned())
    }

    #[test]
    fn messages_are_the_same_wherever_they_are_split() {
        let long = "ö".repeat(200);
        let bytes = [
            frame(0x81, b"hello"),
            frame(0x01, "h\u{e9}".as_bytes()),
            frame(0x89, b"are you there"),
            frame(0x00, b""),
            frame(0x80, "\u{20ac}!".as_bytes()),
            frame(0x8a, b""),
            frame(0x81, long.as_bytes()),
            frame(0x81, b""),
            frame(0x88, &[0x0f, 0xa0, b'x']),
        ]
        .concat();
        let all = vec![
            text("hello"),
            Received::Ping(b"are you there".to_vec()),
            text("h\u{e9}\u{20ac}!"),
            Received::Pong,
            text(&long),
            text(""),
            Received::Close(Some(4000)),
        ];
        assert_eq!(decode([&bytes[..]]), (all, Ok(())));
        let whole = decode([&bytes[..]]);
        for at in 0..bytes.len() {
            let (one, other) = bytes.split_at(at);
            assert_eq!(decode([one, other]), whole, "split at {at}");
        }
        assert_eq!(decode(bytes.chunks(1)), whole, "byte by byte");
        assert_eq!(decode(bytes.chunks(3)), whole, "three by three");
    }

    #[test]
    fn a_character_may_be_cut_between_frames_and_must_be_whole_in_the_end() {
        let euro = "\u{20ac}".as_bytes();
        let cut = [frame(0x01, &euro[..1]), frame(0x80, &euro[1..])].concat();
        assert_eq!(decode([&cut[..]]).0, [text("\u{20ac}")]);
        let unfinished = [frame(0x01, b"x"), frame(0x80, &euro[..2])].concat();
        assert_eq!(decode([&unfinished[..]]), (vec![], Err(CloseCode::InvalidText)));
        // At once, before the message is whole.
        assert_eq!(decode([&frame(0x01, b"\xff")[..]]), (vec![], Err(CloseCode::InvalidText)));
    }

    #[test]
    fn what_no_client_may_send_ends_the_connection_with_a_code() {
        let unmasked = [0x81, 0x01, b'x'];
        for (bytes, code) in [
            (unmasked.to_vec(), CloseCode::ProtocolError),
            (frame(0xc1, b"x"), CloseCode::ProtocolError),
            (frame(0x83, b"x"), CloseCode::ProtocolError),
            (frame(0x8b, b"x"), CloseCode::ProtocolError),
            (frame(0x80, b"nothing is open"), CloseCode::ProtocolError),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), CloseCode::ProtocolError),
            (frame(0x09, b"a ping in pieces"), CloseCode::ProtocolError),
            (frame(0x89, &[b'x'; 126]), CloseCode::ProtocolError),
            (frame(0x88, b"x"), CloseCode::ProtocolError),
            (frame(0x88, &1005_u16.to_be_bytes()), CloseCode::ProtocolError),
            (frame(0x88, &[0x03, 0xe8, 0xff]), CloseCode::InvalidText),
            (frame(0x82, b"x"), CloseCode::Unsupported),
            (frame(0x81, &[b'x'; MAX + 1]), CloseCode::TooLarge),
            ([frame(0x01, &[b'x'; MAX]), frame(0x80, b"x")].concat(), CloseCode::TooLarge),
            // A claim alone is enough.
            ([&[0x81, 0xff][..], &[0xff; 12]].concat(), CloseCode::TooLarge),
        ] {
            assert_eq!(
                decode([&bytes[..]]),
                (vec![], Err(code)),
                "{:?}",
                &bytes[..bytes.len().min(9)]
            );
        }
        assert_eq!(decode([&frame(0x81, &[b'x'; MAX])[..]]).1, Ok(()));
    }

    #[test]
    fn pieces_of_a_message_have_an_end() {
        let empty = [frame(0x01, b""), frame(0x00, b"").repeat(MAX * 2)].concat();
        assert_eq!(decode([&empty[..]]), (vec![], Err(CloseCode::Unreadable)));
        let bytes =
            [frame(0x01, b"x"), frame(0x00, b"x").repeat(MAX - 2), frame(0x80, b"x")].concat();
        assert_eq!(decode([&bytes[..]]), (vec![text(&"x".repeat(MAX))], Ok(())));
    }

    /// Whatever comes, the decoder ends, and says the same however it is split.
    #[test]
    fn junk_is_junk_wherever_it_is_split() {
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        };
        for _ in 0..2_000 {
            let mut junk: Vec<u8> = (0..60).map(|_| random()).collect();
            // Often a head that could be one.
            junk[0] &= 0x8f;
            junk[1] = 0x80 | (junk[1] & 0x0f);
            let whole = decode([&junk[..]]);
            assert_eq!(decode(junk.chunks(1)), whole);
            assert_eq!(decode(junk.chunks(5)), whole);
        }
    }
}
