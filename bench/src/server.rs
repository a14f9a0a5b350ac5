//! A server under measurement: a replica, or the floor.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine::{self, Core};

/// Ends with the measurement.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    port: u16,
    publish: Option<String>,
}

impl Server {
    /// A replica: the binary given, or the one beside this.
    pub(crate) fn replica(binary: Option<&Path>, redis: Option<&str>, core: Core) -> Result<Self> {
        Self::replica_with(binary, redis, &[], core)
    }

    /// The same with more flags.
    pub(crate) fn replica_with(
        binary: Option<&Path>,
        redis: Option<&str>,
        flags: &[String],
        core: Core,
    ) -> Result<Self> {
        let mut command = match binary {
            Some(binary) => Command::new(binary),
            None => Command::new(std::env::current_exe()?.with_file_name("agent-relay")),
        };
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        command.args(redis.iter().flat_map(|url| ["--redis", url])).args(flags);
        Self::start(command, core)
    }

    /// The floor, which is this very binary.
    pub(crate) fn floor(redis: &str, core: Core) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor", "--redis", redis]);
        Self::start(command, core)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where events are brought to it, if not to Redis.
    pub(crate) fn publish(&self) -> Option<&str> {
        self.publish.as_deref()
    }

    /// Starts `command` and waits until it says, in a line of JSON, at which `addr` it listens.
    pub(crate) fn start(mut command: Command, core: Core) -> Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        command.stderr(Stdio::piped());
        let process = machine::spawn_on(core, command)
            .with_context(|| format!("`{what}` cannot be started: cargo build --release"))?;
        let mut server = Self { process, port: 0, publish: None };
        let log = server.process.stderr.take().context("its log is piped")?;
        let mut log = BufReader::new(log);
        let mut line = String::new();
        while log.read_line(&mut line)? > 0 {
            let said: serde_json::Value = serde_json::from_str(&line)
                .with_context(|| format!("`{what}` said: {}", line.trim_end()))?;
            if let Some((_, port)) = said["addr"].as_str().and_then(|addr| addr.rsplit_once(':')) {
                server.port = port.parse()?;
                server.publish = said["publish"].as_str().map(str::to_owned);
                // Nobody must be kept from logging by a full pipe.
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Ok(server);
            }
            line.clear();
        }
        bail!("`{what}` ended before it listened")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
