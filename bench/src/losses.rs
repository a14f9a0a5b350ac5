//! How long it takes until every browser knows that a worker has died: processes of many agents are killed, and
//! browsers on two replicas watch all of their sessions.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use journal::LEASE_DEFAULT as LEASE;
use publisher_sdk::{Agent, Journal};
use serde_json::json;
use tokio::task::JoinSet;

use crate::browser::Browser;
use crate::figures;
use crate::machine::{Core, Surroundings};
use crate::redis_server::RedisServer;
use crate::server::Server;

/// Between two kills.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many worker processes are killed
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// How many agents each of them runs
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// The replicas' binary; by default the one beside this, from `cargo build --release`
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// A process of many agents, each in the middle of a run.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[arg(long)]
    redis: String,
    #[arg(long)]
    name: String,
    #[arg(long)]
    agents: usize,
}

pub(crate) fn work(options: &Worker) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let journal = Journal::open(&options.redis)?;
        let mut held = Vec::new();
        for number in 0..options.agents {
            let id = format!("{}-{number}", options.name);
            let agent = Agent::options().id(&id).attach(journal.clone()).await?;
            let session = agent.session(&id).await?;
            let run = session.begin_run("run");
            run.announce(&json!({})).await?;
            held.push((agent, session, run));
        }
        println!("ready");
        std::future::pending::<()>().await;
        drop(held);
        Ok(())
    })
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<()> {
    let surroundings = Surroundings::look()?;
    let redis = RedisServer::start(Core::Any)?;
    let binary = options.binary.as_deref();
    let replicas = [
        Server::replica(binary, Some(&redis.url()), Core::Any)?,
        Server::replica(binary, Some(&redis.url()), Core::Any)?,
    ];
    let began = Instant::now();
    let mut workers = Vec::new();
    let mut watching = JoinSet::new();
    for number in 0..options.kills {
        let name = format!("w{number}");
        let worker = Killed(start(&redis.url(), &name, options.agents)?);
        let sessions: Vec<String> =
            (0..options.agents).map(|agent| format!("session:{name}-{agent}")).collect();
        let mut browsers = Vec::new();
        for replica in &replicas {
            for channels in sessions.chunks(250) {
                browsers.push((Browser::open(replica.port(), channels).await?, channels.len()));
            }
        }
        workers.push((worker, browsers));
    }
    // No replica declares anybody lost before it has looked for a whole lease.
    tokio::time::sleep((LEASE + Duration::from_secs(2)).saturating_sub(began.elapsed())).await;
    for (mut worker, browsers) in workers {
        worker.0.kill()?;
        let killed = Instant::now();
        watching.spawn(async move {
            for (mut browser, channels) in browsers {
                for _ in 0..channels {
                    browser.until(|text| text.contains("\"agent_lost\"")).await?;
                }
            }
            drop(worker);
            Ok::<_, anyhow::Error>(killed.elapsed().as_secs_f64())
        });
        tokio::time::sleep(PAUSE).await;
    }
    let mut took = Vec::new();
    while let Some(watched) = watching.join_next().await {
        took.push(watched??);
    }
    took.sort_by(f64::total_cmp);
    ensure!(!took.is_empty(), "at least one kill");
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let cells = [0.0, 0.5, 0.9, 1.0].map(|share| format!("{:.1}", at(share)));
    let (kills, agents) = (options.kills, options.agents);
    println!(
        "{kills} workers of {agents} agents killed; every browser on both replicas knows of all of them"
    );
    figures::print(&["min s", "p50", "p90", "max"], &[cells.to_vec()]);
    println!("a lease is {LEASE:?}, renewed every third of it");
    println!("{}", surroundings.since()?);
    Ok(())
}

/// A process that ends with the measurement.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have been killed already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(redis: &str, name: &str, agents: usize) -> Result<Child> {
    let mut worker = Command::new(std::env::current_exe()?)
        .args(["worker", "--redis", redis, "--name", name, "--agents", &agents.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let said = worker.stdout.take().context("its output is piped")?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "a worker said `{}`", line.trim());
    Ok(worker)
}
