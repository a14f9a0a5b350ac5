//! What an agent follows over its link, and what it is told of it.

use std::sync::Arc;

use journal::{Follower, Name, Since, Update, Updates};
use protocol::Channel;
use tokio::sync::mpsc;

use super::relay_link::RelayShared;

/// Says which channels' commands are wanted.
#[derive(Clone, Debug)]
pub(crate) enum LinkFollower {
    Journal(Follower),
    Relay(Arc<RelayShared>),
}

/// What comes of it.
#[derive(Debug)]
pub(crate) enum LinkUpdates {
    Journal(Box<Updates>),
    Relay(mpsc::Receiver<Update>),
}

impl LinkFollower {
    /// Follows the commands of `channel` from `since`. Followed already, this starts over.
    pub(crate) fn follow(&self, channel: &Channel, since: Since) {
        match self {
            Self::Journal(follower) => {
                follower.follow(&Name::commands(channel.clone()), Some(since));
            }
            Self::Relay(relay) => relay.change(|state| state.follow(channel, since)),
        }
    }

    pub(crate) fn unfollow(&self, channel: &Channel) {
        match self {
            Self::Journal(follower) => follower.unfollow(&Name::commands(channel.clone())),
            Self::Relay(relay) => relay.change(|state| state.unfollow(channel)),
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
