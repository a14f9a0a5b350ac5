//! One agent behind a relay: who it is, the leases that it holds, and what each call does to the journal.
//!
//! [`calls`](super::calls) → **session** → [`journal`]
//!
//! The connection is the agent's proof of life: dropped with it, the leases run out, unless the agent has come
//! back by then and taken them anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use journal::{
    AdoptError, AppendError, AskError, Asked, CommandOutcome, Holder, Journal, Kept, Lease,
    LeaseError, Name, NewApproval, NewEntry, NoteCall, Take, Unavailable,
};
use protocol::agent::body::{
    AskCall, AskReply, EndRunCall, FinishCall, Finished, LeaseCall, Leased, ProgressCall,
    ResolveCall, TakeCall, Taken, UnaskCall,
};
use protocol::limits::APPROVAL_WAIT_MAX;
use protocol::{AgentCall, AgentError, AgentMessage, CallBody, Channel, ErrorCode, Kind};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::outbox::Outbox;

/// What is kept of the end of a run, about, beside its event.
const RUN_END_BYTES: usize = 512;
/// What a field of a note takes, about, beside the name.
const NOTE_BYTES: usize = 64;

/// Does what one agent asks. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct AgentSession {
    journal: Journal,
    agent: Arc<str>,
    /// The agent's own channel.
    own: Channel,
    /// Whose pace counts what is kept for the agent.
    sender: Arc<str>,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// Who the agent is, once it has taken the lease of its own channel.
    holder: Option<Holder>,
    /// A newer incarnation has taken over, or this one was declared lost.
    is_fenced: bool,
    leases: HashMap<Channel, WatchedLease>,
}

impl Held {
    /// Who has lost its own channel holds no other either. The lease of its own channel stays, with the task that
    /// tells of it.
    fn fence(held: &Mutex<Self>, own: &Channel) {
        let mut held = held.lock().expect("no code panics with this lock held");
        held.is_fenced = true;
        let others: Vec<_> = held.leases.extract_if(|channel, _| channel != own).collect();
        drop(held);
        drop(others);
    }
}

/// A lease, and the task that tells the agent of its loss.
#[derive(Debug)]
struct WatchedLease {
    lease: Arc<Lease>,
    _watch: AbortOnDropHandle<()>,
}

type CallReply = Result<Option<Box<RawValue>>, AgentError>;

impl AgentSession {
    pub(super) fn new(journal: Journal, own: Channel, sender: &str) -> Self {
        let (agent, sender) = (own.id().into(), sender.into());
        Self { journal, agent, own, sender, held: Arc::default() }
    }

    /// The agent's id.
    pub(super) fn agent(&self) -> &str {
        &self.agent
    }

    /// The agent's own channel.
    pub(super) fn own(&self) -> &Channel {
        &self.own
    }

    /// The lease of the channel, if it is held, ends without fencing the agent. A run that is open there is told as
    /// over.
    pub(super) async fn revoke(&self, channel: &Channel) {
        let watched = self.held().leases.remove(channel);
        if let Some(WatchedLease { lease, _watch: watch }) = watched {
            // First: this end is not a loss.
            drop(watch);
            if let Err(error) = lease.revoke().await {
                tracing::warn!(%channel, %error, "a lease could not be revoked, it runs out");
            }
        }
    }

    /// Whether the agent has a lease on the channel here.
    pub(super) fn holds(&self, channel: &Channel) -> bool {
        self.held().leases.contains_key(channel)
    }

    /// All leases end, that of the agent's own channel last.
    pub(super) async fn revoke_all(&self) {
        let held: Vec<Channel> = self.held().leases.keys().cloned().collect();
        let others = held.iter().filter(|channel| **channel != self.own);
        join_all(others.map(|channel| self.revoke(channel))).await;
        self.revoke(&self.own).await;
    }

    /// The agent has been silent: its leases last so much longer and are not renewed any more, unless it comes
    /// back and takes them anew.
    pub(super) async fn let_lapse(&self, lasts: Duration) {
        let leases: Vec<(Channel, WatchedLease)> = self.held().leases.drain().collect();
        let held = |(channel, watched): &(Channel, WatchedLease)| {
            (channel.clone(), watched.lease.holder().clone(), watched.lease.taking())
        };
        let held: Vec<(Channel, Holder, Uuid)> = leases.iter().map(held).collect();
        // First, so that no renewal comes after it.
        drop(leases);
        if let Err(error) = self.journal.let_lapse(&held, lasts).await {
            tracing::debug!(%error, "the leases of a silent agent end later than they might");
        }
    }

    /// Gives a published event its place in the channel's order; the future is the reply.
    pub(super) async fn publish(&self, call: AgentCall) -> BoxFuture<'static, AgentMessage> {
        let AgentCall { id, channel, body } = call;
        let CallBody::Publish(event, data) = body else {
            let error = AgentError::new(ErrorCode::BadRequest, "not a publish");
            return std::future::ready(reply(id, Err(error))).boxed();
        };
        let placed = async {
            let holder = self.holder()?;
            let entry = NewEntry::new(event, data);
            let journal = self.journal.as_producer(&holder);
            self.journal.growth().wait(&self.sender, Kept::Long, 0).await;
            // Repeated on another connection, it is the same: the id is its number in the journal's order.
            let name = Name::events(channel);
            journal.enqueue_numbered(&name, id, entry).await.map_err(append_error)
        };
        let receipt = match placed.await {
            Ok(receipt) => receipt,
            Err(error) => return std::future::ready(reply(id, Err(error))).boxed(),
        };
        let (journal, sender) = (self.journal.clone(), Arc::clone(&self.sender));
        let replying = receipt.map(move |done| match done {
            Ok(appended) => {
                let offset = appended.first().and_then(|one| one.offset);
                if offset.is_some_and(|offset| offset.n == 1) {
                    journal.growth().charge_new(&sender);
                }
                AgentMessage::Ack { id, offset, data: None }
            }
            Err(error) => reply(id, Err(append_error(error))),
        });
        replying.boxed()
    }

    /// Does any other call.
    pub(super) async fn perform(&self, call: AgentCall, outbox: &Outbox) -> AgentMessage {
        let AgentCall { id, channel, body } = call;
        reply(id, self.done(&channel, body, outbox).await)
    }

    async fn done(&self, channel: &Channel, body: CallBody, outbox: &Outbox) -> CallReply {
        if let CallBody::Lease(call) = body {
            return self.lease(channel, call, outbox).await;
        }
        let (journal, holder) = (&self.journal, self.holder()?);
        match body {
            CallBody::Adopt(parent) => {
                journal.adopt(&parent, &holder).await.map_err(adopt_error)?;
                Ok(None)
            }
            CallBody::Disown(parent) => {
                journal.disown(&parent, &holder).await.map_err(unavailable)?;
                Ok(None)
            }
            CallBody::Note(change) => {
                self.pace(bytes_of(&change)).await;
                self.lease_of(channel)?.note(&change).await.map_err(lease_error)?;
                Ok(None)
            }
            CallBody::EndRun(EndRunCall { run_id, key, event, data }) => {
                self.pace(data.get().len() + RUN_END_BYTES).await;
                let end = NewEntry::new(event, data.get()).with_key(key);
                let ended = self.lease_of(channel)?.end_run(&run_id, &end).await;
                ended.map_err(lease_error)?.await;
                Ok(None)
            }
            CallBody::Release => {
                let watched = self.held().leases.remove(channel);
                let released = match watched {
                    Some(watched) => watched.lease.give_up().await,
                    // Said on a connection that broke, and again on this one.
                    None => journal.release(channel, &holder, None).await,
                };
                released.map_err(unavailable)?;
                Ok(None)
            }
            CallBody::Take(TakeCall { key, idempotent }) => {
                let take = journal.take(channel, key, &holder, idempotent).await;
                match take.map_err(unavailable)? {
                    Take::Fenced => Err(fenced()),
                    take => Ok(raw(&Taken { take })),
                }
            }
            CallBody::Progress(ProgressCall { key, data }) => {
                let told = journal.progress(channel, key, &holder, data.get()).await;
                told.map_err(unavailable)?;
                Ok(None)
            }
            CallBody::Finish(FinishCall { key, status, detail }) => {
                let detail: Option<Box<str>> = detail.map(|detail| detail.get().into());
                // A reply counts for the one who asked: a worker answers many.
                if channel.kind() != Kind::Service {
                    self.pace(detail.as_ref().map_or(0, |detail| detail.len())).await;
                }
                let outcome = CommandOutcome { status, detail };
                let finished = journal.finish(channel, key, &holder, &outcome).await;
                Ok(raw(&Finished { finished: finished.map_err(unavailable)? }))
            }
            CallBody::Ask(call) => {
                let question = approval(channel, call);
                let admitted = journal.growth().admit_question(&self.sender, &question);
                admitted
                    .map_err(|error| AgentError::new(ErrorCode::RateLimited, error.to_string()))?;
                let asked = journal.ask(&holder, &question).await;
                Ok(raw(&match asked.map_err(ask_error)? {
                    Asked::Pending => AskReply { answer: None },
                    Asked::Answered(answer) => AskReply { answer: Some(answer) },
                }))
            }
            CallBody::Unask(UnaskCall { request_id }) => {
                journal.unask(channel, &request_id, &holder).await.map_err(unavailable)?;
                Ok(None)
            }
            CallBody::Resolve(ResolveCall { request_id, asks, mut answer, digest }) => {
                // An agent answers in no person's name.
                answer.by = None;
                let digest = digest.as_deref();
                let resolved = journal.resolve(channel, &request_id, asks, &answer, digest).await;
                Ok(raw(&resolved.map_err(unavailable)?))
            }
            _ => Err(AgentError::new(ErrorCode::BadRequest, "this call is not done here")),
        }
    }

    async fn lease(&self, channel: &Channel, call: LeaseCall, outbox: &Outbox) -> CallReply {
        let LeaseCall { incarnation, parent } = call;
        let is_own = *channel.id() == *self.agent && channel.kind() == Kind::Agent;
        let incarnation = if is_own { incarnation } else { Some(self.holder()?.incarnation) };
        self.journal.growth().wait(&self.sender, Kept::Long, 0).await;
        let lease = self.journal.lease(channel, &self.agent, incarnation, parent.as_ref()).await;
        self.held().is_fenced |= matches!(lease, Err(LeaseError::Fenced));
        let lease = lease.map_err(lease_error)?;
        if lease.is_new() {
            self.journal.growth().charge_new(&self.sender);
        }
        let (holder, lost) = (lease.holder().clone(), lease.lost());
        let (outbox, about) = (outbox.clone(), channel.clone());
        let held = Arc::downgrade(&self.held);
        let watch = tokio::spawn(async move {
            lost.cancelled().await;
            if is_own && let Some(held) = held.upgrade() {
                Held::fence(&held, &about);
            }
            outbox.say(&AgentMessage::Fenced { channel: about }).await;
        });
        let incarnation = holder.incarnation;
        let watched =
            WatchedLease { lease: Arc::new(lease), _watch: AbortOnDropHandle::new(watch) };
        let mut held = self.held();
        if is_own {
            held.holder = Some(holder);
        }
        held.leases.insert(channel.clone(), watched);
        Ok(raw(&Leased { incarnation }))
    }

    /// Waits until so many bytes more may be kept for an hour.
    async fn pace(&self, bytes: usize) {
        self.journal.growth().wait(&self.sender, Kept::Briefly { is_cancel: false }, bytes).await;
    }

    fn holder(&self) -> Result<Holder, AgentError> {
        let held = self.held();
        match &held.holder {
            _ if held.is_fenced => Err(fenced()),
            Some(holder) => Ok(holder.clone()),
            None => {
                let message = format!("take the lease of `agent:{}` first", self.agent);
                Err(AgentError::new(ErrorCode::BadRequest, message))
            }
        }
    }

    fn lease_of(&self, channel: &Channel) -> Result<Arc<Lease>, AgentError> {
        let lease = self.held().leases.get(channel).map(|watched| Arc::clone(&watched.lease));
        lease.ok_or_else(|| {
            let message = format!("the agent holds no lease on `{channel}`");
            AgentError::new(ErrorCode::BadRequest, message)
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no code panics with this lock held")
    }
}

/// What a note keeps in Redis, about: a field for each run and channel that is added.
fn bytes_of(note: &NoteCall) -> usize {
    let runs = note.runs.added.iter().map(|run| run.len());
    let channels = note.channels.added.iter().map(|channel| channel.as_str().len());
    runs.chain(channels).map(|bytes| bytes + NOTE_BYTES).sum()
}

fn approval(channel: &Channel, call: AskCall) -> NewApproval {
    NewApproval {
        channel: channel.clone(),
        request_id: call.request_id,
        asks: call.asks,
        question: call.question.get().into(),
        expires_in: Duration::from_millis(call.expires_in_ms).min(APPROVAL_WAIT_MAX),
        default: call.default,
        digest: call.digest,
        durable: call.durable,
    }
}

fn reply(id: u64, reply: CallReply) -> AgentMessage {
    match reply {
        Ok(data) => AgentMessage::Ack { id, offset: None, data },
        Err(error) => AgentMessage::Error { id: Some(id), error },
    }
}

fn raw(body: &impl Serialize) -> Option<Box<RawValue>> {
    Some(to_raw_value(body).expect("plain data"))
}

fn fenced() -> AgentError {
    AgentError::new(ErrorCode::Fenced, LeaseError::Fenced.to_string())
}

fn unavailable(error: Unavailable) -> AgentError {
    AgentError::new(ErrorCode::Unavailable, error.to_string())
}

fn lease_error(error: LeaseError) -> AgentError {
    match error {
        LeaseError::Fenced => fenced(),
        LeaseError::Conflict => AgentError::new(ErrorCode::Conflict, error.to_string()),
        LeaseError::Full => AgentError::new(ErrorCode::LimitExceeded, error.to_string()),
        error => AgentError::new(ErrorCode::Unavailable, error.to_string()),
    }
}

fn adopt_error(error: AdoptError) -> AgentError {
    let code = match error {
        AdoptError::Full(_) => ErrorCode::LimitExceeded,
        _ => ErrorCode::Unavailable,
    };
    AgentError::new(code, error.to_string())
}

fn ask_error(error: AskError) -> AgentError {
    let message = error.to_string();
    match error {
        AskError::Fenced => fenced(),
        AskError::Busy => AgentError::new(ErrorCode::Busy, message),
        AskError::Conflict(_) => AgentError::new(ErrorCode::Conflict, message),
        _ => AgentError::new(ErrorCode::Unavailable, message),
    }
}

fn append_error(error: AppendError) -> AgentError {
    let message = error.to_string();
    match error {
        AppendError::Fenced => fenced(),
        AppendError::TooLarge { .. } => AgentError::new(ErrorCode::TooLarge, message),
        error if error.is_retryable() => AgentError::new(ErrorCode::Unavailable, message),
        _ => AgentError::new(ErrorCode::BadRequest, message),
    }
}

#[cfg(test)]
mod tests;
