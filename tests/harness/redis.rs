//! A private Redis, and everything that can happen to one.

use std::fmt::Debug;
use std::path::PathBuf;
use std::process::Command;

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, free_port};
use crate::until;

const HELP: &str = "The scenarios need a `redis-server` (7.0 or newer) on the PATH.\n\
    Debian, Ubuntu: apt-get install redis-server   macOS: brew install redis\n\
    Or run ./test.sh, which installs what is missing.";

/// What the server keeps on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a crash loses everything.
    None,
    /// The append-only file, synced every second: what most people run. While a sync is slow Redis holds its
    /// writes back for up to two seconds, and has acknowledged them: a crash then loses them.
    Everysec,
    /// The append-only file, synced on every write.
    Always,
}

/// What is special about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Usual,
    /// A node of a cluster.
    Node,
    /// Its clock is ahead of everybody else's.
    Ahead,
}

/// A Redis server that belongs to one test.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
    persistence: Persistence,
    sort: Sort,
    // After the process: it must have ended before its directory goes.
    dir: TempDir,
}

/// A Redis' whole content at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    rdb: Vec<u8>,
    keys: Vec<(Vec<u8>, u64, Vec<u8>)>,
}

impl Redis {
    /// Starts a server on a port of its own.
    ///
    /// # Panics
    /// With instructions when `redis-server` is missing.
    pub async fn start(persistence: Persistence) -> Self {
        Self::start_as(persistence, Sort::Usual).await
    }

    /// Starts a node of a cluster that has no slots and knows no other node.
    ///
    /// # Panics
    /// With instructions when `redis-server` is missing.
    pub async fn start_node() -> Self {
        Self::start_as(Persistence::None, Sort::Node).await
    }

    /// Starts a server whose clock is an hour ahead.
    ///
    /// # Panics
    /// With instructions when `redis-server` is missing.
    pub async fn start_an_hour_ahead() -> Self {
        Self::start_as(Persistence::None, Sort::Ahead).await
    }

    async fn start_as(persistence: Persistence, sort: Sort) -> Self {
        // Somebody may take the port between the choice and the start: then choose again.
        for _ in 0..20 {
            let mut redis = Self::prepare(persistence, sort);
            if redis.answers().await {
                return redis;
            }
        }
        panic!("no redis-server came up on any of 20 ports");
    }

    /// Chooses a port for a server that [`Redis::restart`] will start for the first time.
    pub fn absent(persistence: Persistence) -> Self {
        let mut redis = Self::prepare(persistence, Sort::Usual);
        redis.kill9();
        redis
    }

    fn prepare(persistence: Persistence, sort: Sort) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let port = free_port();
        let process = spawn(&dir, port, persistence, sort);
        Self { process, port, persistence, sort, dir }
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it is reached by a user with the rights that the protocol documents: `relay` or `agent`.
    pub fn url_of(&self, user: &str) -> String {
        as_user(&self.url(), user)
    }

    /// Where it is reached, for a proxy.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Makes two nodes a cluster in which each has one half of the slots.
    pub async fn share_slots(nodes: [&Self; 2]) {
        for (node, slots) in nodes.into_iter().zip([["0", "8191"], ["8192", "16383"]]) {
            let add = ["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]];
            let _: String = node.run(&add).await;
        }
        let [one, other] = nodes;
        let _: String = one.run(&["CLUSTER", "SET-CONFIG-EPOCH", "1"]).await;
        let _: String = other.run(&["CLUSTER", "SET-CONFIG-EPOCH", "2"]).await;
        let nodes_port: Vec<String> = other.run(&["CONFIG", "GET", "cluster-port"]).await;
        let port = other.port.to_string();
        let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &nodes_port[1]];
        let _: String = one.run(&meet).await;
        for node in nodes {
            until("the nodes know each other", async || {
                let info: String = node.run(&["CLUSTER", "INFO"]).await;
                let knows_all = info.contains("cluster_slots_ok:16384");
                (knows_all && info.contains("cluster_state:ok")).then_some(())
            })
            .await;
        }
    }

    /// Kills it, as a crash would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again: same port, same directory.
    pub async fn restart(&mut self) {
        self.process = spawn(&self.dir, self.port, self.persistence, self.sort);
        assert!(
            self.answers().await,
            "redis-server did not come back on port {}:\n{}",
            self.port,
            self.process.log().tail(20)
        );
    }

    /// Stops it in its tracks: connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Runs one command.
    ///
    /// # Panics
    /// When Redis refuses it.
    pub async fn run<T: FromRedisValue>(&self, words: &[impl AsRef<[u8]> + Debug]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word.as_ref());
        }
        let mut connection = self.connection().await;
        command
            .query_async(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("Redis refused {words:?}: {error}"))
    }

    /// How often it ran a command so far, for all clients.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.run(&["INFO", "commandstats"]).await;
        let prefix = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next());
        line.map_or(0, |calls| calls.parse().expect("a number of calls"))
    }

    /// Keeps the whole content, to come back to it.
    pub async fn snapshot(&self) -> Snapshot {
        let mut connection = self.connection().await;
        let names: Vec<Vec<u8>> =
            redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("KEYS");
        let mut keys = Vec::new();
        for name in names {
            let ttl: i64 =
                redis::cmd("PTTL").arg(&name).query_async(&mut connection).await.expect("PTTL");
            let dump: Option<Vec<u8>> =
                redis::cmd("DUMP").arg(&name).query_async(&mut connection).await.expect("DUMP");
            keys.extend(dump.map(|dump| (name, ttl.max(0) as u64, dump)));
        }
        let () = redis::cmd("SAVE").query_async(&mut connection).await.expect("SAVE");
        let rdb =
            std::fs::read(self.dir.path().join("dump.rdb")).expect("SAVE has written dump.rdb");
        Snapshot { rdb, keys }
    }

    /// Crashes, and comes back as it was at `snapshot`: a restored backup, a truncated file.
    pub async fn come_back_as(&mut self, snapshot: &Snapshot) {
        assert_eq!(
            self.persistence,
            Persistence::None,
            "an append-only file would win over the RDB"
        );
        self.kill9();
        std::fs::write(self.dir.path().join("dump.rdb"), &snapshot.rdb).expect("writes dump.rdb");
        self.restart().await;
    }

    /// Is all at once as it was at `snapshot`, without dropping a connection: what a fail-over to a
    /// replica that was behind looks like through a proxy.
    pub async fn become_silently(&self, snapshot: &Snapshot) {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("FLUSHDB").ignore();
        for (name, ttl, dump) in &snapshot.keys {
            pipe.cmd("RESTORE").arg(name).arg(*ttl).arg(dump).ignore();
        }
        let mut connection = self.connection().await;
        let () = pipe.query_async(&mut connection).await.expect("RESTORE of what DUMP gave");
    }

    async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a valid URL");
        client.get_multiplexed_async_connection().await.unwrap_or_else(|error| {
            panic!("cannot reach the test's Redis: {error}\n{}", self.process.log().tail(20))
        })
    }

    /// Whether this process answers; false when it has ended.
    async fn answers(&mut self) -> bool {
        let client = redis::Client::open(self.url()).expect("a valid URL");
        until("redis-server answers", async || {
            if !self.process.is_running() {
                return Some(false);
            }
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let info: String =
                redis::cmd("INFO").arg("server").query_async(&mut connection).await.ok()?;
            let pid = format!("process_id:{}\r", self.process.pid());
            info.contains(&pid).then_some(true)
        })
        .await
    }
}

/// The address, for a user with the rights that the protocol documents.
pub fn as_user(url: &str, user: &str) -> String {
    url.replacen("redis://", &format!("redis://{user}:{PASSWORD}@"), 1)
}

const PASSWORD: &str = "pw";

/// The rights of `user` as an operator copies them.
fn rights(user: &str) -> Vec<String> {
    let protocol = include_str!("../../protocol/PROTOCOL.md");
    let begin = format!("ACL SETUSER {user} ");
    let rule = protocol.lines().find_map(|line| line.strip_prefix(&begin));
    let rule = rule.expect("the protocol documents the rights");
    rule.replace("<password>", PASSWORD).split(' ').map(str::to_owned).collect()
}

fn spawn(dir: &TempDir, port: u16, persistence: Persistence, sort: Sort) -> Process {
    let mut command = Command::new("redis-server");
    command.arg("--port").arg(port.to_string()).arg("--dir").arg(dir.path());
    command.args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
    for user in ["relay", "agent"] {
        command.args(["--user", user]).args(rights(user));
    }
    command.args(match persistence {
        Persistence::None => ["--appendonly", "no", "--appendfsync", "no"],
        Persistence::Everysec => ["--appendonly", "yes", "--appendfsync", "everysec"],
        Persistence::Always => ["--appendonly", "yes", "--appendfsync", "always"],
    });
    match sort {
        Sort::Usual => {}
        // The nodes' own port is otherwise 10,000 above.
        Sort::Node => {
            command.args(["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
        }
        Sort::Ahead => {
            command.env("LD_PRELOAD", clock_ahead(dir));
        }
    }
    Process::spawn("redis-server", command, HELP)
}

/// A library that answers instead of the system's when the server asks for the time.
fn clock_ahead(dir: &TempDir) -> PathBuf {
    let (source, library) = (dir.path().join("ahead.c"), dir.path().join("ahead.so"));
    std::fs::write(&source, CLOCK_AHEAD).expect("writes the source");
    let mut build = Command::new("cc");
    build.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    let built = build.output().expect("a C compiler, as the README asks for");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

const CLOCK_AHEAD: &str = "#include <sys/time.h>
#include <time.h>
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec + 3600;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}
";

#[cfg(test)]
mod tests {
    use super::{Persistence, Redis};

    #[tokio::test]
    async fn a_killed_redis_comes_back_with_what_it_keeps() {
        for (persistence, kept) in [(Persistence::None, None), (Persistence::Everysec, Some("1"))] {
            let mut redis = Redis::start(persistence).await;
            let () = redis.run(&["SET", "a", "1"]).await;

            redis.kill9();
            redis.restart().await;

            let value: Option<String> = redis.run(&["GET", "a"]).await;
            assert_eq!(value.as_deref(), kept, "{persistence:?}");
        }
    }

    #[tokio::test]
    async fn a_snapshot_brings_the_past_back_with_or_without_a_crash() {
        let mut redis = Redis::start(Persistence::None).await;
        let _: String = redis.run(&["XADD", "s", "7-1", "f", "v"]).await;
        let past = redis.snapshot().await;

        for crash in [true, false] {
            let _: String = redis.run(&["XADD", "s", "7-2", "f", "v"]).await;
            let () = redis.run(&["SET", "later", "1"]).await;
            if crash {
                redis.come_back_as(&past).await;
            } else {
                redis.become_silently(&past).await;
            }

            let (length, keys): (u64, u64) =
                (redis.run(&["XLEN", "s"]).await, redis.run(&["DBSIZE"]).await);
            assert_eq!((length, keys), (1, 1), "crash: {crash}");
        }
    }
}
