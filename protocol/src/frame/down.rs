//! Frames down: what the relay says, apart from events. Those go down pre-encoded
//! ([`encode`](crate::encode)).

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Addressing, Refusal, Target};
use crate::ErrorCode;

fn is_true(value: &bool) -> bool {
    *value
}

/// What the relay says, apart from events.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RelayFrame<'a> {
    /// The first frame of every connection.
    Connected {
        /// For support and logs.
        connection_id: &'a str,
        /// The user that the token names; absent without a token.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        /// The relay's clock, Unix milliseconds.
        server_time: u64,
        /// The pace of WebSocket pings, milliseconds.
        ping_interval_ms: u64,
    },
    /// A subscription stands.
    Subscribed {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// The channel, named as the browser named it.
        #[serde(flatten)]
        channel: NamedChannel<'a>,
        /// Where delivery starts, exclusive; null on a channel never written.
        offset: Option<String>,
        /// The newest entry.
        head: Option<String>,
        /// False where `since` could not be honoured; a `reset` follows.
        recovered: bool,
        /// Delivery starts with the oldest event retained, and there were older ones.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
        /// Questions that wait for an answer, as of `head`; absent on channels where agents do not ask.
        #[serde(skip_serializing_if = "Option::is_none")]
        pending: Option<&'a RawValue>,
        /// More of them follow in `pending` frames, before the first event.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        pending_more: bool,
    },
    /// A subscription ended, on request or because the grant does not reach to it any more.
    Unsubscribed {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// The channel, named as the browser named it.
        #[serde(flatten)]
        channel: NamedChannel<'a>,
        /// Why it ended without being asked to.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    /// From here on events are live.
    CaughtUp {
        /// The channel, named as the browser named it.
        #[serde(flatten)]
        channel: NamedChannel<'a>,
        /// The last position delivered.
        offset: Option<String>,
    },
    /// What was seen is not continued by what follows.
    Reset {
        /// The channel, named as the browser named it.
        #[serde(flatten)]
        channel: NamedChannel<'a>,
        /// `epoch`, `retention` or `history_changed`.
        reason: &'a str,
        /// Where delivery starts anew, exclusive.
        offset: Option<String>,
        /// The newest entry.
        head: Option<String>,
        /// There were older events than those that follow.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
        /// Questions that wait for an answer, as of `head`; absent on channels where agents do not ask.
        #[serde(skip_serializing_if = "Option::is_none")]
        pending: Option<&'a RawValue>,
        /// More of them follow in `pending` frames, before the first event.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        pending_more: bool,
    },
    /// More of the questions of the `subscribed` or `reset` before it.
    Pending {
        /// The channel, named as the browser named it.
        #[serde(flatten)]
        channel: NamedChannel<'a>,
        /// A list.
        pending: &'a RawValue,
        /// Another such frame follows.
        more: bool,
    },
    /// A command is in the agent's journal, or an approval is answered.
    Ack {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// The command's id, given or made.
        command_id: Uuid,
        /// Where it stands: `accepted`, `delivered`, `applied`, `rejected` or `expired`.
        status: &'a str,
        /// How many agents are there to receive it.
        listeners: u64,
        /// It waits for an agent.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        queued: bool,
        /// Whether an agent has served the channel not long ago: if not, its name may be misspelled.
        #[serde(skip_serializing_if = "is_true")]
        known: bool,
        /// Of a Cancel: how many of the agents that were spawned it has reached so far; absent where there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        reached: Option<u64>,
        /// Of how many that are known.
        #[serde(skip_serializing_if = "Option::is_none")]
        of: Option<u64>,
        /// What the agent said about it.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a RawValue>,
    },
    /// The answer to a request.
    Response {
        /// The request's id; absent by HTTP, where it may be left out.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// The request's other id, given or made: sent again with it, it gets the same reply.
        command_id: Uuid,
        /// What came of it.
        #[serde(flatten)]
        outcome: Outcome<'a>,
    },
    /// How far a request has come: the latest that its worker has said. The reply is still to come.
    RequestProgress {
        /// The request's id.
        id: &'a RawValue,
        /// The request's other id, given or made.
        command_id: Uuid,
        /// What the worker says: any JSON.
        data: &'a RawValue,
    },
    /// Something asked for was not done.
    Error {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// The channel it is about.
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a str>,
        /// What and why.
        #[serde(flatten)]
        error: ErrorBody<'a>,
    },
    /// The answer to `ping`.
    Pong {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
    },
    /// A sign of life for pages, which cannot see WebSocket pings.
    Ping,
    /// Whether the relay reaches Redis.
    RelayStatus {
        /// `ok` or `degraded`.
        redis: &'a str,
    },
    /// A token has taken the place of the one before.
    Authenticated {
        /// The frame this answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        /// Its end, Unix milliseconds.
        expires_at: u64,
    },
    /// The token ends soon.
    TokenExpiring {
        /// In how many milliseconds.
        in_ms: u64,
    },
    /// The replica goes down; come back to another one.
    Reconnect {
        /// Wait this long, so that not everybody comes at once.
        after_ms: u64,
    },
}

impl RelayFrame<'_> {
    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("relay frames hold nothing that cannot be serialised")
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<'a> {
    /// The reply.
    Result(&'a RawValue),
    /// Why the request has no result.
    Error(ErrorBody<'a>),
}

/// What went wrong, in an `error` frame, a `response` and an HTTP answer alike.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ErrorBody<'a> {
    /// The code: one of [`ErrorCode`], or a worker's own.
    pub code: &'a str,
    /// What and why.
    pub message: &'a str,
    /// Whether the same, tried again later, can succeed.
    pub retryable: bool,
    /// What was decided before, where that is why.
    #[serde(flatten)]
    pub resolution: Option<&'a Resolution>,
    /// When to try again, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl<'a> ErrorBody<'a> {
    /// The body for `code`.
    pub fn new(code: ErrorCode, message: &'a str) -> Self {
        let (code, retryable) = (code.as_str(), code.is_retryable());
        Self { code, message, retryable, resolution: None, retry_after_ms: None }
    }
}

/// How an approval was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resolution {
    /// Who; absent where nobody did in time, or nobody has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Box<str>>,
    /// When, Unix milliseconds.
    pub at: u64,
    /// `allowed` or `denied`; `continue` or `stop`.
    pub decision: &'static str,
}

impl Refusal {
    /// The refusal as every answer carries it.
    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            resolution: self.resolution.as_ref(),
            retry_after_ms: self
                .retry_after
                .map(|after| after.as_nanos().div_ceil(1_000_000) as u64),
            ..ErrorBody::new(self.code, &self.message)
        }
    }
}

/// A channel under the name that the browser used for it.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum NamedChannel<'a> {
    /// `channel`
    #[serde(rename = "channel")]
    Channel(&'a str),
    /// `sessionId`
    #[serde(rename = "sessionId")]
    SessionId(&'a str),
    /// `plan_id`
    #[serde(rename = "plan_id")]
    PlanId(&'a str),
}

impl Target {
    /// The channel under the name that the browser used for it.
    pub fn named(&self) -> NamedChannel<'_> {
        match self.addressing {
            Addressing::Channel => NamedChannel::Channel(self.channel.as_str()),
            Addressing::SessionId => NamedChannel::SessionId(self.channel.id()),
            Addressing::PlanId => NamedChannel::PlanId(self.channel.id()),
        }
    }
}
