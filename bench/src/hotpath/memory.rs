//! What is resident for those who are there and say nothing, and how much of it is still resident when they have left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Contender, Crowd, Join, Setup, progress};
use crate::figures;
use crate::machine::resident_kib;
use crate::server::Server;

/// Viewers that are there before, so that pools and tables have their usual size.
const WARM: usize = 50;
/// What is freed late, or made late, has been by then.
const SETTLED: Duration = Duration::from_secs(3);
/// How long after the last has left it is looked at what is still resident.
const LEFT: Duration = Duration::from_secs(30);
/// Viewers that subscribe to more channels, and agents.
const FEW: usize = 1_000;
/// Further subscriptions of each of them.
const FURTHER: usize = 20;

pub(super) fn run(setup: &Setup<'_>) -> Result<Value> {
    let count = setup.options.viewers;
    let (mut table, mut all) = (Vec::new(), Vec::new());
    let mut row = |server: &str, what: &str, figure: String, json: Value| {
        table.push(vec![server.to_owned(), what.to_owned(), figure]);
        all.push(json!({"server": server, "what": what, "figures": json}));
    };
    for contender in &setup.contenders {
        let name = contender.name();
        progress(&format!("memory: {name}"));
        let idle = Idle::measure(setup, contender, count).with_context(|| name.to_owned())?;
        let each = idle.grown() / count as f64;
        row(name, "KiB per viewer, one subscription", format!("{each:.1}"), json!(each));
        let (left, grown) = (idle.left(), idle.grown());
        row(
            name,
            "still resident 30 s after they left",
            format!("{:.0} % of {:.1} MiB", left / grown * 100.0, grown / 1024.0),
            json!({"kib_with": grown, "kib_after": left}),
        );
        if !contender.is_relay() {
            continue;
        }
        let [own, shared] = further(setup, contender).with_context(|| name.to_owned())?;
        row(name, "KiB per further subscription, own channel", format!("{own:.2}"), json!(own));
        row(name, "the same, a shared channel", format!("{shared:.2}"), json!(shared));
        let agent = agents(setup, contender).with_context(|| name.to_owned())?;
        row(name, "KiB per agent with a lease", format!("{agent:.1}"), json!(agent));
    }
    println!(
        "Memory of what is idle: {count} viewers, {FEW} with {FURTHER} further subscriptions each, {FEW} agents"
    );
    figures::print(&["server", "what", "resident"], &table);
    Ok(Value::Array(all))
}

/// What a server has resident, in KiB.
struct Idle {
    before: u64,
    with: u64,
    after: u64,
}

impl Idle {
    fn measure(setup: &Setup<'_>, contender: &Contender, count: usize) -> Result<Self> {
        let server = setup.start(contender)?;
        let mut warm = warm(setup, contender, &server)?;
        let before = settled(&server, &mut warm, SETTLED)?;
        let mut crowd = Crowd::new(server.port(), contender.wire())?;
        crowd.come_all(setup.names(count).into_iter().map(|name| (Join::Channel(name), 0)))?;
        let with = settled(&server, &mut crowd, SETTLED)?;
        drop(crowd);
        let after = settled(&server, &mut warm, LEFT)?;
        Ok(Self { before, with, after })
    }

    fn grown(&self) -> f64 {
        self.with.saturating_sub(self.before) as f64
    }

    fn left(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64
    }
}

fn warm(setup: &Setup<'_>, contender: &Contender, server: &Server) -> Result<Crowd> {
    let mut warm = Crowd::new(server.port(), contender.wire())?;
    let names = setup.names(WARM).into_iter();
    warm.come_all(names.map(|name| (Join::Channel(format!("warm-{name}")), 0)))?;
    Ok(warm)
}

/// What is resident after a while, in which the viewers answer pings.
fn settled(server: &Server, crowd: &mut Crowd, after: Duration) -> Result<u64> {
    let begun = Instant::now();
    while begun.elapsed() < after {
        crowd.look(Duration::from_millis(100), |_, _| ())?;
    }
    resident_kib(server.id())
}

/// KiB per further subscription: each to a channel of its own, and all to the same few.
fn further(setup: &Setup<'_>, contender: &Contender) -> Result<[f64; 2]> {
    let server = setup.start(contender)?;
    let names = setup.names(FEW);
    let mut crowd = Crowd::new(server.port(), contender.wire())?;
    crowd.come_all(names.iter().map(|name| (Join::Channel(name.clone()), 0)))?;
    let mut kib = settled(&server, &mut crowd, SETTLED)?;
    let mut each = [0.0; 2];
    for (kind, each) in each.iter_mut().enumerate() {
        for (viewer, name) in names.iter().enumerate() {
            let whose = if kind == 0 { name.as_str() } else { "all" };
            let channels: Vec<String> =
                (0..FURTHER).map(|n| format!("session:{whose}-{n}")).collect();
            crowd.say(viewer, &json!({"type": "subscribe", "channels": channels}).to_string())?;
            if viewer % 10 == 9 {
                let due = FEW * (1 + kind * FURTHER) + (viewer + 1) * FURTHER;
                crowd.wait_for(due)?;
            }
        }
        crowd.wait_for(FEW * (1 + (kind + 1) * FURTHER))?;
        let with = settled(&server, &mut crowd, SETTLED)?;
        *each = with.saturating_sub(kib) as f64 / (FEW * FURTHER) as f64;
        kib = with;
    }
    Ok(each)
}

/// KiB per agent that holds its lease.
fn agents(setup: &Setup<'_>, contender: &Contender) -> Result<f64> {
    let server = setup.start(contender)?;
    let mut warm = warm(setup, contender, &server)?;
    let before = settled(&server, &mut warm, SETTLED)?;
    let mut crowd = Crowd::new(server.port(), contender.wire())?;
    crowd.come_all(setup.names(FEW).into_iter().map(|name| (Join::Agent(name), 0)))?;
    let with = settled(&server, &mut crowd, SETTLED)?;
    Ok(with.saturating_sub(before) as f64 / FEW as f64)
}
