//! What the relay costs, always measured against a floor in the same run.
//!
//! Absolute times hold only on one machine at one moment; compare the ratios. `README.md` says how to read them.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod append;
mod browser;
mod counted;
mod figures;
mod flood;
mod floor;
mod hotpath;
mod instructions;
mod leases;
mod losses;
mod machine;
mod pipeline;
mod redis_server;
mod roundtrip;
mod server;
mod unread;

use anyhow::Result;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "What the relay costs, always against a floor in the same run")]
enum Command {
    /// Redis' CPU per appended event, against a bare PUBLISH and the least possible script.
    Append(append::Options),
    /// What other viewers notice while somebody floods a replica: their latency, quiet and meanwhile.
    Flood(flood::Options),
    /// What the way to the viewers costs: CPU, latency, memory, connections and storms, against one thread that writes
    /// finished frames.
    Hotpath(hotpath::Options),
    /// Instructions per delivery, append and connection, compared with those that are kept.
    Instructions(instructions::Options),
    /// The share of a Redis core that it takes to know which agents are alive.
    Leases(leases::Options),
    /// How long it takes until every browser knows that a worker has died.
    Losses(losses::Options),
    /// How long a click takes to the agent's handler, and until `applied` is on the screen.
    Roundtrip(roundtrip::Options),
    /// What peers cost that do not read: resident memory before, with and after them.
    Unread(unread::Options),
    /// A worker that will be killed.
    #[command(hide = true)]
    Worker(losses::Worker),
    /// The work whose instructions are counted.
    #[command(hide = true)]
    Counted(counted::Options),
    /// That thread, as a process of its own.
    #[command(hide = true)]
    Floor(floor::Options),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Append(options) => append::run(&options),
        Command::Flood(options) => flood::run(&options),
        Command::Hotpath(options) => hotpath::run(&options),
        Command::Instructions(options) => instructions::run(&options),
        Command::Counted(options) => counted::run(&options),
        Command::Leases(options) => leases::run(&options),
        Command::Losses(options) => losses::run(&options),
        Command::Roundtrip(options) => roundtrip::run(&options),
        Command::Unread(options) => unread::run(&options),
        Command::Worker(options) => losses::work(&options),
        Command::Floor(options) => floor::run(&options),
    }
}
