//! The work whose instructions are counted: a replica and its viewers in one process and on one thread, over loopback
//! sockets, with the journal in memory. Each step waits until its viewer has what it made, so every run does the same.
//! Where one event goes to many viewers, or the journal is in Redis, how often the process wakes depends on time: that
//! moved the count by 6 % and by up to 75 %.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use journal::{Journal, Name, NewEntry};
use protocol::Channel;
use relay::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hotpath::{Finder, Join, Wire, data, frame, frame_up};

/// Viewers, each of a channel of its own.
const VIEWERS: usize = 100;
/// The data of an event, in bytes.
const DATA: usize = 200;

/// What is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// An event is appended and delivered to the only viewer of its channel; a hundred channels in turn.
    Delivery,
    /// An event is appended, and nobody watches.
    Append,
    /// A viewer comes, is told that it has caught up, and leaves.
    Connection,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What is done
    #[arg(long, value_enum)]
    work: Work,
    /// How often: deliveries, appends or connections
    #[arg(long)]
    count: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work(options))
}

async fn work(options: &Options) -> Result<()> {
    let journal = Journal::in_memory();
    let config = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)), journal.clone());
    let replica = relay::start(config).await?;
    let address = replica.addr();
    let entry = |number: usize| vec![NewEntry::new("tick", data(number as u64, DATA))];
    let name = |index: usize| format!("counted-{index:03}");
    let journal_of =
        |index: usize| Ok::<_, anyhow::Error>(Name::events(Channel::session(&name(index))?));
    match options.work {
        Work::Delivery => {
            let mut viewers = Vec::with_capacity(VIEWERS);
            for index in 0..VIEWERS {
                viewers.push(Viewer::come(address, &name(index)).await?);
            }
            let names: Vec<Name> = (0..VIEWERS).map(journal_of).collect::<Result<_>>()?;
            for event in 0..options.count {
                let (channel, number) = (event % VIEWERS, event / VIEWERS);
                journal.append(&names[channel], entry(number)).await?;
                viewers[channel].sees(number as u64).await?;
            }
        }
        Work::Append => {
            let name = journal_of(0)?;
            for number in 0..options.count {
                journal.append(&name, entry(number)).await?;
            }
        }
        Work::Connection => {
            let stays = Viewer::come(address, &name(0)).await?;
            for _ in 0..options.count {
                Viewer::come(address, &name(0)).await?.leave().await?;
            }
            stays.leave().await?;
        }
    }
    Ok(())
}

/// A viewer that waits for one thing after the other.
struct Viewer {
    socket: TcpStream,
    begun: Vec<u8>,
    finder: Finder,
}

impl Viewer {
    /// Until it has caught up.
    async fn come(address: SocketAddr, session: &str) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        let request = Wire::Json.request(&Join::Channel(session.to_owned()));
        socket.write_all(request.as_bytes()).await?;
        let mut viewer = Self { socket, begun: Vec::with_capacity(8192), finder: Finder::new() };
        let end = loop {
            if let Some(end) = memchr::memmem::find(&viewer.begun, b"\r\n\r\n") {
                break end + 4;
            }
            viewer.read().await?;
        };
        viewer.begun.drain(..end);
        while memchr::memmem::find(&viewer.text().await?, b"\"caught_up\"").is_none() {}
        Ok(viewer)
    }

    async fn sees(&mut self, number: u64) -> Result<()> {
        loop {
            let text = self.text().await?;
            if let Some(seen) = self.finder.number(&text) {
                ensure!(seen == number, "event {seen} came where {number} was due");
                return Ok(());
            }
        }
    }

    /// Leaves, and waits until the replica has noticed.
    async fn leave(mut self) -> Result<()> {
        // A close frame: going away, which is answered.
        self.socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await?;
        let mut rest = [0; 256];
        while self.socket.read(&mut rest).await? > 0 {}
        Ok(())
    }

    async fn text(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some((opcode, from, to)) = frame(&self.begun) {
                let text = self.begun[from..to].to_vec();
                self.begun.drain(..to);
                match opcode {
                    1 => return Ok(text),
                    // Who does not answer pings is taken for dead.
                    9 => self.socket.write_all(&frame_up(10, &text)).await?,
                    _ => {}
                }
                continue;
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        let read = self.socket.read_buf(&mut self.begun).await.context("a viewer reads")?;
        ensure!(read > 0, "the replica closed a connection");
        Ok(())
    }
}
