//! The floor: one thread with one epoll that reads Redis' pub/sub and writes what comes, a finished frame,
//! to every socket of the channel with one `write`. No journal, no resume, no grants, no encoding.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
const REDIS: Token = Token(usize::MAX - 1);

const WELCOME: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\
    \x81\x14{\"type\":\"caught_up\"}";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Its Redis.
    #[arg(long)]
    redis: String,
}

/// The name under which the floor receives a session.
pub(crate) fn channel(session: &str) -> String {
    format!("floor:{session}")
}

/// `text` as a finished frame.
pub(crate) fn frame(text: &str) -> Vec<u8> {
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

pub(crate) fn run(options: &Options) -> Result<()> {
    let redis = redis_address(&options.redis)?;
    let mut floor = Floor {
        poll: Poll::new()?,
        listener: TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?,
        redis: TcpStream::from_std(blocking_connection(redis)?),
        heard: Vec::new(),
        sockets: Vec::new(),
        channels: HashMap::new(),
    };
    let registry = floor.poll.registry();
    registry.register(&mut floor.listener, LISTENER, Interest::READABLE)?;
    registry.register(&mut floor.redis, REDIS, Interest::READABLE)?;
    eprintln!("{{\"addr\":\"{}\"}}", floor.listener.local_addr()?);
    let mut events = Events::with_capacity(1024);
    loop {
        floor.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => floor.accept()?,
                REDIS => floor.hear()?,
                Token(index) => floor.read(index)?,
            }
        }
    }
}

#[derive(Debug)]
struct Floor {
    poll: Poll,
    listener: TcpListener,
    redis: TcpStream,
    /// What Redis has said and has not been understood yet.
    heard: Vec<u8>,
    sockets: Vec<Socket>,
    channels: HashMap<Vec<u8>, Channel>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    request: Vec<u8>,
}

#[derive(Debug, Default)]
struct Channel {
    is_confirmed: bool,
    sockets: Vec<usize>,
}

impl Floor {
    fn accept(&mut self) -> Result<()> {
        while let Some((mut stream, _)) = unless_blocked(self.listener.accept())? {
            stream.set_nodelay(true)?;
            let token = Token(self.sockets.len());
            self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
            self.sockets.push(Socket { stream, request: Vec::new() });
        }
        Ok(())
    }

    /// A browser's request; everything else in it is ignored.
    fn read(&mut self, index: usize) -> Result<()> {
        let socket = &mut self.sockets[index];
        let mut piece = [0; 4096];
        while let Some(read) = unless_blocked(socket.stream.read(&mut piece))? {
            if read == 0 {
                return Ok(());
            }
            socket.request.extend_from_slice(&piece[..read]);
        }
        if !socket.request.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        let request = String::from_utf8(std::mem::take(&mut socket.request))?;
        let session = request.strip_prefix("GET /ws/").and_then(|rest| rest.split(' ').next());
        let name = channel(session.context("watchers ask for a session")?);
        let known = self.channels.entry(name.clone().into_bytes()).or_default();
        known.sockets.push(index);
        if known.is_confirmed {
            self.sockets[index].stream.write_all(WELCOME)?;
        } else if known.sockets.len() == 1 {
            let mut subscribe = redis::cmd("SUBSCRIBE");
            self.redis.write_all(&subscribe.arg(name).get_packed_command())?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<()> {
        let mut piece = [0; 64 * 1024];
        while let Some(read) = unless_blocked(self.redis.read(&mut piece))? {
            ensure!(read > 0, "redis closed the connection");
            self.heard.extend_from_slice(&piece[..read]);
            let mut at = 0;
            while let Some((push, end)) = push(&self.heard[at..])? {
                let channel = self.channels.get_mut(push.channel).context("ours")?;
                let bytes = match push.message {
                    Some(message) => message,
                    None => {
                        channel.is_confirmed = true;
                        WELCOME
                    }
                };
                for &index in &channel.sockets {
                    // A floor that had to wait for sockets would not be a floor.
                    let written = self.sockets[index].stream.write(bytes)?;
                    ensure!(written == bytes.len(), "a socket is full: the load is too high");
                }
                at += end;
            }
            self.heard.drain(..at);
        }
        Ok(())
    }
}

/// What Redis pushes: a message, or that a subscription stands.
struct Push<'a> {
    channel: &'a [u8],
    message: Option<&'a [u8]>,
}

/// The first push and where it ends, if it is there as a whole.
fn push(bytes: &[u8]) -> Result<Option<(Push<'_>, usize)>> {
    let mut at = 0;
    let mut parts = [None; 3];
    let Some(count) = line(bytes, &mut at) else { return Ok(None) };
    ensure!(count == b"*3", "not a push: {}", String::from_utf8_lossy(count));
    for part in &mut parts {
        let Some(head) = line(bytes, &mut at) else { return Ok(None) };
        match head {
            [b'$', digits @ ..] => {
                let length: usize = std::str::from_utf8(digits)?.parse()?;
                let Some(content) = bytes.get(at..at + length) else { return Ok(None) };
                *part = Some(content);
                at += length + 2;
            }
            [b':', ..] => {}
            other => bail!("not a push: {}", String::from_utf8_lossy(other)),
        }
    }
    let channel = parts[1].context("a push names its channel")?;
    Ok((at <= bytes.len()).then_some((Push { channel, message: parts[2] }, at)))
}

fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..)?;
    let end = rest.iter().position(|byte| *byte == b'\r')?;
    *at += end + 2;
    Some(&rest[..end])
}

fn unless_blocked<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn redis_address(url: &str) -> Result<SocketAddr> {
    let address = url.strip_prefix("redis://").context("the floor knows redis:// only")?;
    address.to_socket_addrs()?.next().context("an address")
}

fn blocking_connection(address: SocketAddr) -> Result<std::net::TcpStream> {
    let connection = std::net::TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.set_nonblocking(true)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_understood_only_as_a_whole() {
        let bytes = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n";
        for end in 0..bytes.len() {
            assert!(push(&bytes[..end]).unwrap().is_none(), "{end}");
        }
        let (message, end) = push(bytes).unwrap().unwrap();
        assert_eq!((message.channel, message.message), (&b"c"[..], Some(&b"hello"[..])));
        assert_eq!(end, bytes.len());
        let (subscribed, _) = push(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n").unwrap().unwrap();
        assert_eq!((subscribed.channel, subscribed.message), (&b"c"[..], None));
    }

    #[test]
    fn the_welcome_is_a_frame() {
        let text = r#"{"type":"caught_up"}"#;
        assert!(WELCOME.ends_with(&frame(text)));
    }
}
