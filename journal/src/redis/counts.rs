//! Counts in Redis: one lease per replica, one field per replica and channel.

use protocol::Channel;
use redis::Script;

use super::{Redis, unavailable};
use crate::Unavailable;
use crate::counts::{COUNTS_LIFETIME, ReplicaCounts};

/// A channel's counts go when nobody has touched them for so long.
const COUNTS_FOR: i64 = 24 * 3_600;

/// The scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    counts: Script,
    replicas: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            counts: Script::new(include_str!("counts.lua")),
            replicas: Script::new(include_str!("replicas.lua")),
        }
    }
}

impl Redis {
    pub(crate) async fn report_counts(
        &self,
        replica: &str,
        connections: u64,
        changed: &[(Channel, u64)],
    ) -> Result<(), Unavailable> {
        let mut connection = self.lend().await?;
        if !changed.is_empty() {
            let mut pipe = redis::pipe();
            for (channel, count) in changed {
                let key = self.keys.counts(channel);
                match count {
                    0 => pipe.hdel(&key, replica).ignore(),
                    _ => pipe.hset(&key, replica, count).ignore().expire(&key, COUNTS_FOR).ignore(),
                };
            }
            pipe.query_async::<()>(&mut connection).await.map_err(unavailable)?;
        }
        self.counts
            .counts
            .key(self.keys.replicas())
            .key(self.keys.connections())
            .arg(replica)
            .arg(connections)
            .arg(COUNTS_LIFETIME.as_millis() as u64)
            .invoke_async::<()>(&mut connection)
            .await
            .map_err(unavailable)
    }

    pub(crate) async fn replicas(&self) -> Result<Vec<ReplicaCounts>, Unavailable> {
        let mut connection = self.connection().await?;
        let mut invocation = self.counts.replicas.key(self.keys.replicas());
        let replicas: Vec<(String, u64)> = invocation
            .key(self.keys.connections())
            .invoke_async(&mut connection)
            .await
            .map_err(unavailable)?;
        let replicas = replicas.into_iter();
        let counts = |(replica, connections): (String, u64)| {
            let replica = replica.into();
            ReplicaCounts { replica, connections }
        };
        Ok(replicas.map(counts).collect())
    }

    pub(crate) async fn subscribers(&self, channel: &Channel) -> Result<u64, Unavailable> {
        let there = self.replicas().await?;
        let mut connection = self.connection().await?;
        let counts: Vec<(String, u64)> = redis::cmd("HGETALL")
            .arg(self.keys.counts(channel))
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        let is_there = |replica: &str| there.iter().any(|counts| *counts.replica == *replica);
        Ok(counts.iter().filter(|(replica, _)| is_there(replica)).map(|(_, count)| count).sum())
    }
}
