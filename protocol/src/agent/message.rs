//! What an agent behind a relay receives: replies to its calls, commands, and what becomes of its leases.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Channel, ErrorCode, Offset, json_error};

/// What an agent receives.
#[derive(Clone, Debug)]
pub enum AgentMessage {
    /// The first frame.
    Connected {
        /// How long a lease lasts here, in milliseconds; absent from a relay that does not say.
        lease_ms: Option<u64>,
    },
    /// A call is done.
    Ack {
        /// Which call.
        id: u64,
        /// Where the published event stands.
        offset: Option<Offset>,
        /// The result of the call.
        data: Option<Box<RawValue>>,
    },
    /// A call is not done, or a frame is not a call.
    Error {
        /// Which call, where its id could be read.
        id: Option<u64>,
        /// Why.
        error: AgentError,
    },
    /// From here on commands of the channel come as they are sent.
    Live {
        /// Which channel.
        channel: Channel,
        /// Its newest command.
        offset: Option<Offset>,
    },
    /// A command.
    Command {
        /// Where it was sent.
        channel: Channel,
        /// Where it stands.
        offset: Offset,
        /// What to do.
        name: Box<str>,
        /// When it was written, Unix microseconds.
        time_us: u64,
        /// The command's data.
        data: Box<RawValue>,
    },
    /// Commands of the channel may have been lost; what is retained follows.
    Reset {
        /// Which channel.
        channel: Channel,
    },
    /// The lease of the channel is lost, or a newer incarnation has taken over.
    Fenced {
        /// Which channel.
        channel: Channel,
    },
    /// The lease of the channel has ended, because the token does not reach to it any more. The agent lives on.
    Released {
        /// Which channel.
        channel: Channel,
    },
    /// A token has taken the place of the one before.
    Authenticated {
        /// Which frame brought it.
        id: u64,
        /// Its end, Unix milliseconds.
        expires_at: u64,
    },
    /// The token ends soon.
    TokenExpiring {
        /// In how many milliseconds.
        in_ms: u64,
    },
    /// The replica goes down: connect again.
    Reconnect,
}

/// Why a call is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentError {
    /// The code, as it stands on the wire.
    pub code: Box<str>,
    /// What and why.
    pub message: String,
    /// Whether the same call, made again later, can succeed.
    pub retryable: bool,
}

impl AgentError {
    /// An error of this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let (retryable, message) = (code.is_retryable(), message.into());
        Self { code: code.as_str().into(), message, retryable }
    }
}

/// Every field that a message may have.
#[derive(Default, Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_us: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retryable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_ms: Option<u64>,
}

impl AgentMessage {
    /// Reads a frame; `Ok(None)` where its `type` is not known: a later version may say more.
    ///
    /// # Errors
    /// Which field cannot be read, and why.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let mut envelope: Envelope<'_> =
            serde_json::from_str(text).map_err(|error| json_error(&error))?;
        let offset = envelope.offset.as_deref().map(str::parse::<Offset>).transpose();
        let offset = offset.map_err(|error| format!("`offset`: {error}"))?;
        let kind = std::mem::take(&mut envelope.kind);
        let missing = |name: &str| format!("`{name}` of `{kind}` is missing");
        let data = envelope.data.map(ToOwned::to_owned);
        let about = envelope.channel.take().ok_or_else(|| missing("channel"));
        Ok(Some(match &*kind {
            "connected" => Self::Connected { lease_ms: envelope.lease_ms },
            "reconnect" => Self::Reconnect,
            "ack" => Self::Ack { id: envelope.id.ok_or_else(|| missing("id"))?, offset, data },
            "error" => {
                let error = AgentError {
                    code: envelope.code.ok_or_else(|| missing("code"))?,
                    message: envelope.message.unwrap_or_default(),
                    retryable: envelope.retryable.unwrap_or_default(),
                };
                Self::Error { id: envelope.id, error }
            }
            "live" => Self::Live { channel: about?, offset },
            "command" => Self::Command {
                channel: about?,
                offset: offset.ok_or_else(|| missing("offset"))?,
                name: envelope.name.ok_or_else(|| missing("name"))?,
                time_us: envelope.time_us.unwrap_or_default(),
                data: data.ok_or_else(|| missing("data"))?,
            },
            "reset" => Self::Reset { channel: about? },
            "fenced" => Self::Fenced { channel: about? },
            "released" => Self::Released { channel: about? },
            "authenticated" => Self::Authenticated {
                id: envelope.id.ok_or_else(|| missing("id"))?,
                expires_at: envelope.expires_at.ok_or_else(|| missing("expires_at"))?,
            },
            "token_expiring" => {
                Self::TokenExpiring { in_ms: envelope.in_ms.ok_or_else(|| missing("in_ms"))? }
            }
            _ => return Ok(None),
        }))
    }

    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        let of = |kind: &str| Envelope { kind: kind.to_owned(), ..Envelope::default() };
        let about =
            |kind: &str, channel: &Channel| Envelope { channel: Some(channel.clone()), ..of(kind) };
        let text = |offset: &Offset| offset.to_string();
        let envelope = match self {
            Self::Connected { lease_ms } => Envelope { lease_ms: *lease_ms, ..of("connected") },
            Self::Reconnect => of("reconnect"),
            Self::Ack { id, offset, data } => Envelope {
                id: Some(*id),
                offset: offset.as_ref().map(text),
                data: data.as_deref(),
                ..of("ack")
            },
            Self::Error { id, error } => Envelope {
                id: *id,
                code: Some(error.code.clone()),
                message: Some(error.message.clone()),
                retryable: Some(error.retryable),
                ..of("error")
            },
            Self::Live { channel, offset } => {
                Envelope { offset: offset.as_ref().map(text), ..about("live", channel) }
            }
            Self::Command { channel, offset, name, time_us, data } => Envelope {
                offset: Some(text(offset)),
                name: Some(name.clone()),
                time_us: Some(*time_us),
                data: Some(data),
                ..about("command", channel)
            },
            Self::Reset { channel } => about("reset", channel),
            Self::Fenced { channel } => about("fenced", channel),
            Self::Released { channel } => about("released", channel),
            Self::Authenticated { id, expires_at } => {
                Envelope { id: Some(*id), expires_at: Some(*expires_at), ..of("authenticated") }
            }
            Self::TokenExpiring { in_ms } => {
                Envelope { in_ms: Some(*in_ms), ..of("token_expiring") }
            }
        };
        serde_json::to_string(&envelope).expect("plain data")
    }
}
