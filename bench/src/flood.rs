//! What other viewers notice while somebody floods a replica: their time from publishing to reading, quiet and
//! meanwhile, in the same run.
//!
//! The others publish by HTTP and read by WebSocket, each at its moments whether the one before has arrived or not, so
//! that a wait counts for all that fall into it. Everybody has a token of its own: fairness is between users.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::time::Instant;

use crate::browser::Browser;
use crate::figures::{self, median, ratios, spread};
use crate::machine::{self, Core, Surroundings};
use crate::redis_server::RedisServer;
use crate::server::Server;

/// The others: so many, each with a channel of its own and so long from one event to the next.
const OTHERS: usize = 40;
const EVERY: Duration = Duration::from_millis(100);
/// Connections that subscribe at once, and to how many channels each: as many as one connection may have.
const SUBSCRIBING: usize = 200;
const NAMES: usize = 256;
const PUBLISHERS: usize = 8;
/// Events in one publish of a flooding publisher, and the bytes of each one's data.
const EVENTS: usize = 100;
const DATA: usize = 200;
const SECRET: &[u8] = b"a secret of the benchmark, which is 49 bytes long";
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each flood is measured, with a quiet time before it
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long a quiet time and a flood take; subscribing takes as long as it takes
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The replica's binary; by default the one beside this, from `cargo build --release`
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Writes all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
enum Flood {
    Subscribe,
    Alternate,
    Publish,
}

impl Flood {
    const ALL: [Self; 3] = [Self::Subscribe, Self::Alternate, Self::Publish];

    fn name(self) -> String {
        match self {
            Self::Subscribe => format!("{SUBSCRIBING} connections subscribe to {NAMES} each"),
            Self::Alternate => "one connection subscribes, unsubscribes without a pause".to_owned(),
            Self::Publish => format!("{PUBLISHERS} publishers by HTTP without a pause"),
        }
    }
}

/// The others' p50 and p99 in ms, quiet and meanwhile, and how much the flood did.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    quiet: [f64; 2],
    meanwhile: [f64; 2],
    done: u64,
    seconds: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.runs > 0 && options.seconds > 0, "at least one run of one second");
    let surroundings = Surroundings::look()?;
    let mut outcomes = Flood::ALL.map(|_| Vec::new());
    for run in 0..options.runs {
        for (flood, outcomes) in Flood::ALL.iter().zip(&mut outcomes) {
            eprintln!("run {} of {}: {}", run + 1, options.runs, flood.name());
            outcomes.push(measure(options, *flood)?);
        }
    }
    let (mut table, mut all) = (Vec::new(), Vec::new());
    for (flood, outcomes) in Flood::ALL.iter().zip(&outcomes) {
        let each = |figure: fn(&Outcome) -> f64| outcomes.iter().map(figure).collect::<Vec<f64>>();
        let middle = |values: &[f64]| format!("{:.1}", median(values.iter().copied()));
        let (quiet, p50, p99) =
            (each(|o| o.quiet[1]), each(|o| o.meanwhile[0]), each(|o| o.meanwhile[1]));
        let rate = each(|o| o.done as f64 / o.seconds);
        let ratios = ratios(&p99, &quiet);
        table.push(vec![
            flood.name(),
            format!("{:.0}", median(rate.iter().copied())),
            middle(&quiet),
            middle(&p50),
            middle(&p99),
            middle(&ratios),
            spread(&ratios, 1),
        ]);
        all.push(json!({
            "flood": flood.name(), "seconds": each(|o| o.seconds), "done_per_second": rate,
            "quiet_p50_ms": each(|o| o.quiet[0]), "quiet_p99_ms": quiet,
            "p50_ms": p50, "p99_ms": p99, "p99_ratios": ratios,
        }));
    }
    println!(
        "{OTHERS} others, an event every {} ms for each; from publishing to reading, in ms; medians of {} runs",
        EVERY.as_millis(),
        options.runs
    );
    let head = ["flood", "done per second", "p99 quiet", "p50", "p99", "p99 ÷ quiet", "from–to"];
    figures::print(&head, &table);
    println!("{}", surroundings.since()?);
    if let Some(path) = &options.json {
        let (steal, load) = surroundings.figures()?;
        let about = json!({"cores": machine::cores()?, "steal": steal, "load_average": load});
        let text = serde_json::to_string_pretty(&json!({"run": about, "floods": all}))?;
        std::fs::write(path, text + "\n").with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

/// One flood of a replica of its own, after a quiet time. The others and the flood have a thread each.
fn measure(options: &Options, flood: Flood) -> Result<Outcome> {
    let redis = RedisServer::start(Core::Any)?;
    let secret = std::env::temp_dir().join(format!("bench-flood-{}", std::process::id()));
    std::fs::write(&secret, SECRET)?;
    let flags = ["--jwt-secret-file".to_owned(), secret.display().to_string()];
    let binary = options.binary.as_deref();
    let replica = Server::replica_with(binary, Some(&redis.url()), &flags, Core::Any)?;
    std::fs::remove_file(&secret)?;
    let port = replica.port();
    machine::pause(Duration::from_secs(1));
    let time = Duration::from_secs(options.seconds);
    // The flood begins when the others have seen the quiet time, and ends when they are told, or the time is over.
    let (begin, over) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let flooding = {
        let (begin, over) = (Arc::clone(&begin), Arc::clone(&over));
        std::thread::spawn(move || {
            let done = runtime().and_then(|own| own.block_on(cause(flood, port, time, &begin)));
            over.store(true, Ordering::Relaxed);
            done
        })
    };
    let (quiet, meanwhile, seconds) = runtime()?.block_on(async {
        let mut others = try_join_all((0..OTHERS).map(|number| Other::open(port, number))).await?;
        // The first ones also make their journals.
        watch(&mut others, || false, Duration::from_secs(1)).await?;
        let quiet = watch(&mut others, || false, time).await?;
        // One that could not be made ready says why when it is joined.
        drop(tokio::time::timeout(PATIENCE, begin.wait()).await);
        let begun = Instant::now();
        let meanwhile = watch(&mut others, || over.load(Ordering::Relaxed), PATIENCE).await?;
        anyhow::Ok((quiet, meanwhile, begun.elapsed().as_secs_f64()))
    })?;
    let done = flooding.join().ok().context("the flood panicked")??;
    drop(replica);
    Ok(Outcome { quiet: quantiles(quiet), meanwhile: quantiles(meanwhile), done, seconds })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Floods; what it has done: names subscribed to, or events published.
async fn cause(flood: Flood, port: u16, time: Duration, begin: &Barrier) -> Result<u64> {
    match flood {
        Flood::Subscribe => {
            let token = token("crowd")?;
            let mut crowd = Vec::new();
            for _ in 0..SUBSCRIBING {
                crowd.push(Browser::open_as(port, &token, &[]).await?);
            }
            begin.wait().await;
            let names =
                |index: usize| (0..NAMES).map(move |name| format!("session:f{index}-{name}"));
            let all = crowd.iter_mut().enumerate().map(async |(index, browser)| {
                let names: Vec<String> = names(index).collect();
                browser.subscribe(&names).await
            });
            tokio::time::timeout(PATIENCE, try_join_all(all)).await??;
            Ok((SUBSCRIBING * NAMES) as u64)
        }
        Flood::Alternate => {
            let browser = Browser::open_as(port, &token("restless")?, &[]).await?;
            begin.wait().await;
            browser.alternate("session:restless", Instant::now() + time).await
        }
        Flood::Publish => {
            let event = json!({"event": "x", "data": "x".repeat(DATA)});
            let mut publishers = Vec::new();
            for number in 0..PUBLISHERS {
                let mut event = event.clone();
                event["channel"] = json!(format!("session:flood-{number}"));
                let body = serde_json::to_string(&vec![event; EVENTS])?;
                let caller = Caller::connect(port, &token(&format!("flooder-{number}"))?).await?;
                publishers.push((caller, body));
            }
            begin.wait().await;
            let until = Instant::now() + time;
            let all = publishers.iter_mut().map(async |(caller, body)| {
                let mut done = 0;
                while Instant::now() < until {
                    // One that is told to come later does so at once.
                    done += u64::from(caller.publish(body).await? == 200) * EVENTS as u64;
                }
                anyhow::Ok(done)
            });
            Ok(try_join_all(all).await?.iter().sum())
        }
    }
}

/// All latencies until `is_over`, or for `time`.
async fn watch(
    others: &mut [Other],
    is_over: impl Fn() -> bool,
    time: Duration,
) -> Result<Vec<Duration>> {
    let begun = Instant::now();
    let is_over = || is_over() || begun.elapsed() >= time;
    let all = others.iter_mut().enumerate().map(async |(number, other)| {
        let mut due = begun + EVERY * number as u32 / OTHERS as u32;
        let mut latencies = Vec::new();
        while !is_over() {
            tokio::time::sleep_until(due).await;
            other.event().await?;
            latencies.push(due.elapsed());
            due += EVERY;
        }
        anyhow::Ok(latencies)
    });
    Ok(try_join_all(all).await?.concat())
}

/// A viewer and the backend that publishes for it.
struct Other {
    viewer: Browser,
    backend: Caller,
    body: String,
}

impl Other {
    async fn open(port: u16, number: usize) -> Result<Self> {
        let channel = format!("session:other-{number}");
        let viewer = token(&format!("viewer-{number}"))?;
        let body = json!({"channel": channel, "event": "tick", "data": "x".repeat(DATA)});
        Ok(Self {
            viewer: Browser::open_as(port, &viewer, &[channel]).await?,
            backend: Caller::connect(port, &token("backend")?).await?,
            body: body.to_string(),
        })
    }

    /// Publishes one, and waits until it was read and acknowledged.
    async fn event(&mut self) -> Result<()> {
        let (status, ()) = tokio::try_join!(
            self.backend.publish(&self.body),
            self.viewer.until(|text| text.contains("\"tick\"")),
        )?;
        ensure!(status == 200, "an event of another was refused with {status}");
        Ok(())
    }
}

/// A connection that publishes by HTTP, and stays open.
struct Caller {
    socket: BufReader<TcpStream>,
    token: String,
}

impl Caller {
    async fn connect(port: u16, token: &str) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket: BufReader::new(socket), token: token.to_owned() })
    }

    /// The status of the answer.
    async fn publish(&mut self, body: &str) -> Result<u16> {
        let request = format!(
            "POST /api/v1/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.socket.write_all(request.as_bytes()).await?;
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            ensure!(self.socket.read_line(&mut line).await? > 0, "the relay hung up");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap_or_default().parse()?;
            } else if let Some(rest) = line.strip_prefix("content-length:") {
                length = rest.trim().parse()?;
            } else if line.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.socket.read_exact(&mut answer).await?;
        Ok(status)
    }
}

/// A token of `user` that may do everything for an hour.
fn token(user: &str) -> Result<String> {
    let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3_600;
    let claims = json!({"sub": user, "exp": end, "relay": {"subscribe": ["*"], "publish": ["*"]}});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET)?;
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?)
}

/// p50 and p99 in ms.
fn quantiles(mut latencies: Vec<Duration>) -> [f64; 2] {
    latencies.sort_unstable();
    [0.5, 0.99].map(|share| {
        let index = (latencies.len() as f64 * share) as usize;
        let found = latencies.get(index.min(latencies.len().saturating_sub(1)));
        found.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    })
}
