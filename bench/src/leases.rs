//! What it costs Redis to know that agents are alive: the share of a core that leases take.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use journal::{Journal, Lease, Reaper};
use protocol::Channel;
use tokio::time::{Instant, sleep_until};

use crate::figures;
use crate::machine::{self, Core, Surroundings};
use crate::redis_server::RedisServer;

/// How often a replica looks for what has fallen due.
const POLL_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many agents are alive; each holds a lease on its own channel and one on a session
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Over how many processes they are spread; each renews all its leases in one pipeline
    #[arg(long, default_value_t = 20)]
    processes: usize,
    /// How many replicas look for lost ones
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// How long it is measured: some renewals of each lease
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    machine::stay_on(Core::Last)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<()> {
    let surroundings = Surroundings::look()?;
    let redis = RedisServer::start(Core::First)?;
    let mut reapers = Vec::new();
    for _ in 0..options.replicas {
        reapers.push(Reaper::new(Journal::open(&redis.url())?));
    }
    let idle = share(&redis, &mut reapers, Duration::from_secs(options.seconds)).await?;

    let began = Instant::now();
    let mut held = Vec::new();
    for process in 0..options.processes {
        let journal = Journal::open(&redis.url())?;
        for number in 0..options.agents / options.processes {
            held.extend(hold(&journal, &format!("a{process}-{number}")).await?);
        }
    }
    let taking = began.elapsed().as_secs_f64() * 1e6 / held.len() as f64;
    let busy = share(&redis, &mut reapers, Duration::from_secs(options.seconds)).await?;

    figures::print(
        &["leases", "share of a Redis core"],
        &[
            vec!["none".to_owned(), format!("{:.2} %", idle * 100.0)],
            vec![held.len().to_string(), format!("{:.2} %", busy * 100.0)],
        ],
    );
    println!("taking one: {taking:.0} µs, one after the other");
    println!("{}", surroundings.since()?);
    let lost = held.iter().filter(|lease| lease.lost().is_cancelled()).count();
    anyhow::ensure!(lost == 0, "{lost} leases were lost: the machine is too busy to tell");
    Ok(())
}

async fn hold(journal: &Journal, id: &str) -> Result<[Lease; 2]> {
    let own = journal.lease(&Channel::agent(id)?, id, None, None).await?;
    let incarnation = Some(own.holder().incarnation);
    let session = journal.lease(&Channel::session(id)?, id, incarnation, None).await?;
    Ok([own, session])
}

/// The share of a core that Redis uses while the reapers look.
async fn share(redis: &RedisServer, reapers: &mut [Reaper], during: Duration) -> Result<f64> {
    let mut connection = redis.connection()?;
    let (cpu, began) = (redis.cpu(&mut connection)?, Instant::now());
    let mut next = began;
    while began.elapsed() < during {
        for reaper in &mut *reapers {
            reaper.poll().await?;
        }
        next += POLL_EVERY;
        sleep_until(next).await;
    }
    let used = redis.cpu(&mut connection)? - cpu;
    Ok(used.as_secs_f64() / began.elapsed().as_secs_f64())
}
