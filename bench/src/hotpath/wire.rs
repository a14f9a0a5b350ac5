//! How a viewer speaks with each kind of server: what it sends to come in, and how it finds an event's number in what
//! it receives. Pure.

use anyhow::{Result, bail, ensure};
use memchr::memmem;

/// The sign in an event's data before its number on its channel.
pub(crate) const NUMBER: &str = "\"number\":";

/// What a server speaks behind the handshake of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Text frames with JSON: the relay, the floor, and what is written by hand.
    Json,
    /// Socket.IO over Engine.IO's WebSocket transport.
    SocketIo,
    /// The protocol of NATS in binary frames, cut anywhere.
    Nats,
}

/// What a viewer comes in for.
#[derive(Clone, Debug)]
pub(crate) enum Join {
    /// To be connected.
    Nothing,
    /// To see a channel from now on.
    Channel(String),
    /// To see a session since an offset. Only the relay has one.
    Since(String, String),
    /// To be an agent with a lease. Only the relay has them.
    Agent(String),
}

impl Join {
    fn channel(&self) -> Option<&str> {
        match self {
            Self::Channel(name) | Self::Since(name, _) => Some(name),
            Self::Nothing | Self::Agent(_) => None,
        }
    }
}

/// What a piece of what a server sent means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An event with this number.
    Event(u64),
    /// The viewer is in, or one more of its subscriptions stands.
    Joined,
    /// The server wants these bytes before it goes on.
    Reply(Vec<u8>),
    /// Nothing of importance.
    Other,
}

impl Wire {
    /// The request with which a viewer begins.
    pub(crate) fn request(self, join: &Join) -> String {
        let path = match (self, join) {
            (Self::SocketIo, _) => "/socket.io/?EIO=4&transport=websocket".to_owned(),
            (Self::Nats, _) => "/".to_owned(),
            (Self::Json, Join::Nothing) => "/ws".to_owned(),
            (Self::Json, Join::Channel(name)) => format!("/ws/{name}"),
            (Self::Json, Join::Since(name, since)) => format!("/ws/{name}?since={since}"),
            (Self::Json, Join::Agent(id)) => format!("/ws/agents/{id}"),
        };
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    }

    /// What a text or a piece of binary means to a viewer that came in for `join`.
    ///
    /// # Errors
    /// Where the server refuses something.
    pub(crate) fn hear(self, text: &[u8], join: &Join, finder: &Finder) -> Result<Heard> {
        if let Some(number) = finder.number(text) {
            return Ok(Heard::Event(number));
        }
        let says = |what: &str| memmem::find(text, what.as_bytes()).is_some();
        Ok(match self {
            Self::Json if says("\"type\":\"error\"") || says("\"error\":{") => {
                bail!("the server refuses: {}", String::from_utf8_lossy(text))
            }
            Self::Json => match join {
                Join::Agent(id) if says("\"type\":\"connected\"") => {
                    let lease = format!(
                        "{{\"type\":\"lease\",\"id\":1,\"channel\":\"agent:{id}\",\"data\":{{}}}}"
                    );
                    Heard::Reply(frame_up(1, lease.as_bytes()))
                }
                Join::Agent(_) if says("\"type\":\"ack\"") => Heard::Joined,
                Join::Nothing if says("\"type\":\"connected\"") => Heard::Joined,
                _ if says("\"type\":\"caught_up\"") => Heard::Joined,
                _ => Heard::Other,
            },
            Self::SocketIo => match (text, join.channel()) {
                ([b'0', ..], _) => Heard::Reply(frame_up(1, b"40")),
                ([b'4', b'0', ..], None) => Heard::Joined,
                ([b'4', b'0', ..], Some(name)) => {
                    Heard::Reply(frame_up(1, format!("42[\"join\",\"{name}\"]").as_bytes()))
                }
                ([b'2'], _) => Heard::Reply(frame_up(1, b"3")),
                _ if says("caught_up") => Heard::Joined,
                _ => Heard::Other,
            },
            Self::Nats => match text {
                [b'I', b'N', b'F', b'O', ..] => {
                    let mut hello = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n".to_owned();
                    if let Some(name) = join.channel() {
                        hello.push_str(&format!("SUB bench.{name} 1\r\n"));
                    }
                    hello.push_str("PING\r\n");
                    Heard::Reply(frame_up(2, hello.as_bytes()))
                }
                b"PING" => Heard::Reply(frame_up(2, b"PONG\r\n")),
                b"PONG" => Heard::Joined,
                [b'-', ..] => bail!("the server refuses: {}", String::from_utf8_lossy(text)),
                _ => Heard::Other,
            },
        })
    }
}

/// Finds the number in an event.
#[derive(Debug)]
pub(crate) struct Finder(memmem::Finder<'static>);

impl Finder {
    pub(crate) fn new() -> Self {
        Self(memmem::Finder::new(NUMBER))
    }

    /// The number in an event; `None` if this is not an event of ours.
    pub(crate) fn number(&self, text: &[u8]) -> Option<u64> {
        let at = self.0.find(text)?;
        let digits = text[at + NUMBER.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
    }
}

/// JSON of so many bytes that says its number.
pub(crate) fn data(number: u64, bytes: usize) -> String {
    let mut data = format!("{{{NUMBER}{number},\"fill\":\"");
    let fill = bytes.saturating_sub(data.len() + 2);
    data.extend(std::iter::repeat_n('x', fill));
    data.push_str("\"}");
    data
}

/// A text as a server's finished frame.
pub(crate) fn frame_down(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(length @ 0..126) => frame.push(length),
        // No event is longer than 64 KiB.
        _ => {
            frame.push(126);
            frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A client's frame. A mask of zeros leaves the payload as it is.
pub(crate) fn frame_up(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ ..126 => frame.push(0x80 | length as u8),
        length @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A frame of a server: opcode, begin and end of the payload, if it is there as a whole. Servers do not mask.
pub(crate) fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, from) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?).try_into().ok()?, 10),
        short => (usize::from(short), 2),
    };
    (bytes.len() >= from + length).then_some((first & 0x0f, from, from + length))
}

/// The first thing that a NATS server says in `bytes`, and where it ends: a line without its end, or the payload of a
/// message. `None` where it is not there as a whole.
///
/// # Errors
/// Where a message has no length.
pub(crate) fn nats_part(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let Some(line) = memchr::memchr(b'\n', bytes) else { return Ok(None) };
    let head = bytes[..line].trim_ascii_end();
    if !head.starts_with(b"MSG ") {
        return Ok(Some((head, line + 1)));
    }
    let digits = head.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    ensure!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit), "a message has a length");
    let length = digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    let end = line + 1 + length + 2;
    Ok((bytes.len() >= end).then(|| (&bytes[line + 1..line + 1 + length], end)))
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

    #[test]
    fn an_event_says_its_number() {
        let finder = Finder::new();
        assert_eq!(finder.number(br#"{"number":42,"type":"tick"}"#), Some(42));
        assert_eq!(finder.number(br#"{"type":"connected"}"#), None);
        let data = data(7, 200);
        assert_eq!((finder.number(data.as_bytes()), data.len()), (Some(7), 200));
        assert!(serde_json::from_str::<serde_json::Value>(&data).is_ok());
    }

    #[test]
    fn a_viewer_of_each_server_comes_in() {
        let channel = Join::Channel("c".to_owned());
        let finder = Finder::new();
        let hear = |wire: Wire, text: &str, join: &Join| {
            wire.hear(text.as_bytes(), join, &finder).map_err(|error| error.to_string())
        };
        let json = |text| hear(Wire::Json, text, &channel);
        assert_eq!(json(r#"{"type":"connected"}"#), Ok(Heard::Other));
        assert_eq!(json(r#"{"type":"caught_up","offset":null}"#), Ok(Heard::Joined));
        assert_eq!(json(r#"{"type":"tick","number":3}"#), Ok(Heard::Event(3)));
        assert!(json(r#"{"type":"error","code":"busy"}"#).is_err());
        assert_eq!(hear(Wire::Json, r#"{"type":"connected"}"#, &Join::Nothing), Ok(Heard::Joined));
        let agent = Join::Agent("a".to_owned());
        assert!(matches!(hear(Wire::Json, r#"{"type":"connected"}"#, &agent), Ok(Heard::Reply(_))));
        assert_eq!(hear(Wire::Json, r#"{"type":"ack","id":1}"#, &agent), Ok(Heard::Joined));

        let socket_io = |text| hear(Wire::SocketIo, text, &channel);
        let says = |text: &str| Ok(Heard::Reply(frame_up(1, text.as_bytes())));
        assert_eq!(socket_io("0{\"sid\":\"x\"}"), says("40"));
        assert_eq!(socket_io("40{\"sid\":\"x\"}"), says("42[\"join\",\"c\"]"));
        assert_eq!(socket_io("42[\"caught_up\"]"), Ok(Heard::Joined));
        assert_eq!(socket_io("2"), says("3"));
        assert_eq!(socket_io("42[\"tick\",{\"number\":3}]"), Ok(Heard::Event(3)));

        let nats = |text| hear(Wire::Nats, text, &channel);
        assert!(matches!(nats("INFO {}"), Ok(Heard::Reply(_))));
        assert_eq!(nats("PONG"), Ok(Heard::Joined));
        assert!(nats("-ERR 'no'").is_err());
    }

    #[test]
    fn what_nats_says_is_understood_only_as_a_whole() {
        let bytes = b"MSG bench.c 1 5\r\nhello\r\nPING\r\n";
        for end in 0..24 {
            assert!(nats_part(&bytes[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(nats_part(bytes).unwrap(), Some((&b"hello"[..], 24)));
        assert_eq!(nats_part(&bytes[24..]).unwrap(), Some((&b"PING"[..], 6)));
    }
}
