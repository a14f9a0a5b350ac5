//! What has a state: commands, approvals, leases.
//!
//! A state is one small text per record. It changes by [`transact`]: read, decided by a pure rule, committed
//! by compare-and-set. What everybody is told of it is appended in the same atomic step. So the rules are
//! written once for both backends of a journal, and Redis needs one script ([`change.lua`](super::redis)).
//!
//! ▲ [`command`]: sent; [`waiting`]: until somebody takes it; [`work`]: taken by one agent, finished, or expired;
//!   [`walk`]: a Cancel, on to the agents that were spawned
//! ▲ [`approval`]: asked, answered once
//! ◆ [`lease`]: held, [renewed](renewal), released, or [lost](loss); [`family`]: who spawned whom;
//!   [`alive`] and [`tree`]: who is there
//! ◆ [`digest`]: what an id stands for
//! ◆ [`copy`]: what is told on an agent's channel and on the firehose
//! ◆ [`reaper`]: what falls due while nobody acts, done by the first replica to come; [`continuity`]: since
//!   when leases may be judged

pub(crate) mod alive;
pub(crate) mod approval;
pub(crate) mod command;
pub(crate) mod continuity;
mod copy;
pub(crate) mod digest;
pub(crate) mod family;
pub(crate) mod lease;
mod loss;
mod note;
pub(crate) mod reaper;
pub(crate) mod renewal;
mod standing;
mod transact;
pub(crate) mod tree;
pub(crate) mod waiting;
pub(crate) mod walk;
mod work;

use std::fmt;
use std::time::Duration;

use protocol::Channel;
use protocol::limits::APPROVAL_ID_BYTES_MAX;

use crate::NewEntry;
use transact::Decision;
pub(crate) use transact::{Change, Committed, Condition, Part, Snapshot, Transacted};
pub(crate) use waiting::{WaitingLimits, Waits};

/// What kind of record has the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordKind {
    Command,
    Approval,
    Lease,
    /// A child that an agent has declared.
    Child,
    /// A lost or replaced incarnation, until it is settled.
    Loss,
    /// What is told, and must stand on the firehose as well.
    Copy,
    /// A Cancel on its way to the agents that were spawned.
    Walk,
    /// That an agent has served the channel.
    Seen,
}

impl RecordKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Approval => "approval",
            Self::Lease => "lease",
            Self::Child => "child",
            Self::Loss => "loss",
            Self::Copy => "copy",
            Self::Walk => "walk",
            Self::Seen => "seen",
        }
    }
}

/// Something that has a state. It lives in its channel's slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) channel: Channel,
    /// A command's key, an approval's request id, a lease's agent; empty where a channel has only one.
    pub(crate) id: Box<str>,
}

impl Record {
    pub(crate) fn seen(channel: &Channel) -> Self {
        Self { kind: RecordKind::Seen, channel: channel.clone(), id: "".into() }
    }
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
    /// What is told must stand on the firehose as well.
    Copy,
    /// The same of an approval.
    CopyApproval,
    /// A Cancel must go on to the agents that were spawned.
    Walk,
}

impl Deadline {
    pub(crate) const ALL: [Self; 7] = [
        Self::Expire,
        Self::TimeOut,
        Self::Lose,
        Self::Settle,
        Self::Copy,
        Self::CopyApproval,
        Self::Walk,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Expire => "expire",
            Self::TimeOut => "timeout",
            Self::Lose => "lose",
            Self::Settle => "settle",
            Self::Copy => "copy",
            Self::CopyApproval => "copy-approval",
            Self::Walk => "walk",
        }
    }

    /// What kind of record the deadline is about.
    pub(crate) fn kind(self) -> RecordKind {
        match self {
            Self::Expire => RecordKind::Command,
            Self::TimeOut | Self::CopyApproval => RecordKind::Approval,
            Self::Lose => RecordKind::Lease,
            Self::Settle => RecordKind::Loss,
            Self::Copy => RecordKind::Copy,
            Self::Walk => RecordKind::Walk,
        }
    }
}

/// A list kept beside a channel's records, so that nobody must search for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Index {
    /// Agents that hold a lease here, each with its incarnation.
    Agents,
    /// Runs that this incarnation has begun and not ended.
    Runs(Box<str>),
    /// Channels on which this incarnation holds leases; beside the lease on its own channel.
    Channels(Box<str>),
    /// Agents that were spawned under this one, each with the time of its adoption and the run of it they belong to.
    Children,
    /// Agents that this Cancel has found on its way.
    Walked(Box<str>),
    /// Commands that this agent has taken and not finished.
    Open(Box<str>),
    /// Approvals that nobody has answered, each with its question, by the agent and the request id.
    Approvals,
}

impl Index {
    pub(crate) fn key(&self) -> (&'static str, &str) {
        match self {
            Self::Agents => ("agents", ""),
            Self::Runs(producer) => ("runs", producer),
            Self::Channels(producer) => ("channels", producer),
            Self::Children => ("children", ""),
            Self::Walked(cancel) => ("walked", cancel),
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

/// Agents whose lease on a channel lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    /// The journal's clock, Unix milliseconds.
    pub(crate) now_ms: u64,
    /// How many hold a lease. Exact where `agents` has them; of more, also those count whose lease has just
    /// run out.
    pub(crate) count: u64,
    /// An agent has served the channel not long ago, whether it is there now or not.
    pub(crate) is_known: bool,
    /// Who they are, where at most [`LIVE_MAX`] hold a lease.
    pub(crate) agents: Vec<Box<str>>,
}

/// So many agents of a channel are looked up by their deadlines: a command must not cost more where many
/// workers serve.
pub(crate) const LIVE_MAX: usize = 64;

/// An incarnation of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// The agent's id.
    #[serde(rename = "agent_id")]
    pub agent: Box<str>,
    /// The incarnation, as its lease says.
    pub incarnation: u64,
}

/// What else happens in the same step.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Appended to the channel's events.
    Event(NewEntry),
    /// Appended to the channel's commands, for everybody who follows them now.
    Command(NewEntry),
    /// The same, and it waits until somebody takes it.
    Wait(Waits),
    /// The record's command waits no more.
    WaitNoMore,
    Put(Index, Box<str>, Box<str>),
    Remove(Index, Box<str>),
    /// Nothing is in the index any more.
    Clear(Index),
    /// Another record of the channel has this state from now on, for so long.
    Write(Record, String, Duration),
    /// The deadline falls due after this time; `None`: never.
    Due(Deadline, Option<Duration>),
    /// The same for another record of the channel.
    DueOf(Deadline, Record, Duration),
    /// This incarnation writes no events here any more, and takes no commands.
    Fence(Holder),
    /// Notifies this address with the text, if a replica still listens there.
    Notify(Box<str>, Box<str>),
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The id of an approval is any text.
        let id = protocol::shown(&self.id, APPROVAL_ID_BYTES_MAX);
        write!(f, "the {} `{id}` of {}", self.kind.as_str(), self.channel)
    }
}
