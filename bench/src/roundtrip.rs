//! How long a click takes: from the browser's frame to the agent's handler, and to `applied` on the screen.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use publisher_sdk::Agent;
use serde_json::json;
use tokio::sync::mpsc;

use crate::browser::Browser;
use crate::figures;
use crate::machine::{self, Core, Surroundings};
use crate::redis_server::RedisServer;
use crate::server::Server;

/// Commands before counting begins.
const WARM: usize = 100;
/// Connections that click in turn: from one alone a relay does not take so many so quickly.
const CLICKING: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many clicks, one after the other
    #[arg(long, default_value_t = 3_000)]
    clicks: usize,
    /// The replica's binary; by default the one beside this, from `cargo build --release`
    #[arg(long)]
    binary: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<()> {
    ensure!(options.clicks > 0, "at least one click");
    let surroundings = Surroundings::look()?;
    let redis = RedisServer::start(Core::Any)?;
    let replica = Server::replica(options.binary.as_deref(), Some(&redis.url()), Core::Any)?;
    machine::pause(Duration::from_secs(1));
    let agent = Agent::options().id("a").connect(&redis.url()).await?;
    let (ran, mut runs) = mpsc::channel(16);
    let mut commands = agent.commands();
    let handler = tokio::spawn(async move {
        while let Some(command) = commands.next().await {
            if ran.send(Instant::now()).await.is_err() {
                return;
            }
            command.applied();
        }
    });
    let mut screen = Browser::open(replica.port(), &["agent:a".to_owned()]).await?;
    let mut clicking = Vec::new();
    for _ in 0..CLICKING {
        clicking.push(Browser::open(replica.port(), &[]).await?);
    }
    let (mut to_handler, mut to_screen, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut connection = redis.connection()?;
    for click in 0..WARM + options.clicks {
        let clicked = Instant::now();
        clicking[click % CLICKING]
            .send(&json!({"type": "command", "agent_id": "a", "name": "go", "data": {}}))
            .await?;
        let ran = runs.recv().await.context("the handler runs")?;
        screen.until(|text| text.contains("\"applied\"")).await?;
        if click >= WARM {
            to_handler.push(micros(ran - clicked));
            to_screen.push(micros(clicked.elapsed()));
            let asked = Instant::now();
            redis::cmd("PING").exec(&mut connection)?;
            floor.push(micros(asked.elapsed()));
        }
    }
    handler.abort();
    let floor = figures::median(floor);
    let row = |name: &str, values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
        let cells = [0.5, 0.9, 0.99, 1.0].map(|share| format!("{:.0}", at(share)));
        let floors = format!("{:.1}", at(0.5) / floor);
        [vec![name.to_owned()], cells.to_vec(), vec![floors]].concat()
    };
    figures::print(
        &["click →", "p50 µs", "p90", "p99", "max", "p50 ÷ a round trip to Redis"],
        &[row("handler runs", &mut to_handler), row("`applied` on screen", &mut to_screen)],
    );
    println!("a round trip to Redis: {floor:.0} µs");
    println!("{}", surroundings.since()?);
    agent.close().await?;
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
