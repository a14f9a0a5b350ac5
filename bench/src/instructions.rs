//! A gate that noise cannot reach: how many instructions a delivery, an append and a connection take, counted by
//! valgrind's callgrind and compared with those kept in `bench/instructions.json`.
//!
//! Each work is run twice, with different counts; what is more in the longer run is divided by how much more was done. So
//! what it costs to start cancels out.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::counted::Work;
use crate::figures;

/// How far a figure may be from the one that is kept.
const TOLERANCE: f64 = 0.03;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keep these figures instead of comparing with those that are kept
    #[arg(long)]
    write: bool,
    /// How often everything is counted; with more than one the spread is printed
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Count only what contains this
    #[arg(long, default_value = "")]
    only: String,
}

/// A work, what it is called, and two counts.
#[derive(Clone, Copy, Debug)]
struct Counted {
    work: Work,
    name: &'static str,
    counts: [usize; 2],
}

const ALL: [Counted; 3] = [
    Counted { work: Work::Delivery, name: "delivery", counts: [1_000, 6_000] },
    Counted { work: Work::Append, name: "append", counts: [1_000, 11_000] },
    Counted { work: Work::Connection, name: "connection", counts: [100, 600] },
];

impl Counted {
    /// The instructions of one.
    fn count(self) -> Result<f64> {
        let short = callgrind(self.work, self.counts[0])? as f64;
        let long = callgrind(self.work, self.counts[1])? as f64;
        Ok((long - short) / (self.counts[1] - self.counts[0]) as f64)
    }
}

/// All instructions of a run.
fn callgrind(work: Work, count: usize) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--fair-sched=yes"])
        .arg(std::env::current_exe()?)
        .arg("counted")
        .args(["--work", work.to_possible_value().context("it has a name")?.get_name()])
        .args(["--count", &count.to_string()]);
    let done = command.output().context("`valgrind` can be started: Debian has it as valgrind")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{work:?} failed: {said}");
    let total = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    Ok(total.with_context(|| format!("callgrind said no total: {said}"))?.trim().parse()?)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.runs > 0, "at least one run");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let kept: BTreeMap<String, Value> = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).context("instructions.json can be read")?,
        Err(_) => BTreeMap::new(),
    };
    let (mut found, mut table, mut beyond) = (BTreeMap::new(), Vec::new(), Vec::new());
    for counted in ALL {
        let name = counted.name.to_owned();
        if !name.contains(&options.only) {
            continue;
        }
        let counts: Vec<f64> = (0..options.runs).map(|_| counted.count()).collect::<Result<_>>()?;
        let count = figures::median(counts.iter().copied());
        let before = kept.get(&name).and_then(Value::as_f64);
        let change = before.map(|before| count / before - 1.0);
        let widest = counts.iter().map(|one| (one / count - 1.0).abs()).fold(0.0, f64::max);
        table.push(vec![
            name.clone(),
            format!("{count:.0}"),
            before.map_or_else(|| "none".to_owned(), |before| format!("{before:.0}")),
            change.map_or_else(String::new, |change| format!("{:+.2} %", change * 100.0)),
            if options.runs > 1 { format!("± {:.2} %", widest * 100.0) } else { String::new() },
        ]);
        if change.is_none_or(|change| change.abs() > TOLERANCE) {
            beyond.push(name.clone());
        }
        found.insert(name, json!(count.round()));
    }
    figures::print(&["instructions of a", "now", "kept", "change", "spread"], &table);
    let compiler = compiler()?;
    if options.write {
        let mut all = kept;
        all.append(&mut found);
        all.insert("compiler".to_owned(), json!(compiler));
        std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
        return Ok(());
    }
    if beyond.is_empty() {
        return Ok(());
    }
    let with = kept.get("compiler").and_then(Value::as_str).unwrap_or("none");
    if with != compiler {
        println!(
            "The kept figures are of {with}, these of {compiler}: that alone may explain a change."
        );
    }
    bail!(
        "beyond {} % of what is kept: {}. Where that is meant, `bench instructions --write` keeps the new figures",
        TOLERANCE * 100.0,
        beyond.join("; ")
    )
}

fn compiler() -> Result<String> {
    let done = Command::new("rustc").arg("--version").output().context("`rustc` can be started")?;
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}
