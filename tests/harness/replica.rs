//! The real binary, as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hyper::Method;
use hyper::body::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http::{Reply, call};
use crate::process::{Log, Process};
use crate::until;

/// How a replica is to be started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `serve` or `demo`.
    pub subcommand: &'static str,
    /// Where it listens; port 0 picks one.
    pub listen: SocketAddr,
    /// Its Redis; without, the embedded journal.
    pub redis: Option<String>,
    /// Further flags.
    pub flags: Vec<String>,
    /// Variables; all other `RELAY_…` are removed.
    pub variables: Vec<(String, String)>,
    /// The token that [`Replica::publish`] and its like show.
    pub bearer: Option<String>,
}

impl Setup {
    /// `serve` on a port of its own with `redis`.
    pub fn serve(redis: Option<String>) -> Self {
        Self {
            subcommand: "serve",
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            redis,
            flags: Vec::new(),
            variables: Vec::new(),
            bearer: None,
        }
    }
}

/// A running replica; killed when dropped.
#[derive(Debug)]
pub struct Replica {
    process: Process,
    setup: Setup,
    address: SocketAddr,
}

impl Replica {
    /// Starts the binary and waits until it listens.
    ///
    /// # Panics
    /// With its log when it does not come to that.
    pub async fn start(setup: Setup) -> Self {
        let mut process = launch(&setup);
        let log = process.log().clone();
        let address = until("the replica logs `listening` with `addr`", async || {
            let found = log.lines().iter().find_map(|line| listening(line));
            assert!(
                found.is_some() || process.is_running(),
                "the replica ended before it listened; it logged:\n{}",
                log.tail(30)
            );
            found
        })
        .await;
        Self { process, setup, address }
    }

    /// Starts it again on the same port, after it was killed or has ended.
    pub async fn restart(&mut self) {
        let setup = Setup { listen: self.address, ..self.setup.clone() };
        *self = Self::start(setup).await;
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it logged.
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        until("/readyz says 200", async || (self.get("/readyz").await.status == 200).then_some(()))
            .await;
    }

    /// Asks it to go (SIGTERM), without waiting.
    pub fn ask_to_go(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end; the exit code, if it was no signal.
    pub async fn exit_code(&mut self) -> Option<i32> {
        self.process.exit().await.code()
    }

    /// Kills it, as a crash would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Stops it in its tracks.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// The memory it has resident, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// `GET`s a path.
    ///
    /// # Panics
    /// Where the connection breaks.
    pub async fn get(&self, path: &str) -> Reply {
        self.call(Method::GET, path, Bytes::new()).await.unwrap_or_else(|error| {
            panic!("GET {path} failed: {error}; the replica logged:\n{}", self.log().tail(20))
        })
    }

    /// `POST`s a body.
    ///
    /// # Panics
    /// Where the connection breaks.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.call(Method::POST, path, body.into()).await.unwrap_or_else(|error| {
            panic!("POST {path} failed: {error}; the replica logged:\n{}", self.log().tail(20))
        })
    }

    /// Publishes one event; its offset.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn publish(&self, channel: &str, event: &str, data: Value) -> String {
        let body = json!({"channel": channel, "event": event, "data": data}).to_string();
        let reply = self.post("/api/v1/publish", body).await;
        assert_eq!(reply.status, 200, "publish was refused: {}", reply.text());
        reply.json()["offset"].as_str().expect("publish answers with an `offset`").to_owned()
    }

    /// Publishes many events, in order, as few calls as possible; their offsets.
    ///
    /// # Panics
    /// When one is refused.
    pub async fn publish_all(&self, events: &[Value]) -> Vec<String> {
        let mut offsets = Vec::with_capacity(events.len());
        for chunk in chunks(events) {
            let reply = self.post("/api/v1/publish", Value::from(chunk.to_vec()).to_string()).await;
            assert_eq!(reply.status, 200, "publish was refused: {}", reply.text());
            for result in reply.json()["results"].as_array().expect("`results`") {
                let offset = result["offset"].as_str();
                offsets.push(
                    offset.unwrap_or_else(|| panic!("an event was refused: {result}")).to_owned(),
                );
            }
        }
        assert_eq!(offsets.len(), events.len(), "one result per event");
        offsets
    }

    /// Publishes `{"i": number}` for each of `numbers` as event `number`; the offsets.
    pub async fn publish_numbers(
        &self,
        channel: &str,
        numbers: std::ops::Range<u64>,
    ) -> Vec<String> {
        let events: Vec<Value> = numbers
            .map(|i| json!({"channel": channel, "event": "number", "data": {"i": i}}))
            .collect();
        self.publish_all(&events).await
    }

    /// Publishes one event with an `id`, again and again until it is acknowledged: what a careful
    /// publisher does while Redis or a replica is away. Its offset.
    pub async fn publish_stubbornly(&self, channel: &str, i: u64, id: &str) -> String {
        let body =
            json!({"channel": channel, "event": "number", "data": {"i": i}, "id": id}).to_string();
        until("a publish that is retried is acknowledged", async || {
            let path = "/api/v1/publish";
            let reply = self.call(Method::POST, path, body.clone().into()).await.ok()?;
            assert!([200, 503].contains(&reply.status), "{}: {}", reply.status, reply.text());
            (reply.status == 200).then(|| reply.json()["offset"].as_str().unwrap().to_owned())
        })
        .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let bearer = self.setup.bearer.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
        call(&self.address(), method, path, &headers, body).await
    }
}

/// Starts the binary with `setup`, whether that will lead anywhere or not.
pub fn launch(setup: &Setup) -> Process {
    let mut arguments = vec![setup.subcommand.to_owned()];
    arguments.extend(["--listen".to_owned(), setup.listen.to_string()]);
    arguments.extend(setup.redis.iter().flat_map(|url| ["--redis".to_owned(), url.clone()]));
    if setup.subcommand == "serve" {
        arguments.extend(["--log-format".to_owned(), "json".to_owned()]);
    }
    arguments.extend(setup.flags.iter().cloned());
    run(&arguments, &setup.variables)
}

/// Runs the binary with exactly these arguments and `RELAY_…` variables.
pub fn run(arguments: &[String], variables: &[(String, String)]) -> Process {
    let mut command = Command::new(binary());
    command.args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RELAY_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").envs(variables.iter().cloned());
    Process::spawn("agent-relay", command, "Build it: cargo build -p cli")
}

/// The address in a log line that says `listening`.
pub fn listening(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| line["fields"][name].as_str().or_else(|| line[name].as_str());
    let says_so = ["message", "msg", "event"].iter().any(|name| field(name) == Some("listening"));
    if says_so { field("addr")?.parse().ok() } else { None }
}

/// The binary, built once per test run with the profile of the tests.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // <target>/<profile>/deps/scenarios-…
        let test = std::env::current_exe().expect("a test has a path");
        let profile_dir = test.ancestors().nth(2).expect("tests lie in <target>/<profile>/deps");
        let target_dir = profile_dir.parent().expect("tests lie in <target>/<profile>/deps");
        let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| env!("CARGO").to_owned());
        // `--workspace` makes the dependencies' features those of `cargo test --workspace`, so that
        // nothing is built twice.
        let mut build = Command::new(cargo);
        // What cargo says to a test about its crate would be heard by build scripts, which would then
        // build again each time.
        let is_ours =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars().filter(|(name, _)| is_ours(name)) {
            build.env_remove(name);
        }
        let output = build
            .args(["build", "--quiet", "--workspace", "--bin", "agent-relay", "--profile", profile])
            .arg("--target-dir")
            .arg(target_dir)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the relay does not build:\n{errors}");
        profile_dir.join("agent-relay")
    })
}

/// At most 1,000 events and 6 MiB of them at a time: the limits of one publish, with a margin.
fn chunks(events: &[Value]) -> Vec<&[Value]> {
    const COUNT_MAX: usize = 1_000;
    const BYTES_MAX: usize = 6 * 1024 * 1024;
    let mut chunks = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let length = event.to_string().len() + 1;
        if at > first && (at - first == COUNT_MAX || bytes + length > BYTES_MAX) {
            chunks.push(&events[first..at]);
            (first, bytes) = (at, 0);
        }
        bytes += length;
    }
    if first < events.len() {
        chunks.push(&events[first..]);
    }
    chunks
}
