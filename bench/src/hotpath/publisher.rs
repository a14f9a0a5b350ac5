//! Brings events to a server, each by itself, as cheaply as that can be done: commands in one pipeline that never waits.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use journal::Name;
use protocol::Channel;

use super::wire::{data, frame_down};
use crate::floor::CHANNEL;
use crate::pipeline::Appends;

/// The data of an event, in bytes.
pub(crate) const DATA: usize = 200;

/// What a server wants of its publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// An append to the channel's journal, by our script.
    Append,
    /// A PUBLISH of a finished frame.
    Frame,
    /// A PUBLISH of the frame's text.
    Text,
    /// A PUBLISH as Socket.IO's Redis adapter understands it.
    SocketIo,
    /// A PUB of NATS.
    Nats,
}

/// Brings events to the channels of one server.
#[derive(Debug)]
pub(crate) struct Publisher {
    feed: Feed,
    stream: TcpStream,
    names: Vec<String>,
    appends: Option<Appends>,
    /// The next number on each channel.
    numbers: Vec<u64>,
    /// The bytes of text that a viewer receives: as many as from the relay.
    length: usize,
    out: Vec<u8>,
    answers: Vec<u8>,
}

impl Publisher {
    /// A publisher for sessions of these names. `address` is that of Redis, or of NATS.
    pub(crate) fn new(feed: Feed, address: &str, names: &[String], length: usize) -> Result<Self> {
        let to: SocketAddr =
            address.to_socket_addrs()?.next().with_context(|| format!("{address} is reachable"))?;
        let appends = match feed {
            Feed::Append => {
                let journal = |name: &String| Ok(Name::events(Channel::session(name)?));
                let journals: Vec<Name> = names.iter().map(journal).collect::<Result<_>>()?;
                let client = redis::Client::open(format!("redis://{address}"))?;
                let script = include_str!("../../../journal/src/redis/append.lua");
                let mut connection = client.get_connection()?;
                Some(Appends::load(script, &journals, "", 1, &mut connection)?)
            }
            Feed::Frame | Feed::Text | Feed::SocketIo | Feed::Nats => None,
        };
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        if feed == Feed::Nats {
            stream.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")?;
        }
        stream.set_nonblocking(true)?;
        let numbers = vec![0; names.len()];
        let (out, answers) = (Vec::new(), Vec::new());
        Ok(Self { feed, stream, names: names.to_vec(), appends, numbers, length, out, answers })
    }

    /// The next event of a channel; it travels with the next [`flush`](Self::flush). Returns its number.
    pub(crate) fn publish(&mut self, channel: usize) -> u64 {
        let number = self.numbers[channel];
        self.numbers[channel] += 1;
        let name = &self.names[channel];
        let text = || data(number, self.length);
        let (to, message) = match self.feed {
            Feed::Append => {
                if let Some(appends) = &mut self.appends {
                    let row = format!("tick - {}", data(number, DATA));
                    appends.command(channel, &[&row]).write_packed_command(&mut self.out);
                }
                return number;
            }
            Feed::Nats => {
                let text = text();
                let line = format!("PUB bench.{name} {}\r\n{text}\r\n", text.len());
                self.out.extend_from_slice(line.as_bytes());
                return number;
            }
            Feed::Frame => (format!("{CHANNEL}{name}"), frame_down(&text())),
            Feed::Text => (format!("bench:{name}"), text().into_bytes()),
            Feed::SocketIo => (format!("socket.io#/#{name}#"), packet(name, number, self.length)),
        };
        redis::cmd("PUBLISH").arg(to).arg(message).write_packed_command(&mut self.out);
        number
    }

    /// Sends what waits, as far as the socket takes it, and checks the answers that are there.
    ///
    /// # Errors
    /// Where the server has refused an event.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            match self.stream.write(&self.out[sent..]) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.out.drain(..sent);
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => bail!("the publisher's connection was closed"),
                Ok(read) => self.answers.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.check()
    }

    /// Looks at the answers that are there as a whole.
    fn check(&mut self) -> Result<()> {
        let mut at = 0;
        while let Some(end) = memchr::memchr(b'\n', &self.answers[at..]) {
            let line = &self.answers[at..at + end];
            match line {
                [b'-', ..] => bail!("an event was refused: {}", String::from_utf8_lossy(line)),
                // The text of an answer of ours follows.
                [b'$', ..] => {}
                [b'P', b'I', b'N', b'G', ..] => self.out.extend_from_slice(b"PONG\r\n"),
                [b':' | b'I' | b'P' | b'+', ..] => {}
                _ => ensure!(
                    line.starts_with(b"ok "),
                    "an append was answered: {}",
                    String::from_utf8_lossy(line)
                ),
            }
            at += end + 1;
        }
        self.answers.drain(..at);
        Ok(())
    }
}

/// `[uid, packet, options]` in MessagePack: an event for a room, as `@socket.io/redis-emitter` sends it. What a viewer
/// receives has about `length` bytes.
fn packet(room: &str, number: u64, length: usize) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        match text.len() {
            length @ ..32 => out.push(0xa0 | length as u8),
            length => {
                out.push(0xda);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(text.as_bytes());
    };
    let mut out = vec![0x93];
    text(&mut out, "emitter");
    out.push(0x83);
    text(&mut out, "type");
    out.push(2);
    text(&mut out, "data");
    out.push(0x92);
    text(&mut out, "tick");
    out.push(0x82);
    text(&mut out, "number");
    out.push(0xcf);
    out.extend_from_slice(&number.to_be_bytes());
    text(&mut out, "fill");
    let around = format!("42[\"tick\",{{\"number\":{number},\"fill\":\"\"}}]").len();
    text(&mut out, &"x".repeat(length.saturating_sub(around)));
    text(&mut out, "nsp");
    text(&mut out, "/");
    out.push(0x83);
    text(&mut out, "rooms");
    out.push(0x91);
    text(&mut out, room);
    text(&mut out, "flags");
    out.push(0x80);
    text(&mut out, "except");
    out.push(0x90);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_for_socket_io_is_messagepack() {
        let packet = packet("r", 3, 40);
        let fill = "x".repeat(40 - "42[\"tick\",{\"number\":3,\"fill\":\"\"}]".len());
        let mut expected =
            b"\x93\xa7emitter\x83\xa4type\x02\xa4data\x92\xa4tick\x82\xa6number".to_vec();
        expected.extend([0xcf, 0, 0, 0, 0, 0, 0, 0, 3]);
        expected.extend(b"\xa4fill");
        expected.push(0xa0 | fill.len() as u8);
        expected.extend(fill.as_bytes());
        expected.extend(b"\xa3nsp\xa1/\x83\xa5rooms\x91\xa1r\xa5flags\x80\xa6except\x90");
        assert_eq!(packet, expected);
    }
}
