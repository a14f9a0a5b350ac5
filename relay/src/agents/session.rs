//! The relay's end of the way through a relay: does what one agent asks.
//!
//! The session holds the agent's leases, so that the connection is the proof of life: dropped with the
//! connection, they run out, unless the agent has come back by then and taken them anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{
    AppendError, Appended, AskError, Asked, CommandOutcome, Holder, Journal, Lease, LeaseError,
    Name, NewApproval, NewEntry, Receipt, Status, Take, Unavailable,
};
use protocol::agent::body;
use protocol::limits::{APPROVAL_WAIT_MAX, REASON_BYTES_MAX};
use protocol::{
    AgentCall, AgentFrame, AgentHears, AgentNews, Channel, ErrorCode, check_data, check_event_name,
    check_idempotency_key,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Does what one agent asks. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct AgentSession {
    journal: Journal,
    agent: Arc<str>,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// Who the agent is, once it has taken the lease of its own channel.
    holder: Option<Holder>,
    /// It is no longer who it was.
    is_fenced: bool,
    leases: HashMap<Channel, Arc<Lease>>,
}

/// Why a call is not done.
#[derive(Debug)]
struct No {
    code: &'static str,
    message: String,
    retryable: bool,
    channel: Option<Channel>,
}

type Done = Result<Box<RawValue>, No>;

impl AgentSession {
    /// A session for the agent of this id.
    pub(super) fn new(journal: Journal, agent: &str) -> Self {
        Self { journal, agent: agent.into(), held: Arc::default() }
    }

    /// Begins what is asked, in the order of asking; the future says what to answer. `follow` and
    /// `unfollow` are the owner's: it knows where commands come from.
    pub(super) async fn begin(&self, frame: AgentFrame) -> BoxFuture<'static, AgentHears> {
        let AgentFrame { call, id, channel, event, data } = frame;
        let data = data.as_deref().map_or("null", RawValue::get).to_owned();
        match call {
            // What follows may need it.
            AgentCall::Lease => {
                std::future::ready(answer(id, self.lease(channel, &data).await)).boxed()
            }
            AgentCall::Publish => match self.publish(id, channel, event, data).await {
                Ok(receipt) => receipt.map(move |done| published(id, done)).boxed(),
                Err(no) => std::future::ready(answer(id, Err(no))).boxed(),
            },
            _ => {
                let session = self.clone();
                async move { answer(id, session.perform(call, &channel, &data).await) }.boxed()
            }
        }
    }

    /// What is cancelled when the lease on `channel`, if it is held, is lost.
    pub(super) fn lost(&self, channel: &Channel) -> Option<CancellationToken> {
        self.held().leases.get(channel).map(|lease| lease.lost())
    }

    /// The agent has been silent: its leases last so much longer and are not renewed any more, unless it comes
    /// back and takes them anew.
    pub(super) async fn let_lapse(&self, lasts: Duration) {
        let leases: Vec<(Channel, Arc<Lease>)> = self.held().leases.drain().collect();
        let held: Vec<(Channel, Holder, Uuid)> = (leases.iter())
            .map(|(channel, lease)| (channel.clone(), lease.holder().clone(), lease.taking()))
            .collect();
        // First, so that no renewal comes after it.
        drop(leases);
        if let Err(error) = self.journal.let_lapse(&held, lasts).await {
            tracing::debug!(%error, "leases end later than they might");
        }
    }

    async fn lease(&self, channel: Channel, data: &str) -> Done {
        let body::LeaseCall { incarnation, parent } = read::<Option<_>>(data)?.unwrap_or_default();
        let is_own = *channel.id() == *self.agent && channel.kind() == protocol::Kind::Agent;
        let incarnation = if is_own { incarnation } else { Some(self.holder()?.incarnation) };
        let lease = self.journal.lease(&channel, &self.agent, incarnation, parent.as_ref()).await;
        self.held().is_fenced |= matches!(lease, Err(LeaseError::Fenced));
        let lease = lease.map_err(No::from)?;
        let holder = lease.holder().clone();
        let mut held = self.held();
        if is_own {
            held.holder = Some(holder.clone());
        }
        held.leases.insert(channel, Arc::new(lease));
        Ok(raw(&body::Leased { incarnation: holder.incarnation }))
    }

    async fn publish(
        &self,
        id: u64,
        channel: Channel,
        event: Option<Box<str>>,
        data: String,
    ) -> Result<Receipt, No> {
        let holder = self.holder()?;
        let event = event.ok_or_else(|| bad("`event` is missing"))?;
        check_event_name(&event).map_err(|error| bad(error.to_string()))?;
        check_data(&data).map_err(|error| bad(error.to_string()))?;
        // Said again on another connection, it is the same.
        let once = format!("{}.{}.{id}", self.agent, holder.incarnation);
        let entry = NewEntry::new(event, data).with_key(once);
        let journal = self.journal.as_producer(&holder);
        journal.enqueue(&Name::events(channel), vec![entry]).await.map_err(No::from)
    }

    async fn perform(&self, call: AgentCall, channel: &Channel, data: &str) -> Done {
        let holder = self.holder()?;
        match call {
            AgentCall::Adopt => {
                self.journal.adopt(&read(data)?, &holder).await?;
                Ok(raw(&()))
            }
            AgentCall::Disown => {
                self.journal.disown(&read(data)?, &holder).await?;
                Ok(raw(&()))
            }
            AgentCall::Note => {
                let body::NoteCall { runs, channels } = read(data)?;
                let lease = self.lease_of(channel)?;
                if let Some(runs) = runs {
                    lease.note_runs(runs).await?;
                }
                if let Some(channels) = channels {
                    lease.note_channels(channels).await?;
                }
                Ok(raw(&()))
            }
            AgentCall::Release => {
                let lease = self.held().leases.remove(channel);
                match lease {
                    Some(lease) => lease.give_up().await?,
                    // Said on a connection that broke, and again on this one.
                    None => self.journal.release(channel, &holder, None).await?,
                }
                Ok(raw(&()))
            }
            AgentCall::Take => {
                let body::TakeCall { key, idempotent } = read(data)?;
                let take = self.journal.take(channel, key, &holder, idempotent).await?;
                if take == Take::Fenced {
                    return Err(LeaseError::Fenced.into());
                }
                Ok(raw(&body::Taken { take }))
            }
            AgentCall::Progress => {
                let body::ProgressCall { key, data } = read(data)?;
                self.journal.progress(channel, key, &holder, data.get()).await?;
                Ok(raw(&()))
            }
            AgentCall::Finish => {
                let body::FinishCall { key, status, detail } = read(data)?;
                if !matches!(status, Status::Applied | Status::Rejected) {
                    return Err(bad("`status` is `applied` or `rejected`"));
                }
                let outcome =
                    CommandOutcome { status, detail: detail.map(|detail| detail.get().into()) };
                let finished = self.journal.finish(channel, key, &holder, &outcome).await?;
                Ok(raw(&body::Finished { finished }))
            }
            AgentCall::Ask => {
                let approval = approval(channel, read(data)?);
                check_idempotency_key(&approval.request_id)
                    .map_err(|error| bad(error.to_string()))?;
                check_data(&approval.data).map_err(|error| bad(error.to_string()))?;
                match self.journal.ask(&holder, &approval).await? {
                    Asked::Pending => Ok(raw(&body::AskReply { answer: None })),
                    Asked::Answered(answer) => Ok(raw(&body::AskReply { answer: Some(answer) })),
                }
            }
            AgentCall::Resolve => {
                let body::ResolveCall { request_id, asks, mut answer, digest } = read(data)?;
                if answer.reason.as_ref().is_some_and(|why| why.len() > REASON_BYTES_MAX) {
                    return Err(bad(format!("`reason` has more than {REASON_BYTES_MAX} bytes")));
                }
                // An agent answers in nobody's name.
                answer.by = None;
                let digest = digest.as_deref();
                Ok(raw(&self.journal.resolve(channel, &request_id, asks, &answer, digest).await?))
            }
            _ => Err(bad("not asked here")),
        }
    }

    fn holder(&self) -> Result<Holder, No> {
        let held = self.held();
        match &held.holder {
            _ if held.is_fenced => Err(No::fenced()),
            Some(holder) => Ok(holder.clone()),
            None => Err(no_lease(&self.agent)),
        }
    }

    fn lease_of(&self, channel: &Channel) -> Result<Arc<Lease>, No> {
        let lease = self.held().leases.get(channel).cloned();
        lease.ok_or_else(|| bad(format!("there is no lease on `{channel}`")))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no code panics with this lock held")
    }
}

/// Where a follower that comes back goes on.
///
/// # Errors
/// The `error` frame to say.
pub(super) fn follow_since(frame: &AgentFrame) -> Result<protocol::frame::Since, Box<AgentHears>> {
    let data = frame.data.as_deref().map_or("null", RawValue::get);
    let since = || {
        let follow: body::FollowCall = read::<Option<_>>(data)?.unwrap_or_default();
        let since = follow.since.as_deref().unwrap_or("start");
        protocol::frame::parse_since(since).map_err(|refusal| bad(refusal.message))
    };
    since().map_err(|no| Box::new(answer(frame.id, Err(no))))
}

fn approval(channel: &Channel, call: body::AskCall) -> NewApproval {
    NewApproval {
        channel: channel.clone(),
        request_id: call.request_id,
        asks: call.asks,
        data: call.question.get().into(),
        expires_in: Duration::from_millis(call.expires_in_ms).min(APPROVAL_WAIT_MAX),
        default: call.default,
        digest: call.digest,
    }
}

fn answer(id: u64, done: Done) -> AgentHears {
    match done {
        Ok(data) => {
            AgentHears { id: Some(id), data: Some(data), ..AgentHears::new(AgentNews::Ack) }
        }
        Err(no) => AgentHears {
            id: Some(id),
            channel: no.channel,
            code: Some(no.code.into()),
            message: Some(no.message),
            retryable: Some(no.retryable),
            ..AgentHears::new(AgentNews::Error)
        },
    }
}

fn published(id: u64, done: Result<Vec<Appended>, AppendError>) -> AgentHears {
    match done {
        Ok(appended) => AgentHears {
            id: Some(id),
            offset: appended.first().map(|appended| appended.offset.to_string()),
            ..AgentHears::new(AgentNews::Ack)
        },
        Err(error) => answer(id, Err(error.into())),
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, No> {
    serde_json::from_str(data).map_err(|error| bad(format!("`data`: {error}")))
}

fn raw(body: &impl Serialize) -> Box<RawValue> {
    to_raw_value(body).expect("plain data")
}

fn bad(message: impl Into<String>) -> No {
    No::new(ErrorCode::BadRequest, message)
}

fn no_lease(agent: &str) -> No {
    bad(format!("take the lease of `agent:{agent}` first"))
}

impl No {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let (retryable, message) = (code.is_retryable(), message.into());
        Self { code: code.as_str(), message, retryable, channel: None }
    }

    fn fenced() -> Self {
        let message = LeaseError::Fenced.to_string();
        Self { code: "fenced", message, retryable: false, channel: None }
    }
}

impl From<Unavailable> for No {
    fn from(error: Unavailable) -> Self {
        Self::new(ErrorCode::Unavailable, error.to_string())
    }
}

impl From<LeaseError> for No {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Fenced => Self::fenced(),
            LeaseError::Unavailable(error) => error.into(),
            error => bad(error.to_string()),
        }
    }
}

impl From<AskError> for No {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Fenced => Self::fenced(),
            AskError::Unavailable(error) => error.into(),
            AskError::Busy => Self::new(ErrorCode::Busy, error.to_string()),
            AskError::Elsewhere(channel) => {
                let message = format!("an approval of this id stands on `{channel}`");
                Self { code: "elsewhere", message, retryable: false, channel: Some(channel) }
            }
            error => bad(error.to_string()),
        }
    }
}

impl From<AppendError> for No {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Fenced => Self::fenced(),
            error if error.is_retryable() => Self::new(ErrorCode::Unavailable, error.to_string()),
            error => bad(error.to_string()),
        }
    }
}
