//! Leases in Redis: renewed in one pipeline, and listed in pages.

use std::collections::HashMap;
use std::time::Duration;

use protocol::{Channel, partition};

use super::state::{deadline, member, millis};
use super::{Redis, unavailable, wire};
use crate::Unavailable;
use crate::state::alive::{SHOWN_MAX, Sample};
use crate::state::{Deadline, Index, Record};

/// How many partitions are looked through at a time for a page of agents.
const PARTITIONS: usize = 16;

impl Redis {
    /// Renews leases, each with how its agent stands in the index; answers the places of those that do not stand
    /// there so.
    pub(crate) async fn renew(
        &self,
        leases: &[(Record, Box<str>)],
        lasts: Duration,
    ) -> Result<Vec<usize>, Unavailable> {
        let mut partitions: HashMap<u8, Vec<usize>> = HashMap::new();
        for (place, (record, _)) in leases.iter().enumerate() {
            partitions.entry(record.channel.partition()).or_default().push(place);
        }
        let partitions: Vec<(u8, Vec<usize>)> = partitions.into_iter().collect();
        let mut connection = self.lend().await?;
        for loaded in [false, true] {
            let mut pipe = redis::pipe();
            if loaded {
                pipe.load_script(&self.state.renew).ignore();
            }
            for (partition, places) in &partitions {
                let mut invocation = self.state.renew.key(self.keys.deadlines(*partition));
                invocation.arg(millis(lasts));
                for place in places {
                    let (record, value) = &leases[*place];
                    invocation.key(self.keys.index(&record.channel, &Index::Agents));
                    invocation
                        .arg(member(Deadline::Lose, &record.channel, &record.id))
                        .arg(&*record.id)
                        .arg(&**value);
                }
                pipe.invoke_script(&invocation);
            }
            match pipe.query_async::<Vec<Vec<usize>>>(&mut connection).await {
                Err(error) if !loaded && wire::is_no_script(&error) => {}
                Err(error) => return Err(unavailable(error)),
                Ok(missing) => {
                    let missing = partitions.iter().zip(missing);
                    return Ok(missing
                        .flat_map(|((_, places), missing)| {
                            missing.into_iter().filter_map(|at| places.get(at.checked_sub(1)?))
                        })
                        .copied()
                        .collect());
                }
            }
        }
        Err(Unavailable("the scripts are flushed again and again".to_owned()))
    }

    /// Agents that hold a lease on their own channel, `limit` of them behind the agent `after`: in the order of
    /// the partitions, and in each of their ids.
    pub(crate) async fn leased(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Box<str>>, Unavailable> {
        let from = after.map_or(0, own_partition);
        let mut connection = self.connection().await?;
        let mut ids = Vec::new();
        let partitions: Vec<u8> = (from..=u8::MAX).collect();
        for some in partitions.chunks(PARTITIONS) {
            let mut pipe = redis::pipe();
            for partition in some {
                pipe.zrange(self.keys.deadlines(*partition), 0, -1);
            }
            let found: Vec<Vec<String>> =
                pipe.query_async(&mut connection).await.map_err(unavailable)?;
            for (partition, members) in some.iter().zip(found) {
                let agents = members.iter().filter_map(|member| own_agent(member));
                let mut agents: Vec<Box<str>> = agents
                    .filter(|id| *partition != from || after.is_none_or(|after| &**id > after))
                    .collect();
                agents.sort_unstable();
                ids.extend(agents);
            }
            if ids.len() >= limit {
                break;
            }
        }
        ids.truncate(limit);
        Ok(ids)
    }

    /// The states of some records.
    pub(crate) async fn states(
        &self,
        records: &[Record],
    ) -> Result<Vec<Option<String>>, Unavailable> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for record in records {
            pipe.get(self.keys.state(record));
        }
        let mut connection = self.connection().await?;
        pipe.query_async(&mut connection).await.map_err(unavailable)
    }

    /// Any members of an index, at most so many; none only where it has none. It costs the same however many there are.
    pub(crate) async fn some_of(
        &self,
        channel: &Channel,
        index: &Index,
        most: usize,
    ) -> Result<Sample, Unavailable> {
        let key = self.keys.index(channel, index);
        let mut pipe = redis::pipe();
        pipe.hlen(&key).cmd("HRANDFIELD").arg(&key).arg(most);
        let mut connection = self.lend().await?;
        let (total, members): (u64, Vec<String>) =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        Ok(Sample { members: members.into_iter().map(Into::into).collect(), total })
    }

    /// How many members each index has, and about a hundred of them.
    pub(crate) async fn samples(
        &self,
        indexes: &[(Channel, Index)],
    ) -> Result<Vec<Sample>, Unavailable> {
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for (channel, index) in indexes {
            let key = self.keys.index(channel, index);
            pipe.hlen(&key);
            pipe.cmd("HSCAN").arg(&key).arg(0).arg("COUNT").arg(SHOWN_MAX);
        }
        let mut connection = self.connection().await?;
        type Scanned = (u64, (String, Vec<String>));
        let answers: Vec<redis::Value> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let answers = answers.chunks_exact(2).map(|pair| {
            let (total, (_, members)): Scanned =
                redis::from_redis_value(redis::Value::Array(pair.to_vec()))?;
            let members = members.into_iter().step_by(2).map(Into::into);
            let mut members: Vec<Box<str>> = members.collect();
            members.sort_unstable();
            members.truncate(SHOWN_MAX);
            Ok(Sample { members, total })
        });
        answers
            .collect::<Result<_, redis::ParsingError>>()
            .map_err(|error| unavailable(error.into()))
    }
}

/// The partition of an agent's own channel.
pub(crate) fn own_partition(agent: &str) -> u8 {
    partition(&format!("agent:{agent}"))
}

/// Whose lease on its own channel it is.
fn own_agent(member: &str) -> Option<Box<str>> {
    let (deadline, record) = deadline(member)?;
    let is_own = deadline == Deadline::Lose && record.channel.kind() == protocol::Kind::Agent;
    is_own.then_some(record.id)
}
