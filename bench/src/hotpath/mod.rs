//! What the way from Redis to the viewers costs: the relay beside the floor, and beside peers, in the same run.
//!
//! Each part starts its servers anew and in turn, so that what the machine does meanwhile is shared fairly. The server
//! has a core of its own; Redis and the load generator share another. `docs/performance.md` says how to read the figures.

mod accepts;
mod contender;
mod crowd;
mod deliveries;
mod latency;
mod memory;
mod perf;
mod publisher;
mod storm;
pub(crate) mod wire;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::machine::{self, Core, Surroundings};
use crate::redis_server::RedisServer;
use crate::server::Server;
use contender::{Contender, Peer};
use crowd::Crowd;
use publisher::Publisher;

#[cfg(test)]
pub(crate) use wire::frame_down;
pub(crate) use wire::{Finder, Join, Wire, data, frame, frame_up};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Channels x viewers of each
    #[arg(long, value_delimiter = ',', default_values = ["1x1000", "100x100", "1000x1"])]
    shape: Vec<Shape>,
    /// Which loads the deliveries are measured under
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["steady", "flat"])]
    load: Vec<Load>,
    /// Deliveries a second under the steady load, over all viewers
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// Deliveries under way, flat out
    #[arg(long, default_value_t = 16_000)]
    window: u64,
    /// For how long each load lasts
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each is measured; medians and spreads are printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A relay: `PATH`, `NAME=PATH` or `NAME=PATH FLAGS`; several are compared. By default the binary beside this one
    #[arg(long)]
    relay: Vec<String>,
    /// Peers beside it; `bench/peers/run` installs them
    #[arg(long, value_enum, value_delimiter = ',')]
    peer: Vec<Peer>,
    /// How many viewers are idle, and come back in a storm
    #[arg(long, default_value_t = 10_000)]
    viewers: usize,
    /// Write all figures into this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Record with `perf` what the relay does under the loads, into this file
    #[arg(long)]
    perf: Option<PathBuf>,
    /// Let the servers run on every core
    #[arg(long)]
    unpinned: bool,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU per delivery, at a steady load and flat out.
    Deliveries,
    /// From publishing to reading, at half of the maximum.
    Latency,
    /// Connections taken in per second.
    Accepts,
    /// Memory of what is idle, and its return.
    Memory,
    /// Viewers that come back all at once.
    Storm,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Load {
    /// So many deliveries a second, whatever the server does.
    Steady,
    /// As many as the server can do: a bounded number is under way.
    Flat,
}

/// Channels x viewers of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    channels: usize,
    viewers: usize,
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (channels, viewers) = text.split_once('x').context("a shape is like 100x100")?;
        let shape = Self { channels: channels.parse()?, viewers: viewers.parse()? };
        ensure!(shape.channels > 0 && shape.viewers > 0, "a shape has channels and viewers");
        Ok(shape)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.channels, self.viewers)
    }
}

/// What all parts need.
struct Setup<'a> {
    options: &'a Options,
    redis: RedisServer,
    contenders: Vec<Contender>,
    core: Core,
    /// How long the text is that the relay makes of an event; the others send as much.
    text: usize,
    /// How often servers were started: names of channels are never used twice.
    visits: std::cell::Cell<usize>,
}

/// A server of a contender with its viewers and what brings it events.
struct Visit {
    server: Server,
    crowd: Crowd,
    publisher: Publisher,
    shape: Shape,
    /// The channel of the next event.
    turn: usize,
}

impl Setup<'_> {
    /// Whether a part is to be measured.
    fn wants(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    fn floor(&self) -> &Contender {
        &self.contenders[0]
    }

    fn relays(&self) -> impl Iterator<Item = &Contender> {
        self.contenders.iter().filter(|contender| contender.is_relay())
    }

    /// A new server of a contender, and nobody there yet. What Redis held is gone.
    fn start(&self, contender: &Contender) -> Result<Server> {
        self.redis.clear()?;
        self.visits.set(self.visits.get() + 1);
        contender.start(&self.redis, self.core)
    }

    /// Names of as many channels, as long as all others and not used before.
    fn names(&self, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("bench-{:03}-{n:05}", self.visits.get())).collect()
    }

    fn publisher(
        &self,
        contender: &Contender,
        server: &Server,
        names: &[String],
    ) -> Result<Publisher> {
        let address = server.publish().map_or_else(|| self.redis.address(), str::to_owned);
        Publisher::new(contender.feed(), &address, names, self.text)
    }

    /// A new server with all viewers of a shape.
    fn visit(&self, contender: &Contender, shape: Shape) -> Result<Visit> {
        let server = self.start(contender)?;
        let names = self.names(shape.channels);
        let publisher = self.publisher(contender, &server, &names)?;
        let mut crowd = Crowd::new(server.port(), contender.wire())?;
        let viewers = names.iter().enumerate().flat_map(|(channel, name)| {
            std::iter::repeat_n((Join::Channel(name.clone()), channel), shape.viewers)
        });
        crowd.come_all(viewers).with_context(|| contender.name().to_owned())?;
        Ok(Visit { server, crowd, publisher, shape, turn: 0 })
    }
}

impl Visit {
    /// One more event, on the next channel: which one, and its number there.
    fn publish(&mut self) -> (usize, u64) {
        let channel = self.turn;
        self.turn = (self.turn + 1) % self.shape.channels;
        (channel, self.publisher.publish(channel))
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let contenders = Contender::all(&options.relay, &options.peer)?;
    let redis = RedisServer::start(if options.unpinned { Core::Any } else { Core::Last })?;
    let core = if options.unpinned { Core::Any } else { Core::First };
    let visits = std::cell::Cell::new(0);
    let mut setup = Setup { options, redis, contenders, core, text: 0, visits };
    if !options.unpinned {
        machine::stay_on(Core::Last)?;
    }
    setup.text = text_length(&setup)?;

    let surroundings = Surroundings::look()?;
    let mut figures = serde_json::Map::new();
    let mut maxima = Vec::new();
    if setup.wants(Part::Deliveries) {
        let deliveries = deliveries::run(&setup)?;
        maxima = deliveries.maxima;
        figures.insert("deliveries".to_owned(), deliveries.json);
    }
    if setup.wants(Part::Latency) {
        figures.insert("latency".to_owned(), latency::run(&setup, &maxima)?);
    }
    if setup.wants(Part::Accepts) {
        figures.insert("accepts".to_owned(), accepts::run(&setup)?);
    }
    if setup.wants(Part::Memory) {
        figures.insert("memory".to_owned(), memory::run(&setup)?);
    }
    if setup.wants(Part::Storm) {
        figures.insert("storm".to_owned(), storm::run(&setup)?);
    }
    println!("{}", surroundings.since()?);
    if let Some(path) = &options.json {
        figures.insert("run".to_owned(), about(&setup, &surroundings)?);
        let text = serde_json::to_string_pretty(&Value::Object(figures))?;
        std::fs::write(path, text + "\n").with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

/// When, where and how all was measured.
fn about(setup: &Setup<'_>, surroundings: &Surroundings) -> Result<Value> {
    let (steal, load) = surroundings.figures()?;
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    Ok(json!({
        "unix_seconds": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        "command": std::env::args().collect::<Vec<_>>(),
        "cores": machine::cores()?,
        "processor": model.map(|model| model.trim_start_matches([' ', '\t', ':'])),
        "steal": steal,
        "load_average": load,
        "text_bytes": setup.text,
        "event_bytes": publisher::DATA,
        "runs": setup.options.runs,
        "seconds": setup.options.seconds,
    }))
}

/// How long the text is that the relay makes of an event.
fn text_length(setup: &Setup<'_>) -> Result<usize> {
    const EVENTS: usize = 20;
    let relay = setup.relays().next().context("there is a relay")?;
    let mut visit = setup.visit(relay, Shape { channels: 1, viewers: 1 })?;
    for _ in 0..EVENTS {
        visit.publish();
    }
    let begun = std::time::Instant::now();
    while visit.crowd.received < EVENTS as u64 {
        visit.publisher.flush()?;
        visit.crowd.look(Duration::from_millis(10), |_, _| ())?;
        ensure!(begun.elapsed() < Duration::from_secs(10), "the relay delivers nothing");
    }
    Ok(visit.crowd.bytes as usize / EVENTS)
}

/// Says on stderr what is being done.
fn progress(what: &str) {
    eprintln!("{what}");
}
