//! The bodies of calls and replies: `data` in [`AgentCall`](super::AgentCall) and in an `ack`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::record::{ApprovalAnswer, Asks, Parent, Status, Take};
use crate::frame::Since;
use crate::integer::{integer, optional_integer, or_default};
use crate::{Channel, Object, object};

/// An object, or nothing.
fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<Object<T>>::deserialize(from)?;
    Ok(value.map(|Object(value)| value))
}

/// An object; nothing stands for an empty one.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(optional(from)?.unwrap_or_default())
}

/// Of `lease`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCall {
    /// The agent's incarnation; absent on the first lease of its own channel.
    #[serde(
        default,
        deserialize_with = "optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub incarnation: Option<u64>,
    /// Who spawned it.
    #[serde(default, deserialize_with = "optional", skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// The reply to `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// The incarnation of the agent that holds the lease.
    pub incarnation: u64,
}

/// Of `note`: what has changed since the note before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteCall {
    /// The runs that are open.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "ListChange::is_empty")]
    pub runs: ListChange<Box<str>>,
    /// The channels that the agent serves.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "ListChange::is_empty")]
    pub channels: ListChange<Channel>,
}

/// What was added to a list, and what was removed from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListChange<T> {
    /// What is there now. It may have been before.
    #[serde(
        default = "Vec::new",
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        bound(deserialize = "T: Deserialize<'de>")
    )]
    pub added: Vec<T>,
    /// What is there no longer.
    #[serde(
        default = "Vec::new",
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        bound(deserialize = "T: Deserialize<'de>")
    )]
    pub removed: Vec<T>,
}

impl<T> Default for ListChange<T> {
    fn default() -> Self {
        Self { added: Vec::new(), removed: Vec::new() }
    }
}

impl<T> ListChange<T> {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl<T: Ord + Clone> ListChange<T> {
    /// Makes the change.
    pub fn apply(&self, list: &mut BTreeSet<T>) {
        list.extend(self.added.iter().cloned());
        for removed in &self.removed {
            list.remove(removed);
        }
    }
}

impl NoteCall {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.channels.is_empty()
    }

    /// These runs have begun.
    pub fn begun(runs: impl IntoIterator<Item = Box<str>>) -> Self {
        let runs = ListChange { added: runs.into_iter().collect(), removed: Vec::new() };
        Self { runs, channels: ListChange::default() }
    }

    /// These runs are over, without an event.
    pub fn ended(runs: impl IntoIterator<Item = Box<str>>) -> Self {
        let runs = ListChange { added: Vec::new(), removed: runs.into_iter().collect() };
        Self { runs, channels: ListChange::default() }
    }
}

/// Of `follow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowCall {
    /// A position, or `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl FollowCall {
    pub(super) fn of(since: &Since) -> Self {
        let since = match since {
            Since::Start => "start".to_owned(),
            Since::Offset(offset) => offset.to_string(),
        };
        Self { since: Some(since) }
    }
}

/// Of `take`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeCall {
    /// The command's key.
    pub key: Uuid,
    /// Where this agent dies, another may do it again.
    #[serde(default, deserialize_with = "or_default")]
    pub idempotent: bool,
}

/// The reply to `take`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Whether the command is the agent's.
    pub take: Take,
}

/// Of `progress`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgressCall {
    /// The request's key.
    pub key: Uuid,
    /// How far it has come.
    pub data: Box<RawValue>,
}

/// Of `finish`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinishCall {
    /// The command's key.
    pub key: Uuid,
    /// `applied` or `rejected`.
    pub status: Status,
    /// A reason, or a request's reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Box<RawValue>>,
}

/// The reply to `finish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// False where the command is not this agent's to finish (any more).
    pub finished: bool,
}

/// Of `ask`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskCall {
    /// The question's id.
    pub request_id: Box<str>,
    /// What is asked for.
    pub asks: Asks,
    /// What is shown, an object: of a permission the event's `request`, of a budget its fields. Its id and its end
    /// are added to it.
    pub question: Box<RawValue>,
    /// How long people have.
    #[serde(deserialize_with = "integer")]
    pub expires_in_ms: u64,
    /// What holds when nobody answers: allowed, or go on.
    #[serde(default, deserialize_with = "or_default")]
    pub default: bool,
    /// The digest of what is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Box<str>>,
    /// The question outlives its agent: asked again after a restart, it is the same.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub durable: bool,
}

/// Of `unask`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnaskCall {
    /// The question's id.
    pub request_id: Box<str>,
}

/// The reply to `ask`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskReply {
    /// The answer, where it was answered before.
    #[serde(default)]
    pub answer: Option<ApprovalAnswer>,
}

/// Of `resolve`; the reply is [`Resolved`](super::Resolved).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveCall {
    /// The question's id.
    pub request_id: Box<str>,
    /// What is asked for.
    pub asks: Asks,
    /// The answer.
    #[serde(deserialize_with = "object")]
    pub answer: ApprovalAnswer,
    /// The digest of what was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Box<str>>,
}

/// Of `end_run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndRunCall {
    /// Which run.
    pub run_id: Box<str>,
    /// The end's idempotency key: said again with it, the end happens once.
    pub key: Box<str>,
    /// The event that says how it ended.
    pub event: Box<str>,
    /// The event's data.
    pub data: Box<RawValue>,
}

/// Of `withdraw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawCall {
    /// The id of the call that is given up.
    #[serde(deserialize_with = "integer")]
    pub call: u64,
}

/// The reply to `withdraw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// Whether the call was not begun: then it is not done, and gets no reply of its own.
    pub withdrawn: bool,
}
