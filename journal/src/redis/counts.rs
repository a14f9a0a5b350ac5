//! Counts in Redis: one lease per replica, one field per replica and channel.

use std::time::Duration;

use protocol::Channel;
use redis::Script;

use super::{Redis, unavailable};
use crate::Unavailable;
use crate::counts::{COUNTS_LIFETIME, ReplicaCounts};

/// A replica's count of a channel is removed when it was not reported for so long. Replicas report all anew every 30 s.
const COUNTS_FOR: Duration = Duration::from_secs(120);

/// The scripts.
#[derive(Debug)]
pub(super) struct CountScripts {
    counts: Script,
    count: Script,
    replicas: Script,
}

impl CountScripts {
    pub(super) fn new() -> Self {
        Self {
            counts: Script::new(include_str!("counts.lua")),
            count: Script::new(include_str!("count.lua")),
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
            pipe.load_script(&self.counts.count).ignore();
            for (channel, count) in changed {
                let mut invocation = self.counts.count.key(self.keys.counts(channel));
                invocation.arg(replica).arg(count).arg(COUNTS_FOR.as_millis() as u64);
                pipe.invoke_script(&invocation).ignore();
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
        let mut connection = self.lend().await?;
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

    pub(crate) async fn subscribers_of(
        &self,
        channels: &[Channel],
    ) -> Result<Vec<u64>, Unavailable> {
        if channels.is_empty() {
            return Ok(Vec::new());
        }
        let there = self.replicas().await?;
        let mut connection = self.lend().await?;
        let mut pipe = redis::pipe();
        for channel in channels {
            pipe.cmd("HGETALL").arg(self.keys.counts(channel));
        }
        let counts: Vec<Vec<(String, String)>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let is_there = |replica: &str| there.iter().any(|counts| *counts.replica == *replica);
        let count = |said: &str| said.split(' ').next().and_then(|count| count.parse::<u64>().ok());
        let sum = |counts: Vec<(String, String)>| {
            let counts = counts.iter().filter(|(replica, _)| is_there(replica));
            counts.filter_map(|(_, said)| count(said)).sum()
        };
        Ok(counts.into_iter().map(sum).collect())
    }
}
