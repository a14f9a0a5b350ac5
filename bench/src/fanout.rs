//! What a delivery costs a replica: the run time of its process, divided by the deliveries, at a fixed rate,
//! against the floor in the same run. Every delivery is checked, because a server that loses some would look cheap.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use journal::{Journal, Name, NewEntry};
use protocol::Channel;

use crate::figures::{self, median, median_ratio};
use crate::floor;
use crate::machine::{self, Core, Surroundings, cpu_of};
use crate::redis_server::RedisServer;
use crate::server::Server;
use crate::watcher::{self, NUMBER, Watchers};

/// When events are published and watchers look: on this grid.
const GRID: Duration = Duration::from_micros(500);
/// How long the last deliveries may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The data of an event, in bytes.
const DATA: usize = 200;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Channels x watchers of each.
    #[arg(long, default_values = ["1x1000", "1000x1"])]
    shape: Vec<String>,
    /// Deliveries a second, over all watchers.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each is measured; medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The replica's binary; by default the one beside this, from `cargo build --release`.
    #[arg(long)]
    binary: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let redis = RedisServer::start(Core::Last)?;
    let binary = options.binary.as_deref();
    let replica = Server::replica(binary, Some(&redis.url()), Core::First)?;
    let floor = Server::floor(&redis.url(), Core::First)?;
    machine::stay_on(Core::Last)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();

    let surroundings = Surroundings::look()?;
    let mut rows = Vec::new();
    for (index, shape) in options.shape.iter().enumerate() {
        let (channels, watchers) = shape.split_once('x').context("a shape is like 100x100")?;
        let (channels, watchers): (u64, u64) = (channels.parse()?, watchers.parse()?);
        let names: Vec<String> = (0..channels).map(|n| format!("fanout-{index}-{n}")).collect();
        let journal = Journal::open(&redis.url())?;
        let mut relayed =
            Way::new(&replica, &names, watchers, Publisher::journal(journal, &names)?)?;
        let direct = Publisher::Redis(redis.connection()?, names.clone(), 0);
        let mut floored = Way::new(&floor, &names, watchers, direct)?;
        let (mut costs, mut floors) = (Vec::new(), Vec::new());
        // The first run warms up; it also tells the floor how long the replica's frames are.
        for run in 0..=options.runs {
            let cost = relayed.measure(options)?;
            if let Publisher::Redis(_, _, length) = &mut floored.publisher {
                *length = (relayed.watchers.bytes / relayed.watchers.received) as usize;
            }
            let floor = floored.measure(options)?;
            if run > 0 {
                costs.push(cost);
                floors.push(floor);
            }
        }
        rows.push(vec![
            shape.clone(),
            format!("{:.2}", median(costs.iter().copied())),
            format!("{:.2}", median(floors.iter().copied())),
            format!("{:.2}", median_ratio(&costs, &floors)),
            format!("{}", relayed.watchers.bytes / relayed.watchers.received),
        ]);
    }
    println!(
        "CPU per delivery at {} deliveries a second for {} s, median of {} runs; every delivery checked",
        options.rate, options.seconds, options.runs
    );
    figures::print(&["channels x watchers", "replica µs", "floor µs", "÷ floor", "bytes"], &rows);
    println!("{}", surroundings.since()?);
    Ok(())
}

/// A server, its watchers, and how it is fed.
struct Way {
    process: u32,
    watchers: Watchers,
    publisher: Publisher,
    channels: u64,
    per_channel: u64,
    published: u64,
}

impl Way {
    fn new(
        server: &Server,
        names: &[String],
        per_channel: u64,
        publisher: Publisher,
    ) -> Result<Self> {
        let sessions = names.iter().flat_map(|name| (0..per_channel).map(|_| name.clone()));
        Ok(Self {
            process: server.id(),
            watchers: Watchers::new(watcher::open(server.port(), sessions)?)?,
            publisher,
            channels: names.len() as u64,
            per_channel,
            published: 0,
        })
    }

    /// The µs per delivery.
    fn measure(&mut self, options: &Options) -> Result<f64> {
        let events = options.rate * options.seconds / self.per_channel;
        let every = Duration::from_secs(options.seconds).div_f64(events as f64);
        let (cpu, received) = (cpu_of(self.process)?, self.watchers.received);
        let due = events * self.per_channel;
        let (begun, mut tick, mut sent) = (Instant::now(), 0, 0);
        while self.watchers.received - received < due {
            tick += 1;
            machine::pause((GRID * tick).saturating_sub(begun.elapsed()));
            let mut now = Vec::new();
            while sent < events && every * (sent as u32) <= begun.elapsed() {
                now.push((self.published % self.channels, self.published / self.channels));
                self.published += 1;
                sent += 1;
            }
            self.publisher.publish(&now)?;
            self.watchers.look()?;
            ensure!(
                self.watchers.received - received <= due,
                "more was delivered than was published"
            );
            if begun.elapsed() > Duration::from_secs(options.seconds) + PATIENCE {
                bail!("{} of {due} deliveries arrived", self.watchers.received - received);
            }
        }
        Ok((cpu_of(self.process)? - cpu).as_secs_f64() * 1e6 / due as f64)
    }
}

/// How events reach a server.
enum Publisher {
    /// As agents publish.
    Journal(Journal, Vec<Name>),
    /// As finished frames with so many bytes of text.
    Redis(redis::Connection, Vec<String>, usize),
}

impl Publisher {
    fn journal(journal: Journal, names: &[String]) -> Result<Self> {
        let name = |name: &String| Ok(Name::events(Channel::session(name)?));
        Ok(Self::Journal(journal, names.iter().map(name).collect::<Result<_>>()?))
    }

    /// Publishes events: which channel, and the number of the event on it.
    fn publish(&mut self, events: &[(u64, u64)]) -> Result<()> {
        match self {
            Self::Journal(journal, names) => {
                for &(channel, number) in events {
                    let entry = NewEntry::new("tick", data(number, DATA));
                    // Who watches will notice whether it arrives.
                    drop(journal.try_enqueue(&names[channel as usize], vec![entry])?);
                }
            }
            Self::Redis(connection, names, length) => {
                let mut pipe = redis::pipe();
                for &(channel, number) in events {
                    let frame = floor::frame(&data(number, *length));
                    pipe.publish(floor::channel(&names[channel as usize]), frame).ignore();
                }
                if !events.is_empty() {
                    pipe.exec(connection)?;
                }
            }
        }
        Ok(())
    }
}

/// JSON of so many bytes that says its number.
fn data(number: u64, bytes: usize) -> String {
    let begin = format!("{{{NUMBER}{number},\"fill\":\"");
    let fill = "x".repeat(bytes.saturating_sub(begin.len() + 2));
    format!("{begin}{fill}\"}}")
}
