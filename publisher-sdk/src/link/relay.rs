//! The verbs of an agent behind a relay, as calls over its WebSocket.
//!
//! [`RecordLink`](super::RecordLink) → **relay** → [`relay_client`](super::relay_client), which keeps the
//! connection and repeats what had no answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use journal::{
    AppendError, Appended, ApprovalAnswer, Asked, CommandOutcome, NewApproval, NewEntry, Parent,
    Resolved, Take, Unavailable,
};
use protocol::agent::body;
use protocol::{AgentCall, Asks, Channel, check_data};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::follow::{self, FollowRequests};
use super::relay_client::{Client, Job, Leases};
use super::{AppendReceipt, LinkError, LinkFollower, LinkUpdates};
use crate::ConnectError;

/// What may wait to be published, in bytes: 16 MiB.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Calls that may wait for the connection to take them.
const JOBS: usize = 4096;
/// How long a call waits for its answer; publishing waits as long as it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// One agent's way through a relay.
#[derive(Debug)]
pub(crate) struct RelayLink {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    leases: Leases,
    requests: Arc<FollowRequests>,
    /// Until the agent follows.
    updates: Mutex<Option<LinkUpdates>>,
}

impl RelayLink {
    pub(super) fn open(url: &str, agent: &str, token: Option<&str>) -> Result<Self, ConnectError> {
        let (jobs, received) = mpsc::channel(JOBS);
        let leases = Leases::default();
        let (requests, told, updates) = follow::through_relay();
        let following = (Arc::clone(&requests), told);
        Client::start(url, agent, token, received, leases.clone(), following)?;
        let (room, updates) = (Arc::new(Semaphore::new(BUFFER_BYTES)), Mutex::new(Some(updates)));
        Ok(Self { jobs, room, leases, requests, updates })
    }

    pub(super) async fn ready(&self) -> Result<(), LinkError> {
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
    ) -> Result<A, LinkError> {
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
            Ok(Err(_)) => return Err(closed()),
            Err(_) => return Err(LinkError::unavailable("the relay does not answer")),
        };
        let data = hears.data.as_ref().map_or("null", |data| data.get());
        serde_json::from_str(data).map_err(|error| LinkError::unavailable(&error.to_string()))
    }

    pub(super) async fn enqueue(
        &self,
        channel: &Channel,
        entries: Vec<NewEntry>,
    ) -> Result<AppendReceipt, AppendError> {
        let room = Arc::clone(&self.room).acquire_many_owned(cost(&entries)?).await;
        let room = Arc::new(room.map_err(|_| AppendError::Unavailable)?);
        let slots = self.jobs.reserve_many(entries.len()).await;
        let mut answers = Vec::with_capacity(entries.len());
        for (slot, entry) in slots.map_err(|_| AppendError::Unavailable)?.zip(entries) {
            let refused = |error: &dyn std::fmt::Display| AppendError::Refused(error.to_string());
            check_data(&entry.data).map_err(|error| refused(&error))?;
            let data = RawValue::from_string(entry.data.into()).map_err(|error| refused(&error))?;
            let (answer, answered) = oneshot::channel();
            slot.send(Job::Call {
                call: AgentCall::Publish,
                channel: channel.clone(),
                event: Some(entry.name),
                data,
                answer,
                room: Some(Arc::clone(&room)),
            });
            answers.push(answered);
        }
        let appended = async move {
            let mut appended = Vec::with_capacity(answers.len());
            for answered in answers {
                let hears = answered.await.map_err(|_| AppendError::Unavailable)??;
                let offset = hears.offset.as_deref().and_then(|offset| offset.parse().ok());
                let offset = offset.ok_or(AppendError::Unavailable)?;
                appended.push(Appended { offset, listeners: 0 });
            }
            Ok(appended)
        };
        Ok(appended.boxed())
    }

    /// Takes a lease, and keeps it over every reconnect. The token is cancelled when it is lost.
    pub(super) async fn lease(
        &self,
        channel: &Channel,
        incarnation: Option<u64>,
        parent: Option<&Parent>,
    ) -> Result<(u64, CancellationToken), LinkError> {
        let body = body::LeaseCall { incarnation, parent: parent.cloned() };
        let leased: body::Leased = self.call(AgentCall::Lease, channel, &body).await?;
        let lost = CancellationToken::new();
        self.leases.hold(channel, leased.incarnation, &lost);
        Ok((leased.incarnation, lost))
    }

    pub(super) async fn note(
        &self,
        channel: &Channel,
        note: &body::NoteCall,
    ) -> Result<(), LinkError> {
        self.call(AgentCall::Note, channel, note).await
    }

    /// The lease is not kept any more: it runs out.
    pub(super) fn forget(&self, channel: &Channel) {
        self.leases.forget(channel);
    }

    pub(super) async fn release(&self, channel: &Channel) -> Result<(), Unavailable> {
        // Not before: over a new connection it is taken back, and released there.
        let released = self.call::<()>(AgentCall::Release, channel, &()).await;
        self.forget(channel);
        match released {
            Err(LinkError::Unavailable(error)) => Err(error),
            // Refused, it is not held any more.
            _ => Ok(()),
        }
    }

    pub(super) async fn take(
        &self,
        channel: &Channel,
        key: Uuid,
        idempotent: bool,
    ) -> Result<Take, LinkError> {
        let body = body::TakeCall { key, idempotent };
        match self.call::<body::Taken>(AgentCall::Take, channel, &body).await {
            Ok(taken) => Ok(taken.take),
            Err(LinkError::Fenced) => Ok(Take::Fenced),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn progress(
        &self,
        channel: &Channel,
        key: Uuid,
        data: &str,
    ) -> Result<(), LinkError> {
        let data = serde_json::from_str(data);
        let data = data.map_err(|error| LinkError::Refused(error.to_string()))?;
        self.call(AgentCall::Progress, channel, &body::ProgressCall { key, data }).await
    }

    pub(super) async fn finish(
        &self,
        channel: &Channel,
        key: Uuid,
        outcome: &CommandOutcome,
    ) -> Result<bool, LinkError> {
        let detail = outcome.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
        let body = body::FinishCall { key, status: outcome.status, detail };
        let finished: body::Finished = self.call(AgentCall::Finish, channel, &body).await?;
        Ok(finished.finished)
    }

    pub(super) async fn ask(&self, new: &NewApproval) -> Result<Asked, LinkError> {
        let question = serde_json::from_str(&new.data);
        let question = question.map_err(|error| LinkError::Refused(error.to_string()))?;
        let body = body::AskCall {
            request_id: new.request_id.clone(),
            asks: new.asks,
            question,
            expires_in_ms: new.expires_in.as_millis() as u64,
            default: new.default,
            digest: new.digest.clone(),
        };
        let reply: body::AskReply = self.call(AgentCall::Ask, &new.channel, &body).await?;
        Ok(reply.answer.map_or(Asked::Pending, Asked::Answered))
    }

    pub(super) async fn resolve(
        &self,
        channel: &Channel,
        request_id: &str,
        asks: Asks,
        answer: &ApprovalAnswer,
    ) -> Result<Resolved, LinkError> {
        let (request_id, answer) = (request_id.into(), answer.clone());
        let body = body::ResolveCall { request_id, asks, answer, digest: None };
        self.call(AgentCall::Resolve, channel, &body).await
    }

    /// `adopt` or `disown`.
    pub(super) async fn family(
        &self,
        call: AgentCall,
        child: &str,
        parent: &Parent,
    ) -> Result<(), LinkError> {
        let own = Channel::agent(child).map_err(|error| LinkError::Refused(error.to_string()))?;
        self.call(call, &own, parent).await
    }

    /// An agent follows once.
    pub(super) fn follow(&self) -> (LinkFollower, LinkUpdates) {
        let updates = self.updates.lock().expect("no code panics with this lock held").take();
        let updates = updates.unwrap_or_else(|| follow::through_relay().2);
        (LinkFollower::Relay(Arc::clone(&self.requests)), updates)
    }
}

/// What the entries take of the buffer, their share of the bookkeeping included.
fn cost(entries: &[NewEntry]) -> Result<u32, AppendError> {
    let bytes = entries.iter().map(|entry| entry.name.len() + entry.data.len() + 64).sum();
    match u32::try_from(bytes) {
        Ok(cost) if bytes <= BUFFER_BYTES => Ok(cost),
        _ => Err(AppendError::TooLarge { bytes, limit: BUFFER_BYTES }),
    }
}

fn closed() -> LinkError {
    LinkError::unavailable("the link to the relay is closed")
}
