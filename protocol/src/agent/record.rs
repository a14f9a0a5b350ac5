//! What agents, the relay and the record agree on: parents, commands' states, approvals and their decisions.

use serde::{Deserialize, Serialize};

use crate::Channel;
use crate::integer::{integer, or_default};

/// Which agent and run spawned this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The agent.
    pub agent_id: Box<str>,
    /// Its run, if the child belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Box<str>>,
    /// The session on which that run was begun, if on one: a Cancel sent there reaches the child as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Channel>,
}

/// Where a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is in the journal; no agent has taken it.
    Accepted,
    /// An agent has taken it.
    Delivered,
    /// Done.
    Applied,
    /// Not done, for a reason.
    Rejected,
    /// No agent took it in time.
    Expired,
}

impl Status {
    /// The status as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Delivered => "delivered",
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Applied | Self::Rejected | Self::Expired)
    }
}

/// The result of an attempt to take a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// It is yours: begin.
    Yours,
    /// Another agent has it, it is done, or it has expired.
    Gone,
    /// The agent's lease is lost. On the wire this is the error `fenced`.
    Fenced,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asks {
    /// May the agent do this?
    Permission,
    /// May the agent go on, though its budget is spent?
    Budget,
}

/// An answer to an approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalAnswer {
    /// Allowed, or go on.
    pub allowed: bool,
    /// The same from now on; the agent has to remember it.
    #[serde(default, deserialize_with = "or_default")]
    pub always: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    /// Who answered; `None` where nobody did in time, or the relay asks for no tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Box<str>>,
    /// When, Unix milliseconds.
    #[serde(deserialize_with = "integer")]
    pub at: u64,
    /// Nobody answered in time.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The answering command's id.
    pub command_id: Box<str>,
}

/// The result of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolved {
    /// It is the first.
    Yours,
    /// Another was first.
    Already(ApprovalAnswer),
    /// What was shown is not what is asked.
    OtherDigest,
    /// It asks for the other kind of answer.
    OtherKind,
    /// Another answer was given under this `command_id`.
    Conflict,
    /// Its asker gave it up, at this time, Unix milliseconds: nobody waits for an answer.
    Withdrawn(u64),
    /// The approval does not exist (any more).
    Unknown,
}
