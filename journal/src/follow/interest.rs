//! Says what to follow, from anywhere.
//!
//! the caller → **interest** → [`Updates`](super::Updates)

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use protocol::frame::Since;

use crate::Name;

/// Says what to follow. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Follower {
    address: Arc<str>,
    interest: Arc<Interest>,
}

/// Changes that [`Updates`](super::Updates) has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Interest {
    changes: Mutex<VecDeque<InterestChange>>,
    some: AtomicWaker,
}

#[derive(Debug)]
pub(super) enum InterestChange {
    Follow(Name, Option<Since>),
    Unfollow(Name),
}

impl Follower {
    pub(super) fn new(address: &str) -> (Self, Arc<Interest>) {
        let interest = Arc::<Interest>::default();
        (Self { address: address.into(), interest: Arc::clone(&interest) }, interest)
    }

    /// Follows `name` from `since`, or from its head. Following it already, this starts over. Of commands, the
    /// start is what waits to be taken, and then what comes after the head.
    pub fn follow(&self, name: &Name, since: Option<Since>) {
        self.push(InterestChange::Follow(name.clone(), since));
    }

    /// Stops following `name`. Updates that are under way still arrive.
    pub fn unfollow(&self, name: &Name) {
        self.push(InterestChange::Unfollow(name.clone()));
    }

    /// Where this follower can be notified, from anywhere: see [`NewCommand::answer_to`](crate::NewCommand).
    pub fn address(&self) -> &str {
        &self.address
    }

    fn push(&self, change: InterestChange) {
        let mut changes = self.interest.changes.lock().expect("no code panics with this lock held");
        changes.push_back(change);
        drop(changes);
        self.interest.some.wake();
    }
}

impl Interest {
    /// All changes; the waker is woken at the next one.
    pub(super) fn take(&self, waker: &Waker) -> VecDeque<InterestChange> {
        // Before looking: a change that comes in between wakes.
        self.some.register(waker);
        std::mem::take(&mut *self.changes.lock().expect("no code panics with this lock held"))
    }
}
