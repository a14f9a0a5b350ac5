//! ▲ Commands on their way to agents that have no Redis: one follower for all of them on this replica.
//!
//! Down to [`route`](super::route): each connection receives the commands of the channels it follows, each since
//! where it was, or what waits and then what is sent. Nothing is taken here: the agent takes what it begins.
//!
//! The follower knows only what is new. What a listener has missed is read for it alone, when it begins, when its
//! connection had no room, and when the follower itself has missed something; what comes meanwhile is kept for it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Backoff, Follower, Journal, Name, Since, Unavailable, Update, Updates, Waiting};
use protocol::{AgentMessage, Channel, Entry, Offset};
use serde_json::value::RawValue;

use super::outbox::Outbox;
use crate::supervisor::Supervisor;

/// How many commands are kept for a listener while others are read for it. What came beyond is read as well.
const CAME_MAX: usize = 64;
/// The same, in bytes.
const CAME_BYTES_MAX: usize = 256 * 1024;
/// How many commands one read asks for.
const PAGE_ENTRIES: usize = 256;

/// Which connections receive which commands.
#[derive(Debug)]
pub(crate) struct Offers {
    journal: Journal,
    supervisor: Supervisor,
    follower: Follower,
    channels: Mutex<HashMap<Channel, OfferedChannel>>,
}

#[derive(Debug, Default)]
struct OfferedChannel {
    /// The follower stands: whatever comes from now on is received.
    is_live: bool,
    listeners: Vec<AgentListener>,
}

#[derive(Debug)]
struct AgentListener {
    connection: u64,
    /// Which `follow` of all it is.
    number: u64,
    outbox: Outbox,
    position: ListenerPosition,
    /// It was told that commands come.
    is_announced: bool,
    phase: ListenerPhase,
    lags: Arc<AtomicBool>,
}

/// Up to where a listener has received everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerPosition {
    /// Nowhere: it wants what waits.
    Unknown,
    /// The beginning: there was no command yet.
    Empty,
    /// In the list of what waits, up to `at`; the newest command was `head` when it began with the list.
    InList {
        at: Offset,
        head: Offset,
    },
    At(Offset),
}

/// Where a listener gets its next command from.
#[derive(Debug)]
enum ListenerPhase {
    /// The journal, when the follower stands.
    Waiting,
    /// The journal: it is being read.
    Reading {
        /// What the follower has brought meanwhile.
        came: Vec<Arc<Entry>>,
        /// It brought more than that, or has missed some itself.
        is_cut: bool,
    },
    /// The follower.
    Live,
    /// Nowhere: its connection has no room. The journal, when it has.
    Behind,
}

/// What a listener has missed.
struct Missed {
    /// It may not go on where it was.
    is_reset: bool,
    entries: Vec<Arc<Entry>>,
    /// The entries are from the list of what waits.
    is_list: bool,
    /// The newest command of all.
    newest: Option<Offset>,
    /// Where it stands afterwards.
    position: ListenerPosition,
    has_more: bool,
}

/// One connection's share; what it follows ends with it.
#[derive(Debug)]
pub(super) struct Offer {
    offers: Arc<Offers>,
    connection: u64,
    outbox: Outbox,
    followed: Arc<Mutex<HashSet<Channel>>>,
    /// One of its listeners is behind.
    lags: Arc<AtomicBool>,
    /// What those have missed is being read.
    is_catching_up: Arc<AtomicBool>,
}

impl Offers {
    pub(crate) fn start(journal: &Journal, supervisor: &Supervisor) -> Arc<Self> {
        let (follower, updates) = journal.follow();
        let (journal, channels) = (journal.clone(), Mutex::default());
        let offers = Arc::new(Self { journal, supervisor: supervisor.clone(), follower, channels });
        supervisor.run("command offers", Arc::clone(&offers).run(updates));
        offers
    }

    /// For a connection that receives its commands through `outbox`.
    pub(super) fn open(self: &Arc<Self>, connection: u64, outbox: Outbox) -> Offer {
        Offer {
            offers: Arc::clone(self),
            connection,
            outbox,
            followed: Arc::default(),
            lags: Arc::default(),
            is_catching_up: Arc::default(),
        }
    }

    async fn run(self: Arc<Self>, mut updates: Updates) {
        while let Some(update) = updates.next().await {
            match update {
                Update::Live { name, head } => self.on_live(&name.channel, head),
                Update::Entries { name, entries } => {
                    if let Some(channel) = self.channels().get_mut(&name.channel) {
                        let listeners = channel.listeners.iter_mut();
                        listeners.for_each(|listener| listener.receive(&name.channel, &entries));
                    }
                }
                // What each has lost by that shows when it is read for.
                Update::Reset { name, .. } => self.read_for(&name.channel, |_| true),
                Update::Link { .. } | Update::Notified { .. } => {}
            }
        }
    }

    /// Who waited for this is read for; so is who stands before the head: the follower does not bring that.
    fn on_live(self: &Arc<Self>, name: &Channel, head: Option<Offset>) {
        if let Some(channel) = self.channels().get_mut(name) {
            channel.is_live = true;
        }
        self.read_for(name, |listener| match listener.phase {
            ListenerPhase::Waiting => true,
            ListenerPhase::Live => head.is_some_and(|head| !listener.has(&head)),
            ListenerPhase::Reading { .. } | ListenerPhase::Behind => false,
        });
    }

    /// Reads what those listeners of a channel have missed that are chosen; who is read for already is read for
    /// once more.
    fn read_for(self: &Arc<Self>, name: &Channel, is_chosen: impl Fn(&AgentListener) -> bool) {
        let mut channels = self.channels();
        let Some(channel) = channels.get_mut(name) else { return };
        for listener in &mut channel.listeners {
            if !is_chosen(listener) {
                continue;
            }
            match &mut listener.phase {
                ListenerPhase::Reading { is_cut, .. } => *is_cut = true,
                // It is read for when there is room.
                ListenerPhase::Behind => {}
                ListenerPhase::Waiting | ListenerPhase::Live => {
                    listener.phase = ListenerPhase::Reading { came: Vec::new(), is_cut: false };
                    let (offers, name) = (Arc::clone(self), name.clone());
                    let number = listener.number;
                    self.supervisor.run_once(async move { offers.read(&name, number).await });
                }
            }
        }
    }

    /// Until the listener has all, or has no room, or is gone.
    async fn read(&self, name: &Channel, number: u64) {
        let mut backoff = Backoff::default();
        loop {
            let position = match self.channels().get_mut(name).and_then(|c| c.of(number)) {
                Some(AgentListener { phase: ListenerPhase::Reading { .. }, position, .. }) => {
                    *position
                }
                _ => return,
            };
            match self.missed(name, position).await {
                Ok(missed) => {
                    let mut channels = self.channels();
                    let listener = channels.get_mut(name).and_then(|c| c.of(number));
                    if listener.is_none_or(|listener| listener.catch_up(name, missed)) {
                        return;
                    }
                    backoff.reset();
                }
                Err(error) => {
                    tracing::debug!(channel = %name, %error, "commands could not be read");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// One channel after the other, as long as there is room.
    async fn catch_up(&self, connection: u64, followed: HashSet<Channel>) {
        for name in followed {
            let behind = self.channels().get_mut(&name).and_then(|channel| {
                let mut listeners = channel.listeners.iter_mut();
                let mine = listeners.find(|listener| listener.connection == connection);
                let behind = mine.filter(|l| matches!(l.phase, ListenerPhase::Behind))?;
                behind.phase = ListenerPhase::Reading { came: Vec::new(), is_cut: false };
                Some(behind.number)
            });
            let Some(number) = behind else { continue };
            self.read(&name, number).await;
            if self.is_behind(&name, number) {
                return;
            }
        }
    }

    fn is_behind(&self, name: &Channel, number: u64) -> bool {
        let mut channels = self.channels();
        let listener = channels.get_mut(name).and_then(|channel| channel.of(number));
        listener.is_some_and(|listener| matches!(listener.phase, ListenerPhase::Behind))
    }

    async fn missed(
        &self,
        name: &Channel,
        position: ListenerPosition,
    ) -> Result<Missed, Unavailable> {
        let since = match position {
            ListenerPosition::Unknown | ListenerPosition::InList { .. } => None,
            ListenerPosition::Empty => Some(Since::Start),
            ListenerPosition::At(offset) => Some(Since::Offset(offset)),
        };
        let mut is_reset = false;
        if let Some(since) = since {
            let page =
                self.journal.read(&Name::commands(name.clone()), since, PAGE_ENTRIES).await?;
            let is_whole = since != Since::Start || page.start.is_none_or(|start| start.n == 0);
            if page.reset.is_none() && is_whole {
                let position = page.end().map_or(position, ListenerPosition::At);
                let has_more = page.has_more();
                let (newest, entries) = (page.head, page.entries);
                return Ok(Missed {
                    is_reset,
                    is_list: false,
                    entries,
                    newest,
                    position,
                    has_more,
                });
            }
            is_reset = true;
        }
        let Waiting { head: newest, mut entries } = self.journal.waiting(name).await?;
        let head = match position {
            // What was sent since then is read behind the list: an answer stands in no list.
            ListenerPosition::InList { head, .. } => Some(head),
            _ => newest,
        };
        let has_more = head != newest;
        if let Some(head) = head.filter(|_| has_more) {
            let is_before =
                |entry: &Arc<Entry>| entry.offset.epoch == head.epoch && entry.offset.n <= head.n;
            entries.retain(is_before);
        }
        let position = head.map_or(ListenerPosition::Empty, ListenerPosition::At);
        Ok(Missed { is_reset, is_list: true, entries, newest, position, has_more })
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<Channel, OfferedChannel>> {
        self.channels.lock().expect("no code panics with this lock held")
    }

    fn leave(&self, connection: u64, name: &Channel) {
        let mut all = self.channels();
        if let Some(channel) = all.get_mut(name) {
            channel.listeners.retain(|listener| listener.connection != connection);
            if channel.listeners.is_empty() {
                all.remove(name);
                self.follower.unfollow(&Name::commands(name.clone()));
            }
        }
    }
}

impl OfferedChannel {
    fn of(&mut self, number: u64) -> Option<&mut AgentListener> {
        self.listeners.iter_mut().find(|listener| listener.number == number)
    }
}

impl Offer {
    /// The channel's commands after `since` come, as long as this is held.
    pub(crate) fn follow(&self, name: &Channel, since: Since) {
        static FOLLOWS: AtomicU64 = AtomicU64::new(0);
        let number = FOLLOWS.fetch_add(1, Ordering::Relaxed);
        let position = match since {
            Since::Start => ListenerPosition::Unknown,
            Since::Offset(offset) => ListenerPosition::At(offset),
        };
        self.followed().insert(name.clone());
        let is_live = {
            let mut all = self.offers.channels();
            let channel = all.entry(name.clone()).or_insert_with(|| {
                self.offers.follower.follow(&Name::commands(name.clone()), None);
                OfferedChannel::default()
            });
            channel.listeners.retain(|listener| listener.connection != self.connection);
            channel.listeners.push(AgentListener {
                connection: self.connection,
                number,
                outbox: self.outbox.clone(),
                position,
                is_announced: false,
                phase: ListenerPhase::Waiting,
                lags: Arc::clone(&self.lags),
            });
            channel.is_live
        };
        if is_live {
            self.offers.read_for(name, |listener| listener.number == number);
        }
    }

    /// To be called when all that was said has been taken: what there was no room for comes anew.
    pub(crate) fn catch_up(&self) -> impl Fn() + use<> {
        let (offers, lags) = (Arc::clone(&self.offers), Arc::clone(&self.lags));
        let (connection, followed) = (self.connection, Arc::clone(&self.followed));
        let (is_catching_up, outbox) = (Arc::clone(&self.is_catching_up), self.outbox.clone());
        move || {
            if !lags.load(Ordering::SeqCst) || is_catching_up.swap(true, Ordering::SeqCst) {
                return;
            }
            let (offers, lags, followed, is_catching_up, outbox) = (
                offers.clone(),
                lags.clone(),
                followed.clone(),
                is_catching_up.clone(),
                outbox.clone(),
            );
            offers.supervisor.clone().run_once(async move {
                loop {
                    lags.store(false, Ordering::SeqCst);
                    let names =
                        followed.lock().expect("no code panics with this lock held").clone();
                    offers.catch_up(connection, names).await;
                    is_catching_up.store(false, Ordering::SeqCst);
                    // What waits to be said calls again. With nothing waiting, nobody would.
                    let is_called_again = !lags.load(Ordering::SeqCst) || outbox.is_waiting();
                    if is_called_again || is_catching_up.swap(true, Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
    }

    /// They come no more.
    pub(crate) fn unfollow(&self, name: &Channel) {
        self.followed().remove(name);
        self.offers.leave(self.connection, name);
    }

    fn followed(&self) -> MutexGuard<'_, HashSet<Channel>> {
        self.followed.lock().expect("no code panics with this lock held")
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let followed = std::mem::take(&mut *self.followed());
        for name in followed {
            self.offers.leave(self.connection, &name);
        }
    }
}

impl AgentListener {
    /// Whether it has received what stands at `offset`.
    fn has(&self, offset: &Offset) -> bool {
        let at = match &self.position {
            ListenerPosition::At(at) | ListenerPosition::InList { at, .. } => at,
            ListenerPosition::Unknown | ListenerPosition::Empty => return false,
        };
        at.epoch == offset.epoch && offset.n <= at.n
    }

    /// What the follower brings.
    fn receive(&mut self, name: &Channel, entries: &[Arc<Entry>]) {
        match &mut self.phase {
            ListenerPhase::Live => self.offer_all(name, entries, None),
            ListenerPhase::Reading { came, is_cut } => {
                let bytes = |of: &[Arc<Entry>]| of.iter().map(|entry| entry.bytes()).sum::<usize>();
                *is_cut |= came.len() + entries.len() > CAME_MAX
                    || bytes(came) + bytes(entries) > CAME_BYTES_MAX;
                if !*is_cut {
                    came.extend_from_slice(entries);
                }
            }
            ListenerPhase::Waiting | ListenerPhase::Behind => {}
        }
    }

    /// What was read. False where it must be read on.
    fn catch_up(&mut self, name: &Channel, missed: Missed) -> bool {
        let ListenerPhase::Reading { came, is_cut } = &mut self.phase else { return true };
        let (came, is_cut) = (std::mem::take(came), *is_cut);
        self.phase = ListenerPhase::Live;
        if missed.is_reset {
            // Where there is no room for it, it is found once more.
            if !self.say(&AgentMessage::Reset { channel: name.clone() }) {
                return true;
            }
            self.position = ListenerPosition::Unknown;
        }
        if !self.is_announced {
            // Once for each `follow` of the agent: it begins to read there.
            let (channel, offset) = (name.clone(), missed.newest);
            self.is_announced = self.say(&AgentMessage::Live { channel, offset });
            if !self.is_announced {
                return true;
            }
        }
        let list_head = match missed.position {
            ListenerPosition::At(head) if missed.is_list => Some(head),
            _ => None,
        };
        self.offer_all(name, &missed.entries, list_head);
        if !matches!(self.phase, ListenerPhase::Live) {
            return true;
        }
        self.position = missed.position;
        if missed.has_more || is_cut {
            self.phase = ListenerPhase::Reading { came: Vec::new(), is_cut: false };
            return false;
        }
        self.offer_all(name, &came, None);
        true
    }

    /// In order, until the connection has no room. `list_head`: they are from the list of what waits, up to there.
    fn offer_all(&mut self, name: &Channel, entries: &[Arc<Entry>], list_head: Option<Offset>) {
        for entry in entries {
            if !matches!(self.phase, ListenerPhase::Live) {
                return;
            }
            let Ok(data) = RawValue::from_string(entry.data.to_string()) else { continue };
            if self.has(&entry.offset) {
                continue;
            }
            let is_said = self.say(&AgentMessage::Command {
                channel: name.clone(),
                offset: entry.offset,
                name: entry.name.clone(),
                time_us: entry.time_us,
                data,
            });
            if is_said {
                let at = entry.offset;
                self.position = match list_head {
                    Some(head) => ListenerPosition::InList { at, head },
                    None => ListenerPosition::At(at),
                };
            }
        }
    }

    /// Never waits: one agent that does not read must not hold up the others.
    fn say(&mut self, message: &AgentMessage) -> bool {
        if self.outbox.try_say(message) {
            return true;
        }
        self.lags.store(true, Ordering::SeqCst);
        // All that waited may have been said just before that: then nobody would look.
        if self.outbox.try_say(message) {
            return true;
        }
        self.phase = ListenerPhase::Behind;
        false
    }
}
