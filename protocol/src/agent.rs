//! What an agent that has no Redis says to a relay, and hears from it, over `/ws/agents/{agent_id}`.
//!
//! Every call has an `id` of the agent's own, ascending; the answer carries it. A call may be repeated with
//! the same `id` after the connection broke, on whichever replica: it happens once.

pub mod body;
mod record;

pub use record::{ApprovalAnswer, Asks, Parent, Resolved, Status, Take};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Channel;

/// What an agent asks of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentCall {
    /// Hold the lease of this channel, as long as the connection lasts; the agent's own channel first.
    Lease,
    /// Keep in the record which runs are open.
    Note,
    /// Give the lease up.
    Release,
    /// Append an event.
    Publish,
    /// Send the channel's commands from a position on, or all that are there.
    Follow,
    /// Send them no more.
    Unfollow,
    /// Take a command, before it is begun.
    Take,
    /// Say how far a request has come.
    Progress,
    /// Say what became of it.
    Finish,
    /// Ask a question and enter it among the pending ones.
    Ask,
    /// Answer a question, as anybody may.
    Resolve,
    /// Declare the agent a child of another.
    Adopt,
    /// Take that back.
    Disown,
}

/// A call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentFrame {
    /// What is asked.
    #[serde(rename = "type")]
    pub call: AgentCall,
    /// Comes back on the answer.
    pub id: u64,
    /// About which channel.
    pub channel: Channel,
    /// The event's name, of a `publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<str>>,
    /// The event's data, or what else the call needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

/// What sort of frame an agent hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentNews {
    /// The first frame.
    Connected,
    /// A call is done.
    Ack,
    /// A call is not done: `code`, `message`, `retryable`.
    Error,
    /// From here on commands of the channel come as they are sent.
    Live,
    /// A command.
    Command,
    /// Commands may have been lost; what is retained follows.
    Reset,
    /// The lease of the channel is lost, or a newer incarnation has taken over.
    Fenced,
    /// Whether the relay reaches Redis.
    RelayStatus,
    /// The replica goes down: connect again.
    Reconnect,
    /// A sign of life.
    Ping,
}

/// What an agent hears.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentHears {
    /// What it is.
    #[serde(rename = "type")]
    pub news: AgentNews,
    /// The call that is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// About which channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// Where the event or the command stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// The command's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// When the command was written, Unix microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_us: Option<u64>,
    /// What the call came to, or the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// Of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Box<str>>,
    /// Of an error: what and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of an error: whether the same, tried again later, can succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
}

impl AgentHears {
    /// A frame of which only the sort is known.
    pub fn new(news: AgentNews) -> Self {
        Self {
            news,
            id: None,
            channel: None,
            offset: None,
            name: None,
            time_us: None,
            data: None,
            code: None,
            message: None,
            retryable: None,
        }
    }

    /// The same, about `channel`.
    #[must_use]
    pub fn about(self, channel: &Channel) -> Self {
        Self { channel: Some(channel.clone()), ..self }
    }

    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}
