//! Tries out what a relay needs of Redis, on a connection of its own: that it answers, that the user may do all that
//! a relay does, that it has all channels, that it writes.
//!
//! [`reaper`](crate::state::reaper) → **probe**. A pool or a shared connection would hide what matters here: that a
//! connection broke, that another server answers, that a write is refused.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult, ServerErrorKind};
use thiserror::Error;

use super::{Redis, outage, permissions, unavailable};
use crate::Unavailable;
use crate::state::continuity::Probe;

/// How long the written key is kept.
const LIFETIME_MS: u64 = 60_000;

/// A relay cannot work with this Redis now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct NotReady {
    why: Unavailable,
    is_lasting: bool,
}

impl NotReady {
    /// Whether waiting does not help: the address, the password, the certificate or the rights of the user are wrong,
    /// or the server is one of several.
    pub fn is_lasting(&self) -> bool {
        self.is_lasting
    }

    fn lasting(why: &str) -> Self {
        Self { why: Unavailable(format!("redis refuses: {why}")), is_lasting: true }
    }
}

impl From<RedisError> for NotReady {
    fn from(error: RedisError) -> Self {
        Self { is_lasting: outage::is_lasting(&error), why: unavailable(error) }
    }
}

impl From<NotReady> for Unavailable {
    fn from(error: NotReady) -> Self {
        error.why
    }
}

/// Writes, and says who has written it.
#[derive(Debug)]
pub(crate) struct Prober {
    client: Client,
    key: String,
    needed: Vec<Vec<String>>,
    /// A key of each partition.
    settings: Vec<String>,
    connection: Option<MultiplexedConnection>,
    connections: u64,
}

impl Redis {
    pub(crate) fn prober(&self) -> Result<Prober, NotReady> {
        let client = Client::open(self.info.clone())?;
        let (key, needed) = (self.keys.written(), permissions::of_relays(&self.keys));
        let settings = (0..=u8::MAX).map(|partition| self.keys.settings(partition)).collect();
        Ok(Prober { client, key, needed, settings, connection: None, connections: 0 })
    }
}

impl Prober {
    /// # Errors
    /// [`NotReady`] where Redis does not answer, refuses the write, or the user may not do all that is needed.
    pub(crate) async fn probe(&mut self) -> Result<Probe, NotReady> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let ((seconds, us), run_id) = written(&mut connection, &self.key).await?;
        self.connection = Some(connection);
        let time = Duration::from_secs(seconds) + Duration::from_micros(us);
        Ok(Probe { connection: self.connections, run_id, time })
    }

    async fn connect(&mut self) -> Result<MultiplexedConnection, NotReady> {
        let config = super::connection_config();
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await?;
        self.connections += 1;
        if let Some(why) = permissions::missing(&mut connection, &self.needed).await? {
            return Err(NotReady::lasting(&why));
        }
        self.find_all_partitions(&mut connection).await?;
        Ok(connection)
    }

    /// A node of a cluster may have some partitions and not the others, so that some channels work.
    async fn find_all_partitions(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), NotReady> {
        let mut pipe = redis::pipe();
        for key in &self.settings {
            pipe.cmd("HMGET").arg(key).arg("session").ignore();
        }
        match pipe.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
                Err(NotReady::lasting(
                    "this server is one of several in a cluster, and others of them have some of the channels; \
                     a relay needs one that has all",
                ))
            }
            done => Ok(done?),
        }
    }
}

async fn written(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> RedisResult<((u64, u64), Option<String>)> {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(key).arg("").arg("PX").arg(LIFETIME_MS).ignore().cmd("TIME");
    let (time,): ((u64, u64),) = pipe.query_async(connection).await?;
    // Not every user may ask that.
    let info: RedisResult<String> = redis::cmd("INFO").arg("server").query_async(connection).await;
    let info = match info {
        Err(error) if error.code() == Some("NOPERM") => None,
        info => Some(info?),
    };
    let run_id = info.as_deref().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
    });
    Ok((time, run_id))
}
