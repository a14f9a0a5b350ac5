//! From publishing to reading, at half of what the weakest contender can do, the same load on all. Here the viewers wait
//! for what comes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Contender, Setup, Shape, Visit, deliveries, progress};
use crate::figures::{self, median, ratios, spread};

/// Events are published on this grid: as finely as one can wait for sockets.
const GRID: Duration = Duration::from_millis(1);
/// How long the last deliveries may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is told of all latencies.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)];

struct Row {
    shape: Shape,
    rate: u64,
    contender: usize,
    /// Run by run, each quantile in ms.
    runs: Vec<[f64; 3]>,
}

pub(super) fn run(setup: &Setup<'_>, maxima: &[(Shape, f64)]) -> Result<Value> {
    let options = setup.options;
    let mut rows = Vec::new();
    for &shape in &options.shape {
        let maximum = maxima.iter().find(|(known, _)| *known == shape);
        // Where it was not measured in this run, the steady load has to do.
        let rate = maximum.map_or(options.rate, |(_, most)| (most / 2.0) as u64);
        let first = rows.len();
        rows.extend((0..setup.contenders.len()).map(|contender| {
            let runs = Vec::new();
            Row { shape, rate, contender, runs }
        }));
        for run in 0..options.runs {
            for (index, contender) in setup.contenders.iter().enumerate() {
                let name = contender.name();
                progress(&format!("latency, {shape}, run {} of {}: {name}", run + 1, options.runs));
                let latencies = measure(setup, contender, shape, rate)
                    .with_context(|| format!("{shape}, {name}"))?;
                rows[first + index].runs.push(quantiles(latencies));
            }
        }
    }
    println!(
        "From publishing to reading in ms, at half of what the weakest can do, medians of {} runs of {} s.",
        options.runs, options.seconds
    );
    let mut head = vec!["channels x viewers", "deliveries/s", "server"];
    for (name, _) in QUANTILES {
        head.extend([name, "from–to", "÷ floor"]);
    }
    let mut table = Vec::new();
    let mut all = Vec::new();
    for row in &rows {
        let floor = rows.iter().find(|floor| floor.contender == 0 && floor.shape == row.shape);
        let floor = floor.context("the floor is measured with every shape")?;
        let name = setup.contenders[row.contender].name();
        let mut cells = vec![row.shape.to_string(), row.rate.to_string(), name.to_owned()];
        let mut figures = json!({"shape": row.shape.to_string(), "rate": row.rate, "server": name});
        for (index, (quantile, _)) in QUANTILES.iter().enumerate() {
            let values: Vec<f64> = row.runs.iter().map(|run| run[index]).collect();
            let floors: Vec<f64> = floor.runs.iter().map(|run| run[index]).collect();
            cells.push(format!("{:.2}", median(values.iter().copied())));
            cells.push(spread(&values, 2));
            cells.push(format!("{:.2}", figures::median_ratio(&values, &floors)));
            figures[format!("{quantile}_ms")] = json!(values);
            figures[format!("{quantile}_ratios")] = json!(ratios(&values, &floors));
        }
        table.push(cells);
        all.push(figures);
    }
    figures::print(&head, &table);
    Ok(Value::Array(all))
}

fn measure(
    setup: &Setup<'_>,
    contender: &Contender,
    shape: Shape,
    rate: u64,
) -> Result<Vec<Duration>> {
    let lasts = Duration::from_secs(setup.options.seconds);
    let mut visit = setup.visit(contender, shape)?;
    deliveries::steady(&mut visit, rate, Duration::from_secs(1))?;
    let mut clock = Clock::new(shape.channels);
    let viewers = shape.viewers as u64;
    let events = (rate * setup.options.seconds / viewers).max(1) as u32;
    let every = lasts.div_f64(f64::from(events));
    let due = visit.crowd.received + u64::from(events) * viewers;
    let (begun, mut sent) = (Instant::now(), 0);
    while visit.crowd.received < due {
        while sent < events && every * sent <= begun.elapsed() {
            let (channel, number) = visit.publish();
            clock.published(channel, number);
            sent += 1;
        }
        visit.publisher.flush()?;
        let wait = deliveries::until_next(GRID, begun);
        clock.look(&mut visit, wait)?;
        ensure!(begun.elapsed() < lasts + PATIENCE, "deliveries are missing");
    }
    Ok(clock.latencies)
}

/// Remembers when each event was published.
#[derive(Debug)]
pub(super) struct Clock {
    /// For each channel the first number, and when it and those after it were published.
    published: Vec<(u64, Vec<Instant>)>,
    pub(super) latencies: Vec<Duration>,
}

impl Clock {
    pub(super) fn new(channels: usize) -> Self {
        Self { published: vec![(0, Vec::new()); channels], latencies: Vec::new() }
    }

    pub(super) fn published(&mut self, channel: usize, number: u64) {
        let (first, times) = &mut self.published[channel];
        if times.is_empty() {
            *first = number;
        }
        times.push(Instant::now());
    }

    /// An event was read.
    pub(super) fn read(&mut self, channel: usize, number: u64) {
        let (first, times) = &self.published[channel];
        if let Some(at) = number.checked_sub(*first).and_then(|index| times.get(index as usize)) {
            self.latencies.push(at.elapsed());
        }
    }

    fn look(&mut self, visit: &mut Visit, wait: Duration) -> Result<()> {
        visit.crowd.look(wait, |channel, number| self.read(channel, number))
    }
}

/// The quantiles, in ms.
pub(super) fn quantiles(mut latencies: Vec<Duration>) -> [f64; 3] {
    latencies.sort_unstable();
    QUANTILES.map(|(_, share)| {
        let index = (latencies.len() as f64 * share) as usize;
        let found = latencies.get(index.min(latencies.len().saturating_sub(1)));
        found.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_of_all() {
        let latencies = (1..=1_000).map(Duration::from_millis).rev().collect();
        assert_eq!(quantiles(latencies), [501.0, 991.0, 1_000.0]);
        assert!(quantiles(Vec::new())[0].is_nan());
    }
}
