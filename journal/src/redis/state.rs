//! States in Redis: [`state`](crate::state)'s steps as one script, and what is read around them.

use std::collections::HashMap;
use std::time::Duration;

use protocol::{Channel, Offset};
use rand::Rng;
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation, Value};
use tokio::time::Instant;

use super::{Redis, keys, unavailable, wire};
use crate::retention::Retention;
use crate::state::{
    Change, Committed, Condition, Deadline, Effect, Holder, Index, Members, Record, RecordKind,
    Snapshot,
};
use crate::{Name, NewEntry, Unavailable};

/// How long a step is tried while Redis is away. Trying it again is harmless.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the fence of an agent lasts: longer than any journal, and than a process sleeps with its machine.
pub(super) const FENCE_FOR: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How many deadlines of one partition are taken up at a time.
const DUE_MAX: usize = 200;

/// The scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    change: Script,
    snapshot: Script,
    renew: Script,
    approvals: Script,
    forget: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            change: Script::new(include_str!("change.lua")),
            snapshot: Script::new(include_str!("snapshot.lua")),
            renew: Script::new(include_str!("renew.lua")),
            approvals: Script::new(include_str!("approvals.lua")),
            forget: Script::new(include_str!("forget_deadline.lua")),
        }
    }
}

impl Redis {
    pub(crate) async fn snapshot(&self, record: &Record) -> Result<Snapshot, Unavailable> {
        let channel = &record.channel;
        let script = &self.state.snapshot;
        let mut invocation = script.key(self.keys.state(record));
        invocation
            .key(self.keys.index(channel, &Index::Agents))
            .key(self.keys.deadlines(channel.partition()))
            .arg(member(Deadline::Lose, channel, ""));
        let answer: Vec<Value> = self.patiently(&invocation).await?;
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Nil);
        let now_ms = u64::from_redis_value(next()).map_err(|error| unavailable(error.into()))?;
        let state = Option::<String>::from_redis_value(next())
            .map_err(|error| unavailable(error.into()))?;
        let live = answer
            .map(|agent| String::from_redis_value(agent).map(Into::into))
            .collect::<Result<_, _>>()
            .map_err(|error| unavailable(error.into()))?;
        Ok(Snapshot { now_ms, state, live })
    }

    pub(crate) async fn commit(&self, change: &Change) -> Result<Committed, Unavailable> {
        let invocation = self.invocation(change);
        let answer: Vec<Value> = self.patiently(&invocation).await?;
        committed(answer).map_err(unavailable)
    }

    fn invocation(&self, change: &Change) -> ScriptInvocation<'_> {
        let (keys, record) = (&self.keys, &change.record);
        let channel = &record.channel;
        let (events, commands) = (Name::events(channel.clone()), Name::commands(channel.clone()));
        let partition = channel.partition();
        let mut invocation = self.state.change.key(keys.state(record));
        let holder = change.holder.as_ref();
        let producer_record = |holder: &Holder| keys.producer_record(&events, &holder.producer());
        invocation
            .key(keys.deadlines(partition))
            .key(keys.stream(&events))
            .key(keys.stream(&commands))
            .key(keys.settings(partition))
            .key(match &change.condition {
                Condition::Room(list, _) => keys.index(channel, list),
                _ => String::new(),
            })
            .key(holder.map_or(String::new(), producer_record));
        let condition = match change.condition {
            Condition::Always => String::new(),
            Condition::Due(deadline) => format!("due {}", member(deadline, channel, &record.id)),
            Condition::NotDue(deadline) => {
                format!("notdue {}", member(deadline, channel, &record.id))
            }
            Condition::Room(_, most) => format!("room {most}"),
        };
        let retention = Retention::default();
        invocation
            .arg(change.expected.as_deref().unwrap_or_default())
            .arg(&change.state)
            .arg(change.lifetime.map_or(String::new(), millis))
            .arg(condition)
            .arg(if holder.is_some() { "holder" } else { "" })
            .arg(keys.notification(&events))
            .arg(keys.notification(&commands))
            .arg(Retention::field(&events))
            .arg(keys::retention(retention.of(&events)))
            .arg(Retention::field(&commands))
            .arg(keys::retention(retention.of(&commands)));
        // The first seven keys are those above.
        let mut count = 7;
        let mut key = |invocation: &mut ScriptInvocation<'_>, key: String| {
            count += 1;
            invocation.key(key);
            count
        };
        for effect in &change.effects {
            match effect {
                Effect::Event(entry) => {
                    invocation.arg("event").arg(row(entry));
                }
                Effect::Command(entry) => {
                    invocation.arg("command").arg(row(entry));
                }
                Effect::Put(index, id, value) => {
                    let number = key(&mut invocation, keys.index(channel, index));
                    invocation.arg("put").arg(number).arg(&**id).arg(&**value);
                }
                Effect::Remove(index, id) => {
                    let number = key(&mut invocation, keys.index(channel, index));
                    invocation.arg("remove").arg(number).arg(&**id);
                }
                Effect::Due(deadline, after) => {
                    let member = member(*deadline, channel, &record.id);
                    invocation.arg("due").arg(member).arg(after.map_or(String::new(), millis));
                }
                Effect::Fence(holder) => {
                    let number = key(&mut invocation, producer_record(holder));
                    invocation.arg("fence").arg(number).arg(millis(FENCE_FOR));
                }
                Effect::Notify(address, text) => {
                    invocation.arg("notify").arg(keys.probe(address)).arg(&**text);
                }
            }
        }
        invocation
    }

    /// Rings; whether anybody listens there.
    pub(crate) async fn notify(&self, address: &str, text: &str) -> Result<bool, Unavailable> {
        let mut connection = self.lend().await?;
        let mut command = redis::cmd("PUBLISH");
        let listeners: u64 = command
            .arg(self.keys.probe(address))
            .arg(text)
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(listeners > 0)
    }

    /// What is in an index.
    pub(crate) async fn list(
        &self,
        channel: &Channel,
        index: &Index,
    ) -> Result<Members, Unavailable> {
        let mut connection = self.lend().await?;
        let mut command = redis::cmd("HGETALL");
        let listed: Vec<(String, String)> = command
            .arg(self.keys.index(channel, index))
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(listed.into_iter().map(|(id, value)| (id.into(), value.into())).collect())
    }

    /// What has fallen due.
    pub(crate) async fn due(&self) -> Result<Vec<(Deadline, Record)>, Unavailable> {
        let mut connection = self.connection().await?;
        let (seconds, us): (u64, u64) =
            redis::cmd("TIME").query_async(&mut connection).await.map_err(unavailable)?;
        let now = seconds * 1_000 + us / 1_000;
        let mut pipe = redis::pipe();
        for partition in 0..=u8::MAX {
            let key = self.keys.deadlines(partition);
            pipe.zrangebyscore_limit(key, 0, now, 0, DUE_MAX as isize);
        }
        let due: Vec<Vec<String>> = pipe.query_async(&mut connection).await.map_err(unavailable)?;
        Ok(due.iter().flatten().filter_map(|member| deadline(member)).collect())
    }

    /// Takes the deadline off the list, if it has fallen due.
    pub(crate) async fn forget_deadline(
        &self,
        record: &Record,
        deadline: Deadline,
    ) -> Result<(), Unavailable> {
        let mut invocation = self.state.forget.key(self.keys.deadlines(record.channel.partition()));
        invocation.arg(member(deadline, &record.channel, &record.id));
        let mut connection = self.lend().await?;
        invocation.invoke_async(&mut connection).await.map_err(unavailable)
    }

    /// Renews leases; answers the places of those that are not there, or another's.
    pub(crate) async fn renew(
        &self,
        leases: &[(Record, Holder)],
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
                    let (record, holder) = &leases[*place];
                    let events = Name::events(record.channel.clone());
                    invocation.key(self.keys.producer_record(&events, &holder.producer()));
                    invocation.arg(member(Deadline::Lose, &record.channel, &record.id));
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

    /// Every lease that lasts, with its state.
    pub(crate) async fn leased(&self) -> Result<Vec<(Record, Option<String>)>, Unavailable> {
        let mut connection = self.connection().await?;
        let mut pipe = redis::pipe();
        for partition in 0..=u8::MAX {
            pipe.zrange(self.keys.deadlines(partition), 0, -1);
        }
        let all: Vec<Vec<String>> = pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let leases = all.iter().flatten().filter_map(|member| deadline(member));
        let leases: Vec<Record> = leases
            .filter(|(deadline, _)| *deadline == Deadline::Lose)
            .map(|(_, record)| record)
            .collect();
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for record in &leases {
            pipe.get(self.keys.state(record));
        }
        let states: Vec<Option<String>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        Ok(leases.into_iter().zip(states).collect())
    }

    /// Notes on which channel the approval stands; answers where it stood first.
    pub(crate) async fn place_approval(
        &self,
        request_id: &str,
        channel: &Channel,
        lifetime: Duration,
    ) -> Result<Channel, Unavailable> {
        let mut connection = self.lend().await?;
        let mut command = redis::cmd("SET");
        let before: Option<String> = command
            .arg(self.keys.approval_place(request_id))
            .arg(channel.as_str())
            .arg("NX")
            .arg("GET")
            .arg("PX")
            .arg(millis(lifetime))
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(before.and_then(|before| before.parse().ok()).unwrap_or_else(|| channel.clone()))
    }

    pub(crate) async fn approval_place(
        &self,
        request_id: &str,
    ) -> Result<Option<Channel>, Unavailable> {
        let mut connection = self.lend().await?;
        let mut command = redis::cmd("GET");
        let place: Option<String> = command
            .arg(self.keys.approval_place(request_id))
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(place.and_then(|place| place.parse().ok()))
    }

    /// The newest event of the channel, and the questions that wait, by their ids.
    pub(crate) async fn approvals(
        &self,
        channel: &Channel,
    ) -> Result<(Option<Offset>, Members), Unavailable> {
        let script = &self.state.approvals;
        let mut invocation = script.key(self.keys.stream(&Name::events(channel.clone())));
        invocation.key(self.keys.index(channel, &Index::Approvals));
        let mut connection = self.lend().await?;
        let answer: Vec<String> =
            invocation.invoke_async(&mut connection).await.map_err(unavailable)?;
        let [id, time, approvals @ ..] = &*answer else { return Ok((None, Vec::new())) };
        let head = match &**id {
            "" => None,
            id => Some(wire::position(id, time).map_err(unavailable)?),
        };
        let approvals = approvals.chunks_exact(2);
        Ok((
            head,
            approvals.map(|pair| (pair[0].as_str().into(), pair[1].as_str().into())).collect(),
        ))
    }

    /// Runs a script that may be run again, through short absences of Redis.
    async fn patiently(
        &self,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<Vec<Value>, Unavailable> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(20);
        loop {
            let tried = match self.lend().await {
                Ok(mut connection) => {
                    invocation.invoke_async(&mut connection).await.map_err(unavailable)
                }
                Err(error) => Err(error),
            };
            match tried {
                Err(_) if Instant::now() + pause < deadline => {
                    let jitter = rand::rng().random_range(0.5..1.0);
                    tokio::time::sleep(pause.mul_f64(jitter)).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                tried => return tried,
            }
        }
    }
}

fn row(entry: &NewEntry) -> String {
    format!("{} {} {}", entry.name, entry.idempotency_key.as_deref().unwrap_or("-"), entry.data)
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// How a deadline stands among the deadlines.
fn member(deadline: Deadline, channel: &Channel, id: &str) -> String {
    format!("{} {channel} {id}", deadline.as_str())
}

fn deadline(member: &str) -> Option<(Deadline, Record)> {
    let mut parts = member.splitn(3, ' ');
    let word = parts.next()?;
    let deadline = Deadline::ALL.into_iter().find(|deadline| deadline.as_str() == word)?;
    let channel = parts.next()?.parse().ok()?;
    let kind: RecordKind = deadline.kind();
    Some((deadline, Record { kind, channel, id: parts.next()?.into() }))
}

/// What `change.lua` answers.
fn committed(answer: Vec<Value>) -> Result<Committed, RedisError> {
    let mut answer = answer.into_iter();
    let mut next = || answer.next().unwrap_or(Value::Nil);
    let word = String::from_redis_value(next())?;
    Ok(match word.as_str() {
        "done" => {
            let time = String::from_redis_value(next())?;
            let ids = answer.map(|id| wire::position(&String::from_redis_value(id)?, &time));
            Committed::Done(ids.collect::<Result<_, RedisError>>()?)
        }
        "conflict" => Committed::Conflict(Option::from_redis_value(next())?),
        "unmet" => Committed::Unmet,
        "fenced" => Committed::Fenced,
        _ => return Err(wire::unexpected("an answer of the change script", &word)),
    })
}
