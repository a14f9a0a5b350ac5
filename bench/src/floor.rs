//! The floor: one thread with one epoll that reads Redis' pub/sub and writes what comes, a finished frame,
//! to every socket of the channel with one `write`. No journal, no resume, no grants, no encoding. Viewers come in as
//! they do at the relay.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
const REDIS: Token = Token(usize::MAX - 1);

/// To a viewer of nothing.
const CONNECTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\
    \x81\x14{\"type\":\"connected\"}";
/// To a viewer of a channel, as soon as Redis has confirmed the subscription.
const WELCOME: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\
    \x81\x14{\"type\":\"connected\"}\x81\x14{\"type\":\"caught_up\"}";

/// What the names of its channels in Redis begin with.
pub(crate) const CHANNEL: &str = "floor:";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Its Redis.
    #[arg(long)]
    redis: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let redis = redis_address(&options.redis)?;
    let mut floor = Floor {
        poll: Poll::new()?,
        listener: TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?,
        redis: TcpStream::from_std(blocking_connection(redis)?),
        heard: Vec::new(),
        sockets: Vec::new(),
        free: Vec::new(),
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
    sockets: Vec<Option<Socket>>,
    /// Places of sockets that were closed.
    free: Vec<usize>,
    channels: HashMap<Vec<u8>, Channel>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    request: Vec<u8>,
    channel: Option<Vec<u8>>,
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
            let index = self.free.pop().unwrap_or_else(|| {
                self.sockets.push(None);
                self.sockets.len() - 1
            });
            self.poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            self.sockets[index] = Some(Socket { stream, request: Vec::new(), channel: None });
        }
        Ok(())
    }

    /// A browser's request, or its end; everything else is ignored.
    fn read(&mut self, index: usize) -> Result<()> {
        let Some(socket) = &mut self.sockets[index] else { return Ok(()) };
        let mut piece = [0; 4096];
        loop {
            match unless_blocked(socket.stream.read(&mut piece)) {
                Ok(Some(1..)) if socket.channel.is_some() => {}
                Ok(Some(read @ 1..)) => socket.request.extend_from_slice(&piece[..read]),
                Ok(None) => break,
                Ok(Some(0)) | Err(_) => return self.close(index),
            }
        }
        if !socket.request.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        let request = String::from_utf8(std::mem::take(&mut socket.request))?;
        let path = request.strip_prefix("GET /ws").and_then(|rest| rest.split([' ', '?']).next());
        let path = path.context("viewers ask for /ws")?;
        let Some(session) = path.strip_prefix('/') else {
            return Ok(socket.stream.write_all(CONNECTED)?);
        };
        let name = format!("{CHANNEL}{session}").into_bytes();
        socket.channel = Some(name.clone());
        let known = self.channels.entry(name.clone()).or_default();
        known.sockets.push(index);
        if known.is_confirmed {
            socket.stream.write_all(WELCOME)?;
        } else if known.sockets.len() == 1 {
            let mut subscribe = redis::cmd("SUBSCRIBE");
            self.redis.write_all(&subscribe.arg(name).get_packed_command())?;
        }
        Ok(())
    }

    fn close(&mut self, index: usize) -> Result<()> {
        let socket = self.sockets[index].take();
        self.free.push(index);
        let Some(name) = socket.and_then(|socket| socket.channel) else { return Ok(()) };
        let Some(channel) = self.channels.get_mut(&name) else { return Ok(()) };
        channel.sockets.retain(|one| *one != index);
        if channel.sockets.is_empty() {
            self.channels.remove(&name);
            let mut unsubscribe = redis::cmd("UNSUBSCRIBE");
            self.redis.write_all(&unsubscribe.arg(name).get_packed_command())?;
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
                at += end;
                // Its last viewer may have left.
                let Some(channel) = self.channels.get_mut(push.channel) else { continue };
                let bytes = match push.message {
                    Some(message) => message,
                    None if push.is_confirmation => {
                        channel.is_confirmed = true;
                        WELCOME
                    }
                    None => continue,
                };
                for &index in &channel.sockets {
                    let Some(socket) = &mut self.sockets[index] else { continue };
                    // One that was closed cannot be written to, and will be read.
                    if let Ok(written) = unless_blocked(socket.stream.write(bytes)) {
                        // A floor that had to wait for sockets would not be a floor.
                        ensure!(
                            written == Some(bytes.len()),
                            "a socket is full: the load is too high"
                        );
                    }
                }
            }
            self.heard.drain(..at);
        }
        Ok(())
    }
}

/// What Redis pushes: a message, or that a subscription stands.
struct Push<'a> {
    channel: &'a [u8],
    is_confirmation: bool,
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
    let is_confirmation = parts[0] == Some(b"subscribe");
    Ok((at <= bytes.len()).then_some((Push { channel, is_confirmation, message: parts[2] }, at)))
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
    use crate::hotpath::frame_down;

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
        assert!(subscribed.is_confirmation && !message.is_confirmation);
    }

    #[test]
    fn what_viewers_are_told_are_frames() {
        let (connected, caught_up) =
            (frame_down(r#"{"type":"connected"}"#), frame_down(r#"{"type":"caught_up"}"#));
        assert!(CONNECTED.ends_with(&connected));
        assert!(WELCOME.ends_with(&[connected, caught_up].concat()));
    }
}
