//! What a delivery costs a server: the run time of its process, divided by the deliveries. At a steady load, and flat
//! out, where the publisher goes on only when the viewers have what was sent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::perf::Recording;
use super::{Contender, Load, Setup, Shape, Visit, progress};
use crate::figures::{self, median, ratios, spread};
use crate::machine::{self, Surroundings, cpu_of};

/// Events are published and viewers look on this grid.
const GRID: Duration = Duration::from_micros(500);
/// The same flat out: shorter, so that a window is never used up while nobody looks.
const SHORT_GRID: Duration = Duration::from_micros(200);
/// How long deliveries may stand still.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a server warms up before it is measured.
const WARM: Duration = Duration::from_secs(1);
/// A core that is used so much has no more to give: some of its time goes to neither.
const BUSY: f64 = 0.85;
/// What else runs on the machine disturbs from so much of a core on.
const DISTURBED: f64 = 0.2;

/// What a load cost. Shares are of one core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    micros: f64,
    pub(super) per_second: f64,
    server: f64,
    redis: f64,
    generator: f64,
    /// Everything else on the machine, and other machines.
    others: f64,
}

/// The figures, and how many deliveries a second each contender could do at most with each shape.
pub(super) struct Deliveries {
    pub(super) json: Value,
    pub(super) maxima: Vec<(Shape, f64)>,
}

/// All runs of a contender with a shape and a load.
struct Row {
    shape: Shape,
    load: Load,
    contender: usize,
    costs: Vec<Cost>,
}

pub(super) fn run(setup: &Setup<'_>) -> Result<Deliveries> {
    let options = setup.options;
    let mut rows = Vec::new();
    for &shape in &options.shape {
        let first = rows.len();
        for &load in &options.load {
            rows.extend((0..setup.contenders.len()).map(|contender| {
                let costs = Vec::new();
                Row { shape, load, contender, costs }
            }));
        }
        // Run by run and not server by server: what the machine does meanwhile is then shared fairly.
        for run in 0..options.runs {
            for (index, contender) in setup.contenders.iter().enumerate() {
                let name = contender.name();
                progress(&format!(
                    "deliveries, {shape}, run {} of {}: {name}",
                    run + 1,
                    options.runs
                ));
                let costs =
                    measure(setup, contender, shape).with_context(|| format!("{shape}, {name}"))?;
                let rows = rows[first..].iter_mut().filter(|row| row.contender == index);
                for (row, cost) in rows.zip(costs) {
                    row.costs.push(cost);
                }
            }
        }
    }
    report(setup, &rows);
    let maxima = options.shape.iter().filter_map(|&shape| {
        let flat = rows.iter().filter(|row| row.shape == shape && row.load == Load::Flat);
        let each = flat.map(|row| median(row.costs.iter().map(|cost| cost.per_second)));
        each.reduce(f64::min).map(|least| (shape, least))
    });
    Ok(Deliveries { maxima: maxima.collect(), json: to_json(setup, &rows) })
}

/// One cost for each load.
fn measure(setup: &Setup<'_>, contender: &Contender, shape: Shape) -> Result<Vec<Cost>> {
    let options = setup.options;
    let mut visit = setup.visit(contender, shape)?;
    let lasts = Duration::from_secs(options.seconds);
    steady(&mut visit, options.rate, WARM)?;
    let perf = options.perf.as_ref().filter(|_| contender.is_relay());
    let recording = perf.map(|into| Recording::start(visit.server.id(), into)).transpose()?;
    let mut costs = Vec::new();
    for load in &options.load {
        let processes = [visit.server.id(), setup.redis.id(), std::process::id()];
        let before = times(processes)?;
        let surroundings = Surroundings::look()?;
        let (received, begun) = (visit.crowd.received, Instant::now());
        match load {
            Load::Steady => steady(&mut visit, options.rate, lasts)?,
            Load::Flat => flat(&mut visit, options.window, lasts)?,
        }
        let took = begun.elapsed().as_secs_f64();
        let after = times(processes)?;
        let [server, redis, generator] =
            [0, 1, 2].map(|index| (after[index] - before[index]).as_secs_f64() / took);
        let count = (visit.crowd.received - received) as f64;
        ensure!(count > 0.0, "nothing was delivered");
        let micros = server * took * 1e6 / count;
        let others = (surroundings.cores_in_use()? - server - redis - generator).max(0.0);
        costs.push(Cost { micros, per_second: count / took, server, redis, generator, others });
    }
    if let Some(recording) = recording {
        recording.stop()?;
    }
    Ok(costs)
}

fn times(processes: [u32; 3]) -> Result<[Duration; 3]> {
    let [server, redis, generator] = processes;
    Ok([cpu_of(server)?, cpu_of(redis)?, cpu_of(generator)?])
}

/// So many deliveries a second, and until all have arrived.
pub(super) fn steady(visit: &mut Visit, rate: u64, lasts: Duration) -> Result<()> {
    let viewers = visit.shape.viewers as u64;
    let events = (rate as f64 * lasts.as_secs_f64() / viewers as f64).ceil() as u32;
    let every = lasts.div_f64(f64::from(events));
    let due = visit.crowd.received + u64::from(events) * viewers;
    let (begun, mut sent) = (Instant::now(), 0);
    while visit.crowd.received < due {
        machine::pause(until_next(GRID, begun));
        while sent < events && every * sent <= begun.elapsed() {
            visit.publish();
            sent += 1;
        }
        visit.publisher.flush()?;
        visit.crowd.look(Duration::ZERO, |_, _| ())?;
        ensure!(visit.crowd.received <= due, "more was delivered than was published");
        if begun.elapsed() > lasts + PATIENCE {
            bail!("{} deliveries are missing after {PATIENCE:?}", due - visit.crowd.received);
        }
    }
    Ok(())
}

/// How long until the next point of a grid. Points that were missed are left out: who spins keeps Redis from its core.
pub(super) fn until_next(grid: Duration, begun: Instant) -> Duration {
    let past = begun.elapsed().as_nanos() % grid.as_nanos();
    grid - Duration::from_nanos(past as u64)
}

/// As many deliveries as the server can do with `window` under way, and until all have arrived.
fn flat(visit: &mut Visit, window: u64, lasts: Duration) -> Result<()> {
    let viewers = visit.shape.viewers as u64;
    let window = window.max(viewers);
    let mut due = visit.crowd.received;
    let begun = Instant::now();
    let (mut seen, mut since) = (due, begun);
    loop {
        machine::pause(until_next(SHORT_GRID, begun));
        let goes_on = begun.elapsed() < lasts;
        while goes_on && due - visit.crowd.received + viewers <= window {
            visit.publish();
            due += viewers;
        }
        visit.publisher.flush()?;
        visit.crowd.look(Duration::ZERO, |_, _| ())?;
        ensure!(visit.crowd.received <= due, "more was delivered than was published");
        if !goes_on && visit.crowd.received == due {
            return Ok(());
        }
        if visit.crowd.received > seen {
            (seen, since) = (visit.crowd.received, Instant::now());
        }
        ensure!(since.elapsed() < PATIENCE, "{} deliveries are missing", due - seen);
    }
}

impl Cost {
    /// What kept it from more.
    fn limit(&self) -> &'static str {
        match (self.server >= BUSY, self.generator + self.redis >= BUSY) {
            (true, false) => "server",
            (true, true) => "both cores",
            (false, true) if self.generator >= self.redis => "**generator**",
            (false, true) => "**Redis**",
            (false, false) if self.others >= DISTURBED => "**other load**",
            (false, false) => "**window**",
        }
    }
}

impl Row {
    fn all(&self, figure: impl Fn(&Cost) -> f64) -> Vec<f64> {
        self.costs.iter().map(figure).collect()
    }

    fn median(&self, figure: impl Fn(&Cost) -> f64) -> f64 {
        median(self.all(figure))
    }

    /// The middle of all runs, figure by figure.
    fn middle(&self) -> Cost {
        Cost {
            micros: self.median(|cost| cost.micros),
            per_second: self.median(|cost| cost.per_second),
            server: self.median(|cost| cost.server),
            redis: self.median(|cost| cost.redis),
            generator: self.median(|cost| cost.generator),
            others: self.median(|cost| cost.others),
        }
    }
}

/// The floor's runs with the shape and the load of `row`.
fn floor_of<'a>(rows: &'a [Row], row: &Row) -> &'a Row {
    let mut floors = rows.iter().filter(|floor| floor.contender == 0);
    let floor = floors.find(|floor| floor.shape == row.shape && floor.load == row.load);
    floor.expect("the floor is measured with every shape and load")
}

fn report(setup: &Setup<'_>, rows: &[Row]) {
    let options = setup.options;
    println!(
        "CPU of the server per delivery of {} bytes, medians of {} runs of {} s; steady is {} deliveries a second, \
         flat out {} under way; every delivery checked. Where the server is not the limit, the deliveries a second \
         are not its maximum.",
        setup.text, options.runs, options.seconds, options.rate, options.window
    );
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let micros = row.all(|cost| cost.micros);
            let ratios = ratios(&micros, &floor_of(rows, row).all(|cost| cost.micros));
            let middle = row.middle();
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            let (load, limit) = match row.load {
                Load::Steady => ("steady", ""),
                Load::Flat => ("flat out", middle.limit()),
            };
            vec![
                row.shape.to_string(),
                load.to_owned(),
                setup.contenders[row.contender].name().to_owned(),
                format!("{:.2}", middle.micros),
                spread(&micros, 2),
                format!("{:.2}", median(ratios.iter().copied())),
                spread(&ratios, 2),
                format!("{:.0}", middle.per_second),
                percent(middle.server),
                percent(middle.redis),
                percent(middle.generator),
                percent(middle.others),
                limit.to_owned(),
            ]
        })
        .collect();
    let head = [
        "channels x viewers",
        "load",
        "server",
        "µs",
        "from–to",
        "÷ floor",
        "from–to",
        "deliveries/s",
        "server's core",
        "Redis'",
        "generator's",
        "others'",
        "limit",
    ];
    figures::print(&head, &table);
}

fn to_json(setup: &Setup<'_>, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let micros = row.all(|cost| cost.micros);
        json!({
            "shape": row.shape.to_string(),
            "load": format!("{:?}", row.load).to_lowercase(),
            "server": setup.contenders[row.contender].name(),
            "micros": micros,
            "ratios": ratios(&micros, &floor_of(rows, row).all(|cost| cost.micros)),
            "per_second": row.all(|cost| cost.per_second),
            "server_share": row.all(|cost| cost.server),
            "redis_share": row.all(|cost| cost.redis),
            "generator_share": row.all(|cost| cost.generator),
            "others_share": row.all(|cost| cost.others),
            "limit": (row.load == Load::Flat).then(|| row.middle().limit().trim_matches('*')),
        })
    });
    rows.collect()
}
