//! ▲ What waits on a channel until somebody takes it: whose places they are, of which kind, and how many there are.
//!
//! [`command`](super::command) and [`work`](super::work) put commands there and take them away, each in the step
//! that changes the command.

use protocol::limits::{
    WAITING_BYTES_MAX, WAITING_BYTES_PER_SENDER_MAX, WAITING_CANCELS_MAX, WAITING_MAX,
    WAITING_PER_SENDER_MAX, WAITING_SERVICE_MAX, WAITING_SERVICE_PER_SENDER_MAX,
};
use protocol::{Channel, Kind};

use crate::NewEntry;

/// Which of its sender's places a command takes while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitingClass {
    /// Any command: a share of what the channel holds.
    Ordinary,
    /// A Cancel of all that runs: it has a place of its own.
    Cancel,
    /// A Cancel that names a run: likewise.
    CancelRun,
}

impl WaitingClass {
    /// How the class stands in Redis.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Ordinary => "o",
            Self::Cancel => "c",
            Self::CancelRun => "r",
        }
    }

    /// Why no place is free.
    pub(super) fn busy(self) -> String {
        match self {
            Self::Ordinary => format!(
                "too many commands wait already; at most {WAITING_PER_SENDER_MAX} of one sender and \
                 {WAITING_MAX} in all (on a service {WAITING_SERVICE_PER_SENDER_MAX} and {WAITING_SERVICE_MAX}), \
                 with {WAITING_BYTES_PER_SENDER_MAX} bytes of one sender and {WAITING_BYTES_MAX} in all"
            ),
            Self::Cancel => format!("{WAITING_CANCELS_MAX} of your own Cancels wait already"),
            Self::CancelRun => {
                format!("{WAITING_CANCELS_MAX} of your own Cancels that name a run wait already")
            }
        }
    }
}

/// How many commands may wait on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingLimits {
    pub(crate) per_sender: usize,
    pub(crate) all: usize,
    pub(crate) bytes: usize,
    pub(crate) bytes_per_sender: usize,
    pub(crate) cancels: usize,
}

impl WaitingLimits {
    pub(crate) fn of(channel: &Channel) -> Self {
        let (per_sender, all) = match channel.kind() {
            Kind::Service => (WAITING_SERVICE_PER_SENDER_MAX, WAITING_SERVICE_MAX),
            _ => (WAITING_PER_SENDER_MAX, WAITING_MAX),
        };
        Self {
            per_sender,
            all,
            bytes: WAITING_BYTES_MAX,
            bytes_per_sender: WAITING_BYTES_PER_SENDER_MAX,
            cancels: WAITING_CANCELS_MAX,
        }
    }
}

/// A command that begins to wait.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    pub(crate) entry: NewEntry,
    pub(crate) sender: Box<str>,
    pub(crate) class: WaitingClass,
    /// Refused where its sender, or all of them, have no place left. A command that is offered again has a
    /// place in any case.
    pub(crate) is_limited: bool,
}
