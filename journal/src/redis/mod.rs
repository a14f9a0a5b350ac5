//! Journals in Redis (7.0 or newer) or Valkey.
//!
//! Four kinds of connection: one pipelined connection for appends ([`appender`]), one for short questions
//! ([`shared`]), a small pool for everything that is read at length, and one link per follower ([`link`]).

mod appender;
mod counts;
mod keys;
mod leases;
mod link;
mod outage;
mod permissions;
mod pipeline;
pub(crate) mod probe;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod resp;
mod shared;
mod socket;
mod state;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisError, Script, Value, io::tcp::TcpSettings,
};
use deadpool_redis::{Manager, Pool, PoolConfig, PoolError, Runtime, Timeouts};
use protocol::Offset;
use protocol::frame::Since;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::address::without_secrets;
use crate::read::{self, Extent, PAGE_BYTES, Rows};
use crate::tasks::Tasks;
use crate::{AppendError, Name, NewEntry, Page, Producer, Receipt, Retention, Side, Unavailable};
use appender::{Appender, Way};
use keys::Keys;
pub(crate) use link::RedisLink;
pub use probe::NotReady;
use shared::{Lent, Shared};

/// Connections for reading. Two stay free of page reads, for heads and probes.
const POOL_SIZE: usize = 8;
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take before its connection is given up.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read may wait for a pooled connection.
const POOL_WAIT: Duration = Duration::from_secs(5);

/// The URL is not one that we understand.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{url}` is not a Redis URL: {why}; write redis://[user:password@]host[:port][/database][?prefix=…], or rediss:// for TLS"
)]
pub struct OpenError {
    /// The URL without its password.
    url: String,
    why: String,
}

/// Journals in one Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    info: ConnectionInfo,
    keys: Keys,
    pool: Pool,
    shared: Shared,
    appender: Appender,
    read: Script,
    heads: Script,
    state: state::Scripts,
    counts: counts::CountScripts,
    /// So many pages are read at a time: the other connections stay free for heads and probes.
    pages: Semaphore,
}

impl Redis {
    pub(crate) fn open(url: &str, tasks: &Tasks) -> Result<Self, OpenError> {
        let refuse = |why: String| OpenError { url: without_secrets(url), why };
        if !url.starts_with("redis://") && !url.starts_with("rediss://") {
            return Err(refuse("the scheme must be redis or rediss".to_owned()));
        }
        // rustls panics at the first handshake where no provider, or more than one, was compiled in. An
        // application that chose its own before us keeps it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let (url, prefix) = prefix(url);
        Keys::check_prefix(&prefix).map_err(&refuse)?;
        let info = url.into_connection_info().map_err(|error| refuse(error.to_string()))?;
        if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
            let instead = "let SSL_CERT_FILE name a file with the certificate of its authority";
            return Err(refuse(format!(
                "a certificate is always checked, also with #insecure: {instead}"
            )));
        }
        // Without it a small append can wait 40 ms for the acknowledgement of the one before.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info.clone()).map_err(|error| refuse(error.to_string()))?;
        let keys = Keys::new(&prefix, info.redis_settings().db());
        let pool = pool(info.clone()).map_err(&refuse)?;
        let shared = Shared::new(client.clone(), permissions::of_steps(&keys));
        let appender = Appender::start(client, keys.clone(), tasks);
        Ok(Self {
            info,
            keys,
            pool,
            shared,
            appender,
            read: Script::new(include_str!("read.lua")),
            heads: Script::new(include_str!("heads.lua")),
            state: state::Scripts::new(),
            counts: counts::CountScripts::new(),
            pages: Semaphore::new(POOL_SIZE - 2),
        })
    }

    pub(crate) async fn ready(&self) -> Result<(), NotReady> {
        self.prober()?.probe().await.map(drop)
    }

    pub(crate) async fn eviction(&self) -> Result<Option<String>, Unavailable> {
        let mut connection = self.connection().await?;
        let mut info = ::redis::cmd("INFO");
        let info: Result<String, _> = info.arg("memory").query_async(&mut connection).await;
        let info = info.map_err(unavailable)?;
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        Ok(policy.filter(|policy| *policy != "noeviction").map(str::to_owned))
    }

    pub(crate) async fn malformed_retention(&self) -> Result<Vec<String>, Unavailable> {
        let fields = Retention::default().fields().map(|(field, _)| field);
        let mut pipe = ::redis::pipe();
        for partition in 0..=u8::MAX {
            pipe.cmd("HMGET").arg(self.keys.settings(partition)).arg(&fields);
        }
        let mut connection = self.connection().await?;
        let all: Vec<Vec<Option<String>>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let is_malformed = |at: usize| {
            let mut settings = all.iter().filter_map(|one| one[at].as_deref());
            settings.any(|setting| !keys::is_retention(setting))
        };
        let malformed = fields.iter().enumerate().filter(|(at, _)| is_malformed(*at));
        Ok(malformed.map(|(_, field)| (*field).to_owned()).collect())
    }

    pub(crate) async fn keep(&self, retention: &Retention) -> Result<(), Unavailable> {
        let mut pipe = ::redis::pipe();
        for partition in 0..=u8::MAX {
            let key = self.keys.settings(partition);
            for (field, keep) in retention.fields() {
                pipe.hset(&key, field, keys::retention(keep)).ignore();
            }
        }
        let mut connection = self.lend().await?;
        pipe.query_async(&mut connection).await.map_err(unavailable)
    }

    pub(crate) async fn enqueue(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
        producer: Option<&Arc<str>>,
    ) -> Result<Receipt, AppendError> {
        self.appender.enqueue(Way::new(name, producer), entries, None).await
    }

    pub(crate) async fn enqueue_numbered(
        &self,
        name: &Name,
        id: u64,
        entry: NewEntry,
        producer: &Producer,
    ) -> Result<Receipt, AppendError> {
        let way = Way::numbered(name, &producer.name, producer.incarnation);
        self.appender.enqueue(way, vec![entry], Some(id)).await
    }

    pub(crate) fn try_enqueue(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
        producer: Option<&Arc<str>>,
    ) -> Result<Receipt, AppendError> {
        self.appender.try_enqueue(Way::new(name, producer), entries)
    }

    pub(crate) async fn read(
        &self,
        name: &Name,
        since: Since,
        entries_max: usize,
    ) -> Result<Page, Unavailable> {
        let closing = |_| Unavailable("the journal is closed".to_owned());
        let _turn = self.pages.acquire().await.map_err(closing)?;
        let mut connection = self.connection().await?;
        let Some(rows) = self.rows(&mut connection, name, since, entries_max).await? else {
            return Ok(read::absent(since));
        };
        let mut page = match rows.continue_since(since) {
            Ok(page) => page,
            Err(reason) => match self.rows(&mut connection, name, Since::Start, entries_max).await?
            {
                Some(rows) => rows.begin_anew(reason),
                None => read::absent(since),
            },
        };
        page.entries.truncate(entries_max);
        Ok(page)
    }

    async fn rows(
        &self,
        connection: &mut deadpool_redis::Connection,
        name: &Name,
        since: Since,
        entries_max: usize,
    ) -> Result<Option<Rows>, Unavailable> {
        let (epoch, n) = match since {
            Since::Start => (String::new(), String::new()),
            Since::Offset(offset) => (offset.epoch.to_string(), offset.n.to_string()),
        };
        let answer: Vec<Value> = self
            .read
            .key(self.keys.stream(name))
            .arg(epoch)
            .arg(n)
            // One more: the position's own entry comes along, for its check.
            .arg(entries_max.saturating_add(1))
            .arg(PAGE_BYTES)
            .invoke_async(connection)
            .await
            .map_err(unavailable)?;
        if answer.is_empty() {
            return Ok(None);
        }
        rows(name.side, answer).map(Some).map_err(unavailable)
    }

    pub(crate) async fn heads(&self, names: &[Name]) -> Result<Vec<Option<Offset>>, Unavailable> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        for loaded in [false, true] {
            let mut pipe = ::redis::pipe();
            if loaded {
                pipe.load_script(&self.heads).ignore();
            }
            for name in names {
                pipe.invoke_script(self.heads.prepare_invoke().key(self.keys.stream(name)));
            }
            match pipe.query_async::<Vec<Value>>(&mut connection).await {
                Err(error) if !loaded && wire::is_no_script(&error) => {}
                Err(error) => return Err(unavailable(error)),
                Ok(heads) => return heads.into_iter().map(head).collect(),
            }
        }
        Err(Unavailable("the scripts are flushed again and again".to_owned()))
    }

    pub(crate) fn link(&self) -> RedisLink {
        RedisLink::new(self.info.clone(), self.keys.clone(), self.pool.clone())
    }

    /// For a short question.
    async fn lend(&self) -> Result<Lent<'_>, Unavailable> {
        self.shared.lend().await
    }

    async fn connection(&self) -> Result<deadpool_redis::Connection, Unavailable> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => unavailable(error),
            error => Unavailable(format!("no connection to redis is free: {error}")),
        })
    }
}

/// The URL without its `prefix`, and the prefix.
fn prefix(url: &str) -> (String, String) {
    let Some((before, query)) = url.split_once('?') else {
        return (url.to_owned(), keys::PREFIX.to_owned());
    };
    let (ours, rest): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| pair.starts_with("prefix="));
    let prefix = ours.last().map_or(keys::PREFIX, |pair| &pair["prefix=".len()..]);
    let url =
        if rest.is_empty() { before.to_owned() } else { format!("{before}?{}", rest.join("&")) };
    (url, prefix.to_owned())
}

/// How each of our connections is made.
fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

fn pool(info: ConnectionInfo) -> Result<Pool, String> {
    let manager =
        Manager::new_with_config(info, connection_config()).map_err(|error| error.to_string())?;
    let timeouts = Timeouts {
        wait: Some(POOL_WAIT),
        create: Some(CONNECT_TIMEOUT),
        recycle: Some(Duration::from_millis(500)),
    };
    let config = PoolConfig { max_size: POOL_SIZE, timeouts, ..PoolConfig::default() };
    Pool::builder(manager)
        .config(config)
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| error.to_string())
}

fn unavailable(error: RedisError) -> Unavailable {
    Unavailable(match outage::is_lasting(&error) || error.code().is_some() {
        true => format!("redis refuses: {error}"),
        false => format!("redis cannot be reached: {error}"),
    })
}

/// What `read.lua` answers.
fn rows(side: Side, answer: Vec<Value>) -> Result<Rows, RedisError> {
    let mut answer = answer.into_iter();
    let mut next = || String::from_redis_value(answer.next().unwrap_or(Value::Nil));
    let (first, head, time) = (next()?, next()?, next()?);
    let head = wire::position(&head, &time)?;
    let extent = Extent { epoch: head.epoch, first: wire::id(&first)?.1, head: head.n };
    let mut entries = Vec::new();
    while let (Some(id), Some(entry)) = (answer.next(), answer.next()) {
        let id = String::from_redis_value(id)?;
        let entry = Vec::<u8>::from_redis_value(entry)?;
        let (epoch, n) = wire::id(&id)?;
        entries.push(Arc::new(wire::entry(side, epoch, n, &entry)));
    }
    Ok(Rows { extent, head, entries })
}

/// What `heads.lua` answers.
fn head(answer: Value) -> Result<Option<Offset>, Unavailable> {
    let parts =
        Vec::<String>::from_redis_value(answer).map_err(|error| Unavailable(error.to_string()))?;
    match parts.as_slice() {
        [id, time] => wire::position(id, time).map(Some).map_err(unavailable),
        _ => Ok(None),
    }
}
