//! What an append costs Redis: the growth of its CPU time, divided by the events.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use journal::{Journal, Name, NewEntry};
use protocol::Channel;
use redis::Connection;

use crate::figures::{self, median, median_ratio};
use crate::machine::{self, Core, Surroundings};
use crate::pipeline::{Appends, LeastScripts, Pipeline, Publishes};
use crate::redis_server::RedisServer;

/// What the design allows a single event, and one of a batch of ten, in µs.
const BUDGET: [(usize, f64); 2] = [(1, 5.6), (10, 3.0)];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How often everything is measured; medians are printed.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Events per run and way.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Channels that they are spread over.
    #[arg(long, default_value_t = 100)]
    channels: usize,
    /// Callers per channel that append through the journal, one after the other. With more than eight,
    /// what waits is appended together.
    #[arg(long, default_value_t = 1)]
    callers: usize,
    /// Commands that are sent before their answers are read, where the load goes to Redis without a journal.
    #[arg(long, default_value_t = 64)]
    depth: usize,
    /// The data of an event, in bytes.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Another append.lua with the same arguments, to be measured beside ours.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Measure only the floors and the ways whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Leave it to the system where Redis and the load run.
    #[arg(long)]
    unpinned: bool,
}

/// A way to get an event into Redis.
#[derive(Clone, Debug)]
enum Way {
    /// Not kept at all.
    Publish,
    /// Kept, with the least script: no sequence, no retention, no time, no batch.
    LeastScript,
    /// As agents append: our client, our script.
    Journal { batch: usize },
    /// Our script, by a client of which Redis notices nothing but its commands.
    Script { source: String, batch: usize, full: bool },
}

#[derive(Debug)]
struct Figure {
    micros: f64,
    per_script: f64,
    per_second: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ours = include_str!("../../journal/src/redis/append.lua");
    let script = |source: &str, batch, full| Way::Script { source: source.to_owned(), batch, full };
    let mut ways = vec![
        ("bare PUBLISH".to_owned(), Way::Publish),
        ("least script: XADD, PUBLISH".to_owned(), Way::LeastScript),
        ("Journal::append, single".to_owned(), Way::Journal { batch: 1 }),
        ("Journal::append, tens".to_owned(), Way::Journal { batch: 10 }),
        ("append.lua, single".to_owned(), script(ours, 1, false)),
        ("append.lua, tens".to_owned(), script(ours, 10, false)),
        ("append.lua, single, full journals".to_owned(), script(ours, 1, true)),
    ];
    if let Some(path) = &options.script {
        let other = std::fs::read_to_string(path)
            .with_context(|| format!("{} can be read", path.display()))?;
        ways.push(("the other script, single".to_owned(), script(&other, 1, false)));
        ways.push(("the other script, tens".to_owned(), script(&other, 10, false)));
        ways.push(("the other script, single, full journals".to_owned(), script(&other, 1, true)));
    }
    let is_floor = |way: &Way| matches!(way, Way::Publish | Way::LeastScript);
    ways.retain(|(name, way)| is_floor(way) || name.contains(&options.only));

    let core = |core| if options.unpinned { Core::Any } else { core };
    let redis = RedisServer::start(core(Core::First))?;
    machine::stay_on(core(Core::Last))?;
    let surroundings = Surroundings::look()?;
    let mut figures: Vec<Vec<Figure>> = ways.iter().map(|_| Vec::new()).collect();
    // Run by run and not way by way: what the machine does meanwhile is then shared fairly.
    for run in 0..=options.runs {
        for ((name, way), figures) in ways.iter().zip(&mut figures) {
            let figure = measure(way, options, &redis).with_context(|| name.clone())?;
            // The first run warms Redis' memory up.
            if run > 0 {
                figures.push(figure);
            }
        }
    }
    report(options, &ways, &figures);
    println!("{}", surroundings.since()?);
    Ok(())
}

fn measure(way: &Way, options: &Options, redis: &RedisServer) -> Result<Figure> {
    let mut connection = redis.connection()?;
    let () = redis::cmd("FLUSHALL").arg("SYNC").query(&mut connection)?;
    let names = names(options.channels)?;
    let data = data(options.bytes);
    let count = options.events;
    let pipeline = |commands: &mut dyn Pipeline, connection: &mut Connection| {
        commands.drive(connection, options.depth, count)
    };
    match way {
        Way::Publish => {
            let mut publishes = Publishes::new(&names, &data);
            measured(redis, &mut connection, count, |link| pipeline(&mut publishes, link))
        }
        Way::LeastScript => {
            let mut scripts = LeastScripts::load(&names, &data, &mut connection)?;
            measured(redis, &mut connection, count, |link| pipeline(&mut scripts, link))
        }
        Way::Script { source, batch, full: false } => {
            let mut appends = Appends::load(source, &names, &data, *batch, &mut connection)?;
            let figure =
                measured(redis, &mut connection, count, |link| pipeline(&mut appends, link))?;
            check(&names, count, &mut connection)?;
            Ok(figure)
        }
        Way::Script { source, batch, full: true } => {
            // Ten journals of a session, full with the 8 MiB that they keep by default.
            let names = &names[..names.len().min(10)];
            Appends::load(source, names, &data, 100, &mut connection)?.drive(
                &mut connection,
                16,
                full(options.bytes) * names.len(),
            )?;
            let mut appends = Appends::load(source, names, &data, *batch, &mut connection)?;
            appends.begin(&mut connection)?;
            measured(redis, &mut connection, count, |link| pipeline(&mut appends, link))
        }
        Way::Journal { batch } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let journal = {
                let _entered = runtime.enter();
                Journal::open(&redis.url())?
            };
            let callers = options.callers;
            let entries = vec![NewEntry::new("text_delta", data); *batch];
            runtime.block_on(append(&journal, &names, 1, 1, &entries))?;
            let rounds = count / callers / names.len() / batch;
            let count = rounds * callers * names.len() * batch;
            let figure = measured(redis, &mut connection, count, |_| {
                runtime.block_on(append(&journal, &names, callers, rounds, &entries))
            })?;
            check(&names, count + names.len() * batch, &mut connection)?;
            Ok(figure)
        }
    }
}

fn measured(
    redis: &RedisServer,
    connection: &mut Connection,
    events: usize,
    drive: impl FnOnce(&mut Connection) -> Result<()>,
) -> Result<Figure> {
    let (cpu, scripts) = (redis.cpu(connection)?, redis.scripts_run(connection)?);
    let begun = Instant::now();
    drive(connection)?;
    let wall = begun.elapsed();
    let cpu: Duration = redis.cpu(connection)? - cpu;
    let scripts = redis.scripts_run(connection)? - scripts;
    Ok(Figure {
        micros: cpu.as_secs_f64() * 1e6 / events as f64,
        per_script: if scripts == 0 { 0.0 } else { events as f64 / scripts as f64 },
        per_second: events as f64 / wall.as_secs_f64(),
    })
}

/// Every caller of every channel appends `entries` for `rounds` times, each when the last is done.
async fn append(
    journal: &Journal,
    names: &[Name],
    callers: usize,
    rounds: usize,
    entries: &[NewEntry],
) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for name in names.iter().flat_map(|name| std::iter::repeat_n(name, callers)) {
        let (journal, name, entries) = (journal.clone(), name.clone(), entries.to_vec());
        tasks.spawn(async move {
            for _ in 0..rounds {
                journal.append(&name, entries.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Checks that all events are there: a way that loses some would look cheap.
fn check(names: &[Name], events: usize, connection: &mut Connection) -> Result<()> {
    let mut found = 0;
    for name in names {
        let key = crate::pipeline::stream(name);
        found += redis::cmd("XLEN").arg(key).query::<usize>(connection)?;
    }
    ensure!(found == events, "{found} entries are in the journals, {events} were appended");
    Ok(())
}

fn names(count: usize) -> Result<Vec<Name>> {
    let name = |index: usize| Ok(Name::events(Channel::session(&format!("bench-{index}"))?));
    (0..count).map(name).collect()
}

/// More events than a session's journal keeps.
fn full(bytes: usize) -> usize {
    9 * 1024 * 1024 / (bytes + 20)
}

/// JSON of so many bytes.
fn data(bytes: usize) -> String {
    let frame = r#"{"delta":""}"#.len();
    format!(r#"{{"delta":"{}"}}"#, "x".repeat(bytes.saturating_sub(frame)))
}

fn report(options: &Options, ways: &[(String, Way)], figures: &[Vec<Figure>]) {
    println!(
        "Redis' CPU per event of {} bytes: {} events over {} channels, median of {} runs",
        options.bytes, options.events, options.channels, options.runs
    );
    let micros: Vec<Vec<f64>> =
        figures.iter().map(|runs| runs.iter().map(|run| run.micros).collect()).collect();
    let rows =
        ways.iter().zip(figures).zip(&micros).map(|(((name, way), figures), micros_here)| {
            let spread = micros_here
                .iter()
                .copied()
                .fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
            let batch = match way {
                Way::Journal { batch } | Way::Script { batch, .. } => Some(*batch),
                Way::Publish | Way::LeastScript => None,
            };
            let budget = BUDGET.iter().find(|(size, _)| Some(*size) == batch);
            let per_script = median(figures.iter().map(|figure| figure.per_script));
            vec![
                name.clone(),
                format!("{:.2}", median(micros_here.iter().copied())),
                format!("{:.2}–{:.2}", spread.0, spread.1),
                budget.map_or_else(String::new, |(_, budget)| format!("{budget:.1}")),
                format!("{:.2}", median_ratio(micros_here, &micros[0])),
                format!("{:.2}", median_ratio(micros_here, &micros[1])),
                if per_script == 0.0 { String::new() } else { format!("{per_script:.1}") },
                format!("{:.0}", median(figures.iter().map(|figure| figure.per_second)) / 1e3),
            ]
        });
    let rows: Vec<Vec<String>> = rows.collect();
    let head = [
        "way",
        "µs",
        "from–to",
        "budget",
        "÷ PUBLISH",
        "÷ least script",
        "events per script",
        "thousands/s",
    ];
    figures::print(&head, &rows);
}
