//! How agents reach the record: by the journal itself, or through a relay that speaks to it.
//!
//! [`Agent`](crate::Agent) → **link** → [`journal`], or [`relay_link`] → a relay's `/ws/agents/{agent_id}`
//!
//! [`Link`] is what a process opens; [`RecordLink`] is one agent's share of it, with the verbs that an agent
//! needs: each is a step of the journal, or a call to the relay, which takes that step.

mod error;
mod follow;
mod lease;
mod persist;
mod relay_calls;
mod relay_client;
mod relay_link;
mod relay_state;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{
    AppendError, Appended, ApprovalAnswer, Asked, Command, CommandOutcome, Holder, Journal, Name,
    NewApproval, NewEntry, Parent, Resolved, Take, without_secrets,
};
use protocol::agent::body::{
    AskCall, AskReply, FinishCall, Finished, LeaseCall, ProgressCall, ResolveCall, TakeCall, Taken,
    UnaskCall,
};
use protocol::{Asks, CallBody, Channel};
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use uuid::Uuid;

pub(crate) use error::LinkError;
pub(crate) use follow::{LinkFollower, LinkUpdates};
pub(crate) use lease::LeaseHandle;
use lease::{LeaseEnd, LeaseKind, RelayLease};
pub(crate) use persist::{persist, persist_until};
use relay_link::RelayLink;

use crate::tokens::TokenSource;
use crate::{ConnectError, thread};

/// Where agents come in: a process of many agents opens one, and [attaches](crate::AgentOptions::attach) each.
///
/// Agents on a Redis, or on a [`Journal`], share its connections, and all their leases are renewed in one
/// pipeline. Agents behind a relay have one WebSocket each.
///
/// A link that is opened lives on a thread of its own: a program that blocks its executor keeps it, and its leases. A
/// [`Journal`] lives on the executor where it was opened.
#[derive(Clone, Debug)]
pub struct Link {
    target: Target,
    /// The thread of its own.
    thread: Option<Handle>,
}

#[derive(Clone, Debug)]
enum Target {
    Journal(Journal),
    /// A relay's URL.
    Relay(String),
}

impl Link {
    /// The Redis (`redis://…`, `rediss://…`) or the relay (`http://…`, `https://…`) at `url`. Does not wait for it.
    ///
    /// # Errors
    /// [`ConnectError`] where `url` cannot be used.
    pub fn open(url: &str) -> Result<Self, ConnectError> {
        let thread = thread::handle().map_err(ConnectError::Thread)?;
        let _entered = thread.enter();
        let target = match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "rediss") => Target::Journal(Journal::open(url)?),
            Some("http" | "https") => Target::Relay(url.to_owned()),
            _ => return Err(ConnectError::Scheme(without_secrets(url))),
        };
        Ok(Self { target, thread: Some(thread.clone()) })
    }

    /// The thread on which it lives, if it has one of its own.
    pub(crate) fn thread(&self) -> Option<&Handle> {
        self.thread.as_ref()
    }

    /// The same with leases of this length; behind a relay they are the relay's.
    #[must_use]
    pub(crate) fn with_lease(self, lease: Duration) -> Self {
        match self.target {
            Target::Journal(journal) => {
                Self { target: Target::Journal(journal.with_lease(lease)), ..self }
            }
            Target::Relay(_) => self,
        }
    }

    /// The share of the agent of this id.
    pub(crate) fn of_agent(
        &self,
        agent: &str,
        tokens: Option<TokenSource>,
    ) -> Result<RecordLink, ConnectError> {
        let _entered = self.thread.as_ref().map(Handle::enter);
        Ok(match &self.target {
            Target::Journal(journal) => RecordLink::Journal(journal.clone()),
            Target::Relay(url) => RecordLink::Relay(Arc::new(RelayLink::open(url, agent, tokens)?)),
        })
    }
}

impl From<Journal> for Link {
    fn from(journal: Journal) -> Self {
        Self { target: Target::Journal(journal), thread: None }
    }
}

/// One agent's link to the record.
#[derive(Clone, Debug)]
pub(crate) enum RecordLink {
    Journal(Journal),
    Relay(Arc<RelayLink>),
}

/// Resolves when the entries are in the journal. May be dropped: the append goes on.
pub(crate) type AppendReceipt = BoxFuture<'static, Result<Vec<Appended>, AppendError>>;

impl RecordLink {
    /// The same link, which appends as the incarnation `holder`.
    pub(crate) fn as_producer(&self, holder: &Holder) -> Self {
        match self {
            Self::Journal(journal) => Self::Journal(journal.as_producer(holder)),
            Self::Relay(_) => self.clone(),
        }
    }

    /// The agent's own connection, where it has one, is left as it is: the relay does not renew for it any more.
    pub(crate) fn abandon(&self) {
        if let Self::Relay(relay) = self {
            relay.abandon();
        }
    }

    /// Takes the entries' place in the order at once, waiting only for room.
    pub(crate) async fn enqueue(
        &self,
        channel: &Channel,
        entries: Vec<NewEntry>,
    ) -> Result<AppendReceipt, AppendError> {
        match self {
            Self::Journal(journal) => {
                Ok(journal.enqueue(&Name::events(channel.clone()), entries).await?.boxed())
            }
            Self::Relay(relay) => relay.enqueue(channel, entries).await,
        }
    }

    /// Takes the lease of the agent on `channel`; without `incarnation` the agent begins a new life.
    pub(crate) async fn lease(
        &self,
        channel: &Channel,
        agent: &str,
        incarnation: Option<u64>,
        parent: Option<&Parent>,
    ) -> Result<LeaseHandle, LinkError> {
        match self {
            Self::Journal(journal) => {
                Ok(journal.lease(channel, agent, incarnation, parent).await?.into())
            }
            Self::Relay(relay) => {
                let call = LeaseCall { incarnation, parent: parent.cloned() };
                let (incarnation, LeaseEnd { lost, revoked }) = relay.lease(channel, call).await?;
                Ok(LeaseHandle {
                    channel: channel.clone(),
                    holder: Holder { agent: agent.into(), incarnation },
                    lost,
                    revoked,
                    kind: LeaseKind::Relay(RelayLease(Arc::clone(relay), channel.clone())),
                })
            }
        }
    }

    /// Follows commands.
    pub(crate) fn follow(&self) -> (LinkFollower, LinkUpdates) {
        match self {
            Self::Journal(journal) => {
                let (follower, updates) = journal.follow();
                (LinkFollower::Journal(follower), LinkUpdates::Journal(Box::new(updates)))
            }
            Self::Relay(relay) => {
                let (follower, updates) = relay.follow();
                (LinkFollower::Relay(follower), LinkUpdates::Relay(updates))
            }
        }
    }

    /// Declares `child` as spawned by `parent`.
    pub(crate) async fn adopt(&self, parent: &Parent, child: &Holder) -> Result<(), LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.adopt(parent, child).await?),
            Self::Relay(relay) => {
                relay.call(&own_channel(child)?, CallBody::Adopt(parent.clone())).await
            }
        }
    }

    /// No longer a child.
    pub(crate) async fn disown(&self, parent: &Parent, child: &Holder) -> Result<(), LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.disown(parent, child).await?),
            Self::Relay(relay) => {
                relay.call(&own_channel(child)?, CallBody::Disown(parent.clone())).await
            }
        }
    }

    /// Takes a command, before it is begun.
    pub(crate) async fn take(
        &self,
        command: &Command,
        key: Uuid,
        holder: &Holder,
        idempotent: bool,
    ) -> Result<Take, LinkError> {
        match self {
            Self::Journal(journal) => {
                Ok(journal.take_read(command, key, holder, idempotent).await?)
            }
            Self::Relay(relay) => {
                let take = CallBody::Take(TakeCall { key, idempotent });
                match relay.call::<Taken>(&command.channel, take).await {
                    Err(LinkError::Fenced) => Ok(Take::Fenced),
                    taken => Ok(taken?.take),
                }
            }
        }
    }

    /// Says how far a request has come.
    pub(crate) async fn progress(
        &self,
        channel: &Channel,
        key: Uuid,
        holder: &Holder,
        data: &str,
    ) -> Result<(), LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.progress(channel, key, holder, data).await?),
            Self::Relay(relay) => {
                let data = raw(data)?;
                relay.call(channel, CallBody::Progress(ProgressCall { key, data })).await
            }
        }
    }

    /// Says what became of a command. False where it is not this agent's to say (any more).
    pub(crate) async fn finish(
        &self,
        channel: &Channel,
        key: Uuid,
        holder: &Holder,
        outcome: &CommandOutcome,
    ) -> Result<bool, LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.finish(channel, key, holder, outcome).await?),
            Self::Relay(relay) => {
                let detail = outcome.detail.as_deref().map(raw).transpose()?;
                let finish = FinishCall { key, status: outcome.status, detail };
                Ok(relay.call::<Finished>(channel, CallBody::Finish(finish)).await?.finished)
            }
        }
    }

    /// Asks a question.
    pub(crate) async fn ask(&self, holder: &Holder, new: &NewApproval) -> Result<Asked, LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.ask(holder, new).await?),
            Self::Relay(relay) => {
                let ask = AskCall {
                    request_id: new.request_id.clone(),
                    asks: new.asks,
                    question: raw(&new.question)?,
                    expires_in_ms: new.expires_in.as_millis() as u64,
                    default: new.default,
                    digest: new.digest.clone(),
                    durable: new.durable,
                };
                let reply: AskReply = relay.call(&new.channel, CallBody::Ask(ask)).await?;
                Ok(reply.answer.map_or(Asked::Pending, Asked::Answered))
            }
        }
    }

    /// Waits for the answer to a question no more.
    pub(crate) async fn unask(
        &self,
        channel: &Channel,
        request_id: &str,
        holder: &Holder,
    ) -> Result<(), LinkError> {
        match self {
            Self::Journal(journal) => Ok(journal.unask(channel, request_id, holder).await?),
            Self::Relay(relay) => {
                let unask = UnaskCall { request_id: request_id.into() };
                relay.call(channel, CallBody::Unask(unask)).await
            }
        }
    }

    /// Answers a question.
    pub(crate) async fn resolve(
        &self,
        channel: &Channel,
        request_id: &str,
        asks: Asks,
        answer: &ApprovalAnswer,
    ) -> Result<Resolved, LinkError> {
        match self {
            Self::Journal(journal) => {
                Ok(journal.resolve(channel, request_id, asks, answer, None).await?)
            }
            Self::Relay(relay) => {
                let (request_id, answer) = (request_id.into(), answer.clone());
                let resolve = ResolveCall { request_id, asks, answer, digest: None };
                relay.call(channel, CallBody::Resolve(resolve)).await
            }
        }
    }
}

fn own_channel(agent: &Holder) -> Result<Channel, LinkError> {
    Channel::agent(&agent.agent).map_err(|error| LinkError::Refused(error.to_string()))
}

/// Data as it stands in a call.
fn raw(data: &str) -> Result<Box<RawValue>, LinkError> {
    serde_json::from_str(data).map_err(|error| LinkError::Refused(error.to_string()))
}

#[cfg(test)]
mod tests;
