//! States in Redis: [`state`](crate::state)'s steps as one script, and what is read around them.

use std::sync::Arc;
use std::time::Duration;

use protocol::limits::APPROVAL_PLACES_MAX;
use protocol::{Channel, Offset};
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation, ToRedisArgs, Value};
use tokio::time::Instant;

use super::outage::{self, Failure};
use super::{Redis, keys, unavailable, wire};
use crate::backoff::Backoff;
use crate::retention::Retention;
use crate::state::{
    Change, Committed, Condition, Deadline, Effect, Holder, Index, LIVE_MAX, Live, Members, Part,
    Record, RecordKind, Snapshot, WaitingLimits, Waits,
};
use crate::{Name, NewEntry, Side, Unavailable, Waiting};

/// How long a step is tried while Redis is away. Trying it again is harmless.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the fence of an agent lasts: longer than any journal, and than a process sleeps with its machine.
pub(super) const FENCE_FOR: Duration = Duration::from_secs(30 * 24 * 3_600);
/// About how many bytes of what waits are read in one step: others use that Redis meanwhile.
const WAITING_PAGE_BYTES: usize = 256 * 1024;

/// The scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    change: Script,
    snapshot: Script,
    live: Script,
    waiting: Script,
    pub(super) renew: Script,
    approvals: Script,
    places: Script,
    forget: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            change: Script::new(include_str!("change.lua")),
            snapshot: Script::new(include_str!("snapshot.lua")),
            live: Script::new(include_str!("live.lua")),
            waiting: Script::new(include_str!("waiting.lua")),
            renew: Script::new(include_str!("renew.lua")),
            approvals: Script::new(include_str!("approvals.lua")),
            places: Script::new(include_str!("places.lua")),
            forget: Script::new(include_str!("forget_deadline.lua")),
        }
    }
}

impl Redis {
    pub(crate) async fn snapshot(&self, record: &Record) -> Result<Snapshot, Unavailable> {
        let invocation = self.state.snapshot.key(self.keys.state(record));
        snapshot(self.patiently(&invocation).await?).map_err(unavailable)
    }

    /// The newest command of the channel, and what waits up to there, read page by page.
    pub(crate) async fn waiting(&self, channel: &Channel) -> Result<Waiting, Unavailable> {
        let closing = |_| Unavailable("the journal is closed".to_owned());
        let _turn = self.pages.acquire().await.map_err(closing)?;
        let mut connection = self.connection().await?;
        let [list, entries, _] = self.keys.waiting(channel);
        let stream = self.keys.stream(&Name::commands(channel.clone()));
        let mut all: Option<Waiting> = None;
        let mut after = "0".to_owned();
        loop {
            let mut invocation = self.state.waiting.key(&stream);
            invocation.key(&list).key(&entries).arg(&after).arg(WAITING_PAGE_BYTES);
            let answer: Vec<Value> =
                invocation.invoke_async(&mut connection).await.map_err(unavailable)?;
            let (page, last) = waiting(answer).map_err(unavailable)?;
            match &mut all {
                Some(all) => all.entries.extend(page.entries),
                None => all = Some(page),
            }
            let Some(last) = last else { break };
            after = last;
        }
        let Waiting { head, entries } = all.unwrap_or_default();
        Ok(Waiting::up_to(head, entries))
    }

    /// Which agents' leases on the channel last.
    pub(crate) async fn live(&self, channel: &Channel) -> Result<Live, Unavailable> {
        let mut invocation = self.state.live.key(self.keys.index(channel, &Index::Agents));
        invocation
            .key(self.keys.deadlines(channel.partition()))
            .key(self.keys.state(&Record::seen(channel)))
            .arg(member(Deadline::Lose, channel, ""))
            .arg(LIVE_MAX);
        live(self.patiently(&invocation).await?).map_err(unavailable)
    }

    pub(crate) async fn commit(
        &self,
        record: &Record,
        expected: Option<&str>,
        change: &Change,
    ) -> Result<Committed, Unavailable> {
        let step = self.step(record, expected, change);
        committed(self.patiently(&step.invocation).await?).map_err(unavailable)
    }

    fn step(&self, record: &Record, expected: Option<&str>, change: &Change) -> Step<'_> {
        let (keys, channel) = (&self.keys, &record.channel);
        let (events, commands) = (Name::events(channel.clone()), Name::commands(channel.clone()));
        let deadlines = || keys.deadlines(channel.partition());
        let member = |deadline: &Deadline| member(*deadline, channel, &record.id);
        let producer = |holder: &Holder| keys.producer_record(&events, &holder.producer());
        let mut step = Step::new(&self.state.change, keys.state(record));
        step.arg(expected.unwrap_or_default())
            .arg(change.state.as_deref().unwrap_or_default())
            .arg(change.lifetime.map_or(String::new(), millis));
        if let Some(holder) = &change.holder {
            step.arg("fenced").key(producer(holder));
        }
        match &change.condition {
            Condition::Always => {}
            Condition::Due(deadline) => {
                step.arg("is-due").key(deadlines()).arg(member(deadline));
            }
            Condition::InTime(deadline) => {
                step.arg("in-time").key(deadlines()).arg(member(deadline));
            }
            Condition::Absent(record) => {
                step.arg("absent").key(keys.state(record));
            }
            Condition::Room(index, most) => {
                step.arg("room").key(keys.index(channel, index)).arg(*most).arg(&*record.id);
            }
            Condition::Part(index, Part { owner, member, of_owner, of_all }) => {
                let index = || keys.index(channel, index);
                step.arg("room").key(index()).arg(*of_all).arg(&**member);
                step.arg("part").key(index()).arg(*of_owner).arg(&**member).arg(&**owner);
            }
        }
        let append = |step: &mut Step<'_>, part: &str, name: &Name, entry: &NewEntry| {
            step.arg(part)
                .key(keys.stream(name))
                .arg(keys.notification(name))
                .key(keys.settings(channel.partition()))
                .arg(Retention::field(name))
                .arg(keys::retention(Retention::default().of(name)))
                .arg(row(entry));
        };
        for effect in &change.effects {
            match effect {
                Effect::Event(entry) => append(&mut step, "append", &events, entry),
                Effect::Command(entry) => append(&mut step, "append", &commands, entry),
                Effect::Wait(Waits { entry, sender, class, is_limited }) => {
                    append(&mut step, "wait", &commands, entry);
                    let [list, entries, counts] = keys.waiting(channel);
                    step.key(list).key(entries).key(counts).arg(&*record.id);
                    let limits = is_limited.then(|| limits(WaitingLimits::of(channel)));
                    step.arg(class.letter()).arg(&**sender).arg(limits.unwrap_or_default());
                }
                Effect::WaitNoMore => {
                    let [list, entries, counts] = keys.waiting(channel);
                    step.arg("wait-no-more").key(list).key(entries).key(counts).arg(&*record.id);
                }
                Effect::Put(index, id, value) => {
                    step.arg("put").key(keys.index(channel, index)).arg(&**id).arg(&**value);
                }
                Effect::Remove(index, id) => {
                    step.arg("remove").key(keys.index(channel, index)).arg(&**id);
                }
                Effect::Clear(index) => {
                    step.arg("clear").key(keys.index(channel, index));
                }
                Effect::Write(record, state, lifetime) => {
                    step.arg("write").key(keys.state(record)).arg(state).arg(millis(*lifetime));
                }
                Effect::DueOf(deadline, record, after) => {
                    let member = self::member(*deadline, channel, &record.id);
                    step.arg("due").key(deadlines()).arg(member).arg(millis(*after));
                }
                Effect::Due(deadline, Some(after)) => {
                    step.arg("due").key(deadlines()).arg(member(deadline)).arg(millis(*after));
                }
                Effect::Due(deadline, None) => {
                    step.arg("never").key(deadlines()).arg(member(deadline));
                }
                Effect::Fence(holder) => {
                    step.arg("fence").key(producer(holder)).arg(millis(FENCE_FOR));
                }
                Effect::Notify(address, text) => {
                    step.arg("notify").arg(keys.probe(address)).arg(&**text);
                }
            }
        }
        step
    }

    /// Notifies; whether anybody listens there.
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

    /// What has fallen due, so much of each partition.
    pub(crate) async fn due(&self, most: usize) -> Result<Vec<(Deadline, Record)>, Unavailable> {
        let mut connection = self.connection().await?;
        let (seconds, us): (u64, u64) =
            redis::cmd("TIME").query_async(&mut connection).await.map_err(unavailable)?;
        let now = seconds * 1_000 + us / 1_000;
        let mut pipe = redis::pipe();
        for partition in 0..=u8::MAX {
            let key = self.keys.deadlines(partition);
            pipe.zrangebyscore_limit(key, 0, now, 0, most as isize);
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

    /// Notes that an approval of this id stands on the channel.
    pub(crate) async fn place_approval(
        &self,
        request_id: &str,
        channel: &Channel,
        lifetime: Duration,
    ) -> Result<(), Unavailable> {
        let mut invocation = self.state.places.key(self.keys.approval_places(request_id));
        invocation.arg(APPROVAL_PLACES_MAX).arg(channel.as_str()).arg(millis(lifetime));
        let mut connection = self.lend().await?;
        let _: Vec<String> = invocation.invoke_async(&mut connection).await.map_err(unavailable)?;
        Ok(())
    }

    /// On which channels approvals of this id stand.
    pub(crate) async fn approval_places(
        &self,
        request_id: &str,
    ) -> Result<Vec<Channel>, Unavailable> {
        let mut invocation = self.state.places.key(self.keys.approval_places(request_id));
        invocation.arg(APPROVAL_PLACES_MAX);
        let mut connection = self.lend().await?;
        let places: Vec<String> =
            invocation.invoke_async(&mut connection).await.map_err(unavailable)?;
        Ok(places.iter().filter_map(|place| place.parse().ok()).collect())
    }

    /// The newest event of the channel, and the questions that wait, by their ids.
    pub(crate) async fn approvals(
        &self,
        channel: &Channel,
    ) -> Result<(Option<Offset>, u64, Members), Unavailable> {
        let script = &self.state.approvals;
        let mut invocation = script.key(self.keys.stream(&Name::events(channel.clone())));
        invocation.key(self.keys.index(channel, &Index::Approvals));
        let mut connection = self.lend().await?;
        let answer: Vec<String> =
            invocation.invoke_async(&mut connection).await.map_err(unavailable)?;
        let [now_ms, id, time, approvals @ ..] = &*answer else {
            return Err(Unavailable("redis answers to another question".to_owned()));
        };
        let now_ms = now_ms.parse().unwrap_or(0);
        let head = match &**id {
            "" => None,
            id => Some(wire::position(id, time).map_err(unavailable)?),
        };
        let approvals = approvals.chunks_exact(2);
        Ok((
            head,
            now_ms,
            approvals.map(|pair| (pair[0].as_str().into(), pair[1].as_str().into())).collect(),
        ))
    }

    /// Runs a script that may be run again, through short absences of Redis.
    async fn patiently(
        &self,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<Vec<Value>, Unavailable> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::default();
        loop {
            let tried = match self.lend().await {
                Ok(mut connection) => match invocation.invoke_async(&mut connection).await {
                    Err(error) if matches!(outage::failure(&error), Failure::Lasting) => {
                        return Err(unavailable(error));
                    }
                    tried => tried.map_err(unavailable),
                },
                Err(error) => Err(error),
            };
            let next = Instant::now() + backoff.next();
            match tried {
                Err(_) if next < deadline => tokio::time::sleep_until(next).await,
                tried => return tried,
            }
        }
    }
}

/// A call of the change script, in which each part names its keys: the script is given those and no others,
/// each once.
struct Step<'a> {
    invocation: ScriptInvocation<'a>,
    keys: Vec<String>,
}

impl<'a> Step<'a> {
    fn new(script: &'a Script, state: String) -> Self {
        Self { invocation: script.key(&state), keys: vec![state] }
    }

    fn arg(&mut self, value: impl ToRedisArgs) -> &mut Self {
        self.invocation.arg(value);
        self
    }

    /// An argument that names the key by its number.
    fn key(&mut self, key: String) -> &mut Self {
        let known = self.keys.iter().position(|known| *known == key);
        let place = known.unwrap_or_else(|| {
            self.invocation.key(&key);
            self.keys.push(key);
            self.keys.len() - 1
        });
        self.arg(place + 1)
    }
}

fn row(entry: &NewEntry) -> String {
    format!("{} {} {}", entry.name, entry.idempotency_key.as_deref().unwrap_or("-"), entry.data)
}

pub(super) fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// How a deadline stands among the deadlines.
pub(super) fn member(deadline: Deadline, channel: &Channel, id: &str) -> String {
    format!("{} {channel} {id}", deadline.as_str())
}

pub(super) fn deadline(member: &str) -> Option<(Deadline, Record)> {
    let mut parts = member.splitn(3, ' ');
    let word = parts.next()?;
    let deadline = Deadline::ALL.into_iter().find(|deadline| deadline.as_str() == word)?;
    let channel = parts.next()?.parse().ok()?;
    let kind: RecordKind = deadline.kind();
    Some((deadline, Record { kind, channel, id: parts.next()?.into() }))
}

/// What `snapshot.lua` answers.
fn snapshot(answer: Vec<Value>) -> Result<Snapshot, RedisError> {
    let mut answer = answer.into_iter();
    let mut next = || answer.next().unwrap_or(Value::Nil);
    let now_ms = u64::from_redis_value(next())?;
    Ok(Snapshot { now_ms, state: Option::from_redis_value(next())? })
}

/// What `live.lua` answers.
fn live(answer: Vec<Value>) -> Result<Live, RedisError> {
    let mut answer = answer.into_iter();
    let mut next = || u64::from_redis_value(answer.next().unwrap_or(Value::Nil));
    let (now_ms, count, is_known) = (next()?, next()?, next()? > 0);
    let agents = answer.map(|agent| String::from_redis_value(agent).map(Into::into));
    Ok(Live { now_ms, count, is_known, agents: agents.collect::<Result<_, _>>()? })
}

/// What `waiting.lua` answers, and the place after which more follows.
fn waiting(answer: Vec<Value>) -> Result<(Waiting, Option<String>), RedisError> {
    let mut answer = answer.into_iter();
    let mut next = || String::from_redis_value(answer.next().unwrap_or(Value::Nil));
    let (head, time, last) = (next()?, next()?, next()?);
    let head = if head.is_empty() { None } else { Some(wire::position(&head, &time)?) };
    let mut entries = Vec::new();
    while let (Some(id), Some(entry)) = (answer.next(), answer.next()) {
        let (epoch, n) = wire::id(&String::from_redis_value(id)?)?;
        let entry = Vec::<u8>::from_redis_value(entry)?;
        entries.push(Arc::new(wire::entry(Side::Commands, epoch, n, &entry)));
    }
    Ok((Waiting { head, entries }, Some(last).filter(|last| !last.is_empty())))
}

fn limits(limits: WaitingLimits) -> String {
    let WaitingLimits { per_sender, all, bytes, bytes_per_sender, cancels } = limits;
    format!("{per_sender} {all} {bytes} {bytes_per_sender} {cancels}")
}

/// What `change.lua` answers.
fn committed(mut answer: Vec<Value>) -> Result<Committed, RedisError> {
    let word = match answer.is_empty() {
        true => String::new(),
        false => String::from_redis_value(answer.remove(0))?,
    };
    Ok(match word.as_str() {
        "done" => Committed::Done,
        "conflict" => Committed::Conflict(snapshot(answer)?),
        "unmet" => Committed::Unmet,
        "fenced" => Committed::Fenced,
        _ => return Err(wire::unexpected("an answer of the change script", &word)),
    })
}
