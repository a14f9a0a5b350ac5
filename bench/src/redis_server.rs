//! A private Redis that keeps nothing on disk, and what it says about itself.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use redis::Connection;

use crate::machine::{self, Core};

/// Ends with its owner.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    process: Child,
}

impl RedisServer {
    pub(crate) fn start(core: Core) -> Result<Self> {
        // Between picking the port and binding it somebody else may take it: then try again.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let mut command = Command::new("redis-server");
            command
                .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
                .args(["--save", "", "--appendonly", "no"])
                // A load generator that falls behind must not be cut off.
                .args(["--client-output-buffer-limit", "pubsub 0 0 0"])
                .stdout(Stdio::null());
            let process = machine::spawn_on(core, command)
                .context("the benchmark needs `redis-server` (7.0 or newer) on the PATH")?;
            let server = Self { port, process };
            if server.answers() {
                return Ok(server);
            }
        }
        bail!("redis-server did not start on any of ten ports")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its host and port.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<()> {
        Ok(redis::cmd("FLUSHALL").arg("SYNC").query(&mut self.connection()?)?)
    }

    pub(crate) fn connection(&self) -> Result<Connection> {
        Ok(redis::Client::open(self.url())?.get_connection()?)
    }

    /// The CPU time it has used so far.
    pub(crate) fn cpu(&self, connection: &mut Connection) -> Result<Duration> {
        let info: redis::InfoDict = redis::cmd("INFO").arg("cpu").query(connection)?;
        let field = |name: &str| info.get::<f64>(name).with_context(|| format!("INFO has {name}"));
        Ok(Duration::from_secs_f64(field("used_cpu_user")? + field("used_cpu_sys")?))
    }

    /// How many scripts it has run so far.
    pub(crate) fn scripts_run(&self, connection: &mut Connection) -> Result<u64> {
        let info: String = redis::cmd("INFO").arg("commandstats").query(connection)?;
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        let calls = line.and_then(|line| line.split(',').next());
        Ok(calls.map_or(Ok(0), str::parse)?)
    }

    fn answers(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if self.connection().is_ok() {
                return true;
            }
            machine::pause(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
