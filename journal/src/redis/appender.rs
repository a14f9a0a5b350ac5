//! The task that appends: one pipelined connection for all journals of a [`Journal`](crate::Journal).
//!
//! A pool here would cost four times the Redis CPU (it validates every connection it hands out, and
//! spreads what could be pipelined). [`pipeline`](super::pipeline) keeps the order per journal and decides every retry.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use protocol::limits::IDEMPOTENCY_KEY_LIFETIME;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, FromRedisValue, RedisError, RedisResult, Script, Value};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::keys::{self, Keys};
use super::outage::{Failure, Outage, OutageKind, failure};
use super::permissions;
use super::pipeline::{Answer, Call, Pipeline, Send};
use super::wire::{self, Place};
use crate::append::{AppendOutcome, Claim, PRODUCER_RECORD_LIFETIME};
use crate::backoff::Backoff;
use crate::tasks::Tasks;
use crate::{AppendError, Name, NewEntry, Receipt, Retention};

/// What may wait to be appended, in bytes: 16 MiB, twice the largest publish.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Appends that may wait for the task to look at them.
const JOBS: usize = 4096;
/// Commands that may wait for the connection to write them.
const PIPELINE: usize = 4096;
/// How often idle pipelines are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Hands entries to the appending task.
#[derive(Debug)]
pub(super) struct Appender {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

/// Whose appends to which journal: each has an order of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    name: Name,
    /// Without one: the process itself.
    producer: Option<Arc<str>>,
    /// Of a producer that numbers its entries itself: its incarnation.
    numbered: Option<u64>,
}

impl Way {
    pub(super) fn new(name: &Name, producer: Option<&Arc<str>>) -> Self {
        Self { name: name.clone(), producer: producer.cloned(), numbered: None }
    }

    pub(super) fn numbered(name: &Name, producer: &Arc<str>, incarnation: u64) -> Self {
        Self {
            name: name.clone(),
            producer: Some(Arc::clone(producer)),
            numbered: Some(incarnation),
        }
    }
}

#[derive(Debug)]
struct Job {
    way: Way,
    entries: Vec<NewEntry>,
    /// The author's number of the first entry.
    id: Option<u64>,
    caller: Arc<std::sync::Mutex<Call>>,
}

impl Appender {
    pub(super) fn start(client: Client, keys: Keys, tasks: &Tasks) -> Self {
        let (jobs, received) = mpsc::channel(JOBS);
        let address = client.get_connection_info().addr().to_string();
        let task = Task {
            client,
            keys,
            script: Script::new(include_str!("append.lua")),
            producer: Uuid::new_v4().simple().to_string(),
            pipelines: HashMap::new(),
            unfinished: HashSet::new(),
            connection: None,
            connections: 0,
            connecting: None,
            backoff: Backoff::default(),
            outage: Outage::of(address),
            paused_until: None,
            answers: FuturesUnordered::new(),
            incarnation: 0,
        };
        tasks.spawn("appends", task.run(received));
        Self { jobs, room: Arc::new(Semaphore::new(BUFFER_BYTES)) }
    }

    pub(super) async fn enqueue(
        &self,
        way: Way,
        entries: Vec<NewEntry>,
        id: Option<u64>,
    ) -> Result<Receipt, AppendError> {
        let cost = cost(&entries)?;
        let room = Arc::clone(&self.room).acquire_many_owned(cost).await;
        let room = room.map_err(|_| AppendError::Unavailable)?;
        let slot = self.jobs.reserve().await.map_err(|_| AppendError::Unavailable)?;
        Ok(submit(slot, way, entries, id, room))
    }

    pub(super) fn try_enqueue(
        &self,
        way: Way,
        entries: Vec<NewEntry>,
    ) -> Result<Receipt, AppendError> {
        let cost = cost(&entries)?;
        let room =
            Arc::clone(&self.room).try_acquire_many_owned(cost).map_err(|_| AppendError::Full)?;
        let slot = self.jobs.try_reserve().map_err(|_| AppendError::Full)?;
        Ok(submit(slot, way, entries, None, room))
    }
}

fn cost(entries: &[NewEntry]) -> Result<u32, AppendError> {
    let bytes = entries.iter().map(NewEntry::cost).sum();
    if bytes > BUFFER_BYTES {
        return Err(AppendError::TooLarge { bytes, limit: BUFFER_BYTES });
    }
    u32::try_from(bytes).map_err(|_| AppendError::TooLarge { bytes, limit: BUFFER_BYTES })
}

fn submit(
    slot: mpsc::Permit<'_, Job>,
    way: Way,
    entries: Vec<NewEntry>,
    id: Option<u64>,
    room: tokio::sync::OwnedSemaphorePermit,
) -> Receipt {
    if entries.is_empty() {
        return Receipt::done(Ok(Vec::new()));
    }
    let (answer, outcome) = oneshot::channel::<AppendOutcome>();
    let claim = Arc::<Claim>::default();
    let caller = Call::new(answer, entries.len(), room, Arc::clone(&claim));
    slot.send(Job { way, entries, id, caller });
    Receipt::waiting(outcome, claim)
}

/// The answer to one run of the script, and over which connection it was sent.
struct Answered {
    way: Way,
    sequence: u64,
    connection: u64,
    result: RedisResult<Value>,
}

struct Task {
    client: Client,
    keys: Keys,
    script: Script,
    producer: String,
    pipelines: HashMap<Way, Pipeline>,
    /// Those in which something waits. The others cost nothing until they are tidied away.
    unfinished: HashSet<Way>,
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one does not cost us the new one.
    connections: u64,
    connecting: Option<BoxFuture<'static, RedisResult<MultiplexedConnection>>>,
    backoff: Backoff,
    outage: Outage,
    /// After a failure neither a connection is made nor anything sent until then.
    paused_until: Option<Instant>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    incarnation: u64,
}

impl Task {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        let mut ending = false;
        while !(ending && self.unfinished.is_empty()) {
            self.connect_if_needed();
            let pause = self.paused_until;
            tokio::select! {
                job = jobs.recv(), if !ending => match job {
                    Some(job) => self.accept(job),
                    None => ending = true,
                },
                Some(answered) = self.answers.next(), if !self.answers.is_empty() => {
                    self.on_answer(answered).await;
                }
                connected = async { self.connecting.as_mut().expect("guarded").await }, if self.connecting.is_some() => {
                    self.connecting = None;
                    self.on_connected(connected).await;
                }
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {
                    self.paused_until = None;
                    self.pump_all();
                }
                _ = tidy.tick() => {
                    let now = Instant::now();
                    self.pipelines.retain(|_, pipeline| {
                        pipeline.give_up_if_too_old(now);
                        !pipeline.is_idle(now)
                    });
                    let pipelines = &self.pipelines;
                    self.unfinished
                        .retain(|way| pipelines.get(way).is_some_and(|one| !one.is_done()));
                }
            }
        }
    }

    fn accept(&mut self, job: Job) {
        let pipeline = match self.pipelines.entry(job.way.clone()) {
            std::collections::hash_map::Entry::Occupied(pipeline) => pipeline.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(match job.way.numbered {
                    Some(incarnation) => Pipeline::begin(job.way.name.clone(), incarnation, true),
                    None => {
                        // A forgotten pipeline's sequences must not be taken for this one's.
                        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                        let now = now.as_millis() as u64 * 1_000;
                        self.incarnation = now.max(self.incarnation + 1);
                        Pipeline::begin(job.way.name.clone(), self.incarnation, false)
                    }
                })
            }
        };
        pipeline.push(job.entries, job.id.unwrap_or_default(), &job.caller);
        self.pump(&job.way);
        self.unfinished.insert(job.way);
    }

    fn pump_all(&mut self) {
        let ways: Vec<Way> = self.unfinished.iter().cloned().collect();
        for way in ways {
            self.pump(&way);
        }
    }

    /// Sends what the pipeline may send now.
    fn pump(&mut self, way: &Way) {
        if self.paused_until.is_some() {
            return;
        }
        let Some(connection) = &self.connection else { return };
        while let Some(send) =
            self.pipelines.get_mut(way).and_then(|pipeline| pipeline.next(Instant::now()))
        {
            let command = self.command(way, &send);
            let mut connection = connection.clone();
            let (way, sequence, number) = (way.clone(), send.sequence, self.connections);
            // Polled in the order of pushing, so written in that order. Another order would only cost a round
            // trip: the script would answer `gap`.
            self.answers.push(Box::pin(async move {
                let result = connection.send_packed_command(&command).await;
                Answered { way, sequence, connection: number, result }
            }));
        }
    }

    fn command(&self, way: &Way, send: &Send) -> Cmd {
        let name = &way.name;
        let producer = way.producer.as_deref().unwrap_or(&self.producer);
        let sequence = |sequence: u64| format!("{:016}{sequence:016}", send.incarnation);
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(self.script.get_hash())
            .arg(
                2 + usize::from(send.keeps.is_some()) + usize::from(send.idempotency_key.is_some()),
            )
            .arg(self.keys.stream(name))
            .arg(self.keys.producer_record(name, producer));
        if send.keeps.is_some() {
            command.arg(self.keys.settings(name.channel.partition()));
        }
        if let Some(id) = &send.idempotency_key {
            command.arg(self.keys.idempotency(name, id));
        }
        command
            .arg(self.keys.notification(name))
            .arg(format!("{}-*", send.epoch))
            .arg(send.before.map_or(String::new(), sequence))
            .arg(sequence(send.sequence))
            .arg(options(name, send));
        for row in send.rows.iter() {
            command.arg(row);
        }
        if send.idempotency_key.is_some() {
            command.arg(IDEMPOTENCY_KEY_LIFETIME.as_millis() as u64);
        }
        command
    }

    async fn on_answer(&mut self, answered: Answered) {
        let Answered { way, sequence, connection, result } = answered;
        // A refusal comes as a value.
        let answer = match result.and_then(Value::extract_error).and_then(read_answer) {
            Ok(answer) => {
                // Only now: a demoted server takes connections and answers, and appends nothing.
                if matches!(answer, Answer::Appended { .. }) {
                    self.backoff.reset();
                    self.outage.is_over();
                }
                answer
            }
            Err(error) => self.judge(&error, connection).await,
        };
        if let Some(pipeline) = self.pipelines.get_mut(&way) {
            pipeline.answered(sequence, answer, Instant::now());
        }
        self.pump(&way);
        if self.pipelines.get(&way).is_none_or(Pipeline::is_done) {
            self.unfinished.remove(&way);
        }
    }

    /// What a failure means for the batch, and what to do about its cause.
    async fn judge(&mut self, error: &RedisError, connection: u64) -> Answer {
        let is_current = connection == self.connections && self.connection.is_some();
        match failure(error) {
            Failure::NoScript => {
                if is_current {
                    self.load_script().await;
                }
                Answer::Failed
            }
            Failure::Passing => {
                self.failed(OutageKind::refused(error), error);
                Answer::NotNow
            }
            Failure::Demoted if !is_current => Answer::NotNow,
            Failure::Connection if !is_current => Answer::Failed,
            Failure::Demoted => {
                self.connection = None;
                self.failed(OutageKind::refused(error), error);
                Answer::NotNow
            }
            Failure::Connection => {
                self.connection = None;
                self.failed(OutageKind::Unreachable, error);
                Answer::Failed
            }
            Failure::Lasting => {
                tracing::error!(%error, "redis refused an append");
                Answer::Refused(error.to_string())
            }
        }
    }

    /// Pauses.
    fn failed(&mut self, trouble: OutageKind, error: &RedisError) {
        if self.paused_until.is_none() {
            self.paused_until = Some(Instant::now() + self.backoff.next());
        }
        self.outage.failed(trouble, error);
    }

    async fn load_script(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(include_str!("append.lua"));
        if let Err(error) = load.exec_async(connection).await {
            self.connection = None;
            self.failed(OutageKind::Unreachable, &error);
        }
    }

    /// Which of the script's calls this Redis user may not make.
    async fn check_permissions(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let needed = permissions::of_appends(&self.keys, &self.producer);
        match permissions::missing(connection, &needed).await {
            Ok(None) => {}
            Ok(Some(why)) => {
                let error =
                    RedisError::from((redis::ErrorKind::AuthenticationFailed, "", why.clone()));
                self.refuse_all(&why, &error);
            }
            Err(error) if error.code().is_some() => self.refuse_all(&error.to_string(), &error),
            Err(error) => {
                self.connection = None;
                self.failed(OutageKind::Unreachable, &error);
            }
        }
    }

    fn refuse_all(&mut self, why: &str, error: &RedisError) {
        self.connection = None;
        self.failed(OutageKind::Refused("NOPERM".to_owned()), error);
        for way in self.unfinished.drain() {
            if let Some(pipeline) = self.pipelines.get_mut(&way) {
                pipeline.fail_all(&AppendError::Refused(why.to_owned()));
            }
        }
    }

    fn connect_if_needed(&mut self) {
        let is_idle = self.unfinished.is_empty() || self.paused_until.is_some();
        if self.connection.is_some() || self.connecting.is_some() || is_idle {
            return;
        }
        let client = self.client.clone();
        self.connecting = Some(Box::pin(async move {
            let config = super::connection_config().set_pipeline_buffer_size(PIPELINE);
            client.get_multiplexed_async_connection_with_config(&config).await
        }));
    }

    async fn on_connected(&mut self, connected: RedisResult<MultiplexedConnection>) {
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.connections += 1;
                self.load_script().await;
                self.check_permissions().await;
                self.pump_all();
            }
            Err(error) => self.failed(OutageKind::Unreachable, &error),
        }
    }
}

/// The options of `append.lua`.
fn options(name: &Name, send: &Send) -> String {
    let Some(appended) = send.keeps else { return String::new() };
    let flags = match (send.open, send.buries) {
        (true, true) => "obk",
        (false, true) => "bk",
        (true, false) => "ok",
        (false, false) => "k",
    };
    let retention = keys::retention(Retention::default().of(name));
    format!(
        "{flags} {} {appended} {} {retention}",
        PRODUCER_RECORD_LIFETIME.as_millis(),
        Retention::field(name)
    )
}

/// What `append.lua` answers.
fn read_answer(value: Value) -> RedisResult<Answer> {
    let text = String::from_redis_value(value)?;
    let (status, rest) = text.split_once(' ').unwrap_or((&text, ""));
    let unexpected = || wire::unexpected("an answer of the append script", &text);
    Ok(match status {
        "ok" | "known" => {
            let listeners = rest.split(' ').nth(2).and_then(|listeners| listeners.parse().ok());
            Answer::Appended {
                place: Place::parse(rest)?,
                listeners: listeners.ok_or_else(unexpected)?,
                known: status == "known",
            }
        }
        "gap" => Answer::Gap(rest.parse().ok()),
        "fenced" => Answer::Fenced,
        "conflict" if rest == "event" => Answer::Conflict("event"),
        "conflict" => Answer::Conflict("data"),
        "overtaken" => Answer::Overtaken(rest.parse().map_err(|_| unexpected())?),
        _ => return Err(unexpected()),
    })
}
