//! What Redis sends to a connection that listens (RESP2): bytes in, pushes out. Pure, so that it can be fuzzed.
//!
//! [`link`](super::link) → **resp** → [`wire`](super::wire)
//!
//! Invariants: nothing in here trusts the server. A push, split at any byte, is the same push; what is not one is an error, and
//! whatever comes, no more is kept than one push of the largest size and one read.

use std::ops::Range;

use thiserror::Error;

/// How many bytes are read at a time.
const READ_BYTES: usize = 64 * 1024;
/// The longest name of a channel: ours have fewer than 300 bytes.
const NAME_BYTES_MAX: usize = 1024;
/// The longest payload. A batch of appends has 256 KiB, or is a single entry.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// The longest line: a status, an error, a length.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// What the server says by itself, or confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Push<'a> {
    /// A message was published. Without its payload where that is too long.
    Message { channel: &'a [u8], payload: Option<&'a [u8]> },
    /// One more channel is subscribed to.
    Subscribed(&'a [u8]),
    /// One channel fewer.
    Unsubscribed(&'a [u8]),
    /// A command was carried out.
    Done,
    /// A command was refused.
    Refused(&'a [u8]),
}

/// What came is none of it: the connection cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("redis sent what cannot be read: {0}")]
pub(super) struct Malformed(&'static str);

/// What was read and not taken yet.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// All of it may be written to; what is kept are the bytes of `kept`.
    buffer: Vec<u8>,
    kept: Range<usize>,
    /// So many bytes of a payload that is too long are still to come.
    skip: usize,
}

impl Reader {
    /// Where what is read next goes. [`filled`](Self::filled) says how much that was.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let length = self.kept.len();
        let is_too_small = self.buffer.len() < length + READ_BYTES / 2;
        // A long push is over.
        let is_too_large = length == 0 && self.buffer.len() > READ_BYTES;
        if is_too_small || is_too_large {
            // Twice as much, so that a long push is moved rarely.
            let mut buffer = vec![0; READ_BYTES.max(length * 2)];
            buffer[..length].copy_from_slice(&self.buffer[self.kept.clone()]);
            (self.buffer, self.kept) = (buffer, 0..length);
        } else if length == 0 || self.buffer.len() - self.kept.end < READ_BYTES / 2 {
            self.buffer.copy_within(self.kept.clone(), 0);
            self.kept = 0..length;
        }
        &mut self.buffer[self.kept.end..]
    }

    /// So many bytes were written to [`room`](Self::room).
    pub(super) fn filled(&mut self, bytes: usize) {
        self.kept.end += bytes;
    }

    /// The next push; `None` where it is not complete. To be asked until then: only that keeps the memory bounded.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(super) fn next(&mut self) -> Result<Option<Push<'_>>, Malformed> {
        let skipped = self.skip.min(self.kept.len());
        self.skip -= skipped;
        self.kept.start += skipped;
        let bytes = &self.buffer[self.kept.clone()];
        match (Parser { bytes, at: 0 }).push() {
            Ok(Parsed { push, bytes, beyond }) => {
                self.kept.start += bytes;
                self.skip = beyond;
                Ok(Some(push))
            }
            Err(Stop::Incomplete) => Ok(None),
            Err(Stop::Malformed(why)) => Err(Malformed(why)),
        }
    }
}

/// Why there is no push.
enum Stop {
    Incomplete,
    Malformed(&'static str),
}

struct Parsed<'a> {
    push: Push<'a>,
    /// So many bytes it took.
    bytes: usize,
    /// So many are to be skipped after these.
    beyond: usize,
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn push(mut self) -> Result<Parsed<'a>, Stop> {
        let (kind, line) = self.line()?;
        let push = match kind {
            b'+' => Push::Done,
            b'-' => Push::Refused(line),
            b'*' if line == b"3" => return self.array(),
            _ => return Err(Stop::Malformed("neither a status nor a message")),
        };
        Ok(Parsed { push, bytes: self.at, beyond: 0 })
    }

    fn array(mut self) -> Result<Parsed<'a>, Stop> {
        let kind = self.text()?;
        let channel = self.text()?;
        let mut beyond = 0;
        let push = match kind {
            b"message" => {
                let length = self.length()?;
                let payload = if length > PAYLOAD_BYTES_MAX {
                    beyond = length + 2;
                    None
                } else {
                    Some(self.body(length)?)
                };
                Push::Message { channel, payload }
            }
            b"subscribe" | b"unsubscribe" => {
                match self.line()? {
                    (b':', count) if number(count).is_some() => {}
                    _ => return Err(Stop::Malformed("the number of subscriptions is missing")),
                }
                if kind == b"subscribe" {
                    Push::Subscribed(channel)
                } else {
                    Push::Unsubscribed(channel)
                }
            }
            _ => return Err(Stop::Malformed("a push of an unknown kind")),
        };
        Ok(Parsed { push, bytes: self.at, beyond })
    }

    fn text(&mut self) -> Result<&'a [u8], Stop> {
        match self.length()? {
            length if length > NAME_BYTES_MAX => Err(Stop::Malformed("a name is too long")),
            length => self.body(length),
        }
    }

    /// The length of the text that follows.
    fn length(&mut self) -> Result<usize, Stop> {
        match self.line()? {
            (b'$', length) => number(length).ok_or(Stop::Malformed("a length is not a number")),
            _ => Err(Stop::Malformed("a text was expected")),
        }
    }

    fn body(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let body = self.bytes[self.at..].get(..length + 2).ok_or(Stop::Incomplete)?;
        let body = body.strip_suffix(b"\r\n").ok_or(Stop::Malformed("a text does not end"))?;
        self.at += length + 2;
        Ok(body)
    }

    /// The kind of the next line and its text.
    fn line(&mut self) -> Result<(u8, &'a [u8]), Stop> {
        let rest = &self.bytes[self.at..];
        let (kind, text) = rest.split_first().ok_or(Stop::Incomplete)?;
        if !b"+-:$*".contains(kind) {
            return Err(Stop::Malformed("a line of an unknown kind"));
        }
        let end = text.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\r');
        let end = match end {
            Some(end) => end,
            None if text.len() >= LINE_BYTES_MAX => {
                return Err(Stop::Malformed("a line is too long"));
            }
            None => return Err(Stop::Incomplete),
        };
        match text.get(end + 1) {
            Some(b'\n') => {}
            Some(_) => return Err(Stop::Malformed("a line does not end")),
            None => return Err(Stop::Incomplete),
        }
        self.at += 1 + end + 2;
        Ok((*kind, &text[..end]))
    }
}

/// A number as Redis writes one. At most nine digits: no text of Redis is longer than 512 MiB.
fn number(text: &[u8]) -> Option<usize> {
    if !(1..=9).contains(&text.len()) {
        return None;
    }
    text.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + usize::from(digit - b'0'))
    })
}

/// Adds a command to what is to be written.
pub(super) fn command<'a>(to: &mut Vec<u8>, parts: impl ExactSizeIterator<Item = &'a [u8]>) {
    to.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        to.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        to.extend_from_slice(part);
        to.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::redis::properties;

    fn read(reader: &mut Reader, pieces: &[&[u8]]) -> Result<Vec<String>, Malformed> {
        let mut pushes = Vec::new();
        properties::read(reader, pieces, |push| pushes.push(shown(push)))?;
        Ok(pushes)
    }

    fn shown(push: &Push<'_>) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match push {
            Push::Message { channel, payload: Some(payload) } if payload.len() < 100 => {
                format!("{}={}", text(channel), text(payload))
            }
            Push::Message { channel, payload } => {
                format!("{} {:?}", text(channel), payload.map(<[u8]>::len))
            }
            Push::Subscribed(channel) => format!("+{}", text(channel)),
            Push::Unsubscribed(channel) => format!("-{}", text(channel)),
            Push::Done => "done".to_owned(),
            Push::Refused(why) => format!("refused {}", text(why)),
        }
    }

    fn message(channel: &str, payload: &str) -> String {
        let (name, length) = (channel.len(), payload.len());
        format!("*3\r\n$7\r\nmessage\r\n${name}\r\n{channel}\r\n${length}\r\n{payload}\r\n")
    }

    fn all_kinds() -> (String, Vec<&'static str>) {
        let text = [
            "+OK\r\n",
            "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
            &message("a", "one"),
            &message("b", ""),
            &message("a", "\r\n*3\r\n"),
            "-NOPERM no\r\n",
            "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n",
        ];
        (
            text.concat(),
            vec!["done", "+a", "a=one", "b=", "a=\r\n*3\r\n", "refused NOPERM no", "-a"],
        )
    }

    #[test]
    fn split_at_any_two_bytes_the_pushes_are_the_same() {
        let (text, expected) = all_kinds();
        let bytes = text.as_bytes();
        for one in 0..=bytes.len() {
            for two in one..=bytes.len() {
                let pieces = [&bytes[..one], &bytes[one..two], &bytes[two..]];
                assert_eq!(read(&mut Reader::default(), &pieces).unwrap(), expected, "{one} {two}");
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&mut Reader::default(), &single).unwrap(), expected);
    }

    #[test]
    fn a_payload_that_is_too_long_is_skipped_and_named() {
        let long = "x".repeat(PAYLOAD_BYTES_MAX + 1);
        let just = "x".repeat(PAYLOAD_BYTES_MAX);
        let text = [message("long", &long), message("just", &just), message("after", "y")].concat();
        let mut reader = Reader::default();
        for size in [1, 7_000, READ_BYTES, usize::MAX] {
            let pieces: Vec<&[u8]> = match size {
                // Byte by byte only around the ends: the middle is long.
                1 => {
                    let (head, rest) = text.as_bytes().split_at(100);
                    let (middle, tail) = rest.split_at(rest.len() - 100);
                    head.chunks(1).chain([middle]).chain(tail.chunks(1)).collect()
                }
                usize::MAX => vec![text.as_bytes()],
                size => text.as_bytes().chunks(size).collect(),
            };
            assert_eq!(
                read(&mut reader, &pieces).unwrap(),
                [
                    "long None".to_owned(),
                    format!("just Some({PAYLOAD_BYTES_MAX})"),
                    "after=y".to_owned()
                ]
            );
        }
        reader.room();
        assert_eq!(reader.buffer.len(), READ_BYTES, "the room of long pushes is given back");
    }

    #[test]
    fn what_is_not_a_push_is_an_error_and_costs_no_memory() {
        let long_line = format!("+{}", "x".repeat(LINE_BYTES_MAX + 1));
        let deep = "*1\r\n".repeat(1000);
        for junk in [
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "*4\r\n",
            "*-1\r\n",
            "$3\r\nabc\r\n",
            ":1\r\n",
            "*3\r\n:1\r\n",
            "*3\r\n$-1\r\n",
            "*3\r\n$99999999999999999999\r\n",
            "*3\r\n$1025\r\n",
            "*3\r\n$7\r\nmessageXX",
            "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n",
            "*3\r\n$8\r\npmessage\r\n$1\r\na\r\n$1\r\na\r\n",
            "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n$1\r\n1\r\n",
            "+OK\rX",
            &long_line,
            &deep,
        ] {
            let mut reader = Reader::default();
            let single: Vec<&[u8]> = junk.as_bytes().chunks(1).collect();
            assert!(read(&mut reader, &single).is_err(), "{junk:?}");
            assert!(read(&mut Reader::default(), &[junk.as_bytes()]).is_err(), "{junk:?}");
            assert!(reader.buffer.len() <= READ_BYTES);
        }
    }

    #[test]
    fn random_bytes_split_anywhere_read_the_same_and_panic_nowhere() {
        let mut rng = SmallRng::seed_from_u64(11);
        let (good, _) = all_kinds();
        let letters = b"*$+-:0123456789\r\nmessageubcriXYZ\x00\xff";
        for _ in 0..20_000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..rng.random_range(0..6) {
                let at = rng.random_range(0..bytes.len());
                let letter = letters[rng.random_range(0..letters.len())];
                match rng.random_range(0..3) {
                    0 => bytes[at] = letter,
                    1 => bytes.insert(at, letter),
                    _ => drop(bytes.remove(at)),
                }
            }
            let whole = read(&mut Reader::default(), &[&bytes]);
            let cut = rng.random_range(0..=bytes.len());
            let parts = read(&mut Reader::default(), &[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(whole.is_err(), parts.is_err());
            if let (Ok(whole), Ok(parts)) = (whole, parts) {
                assert_eq!(whole, parts);
            }
        }
    }

    #[test]
    fn a_command_is_written_as_redis_reads_it() {
        let mut bytes = Vec::new();
        command(&mut bytes, [&b"SELECT"[..], b"3"].into_iter());
        assert_eq!(bytes, b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n");
    }
}
