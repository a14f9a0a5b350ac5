//! What an idle connection costs: resident memory, and the CPU to take it in.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::machine::{Core, Surroundings, cpu_of, pause, resident_kib};
use crate::server::Server;
use crate::watcher;

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

pub(crate) fn run(options: &Options) -> Result<()> {
    let surroundings = Surroundings::look()?;
    let binary = options.binary.as_deref();
    let replica = Server::replica(binary, options.redis.as_deref(), Core::Any)?;
    let (process, port) = (replica.id(), replica.port());
    let named = |name: &'static str, count| (0..count).map(move |n| format!("{name}-{n}"));
    let _warm = watcher::open(port, named("warm", WARM))?;
    pause(Duration::from_secs(1));
    let (kib, cpu, began) = (resident_kib(process)?, cpu_of(process)?, Instant::now());

    let sockets = watcher::open(port, named("idle", options.connections))?;

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
