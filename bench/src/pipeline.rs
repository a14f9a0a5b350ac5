//! Commands sent in pipelines over one blocking connection, so that Redis sees nothing of a client but
//! its commands.

use anyhow::{Context, Result, ensure};
use journal::Name;
use redis::{Cmd, Connection, ConnectionLike, FromRedisValue, Value};

/// A journal begins beyond the epoch that its producer names, so this one is known beforehand.
const EPOCH: u64 = 9_999_999_999_999;
/// How long `append.lua` keeps a record.
const RECORD: &str = "900000";
/// How much it keeps of a session, where nothing else is set.
const KEPT: &str = "session 100000 8388608 86400000";
/// Of how many events one says how much to keep.
const KEEP_EVENTS: usize = 64;

/// A source of commands.
pub(crate) trait Pipeline {
    /// How many events the next command is good for.
    fn events(&self) -> usize;

    /// The next command.
    fn next(&mut self) -> Cmd;

    /// Whether the answer is the one hoped for.
    fn accepts(&self, answer: &Value) -> bool;

    /// Sends `events` events, `depth` commands at a time.
    fn drive(&mut self, connection: &mut Connection, depth: usize, events: usize) -> Result<()> {
        let mut left = events.div_ceil(self.events());
        let mut packed = Vec::new();
        while left > 0 {
            let count = left.min(depth);
            packed.clear();
            for _ in 0..count {
                self.next().write_packed_command(&mut packed);
            }
            for answer in connection.req_packed_commands(&packed, 0, count)? {
                ensure!(self.accepts(&answer), "unexpected answer: {answer:?}");
            }
            left -= count;
        }
        Ok(())
    }
}

/// Bare PUBLISHes, in turn over channels.
#[derive(Debug)]
pub(crate) struct Publishes<'a> {
    notifications: Vec<String>,
    data: &'a str,
    turn: usize,
}

impl<'a> Publishes<'a> {
    pub(crate) fn new(names: &[Name], data: &'a str) -> Self {
        Self { notifications: names.iter().map(notification).collect(), data, turn: 0 }
    }
}

impl Pipeline for Publishes<'_> {
    fn events(&self) -> usize {
        1
    }

    fn next(&mut self) -> Cmd {
        self.turn += 1;
        let mut command = redis::cmd("PUBLISH");
        command.arg(&self.notifications[self.turn % self.notifications.len()]).arg(self.data);
        command
    }

    fn accepts(&self, answer: &Value) -> bool {
        matches!(answer, Value::Int(_))
    }
}

/// The least that keeps and publishes in one step: what peers with a history do at best.
const LEAST: &str = "local id = redis.call('XADD', KEYS[1], ARGV[2], 'e', ARGV[3])
redis.call('PUBLISH', ARGV[1], id .. ' ' .. ARGV[3])
return id";

/// The same with that script.
#[derive(Debug)]
pub(crate) struct LeastScripts<'a> {
    keys: Vec<(String, String)>,
    data: &'a str,
    hash: String,
    turn: usize,
}

impl<'a> LeastScripts<'a> {
    pub(crate) fn load(names: &[Name], data: &'a str, connection: &mut Connection) -> Result<Self> {
        let keys = names.iter().map(|name| (stream(name), notification(name))).collect();
        Ok(Self { keys, data, hash: load(LEAST, connection)?, turn: 0 })
    }
}

impl Pipeline for LeastScripts<'_> {
    fn events(&self) -> usize {
        1
    }

    fn next(&mut self) -> Cmd {
        self.turn += 1;
        let (stream, notification) = &self.keys[self.turn % self.keys.len()];
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(&self.hash)
            .arg(1)
            .arg(stream)
            .arg(notification)
            .arg("1763661000000-*")
            .arg(self.data);
        command
    }

    fn accepts(&self, answer: &Value) -> bool {
        matches!(answer, Value::BulkString(_))
    }
}

/// `append.lua`, called as `journal` calls it.
#[derive(Debug)]
pub(crate) struct Appends {
    journals: Vec<Appended>,
    row: String,
    batch: usize,
    hash: String,
    turn: usize,
}

#[derive(Debug)]
struct Appended {
    stream: String,
    record: String,
    settings: String,
    notification: String,
    incarnation: u64,
    sequence: u64,
}

impl Appends {
    pub(crate) fn load(
        source: &str,
        names: &[Name],
        data: &str,
        batch: usize,
        connection: &mut Connection,
    ) -> Result<Self> {
        let producer = format!("{:032x}", batch);
        let journal = |name: &Name| Appended {
            stream: stream(name),
            record: key(name, "seq", &format!(":{producer}")),
            settings: format!(
                "relay:{{{}}}:cfg",
                protocol::partition_tag(name.channel.partition())
            ),
            notification: notification(name),
            incarnation: 1_763_661_000_000_000,
            sequence: 0,
        };
        Ok(Self {
            journals: names.iter().map(journal).collect(),
            row: format!("text_delta - {data}"),
            batch,
            hash: load(source, connection)?,
            turn: 0,
        })
    }

    /// Appends `rows`, each "name idempotency-key data", to one of the journals.
    pub(crate) fn command(&mut self, journal: usize, rows: &[&str]) -> Cmd {
        let journal = &mut self.journals[journal];
        journal.sequence += 1;
        let opens = journal.sequence == 1;
        let keeps =
            opens || journal.sequence.is_multiple_of((KEEP_EVENTS / rows.len()).max(1) as u64);
        let appended = if opens { 128 * 1024 } else { KEEP_EVENTS.max(rows.len()) * rows[0].len() };
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(&self.hash)
            .arg(if keeps { 3 } else { 2 })
            .arg(&journal.stream)
            .arg(&journal.record);
        if keeps {
            command.arg(&journal.settings);
        }
        command
            .arg(&journal.notification)
            .arg(format!("{}-*", if opens { EPOCH - 1 } else { EPOCH }))
            .arg(format!("{:016}{:016}", journal.incarnation, journal.sequence - 1))
            .arg(format!("{:016}{:016}", journal.incarnation, journal.sequence))
            .arg(match (opens, keeps) {
                (true, _) => format!("ok {RECORD} {appended} {KEPT}"),
                (false, true) => format!("k {RECORD} {appended} {KEPT}"),
                (false, false) => String::new(),
            });
        for row in rows {
            command.arg(row);
        }
        command
    }

    /// Sends each journal its first batch.
    pub(crate) fn begin(&mut self, connection: &mut Connection) -> Result<()> {
        self.drive(connection, 1, self.journals.len() * self.batch)
    }
}

impl Pipeline for Appends {
    fn events(&self) -> usize {
        self.batch
    }

    fn next(&mut self) -> Cmd {
        self.turn += 1;
        let rows = vec![self.row.clone(); self.batch];
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        self.command(self.turn % self.journals.len(), &rows)
    }

    fn accepts(&self, answer: &Value) -> bool {
        matches!(answer, Value::BulkString(text) if text.starts_with(b"ok "))
    }
}

/// The key of the events of a channel.
pub(crate) fn stream(name: &Name) -> String {
    key(name, "events", "")
}

fn key(name: &Name, what: &str, rest: &str) -> String {
    format!(
        "relay:{{{}}}:{what}:{}{rest}",
        protocol::partition_tag(name.channel.partition()),
        name.channel
    )
}

fn notification(name: &Name) -> String {
    format!(
        "relay:0:{{{}}}:events:{}",
        protocol::partition_tag(name.channel.partition()),
        name.channel
    )
}

fn load(source: &str, connection: &mut Connection) -> Result<String> {
    let hash = redis::cmd("SCRIPT").arg("LOAD").arg(source).query::<Value>(connection)?;
    String::from_redis_value(hash).context("SCRIPT LOAD answers with a hash")
}
