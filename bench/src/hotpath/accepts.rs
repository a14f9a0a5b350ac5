//! How many connections a server takes in per second, and what each costs it: alone, and with a subscription to one of a
//! few channels.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Contender, Crowd, Join, Setup, progress};
use crate::figures::{self, median, ratios, spread};
use crate::machine::{cpu_of, pause};

/// Viewers that are there before, so that pools and tables have their usual size.
const WARM: usize = 50;
/// Channels that those with a subscription share, each of them watched already.
const CHANNELS: usize = 100;

#[derive(Clone, Copy, Debug)]
struct Cost {
    micros: f64,
    per_second: f64,
    server: f64,
    generator: f64,
}

pub(super) fn run(setup: &Setup<'_>) -> Result<Value> {
    let count = setup.options.viewers / 2;
    let kinds = ["alone", "with a subscription"];
    let mut costs = vec![[Vec::new(), Vec::new()]; setup.contenders.len()];
    for run in 0..setup.options.runs {
        for (contender, costs) in setup.contenders.iter().zip(&mut costs) {
            let name = contender.name();
            progress(&format!("accepts, run {} of {}: {name}", run + 1, setup.options.runs));
            let found = measure(setup, contender, count).with_context(|| name.to_owned())?;
            costs[0].push(found[0]);
            costs[1].push(found[1]);
        }
    }
    println!(
        "{count} connections taken in, at most 256 at a time, medians of {} runs",
        setup.options.runs
    );
    let (mut table, mut all) = (Vec::new(), Vec::new());
    for (index, kind) in kinds.iter().enumerate() {
        let each = |costs: &[Cost], figure: fn(&Cost) -> f64| costs.iter().map(figure).collect();
        let floor: Vec<f64> = each(&costs[0][index], |cost| cost.micros);
        for (contender, costs) in setup.contenders.iter().zip(&costs) {
            let costs = &costs[index];
            let micros: Vec<f64> = each(costs, |cost| cost.micros);
            let per_second: Vec<f64> = each(costs, |cost| cost.per_second);
            let ratios = ratios(&micros, &floor);
            let server: Vec<f64> = each(costs, |cost| cost.server);
            let generator: Vec<f64> = each(costs, |cost| cost.generator);
            table.push(vec![
                (*kind).to_owned(),
                contender.name().to_owned(),
                format!("{:.0}", median(micros.iter().copied())),
                spread(&micros, 0),
                format!("{:.1}", median(ratios.iter().copied())),
                spread(&ratios, 1),
                format!("{:.0}", median(per_second.iter().copied())),
                format!("{:.0} %", median(server.iter().copied()) * 100.0),
                format!("{:.0} %", median(generator.iter().copied()) * 100.0),
            ]);
            all.push(json!({
                "kind": kind, "server": contender.name(), "micros": micros, "ratios": ratios,
                "per_second": per_second, "server_share": server, "generator_share": generator,
            }));
        }
    }
    let head = [
        "connections",
        "server",
        "µs each",
        "from–to",
        "÷ floor",
        "from–to",
        "a second",
        "server's core",
        "generator's",
    ];
    figures::print(&head, &table);
    Ok(Value::Array(all))
}

fn measure(setup: &Setup<'_>, contender: &Contender, count: usize) -> Result<[Cost; 2]> {
    let server = setup.start(contender)?;
    let names = setup.names(CHANNELS);
    let mut warm = Crowd::new(server.port(), contender.wire())?;
    warm.come_all(std::iter::repeat_n((Join::Nothing, 0), WARM))?;
    warm.come_all(names.iter().map(|name| (Join::Channel(name.clone()), 0)))?;
    let alone = std::iter::repeat_n(Join::Nothing, count).collect();
    let subscribed = names.iter().cycle().take(count).map(|name| Join::Channel(name.clone()));
    Ok([
        take_in(server.id(), Crowd::new(server.port(), contender.wire())?, alone)?,
        take_in(server.id(), Crowd::new(server.port(), contender.wire())?, subscribed.collect())?,
    ])
}

fn take_in(server: u32, mut crowd: Crowd, joins: Vec<Join>) -> Result<Cost> {
    // Whoever came before has left.
    pause(Duration::from_secs(1));
    let count = joins.len() as f64;
    let own = std::process::id();
    let (cpu, generator, begun) = (cpu_of(server)?, cpu_of(own)?, Instant::now());
    crowd.come_all(joins.into_iter().map(|join| (join, 0)))?;
    let took = begun.elapsed().as_secs_f64();
    let cpu = (cpu_of(server)? - cpu).as_secs_f64();
    let generator = (cpu_of(own)? - generator).as_secs_f64();
    Ok(Cost {
        micros: cpu * 1e6 / count,
        per_second: count / took,
        server: cpu / took,
        generator: generator / took,
    })
}
