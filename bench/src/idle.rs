//! What an idle connection costs: resident memory, and the CPU to take it in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::machine::{Surroundings, cpu_of, pause, resident_kib};

/// Connections that are there before counting begins, so that pools and tables have their usual size.
const WARM: usize = 50;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many connections, each with one subscription of its own
    #[arg(long, default_value_t = 5_000)]
    connections: usize,
    /// The replica's binary; by default the one beside this, from `cargo build --release`
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Its Redis; by default it runs with the embedded journal
    #[arg(long)]
    redis: Option<String>,
}

/// A replica that ends with the measurement.
struct Replica(Child);

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let surroundings = Surroundings::look()?;
    let (replica, port) = start(options)?;
    let process = replica.0.id();
    let _warm = open(port, "warm", WARM)?;
    pause(Duration::from_secs(1));
    let (kib, cpu, began) = (resident_kib(process)?, cpu_of(process)?, Instant::now());

    let sockets = open(port, "idle", options.connections)?;

    let took = began.elapsed();
    pause(Duration::from_secs(2));
    let count = sockets.len() as f64;
    let grown = resident_kib(process)?.saturating_sub(kib) as f64;
    println!("{} idle connections, one subscription each", sockets.len());
    println!("resident: {:.1} KiB per connection", grown / count);
    println!("CPU: {:.0} µs per connection", (cpu_of(process)? - cpu).as_secs_f64() * 1e6 / count);
    println!("pace: {:.0} connections a second", count / took.as_secs_f64());
    println!("{}", surroundings.since()?);
    Ok(())
}

fn start(options: &Options) -> Result<(Replica, u16)> {
    let beside = std::env::current_exe()?.with_file_name("agent-relay");
    let binary = options.binary.clone().unwrap_or(beside);
    let mut command = Command::new(&binary);
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.args(options.redis.iter().flat_map(|url| ["--redis", url]));
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| {
        format!("`{}` cannot be started: cargo build --release", binary.display())
    })?;
    let log = child.stderr.take().context("its log is piped")?;
    let replica = Replica(child);
    for line in BufReader::new(log).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        if let Some((_, port)) = line["addr"].as_str().and_then(|addr| addr.rsplit_once(':')) {
            return Ok((replica, port.parse()?));
        }
    }
    bail!("the replica ended before it listened")
}

/// Named connections, each told that it has caught up.
fn open(port: u16, name: &str, count: usize) -> Result<Vec<TcpStream>> {
    let connect = |index| {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        write!(
            socket,
            "GET /ws/{name}-{index} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
        while !seen.windows(9).any(|window| window == b"caught_up") {
            match socket.read(&mut piece)? {
                0 => bail!("the replica closed a connection: {}", String::from_utf8_lossy(&seen)),
                read => seen.extend_from_slice(&piece[..read]),
            }
        }
        Ok(socket)
    };
    (0..count).map(connect).collect()
}
