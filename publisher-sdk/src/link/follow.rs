//! What an agent follows over its link, and what it hears there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use journal::{Follower, Name, Since, Update, Updates};
use protocol::Channel;
use tokio::sync::{Notify, mpsc};

/// How many updates may wait for the agent.
const UPDATES: usize = 256;

/// Says which channels' commands are wanted.
#[derive(Clone, Debug)]
pub(crate) enum LinkFollower {
    Journal(Follower),
    Relay(Arc<FollowRequests>),
}

/// What comes of it.
#[derive(Debug)]
pub(crate) enum LinkUpdates {
    Journal(Updates),
    Relay(mpsc::Receiver<Update>),
}

/// What the relay client has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct FollowRequests {
    waiting: Mutex<VecDeque<FollowRequest>>,
    some: Notify,
}

/// To follow a channel's commands since somewhere, or no longer.
#[derive(Clone, Debug)]
pub(super) enum FollowRequest {
    Follow(Channel, Since),
    Unfollow(Channel),
}

impl LinkFollower {
    /// Follows the commands of `channel` from `since`. Followed already, this starts over.
    pub(crate) fn follow(&self, channel: &Channel, since: Since) {
        match self {
            Self::Journal(follower) => {
                follower.follow(&Name::commands(channel.clone()), Some(since));
            }
            Self::Relay(requests) => requests.push(FollowRequest::Follow(channel.clone(), since)),
        }
    }

    pub(crate) fn unfollow(&self, channel: &Channel) {
        match self {
            Self::Journal(follower) => follower.unfollow(&Name::commands(channel.clone())),
            Self::Relay(requests) => requests.push(FollowRequest::Unfollow(channel.clone())),
        }
    }
}

impl LinkUpdates {
    /// The next update; `None` when the runtime shuts down. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Journal(updates) => updates.next().await,
            Self::Relay(updates) => updates.recv().await,
        }
    }
}

impl FollowRequests {
    fn push(&self, request: FollowRequest) {
        self.waiting.lock().expect("no code panics with this lock held").push_back(request);
        self.some.notify_one();
    }

    /// Waits until something is requested. Cancel-safe.
    pub(super) async fn next(&self) -> FollowRequest {
        loop {
            let some = self.some.notified();
            let next = self.waiting.lock().expect("no code panics with this lock held").pop_front();
            if let Some(request) = next {
                return request;
            }
            some.await;
        }
    }
}

/// What follows through a relay: the agent's end, and where the client puts the updates.
pub(super) fn through_relay() -> (Arc<FollowRequests>, mpsc::Sender<Update>, LinkUpdates) {
    let (updates, received) = mpsc::channel(UPDATES);
    (Arc::default(), updates, LinkUpdates::Relay(received))
}
