//! Many viewers that come back at once, each with the offset it saw last: how long until all are live, and what other
//! viewers notice meanwhile. At the floor the same viewers come back; it has no history to give them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use journal::{Journal, Name, NewEntry};
use protocol::Channel;
use serde_json::{Value, json};

use super::latency::{Clock, quantiles};
use super::publisher::DATA;
use super::wire::data;
use super::{Contender, Join, Setup, Shape, Visit, progress};
use crate::figures::{self, median, ratios, spread};

/// Channels that the others watch, one viewer each, and events a second on all of them.
const OTHERS: Shape = Shape { channels: 100, viewers: 1 };
const OTHERS_RATE: u32 = 4_000;
/// Over how many channels those who come back are spread.
const SPREADS: [usize; 2] = [100, 1];
/// Events on each channel, and how many of them are missed at most.
const HISTORY: usize = 200;
const MISSED: usize = 100;
/// How many connections are being made at a time: fewer than a listener's backlog holds.
const UNDER_WAY: usize = 512;
/// How many are begun before the others are looked at again.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of one storm.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    seconds: f64,
    deliveries: u64,
    /// The others' p50, p99 and p999 in ms: before, and meanwhile.
    before: [f64; 3],
    meanwhile: [f64; 3],
}

pub(super) fn run(setup: &Setup<'_>) -> Result<Value> {
    let options = setup.options;
    let contenders: Vec<&Contender> =
        std::iter::once(setup.floor()).chain(setup.relays()).collect();
    let (mut table, mut all) = (Vec::new(), Vec::new());
    for channels in SPREADS {
        let mut outcomes = vec![Vec::new(); contenders.len()];
        for run in 0..options.runs {
            for (contender, outcomes) in contenders.iter().zip(&mut outcomes) {
                let name = contender.name();
                progress(&format!(
                    "storm, {channels} channels, run {} of {}: {name}",
                    run + 1,
                    options.runs
                ));
                let outcome = measure(setup, contender, channels);
                outcomes.push(outcome.with_context(|| format!("{channels} channels, {name}"))?);
            }
        }
        let each = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64| -> Vec<f64> {
            outcomes.iter().map(figure).collect()
        };
        let floor = each(&outcomes[0], |outcome| outcome.meanwhile[1]);
        for (contender, outcomes) in contenders.iter().zip(&outcomes) {
            let seconds = each(outcomes, |outcome| outcome.seconds);
            let before = each(outcomes, |outcome| outcome.before[1]);
            let p50 = each(outcomes, |outcome| outcome.meanwhile[0]);
            let p99 = each(outcomes, |outcome| outcome.meanwhile[1]);
            let ratios = ratios(&p99, &floor);
            table.push(vec![
                channels.to_string(),
                contender.name().to_owned(),
                format!("{:.2}", median(seconds.iter().copied())),
                spread(&seconds, 2),
                outcomes[0].deliveries.to_string(),
                format!("{:.2}", median(before.iter().copied())),
                format!("{:.2}", median(p50.iter().copied())),
                format!("{:.2}", median(p99.iter().copied())),
                spread(&p99, 2),
                format!("{:.2}", median(ratios.iter().copied())),
            ]);
            all.push(json!({
                "channels": channels, "server": contender.name(), "viewers": options.viewers,
                "seconds": seconds, "before_p99_ms": before, "p50_ms": p50, "p99_ms": p99,
                "p99_ratios": ratios, "missed_deliveries": outcomes[0].deliveries,
            }));
        }
    }
    println!(
        "{} viewers come back at once, {UNDER_WAY} connections under way at a time; latencies in ms are those of {} \
         others with {OTHERS_RATE} deliveries a second; medians of {} runs",
        options.viewers, OTHERS.channels, options.runs
    );
    let head = [
        "channels",
        "server",
        "s until all are live",
        "from–to",
        "missed events",
        "others' p99 before",
        "p50 meanwhile",
        "p99 meanwhile",
        "from–to",
        "p99 ÷ floor",
    ];
    figures::print(&head, &table);
    Ok(Value::Array(all))
}

fn measure(setup: &Setup<'_>, contender: &Contender, channels: usize) -> Result<Outcome> {
    let mut visit = setup.visit(contender, OTHERS)?;
    let names: Vec<String> =
        setup.names(channels).into_iter().map(|name| format!("storm-{name}")).collect();
    let offsets = write_history(&setup.redis.url(), &names)?;
    let mut others = Others::new();
    let calm = Instant::now();
    while calm.elapsed() < Duration::from_secs(1) {
        others.go_on(&mut visit, Duration::from_millis(1))?;
    }
    let before = quantiles(others.take());

    let (received, joined) = (visit.crowd.received, visit.crowd.joined);
    let (mut come, mut missed) = (0, 0);
    let begun = Instant::now();
    while visit.crowd.joined - joined < setup.options.viewers {
        let under_way = come - (visit.crowd.joined - joined);
        let more = (UNDER_WAY - under_way).min(AT_ONCE).min(setup.options.viewers - come);
        for _ in 0..more {
            let channel = come % channels;
            let seen = HISTORY - 1 - position(come / channels);
            let join = Join::Since(names[channel].clone(), offsets[channel][seen].clone());
            visit.crowd.come(join, OTHERS.channels + channel, seen as u64 + 1)?;
            missed += (HISTORY - 1 - seen) as u64;
            come += 1;
        }
        let wait = if more > 0 { Duration::ZERO } else { Duration::from_millis(1) };
        others.go_on(&mut visit, wait)?;
        ensure!(begun.elapsed() < PATIENCE, "not all are live after {PATIENCE:?}");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let latencies = others.take();
    let deliveries = visit.crowd.received - received - latencies.len() as u64;
    if contender.is_relay() {
        ensure!(deliveries == missed, "{deliveries} events came, {missed} were missed");
    }
    Ok(Outcome { seconds, deliveries, before, meanwhile: quantiles(latencies) })
}

/// How many events the one who is so-and-so-manieth on its channel has missed: all numbers come up.
fn position(index: usize) -> usize {
    1 + index * 37 % MISSED
}

/// The viewers who did not leave.
struct Others {
    clock: Clock,
    begun: Instant,
    sent: u32,
}

impl Others {
    fn new() -> Self {
        Self { clock: Clock::new(OTHERS.channels), begun: Instant::now(), sent: 0 }
    }

    /// Publishes what is due and takes what has come.
    fn go_on(&mut self, visit: &mut Visit, wait: Duration) -> Result<()> {
        let every = Duration::from_secs(1) / OTHERS_RATE;
        while every * self.sent <= self.begun.elapsed() {
            let (channel, number) = visit.publish();
            self.clock.published(channel, number);
            self.sent += 1;
        }
        visit.publisher.flush()?;
        visit.crowd.look(wait, |channel, number| {
            if channel < OTHERS.channels {
                self.clock.read(channel, number);
            }
        })
    }

    /// The latencies since they were last taken.
    fn take(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.clock.latencies)
    }
}

/// Fills the journals of these sessions; the offsets of all their events.
fn write_history(redis: &str, names: &[String]) -> Result<Vec<Vec<String>>> {
    /// Events that are appended together.
    const BATCH: usize = 50;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let journal = Journal::open(redis)?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let name = Name::events(Channel::session(name)?);
            let mut offsets = Vec::with_capacity(HISTORY);
            while offsets.len() < HISTORY {
                let numbers = offsets.len()..offsets.len() + BATCH;
                let entry = |number: usize| NewEntry::new("tick", data(number as u64, DATA));
                for appended in journal.append(&name, numbers.map(entry).collect()).await? {
                    offsets.push(appended.offset.context("it was just appended")?.to_string());
                }
            }
            all.push(offsets);
        }
        Ok(all)
    })
}
