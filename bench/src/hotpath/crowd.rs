//! Many viewers in one thread, with hand-written WebSockets, so that their own cost is not mistaken for the server's.
//!
//! They are looked at together, and only when asked: no write of the server pays for waking them. Every event is
//! checked for gaps, order and doubles, because a server that loses some would look cheap.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};

use super::wire::{self, Finder, Heard, Join, Wire};

/// How many come in at a time, where all are wanted: fewer than a listener's backlog holds.
const UNDER_WAY: usize = 256;
/// How long nothing may happen while viewers come in.
const PATIENCE: Duration = Duration::from_secs(20);

/// Many viewers of one server.
#[derive(Debug)]
pub(crate) struct Crowd {
    address: SocketAddr,
    wire: Wire,
    finder: Finder,
    poll: Poll,
    events: Events,
    viewers: Vec<Viewer>,
    piece: Vec<u8>,
    /// How often a server has said that a viewer is in, or that one more of its subscriptions stands.
    pub(crate) joined: usize,
    /// Events received.
    pub(crate) received: u64,
    /// The bytes of their frames without headers.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Viewer {
    stream: mio::net::TcpStream,
    join: Join,
    /// The number of its channel, for the caller.
    channel: usize,
    is_upgraded: bool,
    /// A frame that has not arrived as a whole.
    begun: Vec<u8>,
    /// Of NATS: what the frames brought and is not a whole message.
    stream_begun: Vec<u8>,
    /// The number of the event that must come next.
    next: u64,
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    events: u64,
    bytes: u64,
    joined: usize,
}

impl Crowd {
    pub(crate) fn new(port: u16, wire: Wire) -> Result<Self> {
        Ok(Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            wire,
            finder: Finder::new(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            viewers: Vec::new(),
            piece: vec![0; 64 * 1024],
            joined: 0,
            received: 0,
            bytes: 0,
        })
    }

    /// One more viewer begins to come in: for channel number `channel`, where event `next` must come next.
    pub(crate) fn come(&mut self, join: Join, channel: usize, next: u64) -> Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.write_all(self.wire.request(&join).as_bytes())?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let token = Token(self.viewers.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
        self.viewers.push(Viewer {
            stream,
            join,
            channel,
            is_upgraded: false,
            begun: Vec::new(),
            stream_begun: Vec::new(),
            next,
        });
        Ok(())
    }

    /// Viewers come in, some at a time, until all are in.
    pub(crate) fn come_all(
        &mut self,
        joins: impl IntoIterator<Item = (Join, usize)>,
    ) -> Result<()> {
        let mut due = self.joined;
        for (join, channel) in joins {
            self.come(join, channel, 0)?;
            due += 1;
            if due - self.joined >= UNDER_WAY {
                self.wait_for(due - UNDER_WAY / 2)?;
            }
        }
        self.wait_for(due)
    }

    /// Waits until the servers have said `joined` times that a viewer is in.
    pub(crate) fn wait_for(&mut self, joined: usize) -> Result<()> {
        let (mut seen, mut since) = (self.joined, Instant::now());
        while self.joined < joined {
            self.look(Duration::from_millis(10), |_, _| ())?;
            if self.joined > seen {
                (seen, since) = (self.joined, Instant::now());
            }
            ensure!(since.elapsed() < PATIENCE, "{seen} of {joined} came in, and no more do");
        }
        Ok(())
    }

    /// A viewer says something.
    pub(crate) fn say(&mut self, viewer: usize, text: &str) -> Result<()> {
        let frame = wire::frame_up(1, text.as_bytes());
        Ok(self.viewers[viewer].stream.write_all(&frame)?)
    }

    /// Takes what has come; waits for so long where nothing has. `on` is told the channel and the number of each event.
    ///
    /// # Errors
    /// Where an event is missing, doubled or out of order, the server refuses something, or a connection ended.
    pub(crate) fn look(&mut self, wait: Duration, mut on: impl FnMut(usize, u64)) -> Result<()> {
        let mut wait = wait;
        loop {
            match self.poll.poll(&mut self.events, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            if self.events.is_empty() {
                return Ok(());
            }
            wait = Duration::ZERO;
            let mut found = Found::default();
            for event in &self.events {
                let index = event.token().0;
                let viewer = &mut self.viewers[index];
                viewer
                    .read(self.wire, &self.finder, &mut self.piece, &mut found, &mut on)
                    .with_context(|| format!("viewer {index}"))?;
            }
            self.received += found.events;
            self.bytes += found.bytes;
            self.joined += found.joined;
        }
    }
}

impl Viewer {
    fn read(
        &mut self,
        wire: Wire,
        finder: &Finder,
        piece: &mut [u8],
        found: &mut Found,
        on: &mut impl FnMut(usize, u64),
    ) -> Result<()> {
        loop {
            let read = match self.stream.read(piece) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if self.begun.is_empty() {
                let taken = self.take(&piece[..read], wire, finder, found, on)?;
                self.begun.extend_from_slice(&piece[taken..read]);
            } else {
                let mut begun = std::mem::take(&mut self.begun);
                begun.extend_from_slice(&piece[..read]);
                let taken = self.take(&begun, wire, finder, found, on)?;
                begun.drain(..taken);
                self.begun = begun;
            }
            // Less than there was room for: nothing is left.
            if read < piece.len() {
                return Ok(());
            }
        }
    }

    /// Takes the frames that are whole; says how many bytes they were.
    fn take(
        &mut self,
        bytes: &[u8],
        wire: Wire,
        finder: &Finder,
        found: &mut Found,
        on: &mut impl FnMut(usize, u64),
    ) -> Result<usize> {
        let mut at = 0;
        if !self.is_upgraded {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
            let is_upgrade = bytes.starts_with(b"HTTP/1.1 101 ");
            ensure!(is_upgrade, "no upgrade: {}", String::from_utf8_lossy(bytes));
            self.is_upgraded = true;
            at = end + 4;
        }
        while let Some((opcode, from, to)) = wire::frame(&bytes[at..]) {
            let payload = &bytes[at + from..at + to];
            at += to;
            match (opcode, payload) {
                (8, [high, low, reason @ ..]) => {
                    let code = u16::from_be_bytes([*high, *low]);
                    bail!("the server closed it: {code} {}", String::from_utf8_lossy(reason));
                }
                // Who does not answer pings is taken for dead.
                (9, _) => self.stream.write_all(&wire::frame_up(10, payload))?,
                (0..=2, _) if wire == Wire::Nats => {
                    self.stream_begun.extend_from_slice(payload);
                    let begun = std::mem::take(&mut self.stream_begun);
                    let mut taken = 0;
                    while let Some((part, end)) = wire::nats_part(&begun[taken..])? {
                        self.hear(part, wire, finder, found, on)?;
                        taken += end;
                    }
                    self.stream_begun = begun;
                    self.stream_begun.drain(..taken);
                }
                (1, _) => self.hear(payload, wire, finder, found, on)?,
                _ => {}
            }
        }
        Ok(at)
    }

    fn hear(
        &mut self,
        text: &[u8],
        wire: Wire,
        finder: &Finder,
        found: &mut Found,
        on: &mut impl FnMut(usize, u64),
    ) -> Result<()> {
        match wire.hear(text, &self.join, finder)? {
            Heard::Event(number) => {
                ensure!(number == self.next, "event {number} came where {} was due", self.next);
                self.next += 1;
                found.events += 1;
                found.bytes += text.len() as u64;
                on(self.channel, number);
            }
            Heard::Joined => found.joined += 1,
            Heard::Reply(bytes) => self.stream.write_all(&bytes)?,
            Heard::Other => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of it when a server sends events with these numbers, in pieces of so many bytes.
    fn watch(numbers: &[u64], piece: usize) -> Result<u64> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let mut crowd = Crowd::new(listener.local_addr()?.port(), Wire::Json)?;
        crowd.come(Join::Channel("c".to_owned()), 0, 0)?;
        let (mut far, _) = listener.accept()?;
        let mut sent = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        sent.extend(wire::frame_down(r#"{"type":"caught_up"}"#));
        for number in numbers {
            sent.extend(wire::frame_down(&wire::data(*number, 200)));
        }
        for piece in sent.chunks(piece) {
            far.write_all(piece)?;
            crowd.look(Duration::ZERO, |_, _| ())?;
        }
        while crowd.received < numbers.len() as u64 {
            crowd.look(Duration::from_millis(10), |_, _| ())?;
        }
        assert_eq!(crowd.joined, 1);
        Ok(crowd.received)
    }

    #[test]
    fn what_is_missing_doubled_or_out_of_order_is_noticed() {
        for piece in [1, 7, 1_000] {
            assert_eq!(watch(&[0, 1, 2], piece).unwrap(), 3);
            for wrong in [&[0, 2][..], &[0, 0], &[1, 0]] {
                assert!(watch(wrong, piece).is_err(), "{wrong:?}");
            }
        }
    }
}
