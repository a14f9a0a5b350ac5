//! Journals that are reached through a relay: for agents that have no Redis.
//!
//! [`client`] is the agent's end: it keeps one WebSocket, comes back to whichever replica answers, and
//! repeats what had no answer. [`desk`] is the relay's end: it does what one agent asks. What goes between
//! them is [`protocol::AgentFrame`] and [`protocol::AgentHears`], with the bodies in [`body`].
//!
//! Only what an agent needs is there: nobody's state can be written but through the steps that everybody
//! takes.

mod body;
mod client;
mod desk;
mod refused;

use std::sync::Arc;
use std::time::Duration;

use protocol::{AgentCall, Channel, check_data};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::append::AppendOutcome;
use crate::follow::{Follower, Updates};
use crate::read::Unavailable;
use crate::{
    Answer, AppendError, Appended, AskError, Asked, Asks, CommandOutcome, LeaseError, Name,
    NewApproval, NewEntry, OpenError, Parent, ReadyError, Receipt, Resolved, Take,
};
pub(crate) use body::Note;
use client::{Client, Job, Leases};
pub use desk::{AgentSession, follow_since};
use refused::Refused;

/// What may wait to be published, in bytes: 16 MiB.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Calls that may wait for the connection to take them.
const JOBS: usize = 4096;
/// How long a call waits for its answer; publishing waits as long as it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Relayed {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    leases: Leases,
}

impl Relayed {
    pub(crate) fn open(url: &str, agent: &str, token: Option<&str>) -> Result<Self, OpenError> {
        let (jobs, received) = mpsc::channel(JOBS);
        let leases = Leases::default();
        Client::start(url, agent, token, received, leases.clone())?;
        Ok(Self { jobs, room: Arc::new(Semaphore::new(BUFFER_BYTES)), leases })
    }

    pub(crate) async fn ready(&self) -> Result<(), ReadyError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Ready(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Makes a call, and waits for its answer.
    async fn call<A: serde::de::DeserializeOwned>(
        &self,
        call: AgentCall,
        channel: &Channel,
        body: &impl serde::Serialize,
    ) -> Result<A, Refused> {
        let data = serde_json::value::to_raw_value(body).expect("plain data");
        let (answer, answered) = oneshot::channel();
        let job =
            Job::Call { call, channel: channel.clone(), event: None, data, answer, room: None };
        let answered = async {
            drop(self.jobs.send(job).await);
            answered.await
        };
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        let hears = match answered {
            Ok(Ok(hears)) => hears?,
            Ok(Err(_)) => return Err(Refused::away("the journal is closed")),
            Err(_) => return Err(Refused::away("the relay does not answer")),
        };
        let data = hears.data.as_ref().map_or("null", |data| data.get());
        serde_json::from_str(data).map_err(|error| Refused::away(&error.to_string()))
    }

    pub(crate) async fn enqueue(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
    ) -> Result<Receipt, AppendError> {
        let room = Arc::clone(&self.room).acquire_many_owned(cost(&entries)?).await;
        let room = room.map_err(|_| AppendError::Unavailable)?;
        let slots = self.jobs.reserve_many(entries.len()).await;
        publish(slots.map_err(|_| AppendError::Unavailable)?, name, entries, room)
    }

    pub(crate) fn try_enqueue(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
    ) -> Result<Receipt, AppendError> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(cost(&entries)?);
        let room = room.map_err(|_| AppendError::Full)?;
        let slots = self.jobs.try_reserve_many(entries.len());
        publish(slots.map_err(|_| AppendError::Full)?, name, entries, room)
    }

    /// Takes a lease, and keeps it over every reconnect.
    pub(crate) async fn lease(
        &self,
        channel: &Channel,
        incarnation: Option<u64>,
        parent: Option<&Parent>,
        lost: &CancellationToken,
    ) -> Result<u64, LeaseError> {
        let body = body::Lease { incarnation, parent: parent.cloned() };
        let leased: body::Leased = self.call(AgentCall::Lease, channel, &body).await?;
        self.leases.hold(channel, leased.incarnation, lost);
        Ok(leased.incarnation)
    }

    pub(crate) async fn note(&self, channel: &Channel, note: Note) -> Result<(), LeaseError> {
        Ok(self.call(AgentCall::Note, channel, &note).await?)
    }

    /// The lease is not kept any more: it runs out.
    pub(crate) fn forget(&self, channel: &Channel) {
        self.leases.forget(channel);
    }

    pub(crate) async fn release(&self, channel: &Channel) -> Result<(), Unavailable> {
        // Not before: over a new connection it is taken back, and released there.
        let released = self.call(AgentCall::Release, channel, &()).await;
        self.forget(channel);
        Ok(released?)
    }

    pub(crate) async fn take(
        &self,
        channel: &Channel,
        key: Uuid,
        idempotent: bool,
    ) -> Result<Take, Unavailable> {
        let body = body::Take { key, idempotent };
        match self.call::<body::Taken>(AgentCall::Take, channel, &body).await {
            Ok(taken) => Ok(taken.take),
            Err(Refused::Fenced) => Ok(Take::Fenced),
            Err(refused) => Err(refused.into()),
        }
    }

    pub(crate) async fn progress(
        &self,
        channel: &Channel,
        key: Uuid,
        data: &str,
    ) -> Result<(), Unavailable> {
        let data = serde_json::from_str(data).map_err(|error| Unavailable(error.to_string()))?;
        let body = body::Progress { key, data };
        Ok(self.call(AgentCall::Progress, channel, &body).await?)
    }

    pub(crate) async fn finish(
        &self,
        channel: &Channel,
        key: Uuid,
        outcome: &CommandOutcome,
    ) -> Result<bool, Unavailable> {
        let detail = outcome.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
        let body = body::Finish { key, status: outcome.status, detail };
        let finished: body::Finished = self.call(AgentCall::Finish, channel, &body).await?;
        Ok(finished.finished)
    }

    pub(crate) async fn ask(&self, new: &NewApproval) -> Result<Asked, AskError> {
        let asked: Result<body::Asked, Refused> =
            self.call(AgentCall::Ask, &new.channel, &body::Ask::of(new)).await;
        match asked {
            Ok(asked) => Ok(asked.answer.map_or(Asked::Pending, Asked::Answered)),
            Err(Refused::Fenced) => Err(AskError::Fenced),
            Err(Refused::Elsewhere(channel)) => Err(AskError::Elsewhere(channel)),
            Err(Refused::Busy) => Err(AskError::Busy),
            Err(Refused::Not(why)) => Err(AskError::Refused(why)),
            Err(refused) => Err(Unavailable::from(refused).into()),
        }
    }

    pub(crate) async fn resolve(
        &self,
        channel: &Channel,
        request_id: &str,
        asks: Asks,
        answer: &Answer,
        digest: Option<&str>,
    ) -> Result<Resolved, Unavailable> {
        let body = body::Resolve {
            request_id: request_id.into(),
            asks,
            answer: answer.clone(),
            digest: digest.map(Into::into),
        };
        Ok(self.call(AgentCall::Resolve, channel, &body).await?)
    }

    pub(crate) async fn adopt(
        &self,
        call: AgentCall,
        child: &str,
        parent: &Parent,
    ) -> Result<(), Unavailable> {
        let own = Channel::agent(child).map_err(|error| Unavailable(error.to_string()))?;
        Ok(self.call(call, &own, parent).await?)
    }

    pub(crate) fn follow(&self) -> (Follower, Updates) {
        let jobs = self.jobs.clone();
        crate::follow::relayed(|following| {
            tokio::spawn(async move { jobs.send(Job::Follow(following)).await.is_ok() });
        })
    }
}

/// Takes each entry's place in the order of publishing; the receipt resolves when all are there.
fn publish<'a>(
    slots: impl Iterator<Item = mpsc::Permit<'a, Job>>,
    name: &Name,
    entries: Vec<NewEntry>,
    room: OwnedSemaphorePermit,
) -> Result<Receipt, AppendError> {
    let room = Arc::new(room);
    let mut answers = Vec::with_capacity(entries.len());
    for (slot, entry) in slots.zip(entries) {
        check_data(&entry.data).map_err(|error| AppendError::Refused(error.to_string()))?;
        let data = serde_json::value::RawValue::from_string(entry.data.into());
        let data = data.map_err(|error| AppendError::Refused(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let job = Job::Call {
            call: AgentCall::Publish,
            channel: name.channel.clone(),
            event: Some(entry.name),
            data,
            answer,
            room: Some(Arc::clone(&room)),
        };
        slot.send(job);
        answers.push(answered);
    }
    let (done, receipt) = oneshot::channel::<AppendOutcome>();
    tokio::spawn(async move {
        let mut appended = Vec::with_capacity(answers.len());
        for answered in answers {
            match answered.await {
                Ok(Ok(hears)) => {
                    match hears.offset.as_deref().and_then(|offset| offset.parse().ok()) {
                        Some(offset) => appended.push(Appended { offset, listeners: 0 }),
                        None => return drop(done.send(Err(AppendError::Unavailable))),
                    }
                }
                Ok(Err(refused)) => return drop(done.send(Err(refused.into()))),
                Err(_) => return drop(done.send(Err(AppendError::Unavailable))),
            }
        }
        drop(done.send(Ok(appended)));
    });
    Ok(Receipt::waiting(receipt))
}

fn cost(entries: &[NewEntry]) -> Result<u32, AppendError> {
    let bytes = entries.iter().map(NewEntry::cost).sum();
    let too_large = AppendError::TooLarge { bytes, limit: BUFFER_BYTES };
    if bytes > BUFFER_BYTES {
        return Err(too_large);
    }
    u32::try_from(bytes).map_err(|_| too_large)
}

/// What is a relay's to do, an agent cannot ask for.
pub(crate) fn not_here() -> Unavailable {
    Unavailable("the journals are behind a relay, which does that itself".to_owned())
}

fn closed() -> Unavailable {
    Unavailable("the journal is closed".to_owned())
}
