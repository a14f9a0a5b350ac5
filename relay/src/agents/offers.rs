//! ▲ Commands on their way to agents that have no Redis: one follower for all of them on this replica.
//!
//! Down to [`route`](super::route): each connection hears the commands of the channels it follows, each
//! since where it was, or what waits and then what is sent. Nothing is taken here: the agent takes what it begins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Follower, Journal, Name, Reason, Since, Update, Updates};
use protocol::{AgentMessage, Channel, Entry, Offset};
use serde_json::value::RawValue;

use super::outbox::Outbox;
use crate::supervisor::Supervisor;

/// Who hears which commands.
#[derive(Debug)]
pub(crate) struct Offers {
    follower: Follower,
    listeners: Mutex<HashMap<Channel, Vec<AgentListener>>>,
}

#[derive(Debug)]
struct AgentListener {
    connection: u64,
    outbox: Outbox,
    /// It has heard everything up to here.
    heard: Option<Offset>,
    /// It was told that commands come.
    is_announced: bool,
    /// There was no room for more: what came since then is read again when there is.
    is_behind: bool,
    lags: Arc<AtomicBool>,
}

/// One connection's share; what it follows ends with it.
#[derive(Debug)]
pub(super) struct Offer {
    offers: Arc<Offers>,
    connection: u64,
    outbox: Outbox,
    /// One of its listeners is behind.
    lags: Arc<AtomicBool>,
}

impl Offers {
    pub(crate) fn start(journal: &Journal, supervisor: &Supervisor) -> Arc<Self> {
        let (follower, updates) = journal.follow();
        let offers = Arc::new(Self { follower, listeners: Mutex::default() });
        supervisor.run("command offers", Arc::clone(&offers).run(updates));
        offers
    }

    /// For a connection that says what it hears through `outbox`.
    pub(super) fn open(self: &Arc<Self>, connection: u64, outbox: Outbox) -> Offer {
        Offer { offers: Arc::clone(self), connection, outbox, lags: Arc::default() }
    }

    async fn run(self: Arc<Self>, mut updates: Updates) {
        while let Some(update) = updates.next().await {
            match update {
                Update::Live { name, head } => self.tell(&name, |listener| {
                    let channel = name.channel.clone();
                    // Once for each `follow` of the agent: it begins to read there. What is read again here
                    // goes on where the agent is.
                    if !listener.is_announced {
                        let live = AgentMessage::Live { channel, offset: head };
                        listener.is_announced = listener.say(&live);
                    }
                }),
                Update::Entries { name, entries } => self.tell(&name, |listener| {
                    for entry in &entries {
                        listener.offer(&name.channel, entry);
                    }
                }),
                // What waits comes, and what was heard of it is passed over.
                Update::Reset { reason: Reason::Retention, .. } => {}
                Update::Reset { name, .. } => self.tell(&name, |listener| {
                    listener.heard = None;
                    listener.say(&AgentMessage::Reset { channel: name.channel.clone() });
                }),
                Update::Link { .. } | Update::Notified { .. } => {}
            }
        }
    }

    /// There is room again: whatever the connection's listeners have missed comes anew.
    fn catch_up(&self, connection: u64) {
        for (channel, listeners) in self.listeners().iter_mut() {
            let mine = listeners.iter_mut().find(|listener| listener.connection == connection);
            if let Some(listener) = mine.filter(|listener| listener.is_behind) {
                listener.is_behind = false;
                self.follow(channel, listeners);
            }
        }
    }

    /// Follows for all of a channel's listeners: from the one that has heard least, and from what waits where
    /// one has heard nothing. Each passes over what it has heard.
    fn follow(&self, channel: &Channel, listeners: &[AgentListener]) {
        let heard: Option<Vec<Offset>> = listeners.iter().map(|listener| listener.heard).collect();
        let least = heard.and_then(|heard| heard.into_iter().min_by_key(|at| (at.epoch, at.n)));
        let since = least.map_or(Since::Start, Since::Offset);
        self.follower.follow(&Name::commands(channel.clone()), Some(since));
    }

    fn tell(&self, name: &Name, what: impl FnMut(&mut AgentListener)) {
        if let Some(listeners) = self.listeners().get_mut(&name.channel) {
            listeners.iter_mut().for_each(what);
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Channel, Vec<AgentListener>>> {
        self.listeners.lock().expect("no code panics with this lock held")
    }

    fn leave(&self, connection: u64, channel: &Channel) {
        let mut all = self.listeners();
        if let Some(listeners) = all.get_mut(channel) {
            listeners.retain(|listener| listener.connection != connection);
            if listeners.is_empty() {
                all.remove(channel);
                self.follower.unfollow(&Name::commands(channel.clone()));
            }
        }
    }
}

impl Offer {
    /// The channel's commands after `since` come, as long as this is held.
    pub(crate) fn follow(&self, channel: &Channel, since: Since) {
        let heard = match since {
            Since::Start => None,
            Since::Offset(offset) => Some(offset),
        };
        let listener = AgentListener {
            connection: self.connection,
            outbox: self.outbox.clone(),
            heard,
            is_announced: false,
            is_behind: false,
            lags: Arc::clone(&self.lags),
        };
        let mut all = self.offers.listeners();
        let listeners = all.entry(channel.clone()).or_default();
        listeners.retain(|listener| listener.connection != self.connection);
        listeners.push(listener);
        self.offers.follow(channel, listeners);
    }

    /// To be called when all that was said has been taken: what there was no room for comes anew.
    pub(crate) fn catch_up(&self) -> impl Fn() + use<> {
        let (offers, lags) = (Arc::clone(&self.offers), Arc::clone(&self.lags));
        let connection = self.connection;
        move || {
            if lags.swap(false, Ordering::SeqCst) {
                offers.catch_up(connection);
            }
        }
    }

    /// They come no more.
    pub(crate) fn unfollow(&self, channel: &Channel) {
        self.offers.leave(self.connection, channel);
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let followed: Vec<Channel> = self.offers.listeners().keys().cloned().collect();
        for channel in followed {
            self.offers.leave(self.connection, &channel);
        }
    }
}

impl AgentListener {
    fn offer(&mut self, channel: &Channel, entry: &Entry) {
        let is_heard = self
            .heard
            .is_some_and(|heard| heard.epoch == entry.offset.epoch && entry.offset.n <= heard.n);
        let Ok(data) = RawValue::from_string(entry.data.to_string()) else { return };
        if is_heard || self.is_behind {
            return;
        }
        let is_said = self.say(&AgentMessage::Command {
            channel: channel.clone(),
            offset: entry.offset,
            name: entry.name.clone(),
            time_us: entry.time_us,
            data,
        });
        if is_said {
            self.heard = Some(entry.offset);
        }
    }

    /// Never waits: one agent that does not read must not hold up the others.
    fn say(&mut self, message: &AgentMessage) -> bool {
        let is_said = self.outbox.try_say(message);
        if !is_said {
            self.is_behind = true;
            self.lags.store(true, Ordering::SeqCst);
        }
        is_said
    }
}
