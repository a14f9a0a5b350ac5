//! What the relay costs, always measured against a floor in the same run.
//!
//! Absolute times hold on one machine at one moment; ratios hold. `README.md` says how to read them.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod append;
mod fanout;
mod figures;
mod floor;
mod idle;
mod leases;
mod machine;
mod pipeline;
mod redis_server;
mod server;
mod watcher;

use anyhow::Result;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "What the relay costs, always against a floor in the same run")]
enum Command {
    /// Redis' CPU per appended event, against a bare PUBLISH and the least possible script.
    Append(append::Options),
    /// What an idle connection costs: memory, and the CPU to take it in.
    Idle(idle::Options),
    /// A replica's CPU per delivery, against one thread that writes finished frames.
    Fanout(fanout::Options),
    /// The share of a Redis core that it takes to know which agents are alive.
    Leases(leases::Options),
    /// That thread, as a process of its own.
    #[command(hide = true)]
    Floor(floor::Options),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Append(options) => append::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Fanout(options) => fanout::run(&options),
        Command::Leases(options) => leases::run(&options),
        Command::Floor(options) => floor::run(&options),
    }
}
