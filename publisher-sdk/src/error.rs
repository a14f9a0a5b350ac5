//! What can go wrong on the agent's side: one small enum per operation.
//!
//! Every error says whether trying again can help ([`is_retryable`](PublishError::is_retryable)).

use std::error::Error;
use std::fmt;
use std::time::Duration;

use journal::{AppendError, LEASE_MAX, LEASE_MIN, Unavailable};
use protocol::limits::{APPROVALS_MAX, APPROVALS_PER_AGENT_MAX, RUN_ID_BYTES_MAX};
use protocol::{Channel, ChannelError, DataError, NameError};

use crate::commands::inbox::JoinError;
use crate::options::{BATCH_WINDOW_MAX, BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, CONNECT_TIMEOUT};

/// What a fenced agent is told.
pub(crate) const FENCED: &str = "a newer agent of this id has taken over, or this one was declared lost: what it \
    says is refused, connect again";

/// An error and what caused it, in words: what a program shows whose `main` returns the error.
pub(crate) fn in_words(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut source = error.source();
    while let Some(cause) = source {
        write!(f, ": {cause}")?;
        source = cause.source();
    }
    Ok(())
}

macro_rules! shown_in_words {
    ($($error:ident)+) => {$(
        impl fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                in_words(self, f)
            }
        }
    )+};
}

shown_in_words! { ConnectError OpenError RunIdError PublishError AskError FlushError }

/// Why an agent could not connect.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The agent's id breaks the grammar of channels.
    #[error(transparent)]
    Id(#[from] ChannelError),
    /// The batch window is too long.
    #[error(
        "a batch window of {given:?} is too long, readers would notice it: \
         choose at most {BATCH_WINDOW_MAX:?}"
    )]
    BatchWindow {
        /// What was given.
        given: Duration,
    },
    /// The buffer is too small for one event, or absurdly large.
    #[error(
        "a buffer of {given} bytes is out of bounds: choose {BUFFER_BYTES_MIN} \
         (a few of the largest events) to {BUFFER_BYTES_MAX}"
    )]
    Buffer {
        /// What was given.
        given: usize,
    },
    /// The lease is too short for a busy machine, or too long to notice a death.
    #[error("a lease of {given:?} is out of bounds: choose {LEASE_MIN:?} to {LEASE_MAX:?}")]
    Lease {
        /// What was given.
        given: Duration,
    },
    /// The id of the run for which the agent is spawned is too long.
    #[error(transparent)]
    RunId(#[from] RunIdError),
    /// The system gives no thread for the link.
    #[error("the thread of the link could not be started")]
    Thread(#[source] std::io::Error),
    /// The address is not understood.
    #[error(
        "`{0}` is not an address of Redis or of a relay: write `redis://127.0.0.1:6379`, `rediss://…` for \
         TLS, or `http://127.0.0.1:8080`, `https://…` for a relay"
    )]
    Scheme(String),
    /// The scheme is right, the rest is not.
    #[error(transparent)]
    Url(#[from] journal::OpenError),
    /// The relay's address, or the token for it, cannot be used.
    #[error("`{url}` is not a relay's address: {why}")]
    RelayUrl {
        /// The address without secrets.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answered within the [`connect_timeout`](crate::AgentOptions::connect_timeout).
    #[error(
        "`{at}` did not answer within {within:?}: check that Redis, or the relay, runs there, \
         that it can be reached from here, and the user and password in Redis' address"
    )]
    Unreachable {
        /// Where, without user and password.
        at: String,
        /// The bound that was given.
        within: Duration,
        /// The error of the last attempt; `None` if commands could not be followed in time.
        source: Option<Unavailable>,
    },
    /// The relay refuses the agent's token: it is missing, has ended, or is not valid.
    #[error("the relay at `{at}` refuses the agent's token: {why}")]
    Unauthorized {
        /// Where.
        at: String,
        /// What it says.
        why: String,
    },
    /// The relay does not let the agent in: the token is not for this agent.
    #[error("the relay at `{at}` refuses the agent: {why}")]
    Refused {
        /// Where.
        at: String,
        /// What it says.
        why: String,
    },
}

impl ConnectError {
    /// Whether the same call, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Why a channel could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address breaks the grammar.
    #[error(transparent)]
    Address(#[from] ChannelError),
    /// Nobody reads events there.
    #[error(
        "`{0}` takes commands only: publish on a session, project, user, plan, agent or \
         global channel"
    )]
    CommandsOnly(Channel),
    /// Commands sent to the session might not arrive.
    #[error(
        "the commands of `{channel}` could not be followed within {CONNECT_TIMEOUT:?}: \
         Redis is away, try again"
    )]
    NotListening {
        /// Whose commands.
        channel: Channel,
        /// What was tried; `None` where the link is down.
        source: Option<Unavailable>,
    },
    /// The relay through which the agent comes in does not let it be there.
    #[error("the relay refuses: {0}")]
    Refused(String),
    /// The relay refuses the agent's token.
    #[error("the relay refuses the agent's token: {0}")]
    Unauthorized(String),
    /// The agent serves it already; two handlers would be one too many.
    #[error("this agent serves `{0}` already")]
    AlreadyServed(Channel),
    /// The agent was declared lost, or a newer one of its id has taken over.
    #[error("{FENCED}")]
    Fenced,
    /// The agent has been closed.
    #[error("the agent has been closed")]
    Closed,
}

impl OpenError {
    /// Whether the same call, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotListening { .. })
    }
}

/// The id of a run is too long to be kept beside a lease. The run itself goes on and can be cancelled; nothing is
/// said of it.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run's id has at most {RUN_ID_BYTES_MAX} bytes, this one has {bytes}")]
pub struct RunIdError {
    /// What was given.
    pub bytes: usize,
}

/// Why an event was not published.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The name breaks the grammar or belongs to the relay.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The data is too large or nests too deeply.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data cannot be written as JSON.
    #[error("the data cannot be written as JSON")]
    Unserializable(#[source] serde_json::Error),
    /// Lifecycle events carry fields.
    #[error("the fields of a lifecycle event must be a JSON object, or nothing")]
    NotAnObject,
    /// The turn's id is too long to be repeated with every delta.
    #[error("a turn's id has at most {limit} bytes, this one has {bytes}")]
    Turn {
        /// What was given.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The run's id is too long to be kept beside a lease.
    #[error(transparent)]
    RunId(#[from] RunIdError),
    /// Too much waits to be written.
    #[error(
        "{limit} bytes wait to be written: Redis is away or slower than this agent, wait with \
         `flush` or give a larger `buffer`"
    )]
    Full {
        /// How much may wait.
        limit: usize,
    },
    /// The agent was declared lost, or a newer one of its id has taken over.
    #[error("{FENCED}")]
    Fenced,
    /// The agent has been closed, or its runtime is shutting down.
    #[error("the agent has been closed")]
    Closed,
    /// Redis refuses it, or the relay through which the agent comes in does.
    #[error("it is refused: {0}")]
    Refused(String),
    /// The journal did not take it.
    #[error(transparent)]
    Journal(AppendError),
}

impl From<AppendError> for PublishError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Fenced => Self::Fenced,
            AppendError::Refused(why) => Self::Refused(why),
            error => Self::Journal(error),
        }
    }
}

impl PublishError {
    /// Whether the same call, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Journal(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// Whether it is certain that nothing was published.
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Journal(error) => error.had_no_effect(),
            _ => true,
        }
    }
}

/// Why a question was not answered.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The question's durable id breaks the grammar.
    #[error("`{0}` is not an id of a question: use 1 to 128 characters of A-Z a-z 0-9 . _ : -")]
    Id(String),
    /// The question is too large or nests too deeply.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The [durable id](crate::PermissionRequest::durable_id) was used for another question.
    #[error("{0}: give each question an id of its own")]
    Conflict(String),
    /// Too many questions wait for answers on the channel.
    #[error(
        "{APPROVALS_PER_AGENT_MAX} questions of this agent, or {APPROVALS_MAX} of all agents, wait for answers on this channel: let some be answered first"
    )]
    Busy,
    /// The relay through which the agent comes in does not let it ask there.
    #[error("the relay refuses: {0}")]
    Refused(String),
    /// The relay refuses the agent's token.
    #[error("the relay refuses the agent's token: {0}")]
    Unauthorized(String),
    /// The answer might not arrive.
    #[error("the channel could not be joined within {CONNECT_TIMEOUT:?}: Redis is away, try again")]
    NotListening {
        /// What was tried; `None` where the link is down.
        source: Option<Unavailable>,
    },
    /// The agent was declared lost, or a newer one of its id has taken over.
    #[error("{FENCED}")]
    Fenced,
    /// The run that it [belongs to](crate::PermissionRequest::for_run) was cancelled: it is asked no more.
    #[error("the run was cancelled")]
    Cancelled,
    /// The agent has been closed. The question is withdrawn, unless it has a durable id.
    #[error("the agent has been closed")]
    Closed,
}

impl AskError {
    /// Whether the same call, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotListening { .. } | Self::Busy)
    }
}

impl From<JoinError> for AskError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Late(source) => Self::NotListening { source },
            JoinError::Refused(why) => Self::Refused(why),
            JoinError::Unauthorized(why) => Self::Unauthorized(why),
            JoinError::Fenced => Self::Fenced,
            // Nobody asks on a service.
            JoinError::Closed | JoinError::Taken => Self::Closed,
        }
    }
}

/// What a flush found.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// Events that nobody waited for were lost since the last flush.
    #[error(
        "{count} event(s) sent without waiting could not be published, the last one because of \
         this: {last}"
    )]
    Failed {
        /// How many.
        count: u64,
        /// Why the last one was.
        last: AppendError,
    },
    /// The agent closed while events, or the release of its leases, still waited: they are tried again as long as
    /// the runtime lives. An agent that could not release its lease is declared lost when the lease ends.
    #[error(
        "Redis is away: {count} event(s) and the release of the agent's leases still wait to be written"
    )]
    Unfinished {
        /// How many.
        count: u64,
    },
    /// The runtime is shutting down; what still waited is lost.
    #[error("the runtime is shutting down, events that still waited are lost")]
    Stopped,
}

impl FlushError {
    /// Whether another flush can do better.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unfinished { .. })
    }
}
