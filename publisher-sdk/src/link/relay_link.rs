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
use protocol::agent::body::{
    AskCall, AskReply, EndRunCall, FinishCall, Finished, LeaseCall, Leased, NoteCall, ProgressCall,
    ResolveCall, TakeCall, Taken,
};
use protocol::limits::{AGENT_CALLS_BYTES_MAX, AGENT_FRAME_BYTES_MAX};
use protocol::{AgentCall, AgentMessage, Asks, CallBody, Channel, check_data};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::follow::{self, FollowRequests};
use super::relay_client::{Client, Job, RelayLeases};
use super::{AppendReceipt, LinkError, LinkFollower, LinkUpdates};
use crate::ConnectError;

/// What may wait to be published, in bytes: 16 MiB.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Calls that may wait for the connection to take them.
const JOBS: usize = 4096;
/// The same for all other calls: what may be under way, and as much again.
const CALL_BYTES: usize = 2 * AGENT_CALLS_BYTES_MAX;
/// How long a call waits for its reply; publishing waits as long as it takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// One agent's way through a relay.
#[derive(Debug)]
pub(crate) struct RelayLink {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    call_room: Arc<Semaphore>,
    leases: RelayLeases,
    requests: Arc<FollowRequests>,
    /// Until the agent follows.
    updates: Mutex<Option<LinkUpdates>>,
}

impl RelayLink {
    pub(super) fn open(url: &str, agent: &str, token: Option<&str>) -> Result<Self, ConnectError> {
        let (jobs, received) = mpsc::channel(JOBS);
        let leases = RelayLeases::default();
        let (requests, told, updates) = follow::through_relay();
        let following = (Arc::clone(&requests), told);
        Client::start(url, agent, token, received, leases.clone(), following)?;
        let (room, updates) = (Arc::new(Semaphore::new(BUFFER_BYTES)), Mutex::new(Some(updates)));
        let call_room = Arc::new(Semaphore::new(CALL_BYTES));
        Ok(Self { jobs, room, call_room, leases, requests, updates })
    }

    pub(super) async fn ready(&self) -> Result<(), LinkError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Ready(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Makes a call, and waits for its reply.
    async fn call<A: DeserializeOwned>(
        &self,
        channel: &Channel,
        body: CallBody,
    ) -> Result<A, LinkError> {
        let replied = async {
            let call = AgentCall { id: 0, channel: channel.clone(), body };
            let bytes = call.to_text().len();
            if bytes > AGENT_FRAME_BYTES_MAX {
                let message = format!("a call has at most {AGENT_FRAME_BYTES_MAX} bytes");
                return Err(LinkError::Refused(message));
            }
            let room = Arc::clone(&self.call_room).acquire_many_owned(bytes as u32).await;
            let room = Some(Arc::new(room.map_err(|_| closed())?));
            let (reply, replied) = oneshot::channel();
            let job = Job::Call { channel: call.channel, body: call.body, reply, room };
            self.jobs.send(job).await.map_err(|_| closed())?;
            replied.await.map_err(|_| closed())?
        };
        let replied = timeout(CALL_TIMEOUT, replied).await;
        match replied.map_err(|_| LinkError::unavailable("the relay does not answer"))?? {
            AgentMessage::Ack { data, .. } => {
                let data = data.as_deref().map_or("null", RawValue::get);
                let read = serde_json::from_str(data);
                read.map_err(|error| LinkError::unavailable(&error.to_string()))
            }
            _ => Err(LinkError::unavailable("the relay's reply cannot be read")),
        }
    }

    pub(super) async fn enqueue(
        &self,
        channel: &Channel,
        entries: Vec<NewEntry>,
    ) -> Result<AppendReceipt, AppendError> {
        let room = Arc::clone(&self.room).acquire_many_owned(cost(&entries)?).await;
        let room = Arc::new(room.map_err(|_| AppendError::Unavailable)?);
        let slots = self.jobs.reserve_many(entries.len()).await;
        let mut replies = Vec::with_capacity(entries.len());
        for (slot, entry) in slots.map_err(|_| AppendError::Unavailable)?.zip(entries) {
            let refused = |error: &dyn std::fmt::Display| AppendError::Refused(error.to_string());
            check_data(&entry.data).map_err(|error| refused(&error))?;
            let (reply, replied) = oneshot::channel();
            let (body, room) = (CallBody::Publish(entry.name, entry.data), Some(Arc::clone(&room)));
            slot.send(Job::Call { channel: channel.clone(), body, reply, room });
            replies.push(replied);
        }
        let appended = async move {
            let mut appended = Vec::with_capacity(replies.len());
            for replied in replies {
                let reply = replied.await.map_err(|_| AppendError::Unavailable)??;
                // Absent where it is a repetition of something that stands somewhere before.
                let AgentMessage::Ack { offset, .. } = reply else {
                    return Err(AppendError::Unavailable);
                };
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
        let body = LeaseCall { incarnation, parent: parent.cloned() };
        let leased: Leased = self.call(channel, CallBody::Lease(body)).await?;
        let lost = CancellationToken::new();
        self.leases.hold(channel, leased.incarnation, &lost);
        Ok((leased.incarnation, lost))
    }

    pub(super) async fn note(&self, channel: &Channel, note: NoteCall) -> Result<(), LinkError> {
        self.call(channel, CallBody::Note(note)).await
    }

    pub(super) async fn end_run(
        &self,
        channel: &Channel,
        run_id: &str,
        entry: &NewEntry,
    ) -> Result<(), LinkError> {
        let data = serde_json::from_str(&entry.data);
        let end = EndRunCall {
            run_id: run_id.into(),
            key: entry.idempotency_key.clone().unwrap_or_default(),
            event: entry.name.clone(),
            data: data.map_err(|error| LinkError::Refused(error.to_string()))?,
        };
        self.call(channel, CallBody::EndRun(end)).await
    }

    /// The lease is not kept any more: it runs out.
    pub(super) fn forget(&self, channel: &Channel) {
        self.leases.forget(channel);
    }

    pub(super) async fn release(&self, channel: &Channel) -> Result<(), Unavailable> {
        // Not before: over a new connection it is taken back, and released there.
        let released = self.call::<()>(channel, CallBody::Release).await;
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
        let body = TakeCall { key, idempotent };
        match self.call::<Taken>(channel, CallBody::Take(body)).await {
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
        self.call(channel, CallBody::Progress(ProgressCall { key, data })).await
    }

    pub(super) async fn finish(
        &self,
        channel: &Channel,
        key: Uuid,
        outcome: &CommandOutcome,
    ) -> Result<bool, LinkError> {
        let detail = outcome.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
        let body = FinishCall { key, status: outcome.status, detail };
        let finished: Finished = self.call(channel, CallBody::Finish(body)).await?;
        Ok(finished.finished)
    }

    pub(super) async fn ask(&self, new: &NewApproval) -> Result<Asked, LinkError> {
        let question = serde_json::from_str(&new.data);
        let question = question.map_err(|error| LinkError::Refused(error.to_string()))?;
        let body = AskCall {
            request_id: new.request_id.clone(),
            asks: new.asks,
            question,
            expires_in_ms: new.expires_in.as_millis() as u64,
            default: new.default,
            digest: new.digest.clone(),
        };
        let reply: AskReply = self.call(&new.channel, CallBody::Ask(body)).await?;
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
        let body = ResolveCall { request_id, asks, answer, digest: None };
        self.call(channel, CallBody::Resolve(body)).await
    }

    /// `adopt` or `disown`, said by the child.
    pub(super) async fn family(&self, child: &str, body: CallBody) -> Result<(), LinkError> {
        let own = Channel::agent(child).map_err(|error| LinkError::Refused(error.to_string()))?;
        self.call(&own, body).await
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
