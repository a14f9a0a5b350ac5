//! A live link to a backend of journals: what is followed there, and what comes in.
//!
//! A link promises only this: after `Confirmed`, what is appended comes in, in order, *or* `Missed` is signalled,
//! *or* `Down`. [`follow`](crate::follow) makes that gap-free. Nothing runs beside its owner: who polls it
//! reads it.

use std::sync::Arc;
use std::task::{Context, Poll};

use protocol::Entry;

use crate::Name;
use crate::memory::MemoryLink;
use crate::redis::RedisLink;

/// Which of its followed journals the owner of a link means. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FollowId {
    pub(crate) slot: u32,
    pub(crate) life: u64,
}

/// What a link tells its owner.
#[derive(Debug)]
pub(crate) enum Signal {
    /// The link stands and follows nothing yet.
    Up,
    /// The link broke; everything must be followed anew once it is up.
    Down,
    /// All that is appended to these from now on comes in.
    Confirmed(Vec<FollowId>),
    /// Entries that were appended together; none where they could not be read.
    Entries(FollowId, Vec<Arc<Entry>>),
    /// Entries found no room.
    Missed(FollowId),
    /// This link's address was notified.
    Notified(Box<str>),
}

/// A link to one of the backends.
#[derive(Debug)]
pub(crate) enum Link {
    Memory(MemoryLink),
    Redis(Box<RedisLink>),
}

impl Link {
    /// Where this link can be notified.
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Memory(link) => link.address(),
            Self::Redis(link) => link.address(),
        }
    }

    /// Follows these from now on; they are `Confirmed`. Does nothing while the link is down.
    pub(crate) fn follow(&mut self, names: Vec<(FollowId, Name)>) {
        match self {
            Self::Memory(link) => link.follow(names),
            Self::Redis(link) => link.follow(names),
        }
    }

    /// Stops following this.
    pub(crate) fn unfollow(&mut self, name: &Name) {
        match self {
            Self::Memory(link) => link.unfollow(name),
            Self::Redis(link) => link.unfollow(name),
        }
    }

    /// The next signal. Links are made anew for ever, so there always is one.
    pub(crate) fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        match self {
            Self::Memory(link) => link.poll_signal(cx),
            Self::Redis(link) => link.poll_signal(cx),
        }
    }
}
