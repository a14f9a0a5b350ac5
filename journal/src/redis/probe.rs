//! Asks whether Redis writes, on a connection of its own.
//!
//! [`reaper`](crate::state::reaper) → **probe**. A pool or a shared connection would hide what matters here: that a
//! connection broke, that another server answers, that a write is refused.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult};

use super::{Redis, unavailable};
use crate::Unavailable;
use crate::state::continuity::Probe;

/// How long the written key is kept.
const LIFETIME_MS: u64 = 60_000;

/// Writes, and says who has written it.
#[derive(Debug)]
pub(crate) struct Prober {
    client: Client,
    key: String,
    connection: Option<MultiplexedConnection>,
    connections: u64,
}

impl Redis {
    pub(crate) fn prober(&self) -> Result<Prober, Unavailable> {
        let client = Client::open(self.info.clone()).map_err(unavailable)?;
        Ok(Prober { client, key: self.keys.written(), connection: None, connections: 0 })
    }
}

impl Prober {
    /// # Errors
    /// [`Unavailable`] where Redis does not answer, or refuses the write.
    pub(crate) async fn probe(&mut self) -> Result<Probe, Unavailable> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let config = super::connection_config();
                let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
                let connection = connecting.await.map_err(unavailable)?;
                self.connections += 1;
                connection
            }
        };
        let ((seconds, us), run_id) =
            written(&mut connection, &self.key).await.map_err(unavailable)?;
        self.connection = Some(connection);
        let time = Duration::from_secs(seconds) + Duration::from_micros(us);
        Ok(Probe { connection: self.connections, run_id, time })
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
