//! What has a state: commands, approvals, leases.
//!
//! A state is one small text per record. It is read, a pure function decides what becomes of it, and the
//! [`Change`] is committed only if the state still is the one that was read. What everybody shall hear of
//! it is appended in the same atomic step. So the rules are written once for both backends of a journal,
//! and Redis needs one script ([`change.lua`](super::redis)).
//!
//! ▲ [`command`]: sent; [`work`]: taken by one agent, finished, or expired
//! ▲ [`approval`]: asked, answered once
//! ◆ [`lease`]: held, [renewed](renewal), released, or [lost](loss); [`family`]: who spawned whom
//! ◆ [`reaper`]: what falls due while nobody acts, for whichever replica comes first

pub(crate) mod approval;
pub(crate) mod command;
mod family;
pub(crate) mod lease;
mod loss;
pub(crate) mod reaper;
pub(crate) mod renewal;
mod work;

use std::fmt;
use std::time::Duration;

use protocol::{Channel, Offset};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{NewEntry, Unavailable};

/// How often a change is tried when others change the same record at the same time. Each lost race is
/// somebody else's progress, so this is never reached but by a bug.
const RACES_MAX: usize = 100;

/// What kind of record has the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordKind {
    Command,
    Approval,
    Lease,
    /// A child that an agent has declared.
    Child,
}

impl RecordKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Approval => "approval",
            Self::Lease => "lease",
            Self::Child => "child",
        }
    }
}

/// Something that has a state. It lives in its channel's slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) channel: Channel,
    /// A command's key, an approval's request id, a lease's agent.
    pub(crate) id: Box<str>,
}

/// Why a record must be looked at by a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Deadline {
    /// A command that nobody has taken expires.
    Expire,
    /// An approval that nobody has answered gets its default.
    TimeOut,
    /// A lease that is not renewed is lost.
    Lose,
    /// What a lost agent left must be settled.
    Settle,
}

impl Deadline {
    pub(crate) const ALL: [Self; 4] = [Self::Expire, Self::TimeOut, Self::Lose, Self::Settle];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Expire => "expire",
            Self::TimeOut => "timeout",
            Self::Lose => "lose",
            Self::Settle => "settle",
        }
    }

    /// What kind of record the deadline is about.
    pub(crate) fn kind(self) -> RecordKind {
        match self {
            Self::Expire => RecordKind::Command,
            Self::TimeOut => RecordKind::Approval,
            Self::Lose | Self::Settle => RecordKind::Lease,
        }
    }
}

/// A list kept beside a channel's records, so that nobody must search for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Index {
    /// Agents that hold a lease here.
    Agents,
    /// Agents that were spawned under this one, with the run of it they belong to.
    Children,
    /// Commands that nobody has taken.
    Waiting,
    /// Commands that this agent has taken and not finished.
    Open(Box<str>),
    /// Approvals that nobody has answered, each with its question.
    Approvals,
}

impl Index {
    pub(crate) fn key(&self) -> (&'static str, &str) {
        match self {
            Self::Agents => ("agents", ""),
            Self::Children => ("children", ""),
            Self::Waiting => ("waiting", ""),
            Self::Open(agent) => ("open", agent),
            Self::Approvals => ("approvals", ""),
        }
    }
}

impl Holder {
    /// Under which name this incarnation appends: no other ever uses it, so fencing it ends it for good.
    pub(crate) fn producer(&self) -> String {
        format!("{}.{}", self.agent, self.incarnation)
    }
}

/// What is in an index: ids, each with a value.
pub(crate) type Members = Vec<(Box<str>, Box<str>)>;

/// Under what condition a change is made, beside the state's being the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    /// The deadline has fallen due, by the journal's clock.
    Due(Deadline),
    /// The deadline is not due yet.
    NotDue(Deadline),
    /// The list holds fewer than so many.
    Room(Index, u64),
}

/// Who makes the change: refused where a newer incarnation of the agent has taken over, or it was lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// The agent's id.
    #[serde(rename = "agent_id")]
    pub agent: Box<str>,
    /// Which life of it, as its lease says.
    pub incarnation: u64,
}

/// What else happens in the same step.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Appended to the channel's events.
    Event(NewEntry),
    /// Appended to the channel's commands.
    Command(NewEntry),
    Put(Index, Box<str>, Box<str>),
    Remove(Index, Box<str>),
    /// The deadline falls due after this time; `None`: never.
    Due(Deadline, Option<Duration>),
    /// This incarnation writes no events here any more, and takes no commands.
    Fence(Holder),
    /// Whoever listens at this address hears the text, if it still listens.
    Notify(Box<str>, Box<str>),
}

/// One atomic step.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) record: Record,
    pub(crate) expected: Option<String>,
    pub(crate) state: String,
    /// How long the state is kept from now on; `None`: until it is changed.
    pub(crate) lifetime: Option<Duration>,
    pub(crate) condition: Condition,
    pub(crate) holder: Option<Holder>,
    pub(crate) effects: Vec<Effect>,
}

impl Change {
    /// A change that is always made, for good, and that nobody hears of.
    pub(crate) fn new(record: &Record, expected: Option<String>, state: &impl Serialize) -> Self {
        Self {
            record: record.clone(),
            expected,
            state: serde_json::to_string(state).expect("states are plain data"),
            lifetime: None,
            condition: Condition::Always,
            holder: None,
            effects: Vec::new(),
        }
    }
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Made, now or by an earlier attempt of the same; with the positions of what was appended now.
    Done(Vec<Offset>),
    /// The state is another.
    Conflict(Option<String>),
    /// The condition does not hold.
    Unmet,
    /// The holder's time is over.
    Fenced,
}

/// A record as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The journal's clock, Unix milliseconds.
    pub(crate) now_ms: u64,
    pub(crate) state: Option<String>,
    /// Agents whose lease on the channel lasts.
    pub(crate) live: Vec<Box<str>>,
}

/// A state as its type. One that cannot be read is none: a foreign writer's, or of another version.
pub(crate) fn read<T: DeserializeOwned>(record: &Record, state: Option<&str>) -> Option<T> {
    let state = state?;
    match serde_json::from_str(state) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::warn!(%record, %error, "a state cannot be read and counts as none");
            None
        }
    }
}

/// The tries that a change gets.
pub(crate) fn races() -> std::ops::Range<usize> {
    0..RACES_MAX
}

/// When every try was lost.
pub(crate) fn contended(record: &Record) -> Unavailable {
    Unavailable(format!("{record} changes without end"))
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} `{}` of {}", self.kind.as_str(), self.id, self.channel)
    }
}
