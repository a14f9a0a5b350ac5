//! What peers cost that do not read: a replica's resident memory before they come, at most while they are there, and
//! when the relay has given them up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use crate::figures;
use crate::hotpath::wire::frame_up;
use crate::machine::{Core, Surroundings, pause, resident_kib};
use crate::server::Server;

/// What one pinger sends.
const PING_BYTES: usize = 256 * 1024;
/// Questions that wait on the channel, as many as may; each almost as large as one may be.
const QUESTIONS: usize = 64;
const QUESTION_BYTES: usize = 60_000;
const EVENT_BYTES: usize = 16_000;
/// For so long what is held is looked at after the last byte was sent.
const LOOKED_AT: Duration = Duration::from_secs(3);
/// When the relay has given up a peer from which it takes nothing for 30 s, and looks every 15 s.
const GIVEN_UP: Duration = Duration::from_secs(50);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many peers
    #[arg(long, default_value_t = 1_000)]
    peers: usize,
    /// The replica's binary; by default the one beside this, from `cargo build --release`. `RELAY_MEMORY` is its budget
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// A replica and the most memory that it had.
struct Measured {
    replica: Server,
    most: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let surroundings = Surroundings::look()?;
    let mut rows = Vec::new();
    for (name, load) in [
        ("viewers that read nothing while 50 MB go by", viewers as Load),
        ("pingers that read no pong, 256 KiB of pings each", pingers),
        ("HTTP readers that stop, 1 MiB each", readers),
        ("viewers that read nothing, 64 questions of 60 KB", joiners),
    ] {
        let replica = Server::replica(options.binary.as_deref(), None, Core::Any)?;
        let before = resident_kib(replica.id())?;
        let mut measured = Measured { replica, most: before };
        let peers = load(&mut measured, options.peers)?;
        let looks = LOOKED_AT.as_millis() / 100;
        for _ in 0..looks {
            pause(Duration::from_millis(100));
            measured.look()?;
        }
        pause(GIVEN_UP);
        let after = resident_kib(measured.replica.id())?;
        let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
        rows.push(vec![
            format!("{} {name}", peers.len()),
            mib(before),
            mib(measured.most),
            mib(after),
        ]);
    }
    figures::print(&["MiB resident", "before", "at most", "50 s after"], &rows);
    println!("{}", surroundings.since()?);
    Ok(())
}

type Load = fn(&mut Measured, usize) -> Result<Vec<TcpStream>>;

impl Measured {
    fn look(&mut self) -> Result<()> {
        self.most = self.most.max(resident_kib(self.replica.id())?);
        Ok(())
    }

    fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(("127.0.0.1", self.replica.port()))?)
    }

    /// So many connections, the memory looked at now and then.
    fn peers(
        &mut self,
        count: usize,
        mut open: impl FnMut(&Self) -> Result<TcpStream>,
    ) -> Result<Vec<TcpStream>> {
        let mut peers = Vec::with_capacity(count);
        for index in 0..count {
            peers.push(open(self)?);
            if index % 20 == 0 {
                self.look()?;
            }
        }
        Ok(peers)
    }

    fn websocket(&self, path: &str) -> Result<TcpStream> {
        let mut socket = self.connect()?;
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        until(&mut socket, "\"connected\"")?;
        Ok(socket)
    }

    fn publish(&self, count: usize) -> Result<()> {
        let data = "x".repeat(EVENT_BYTES);
        let event = json!({"channel": "session:load", "event": "x", "data": data});
        let body = serde_json::to_string(&vec![event; count])?;
        let mut socket = self.connect()?;
        let (path, length) = ("/api/v1/publish", body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        socket.write_all(head.as_bytes())?;
        socket.write_all(body.as_bytes())?;
        until(&mut socket, "\"results\"")
    }
}

fn viewers(measured: &mut Measured, count: usize) -> Result<Vec<TcpStream>> {
    let peers = measured.peers(count, |measured| measured.websocket("/ws/load"))?;
    for _ in 0..32 {
        measured.publish(100)?;
        measured.look()?;
    }
    Ok(peers)
}

fn pingers(measured: &mut Measured, count: usize) -> Result<Vec<TcpStream>> {
    let ping = frame_up(9, &[b'x'; 125]);
    let pings = ping.repeat(PING_BYTES / ping.len());
    measured.peers(count, |measured| {
        let mut socket = measured.websocket("/ws")?;
        socket.write_all(&pings)?;
        Ok(socket)
    })
}

fn readers(measured: &mut Measured, count: usize) -> Result<Vec<TcpStream>> {
    measured.publish(100)?;
    measured.peers(count, |measured| {
        let mut socket = measured.connect()?;
        let path = "/api/v1/channels/session:load/events?limit=1000";
        write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        Ok(socket)
    })
}

fn joiners(measured: &mut Measured, count: usize) -> Result<Vec<TcpStream>> {
    // One agent has half of the places at most.
    let half = QUESTIONS / 2;
    let _agents = [asks(measured, "load-1", 0..half)?, asks(measured, "load-2", half..QUESTIONS)?];
    measured.peers(count, |measured| measured.websocket("/ws/load"))
}

fn asks(measured: &mut Measured, id: &str, questions: Range<usize>) -> Result<TcpStream> {
    let mut agent = measured.websocket(&format!("/ws/agents/{id}"))?;
    let mut call = |id: usize, kind: &str, channel: &str, data: serde_json::Value| {
        let call = json!({"type": kind, "id": id, "channel": channel, "data": data});
        agent.write_all(&frame_up(1, call.to_string().as_bytes()))?;
        until(&mut agent, &format!("\"id\":{id}"))
    };
    call(1, "lease", &format!("agent:{id}"), json!({}))?;
    call(2, "lease", "session:load", json!({}))?;
    let question = json!({"request": {"toolName": "x".repeat(QUESTION_BYTES)}});
    for index in questions {
        let request = format!("load-{index}");
        let data = json!({"request_id": request, "asks": "permission", "question": question, "expires_in_ms": 600_000});
        call(3 + index, "ask", "session:load", data)?;
    }
    Ok(agent)
}

/// Reads until `what` was said, and no further than it must.
fn until(socket: &mut TcpStream, what: &str) -> Result<()> {
    let (mut seen, mut piece) = (Vec::new(), [0; 512]);
    while !String::from_utf8_lossy(&seen).contains(what) {
        match socket.read(&mut piece)? {
            0 => bail!("the relay closed a connection: {}", String::from_utf8_lossy(&seen)),
            read => seen.extend_from_slice(&piece[..read]),
        }
    }
    Ok(())
}
