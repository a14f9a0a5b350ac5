//! Watchers: hand-written WebSockets, so that their own cost is not mistaken for the server's.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};

/// The sign in an event's data before its number on its channel.
pub(crate) const NUMBER: &str = "\"number\":";

/// One connection per session, each told that it has caught up.
pub(crate) fn open(
    port: u16,
    sessions: impl IntoIterator<Item = String>,
) -> Result<Vec<TcpStream>> {
    sessions.into_iter().map(|session| connect(port, &session)).collect()
}

fn connect(port: u16, session: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        socket,
        "GET /ws/{session} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    while !seen.windows(9).any(|window| window == b"caught_up") {
        match socket.read(&mut piece)? {
            0 => bail!("the server closed a connection: {}", String::from_utf8_lossy(&seen)),
            read => seen.extend_from_slice(&piece[..read]),
        }
    }
    Ok(socket)
}

/// Many watchers, looked at together and only when asked: so no write of the server pays for waking them.
#[derive(Debug)]
pub(crate) struct Watchers {
    poll: Poll,
    events: Events,
    sockets: Vec<Watcher>,
    piece: Vec<u8>,
    /// Events received, and the bytes of their frames without headers.
    pub(crate) received: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Watcher {
    stream: mio::net::TcpStream,
    /// A frame that has not arrived as a whole.
    begun: Vec<u8>,
    /// The number of the event that must come next.
    next: u64,
}

impl Watchers {
    pub(crate) fn new(streams: Vec<TcpStream>) -> Result<Self> {
        let poll = Poll::new()?;
        let mut sockets = Vec::with_capacity(streams.len());
        for (index, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            sockets.push(Watcher { stream, begun: Vec::new(), next: 0 });
        }
        let (events, piece) = (Events::with_capacity(1024), vec![0; 64 * 1024]);
        Ok(Self { poll, events, sockets, piece, received: 0, bytes: 0 })
    }

    /// Takes what has come.
    ///
    /// # Errors
    /// Where an event is missing, doubled or out of order, or a connection ended.
    pub(crate) fn look(&mut self) -> Result<()> {
        loop {
            self.poll.poll(&mut self.events, Some(Duration::ZERO))?;
            if self.events.is_empty() {
                return Ok(());
            }
            for event in &self.events {
                let index = event.token().0;
                let watcher = &mut self.sockets[index];
                loop {
                    let read = match watcher.stream.read(&mut self.piece) {
                        Ok(0) => bail!("the server closed connection {index}"),
                        Ok(read) => read,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    };
                    watcher.begun.extend_from_slice(&self.piece[..read]);
                    let (received, bytes) =
                        watcher.take().with_context(|| format!("connection {index}"))?;
                    self.received += received;
                    self.bytes += bytes;
                    // Less than there was room for: nothing is left.
                    if read < self.piece.len() {
                        break;
                    }
                }
            }
        }
    }
}

impl Watcher {
    /// Takes the frames that are whole.
    fn take(&mut self) -> Result<(u64, u64)> {
        let (mut at, mut received, mut bytes) = (0, 0, 0);
        while let Some((opcode, from, to)) = frame(&self.begun[at..]) {
            let payload = &self.begun[at + from..at + to];
            at += to;
            if let (8, [high, low, reason @ ..]) = (opcode, payload) {
                let code = u16::from_be_bytes([*high, *low]);
                bail!("the server closed it: {code} {}", String::from_utf8_lossy(reason));
            }
            if opcode == 9 {
                // Silent watchers are taken for dead. A mask of zeros leaves the payload as it is.
                let head = [0x8a, 0x80 | payload.len() as u8, 0, 0, 0, 0];
                self.stream.write_all(&[&head, payload].concat())?;
            }
            if opcode != 1 {
                continue;
            }
            let Some(number) = number(payload) else { continue };
            ensure!(number == self.next, "event {number} came where {} was due", self.next);
            self.next += 1;
            received += 1;
            bytes += payload.len() as u64;
        }
        self.begun.drain(..at);
        Ok((received, bytes))
    }
}

/// Opcode, begin and end of the payload of the first frame, if it is there as a whole. Servers do not mask.
fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, from) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?).try_into().ok()?, 10),
        short => (usize::from(short), 2),
    };
    (bytes.len() >= from + length).then_some((first & 0x0f, from, from + length))
}

/// The number in an event; `None` if this is not an event of ours.
fn number(payload: &[u8]) -> Option<u64> {
    let at = payload.windows(NUMBER.len()).position(|window| window == NUMBER.as_bytes())?;
    let digits = payload[at + NUMBER.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_as_a_whole() {
        assert_eq!(frame(&[0x81, 2, b'h', b'i', 0x89]), Some((1, 2, 4)));
        assert_eq!(frame(&[0x81, 2, b'h']), None);
        assert_eq!(frame(&[0x81]), None);
        let long = [&[0x81, 126, 0, 200][..], &[b'x'; 200]].concat();
        assert_eq!(frame(&long), Some((1, 4, 204)));
    }

    /// What comes of it when a server sends events with these numbers.
    fn watch(numbers: &[u64]) -> Result<u64> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (mut far, _) = listener.accept()?;
        let mut watchers = Watchers::new(vec![near])?;
        for number in numbers {
            far.write_all(&crate::floor::frame(&format!("{{{NUMBER}{number}}}")))?;
        }
        while watchers.received < numbers.len() as u64 {
            watchers.look()?;
        }
        Ok(watchers.received)
    }

    #[test]
    fn what_is_missing_doubled_or_out_of_order_is_noticed() {
        assert_eq!(watch(&[0, 1, 2]).unwrap(), 3);
        for wrong in [&[0, 2][..], &[0, 0], &[1, 0]] {
            assert!(watch(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_event_says_its_number() {
        assert_eq!(number(br#"{"number":42,"type":"tick"}"#), Some(42));
        assert_eq!(number(br#"{"type":"connected"}"#), None);
    }
}
