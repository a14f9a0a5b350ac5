//! Follows what somebody here listens to, and hands it to the hub: the entrance to the way down.
//!
//! Down: journal → **feed** → [`hub`](super::hub)

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use journal::{Follower, Journal, Page, Reason, Update, Updates};
use protocol::Channel;
use tokio::sync::watch;

use super::approvals::{self, Approvals, Question};
use super::hub::{FanOut, Hub, Membership, Wake};
use super::pages::{Pages, Request};
use super::pending::Pending;
use super::single_flight::ReadError;
use crate::memory::Memory;
use crate::supervisor::Supervisor;
use crate::websocket::TextFrame;

/// A channel that nobody listens to is followed for one to two of these longer: pages reload.
const SWEEP: Duration = Duration::from_secs(10);
/// How many updates are taken before what they bring is written.
const UPDATES_AT_ONCE: usize = 1024;
/// How long is written before it is looked whether more has come, and before other tasks have their turn.
const WRITING_TIME: Duration = Duration::from_millis(1);

/// Whether the record is within reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Redis answers.
    Ok,
    /// Redis is away; what was missed will be read when it is back.
    Degraded,
}

impl Status {
    /// The status as it stands on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
        }
    }
}

/// Everything a route needs to show events.
#[derive(Debug)]
pub(crate) struct Events {
    /// One for each worker. A channel always has the same, so its order needs no lock.
    feeds: Box<[Feed]>,
    pages: Pages,
    approvals: Approvals,
    journal: Journal,
    supervisor: Supervisor,
    status: watch::Sender<Status>,
    memory: Arc<Memory>,
}

/// The way down of some of the channels.
#[derive(Debug)]
struct Feed {
    hub: Hub,
    follower: Follower,
    /// Joining and sweeping decide together what is followed: one at a time.
    interest: Mutex<()>,
    /// Whether its link to the journals stands.
    is_up: AtomicBool,
}

impl Events {
    /// Begins to follow, with so many workers.
    pub(crate) fn start(
        journal: &Journal,
        workers: NonZeroUsize,
        memory: &Arc<Memory>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let (followers, updates): (Vec<Follower>, Vec<Updates>) =
            (0..workers.get()).map(|_| journal.follow()).unzip();
        let feed = |follower| Feed {
            hub: Hub::new(memory),
            follower,
            interest: Mutex::default(),
            is_up: AtomicBool::new(false),
        };
        let events = Arc::new(Self {
            feeds: followers.into_iter().map(feed).collect(),
            pages: Pages::new(journal.clone()),
            approvals: Approvals::new(journal.clone(), Arc::clone(memory)),
            journal: journal.clone(),
            supervisor: supervisor.clone(),
            status: watch::Sender::new(Status::Degraded),
            memory: Arc::clone(memory),
        });
        for (index, updates) in updates.into_iter().enumerate() {
            supervisor.run("feed", Arc::clone(&events).run(index, updates));
        }
        events
    }

    /// Listens to `channel` for the subscription in `slot` of a connection.
    pub(crate) fn join(&self, channel: &Channel, wake: &Arc<Wake>, slot: u32) -> Membership {
        let feed = self.feed(channel);
        let _one_at_a_time = feed.interest.lock().expect("no code panics with this lock held");
        let (membership, is_new) = feed.hub.join(channel, wake, slot);
        if is_new {
            feed.follower.follow(&membership.watched().name, None);
        }
        membership
    }

    fn feed(&self, channel: &Channel) -> &Feed {
        let mut hasher = DefaultHasher::new();
        channel.as_str().hash(&mut hasher);
        &self.feeds[hasher.finish() as usize % self.feeds.len()]
    }

    /// A page of a journal; where delivery starts with it, also what waits for an answer.
    pub(crate) async fn read(
        &self,
        request: &Request,
    ) -> Result<(Page, Option<Arc<Pending>>), ReadError> {
        let mut page = self.pages.read(request).await?;
        if page.truncated && !request.is_join {
            // The first event was waited for, and has gone already.
            page.reset.get_or_insert(Reason::Retention);
        }
        let (channel, head) = (request.name.channel.clone(), page.head);
        let is_start = request.is_join || page.reset.is_some();
        let pending = if is_start && approvals::may_stand_on(&channel) {
            Some(self.ask(&Question { channel, head }).await?)
        } else {
            None
        };
        Ok((page, pending))
    }

    /// What waits for an answer.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Arc<Pending>, ReadError> {
        self.approvals.read(question).await
    }

    /// How many subscribe to each channel here. The channel that everybody receives does not count.
    pub(crate) fn subscribers(&self) -> HashMap<Channel, u64> {
        let mut counts: HashMap<Channel, u64> =
            self.feeds.iter().flat_map(|feed| feed.hub.subscribers()).collect();
        counts.remove(&Channel::global_everyone());
        counts
    }

    /// What counts the bytes that wait.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Whether a connection would receive what is published now.
    pub(crate) fn is_following(&self) -> bool {
        let everyone = Channel::global_everyone();
        self.feed(&everyone).hub.is_live(&everyone)
    }

    /// Whether the record is within reach, and when that changes.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    async fn run(self: Arc<Self>, index: usize, mut updates: Updates) {
        let (everyone, feed) = (Channel::global_everyone(), &self.feeds[index]);
        // Followed from the start, so that a new connection receives everything from then on.
        let is_everyones = std::ptr::eq(self.feed(&everyone), feed);
        let _membership = is_everyones.then(|| self.join(&everyone, &Arc::default(), 0));
        let (mut sweep, mut fan_outs) = (tokio::time::interval(SWEEP), FanOutQueue::default());
        loop {
            let mut next = tokio::select! {
                biased;
                _ = sweep.tick() => {
                    feed.sweep();
                    continue;
                }
                update = updates.next() => match update {
                    Some(update) => Some(update),
                    None => return,
                },
                // Others have their turn first.
                () = tokio::task::yield_now(), if !fan_outs.is_empty() => None,
            };
            // What else has come is taken first, so that much goes with one write when much happens.
            let mut taken = 0;
            while let Some(update) = next {
                self.on_update(feed, update, &mut fan_outs);
                taken += 1;
                // What is asked for here is handled: nothing may be taken beyond the bound.
                next = (taken < UPDATES_AT_ONCE)
                    .then(|| tokio::task::unconstrained(updates.next()).now_or_never())
                    .flatten()
                    .flatten();
            }
            fan_outs.go_on(WRITING_TIME);
        }
    }

    fn on_link(&self, feed: &Feed, up: bool) {
        feed.is_up.store(up, Ordering::SeqCst);
        self.pages.forget();
        self.approvals.forget(None);
        let is_news = self.status.send_if_modified(|status| {
            // Looked at in here: of two feeds at once, the one that comes last says how both stand.
            let is_well = self.feeds.iter().all(|feed| feed.is_up.load(Ordering::SeqCst));
            let now = if is_well { Status::Ok } else { Status::Degraded };
            std::mem::replace(status, now) != now
        });
        if is_news {
            let status = *self.status.borrow();
            // The link itself says which Redis went or came.
            tracing::debug!(status = status.as_str(), "browsers are told the state of redis");
            if status == Status::Ok {
                self.supervisor.run_once(warn_of_eviction(self.journal.clone()));
            }
        }
    }

    fn on_update(&self, feed: &Feed, update: Update, fan_outs: &mut FanOutQueue) {
        match update {
            Update::Link { up } => self.on_link(feed, up),
            Update::Live { name, head } => {
                self.approvals.forget(Some(&name.channel));
                feed.hub.live(&name.channel, head);
            }
            Update::Entries { name, entries } => {
                fan_outs.add(feed.hub.extend(&name.channel, entries));
            }
            Update::Reset { name, .. } => {
                self.pages.forget();
                self.approvals.forget(Some(&name.channel));
                feed.hub.reset(&name.channel);
            }
            // Nobody waits for an answer at this address.
            Update::Notified { .. } => {}
        }
    }
}

impl Feed {
    fn sweep(&self) {
        let _one_at_a_time = self.interest.lock().expect("no code panics with this lock held");
        for name in self.hub.sweep() {
            self.follower.unfollow(&name);
        }
    }
}

/// The fan-outs of channels with something new.
#[derive(Debug, Default)]
struct FanOutQueue {
    waiting: VecDeque<FanOut>,
    /// Of each write.
    space: Vec<TextFrame>,
}

impl FanOutQueue {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn add(&mut self, fan_out: Option<FanOut>) {
        self.waiting.extend(fan_out);
    }

    /// Goes on for about so long: meanwhile nothing new is taken.
    fn go_on(&mut self, time: Duration) {
        if self.is_empty() {
            return;
        }
        let began = Instant::now();
        while let Some(mut fan_out) = self.waiting.pop_front() {
            if !fan_out.go_on(&mut self.space) {
                self.waiting.push_back(fan_out);
            }
            if began.elapsed() >= time {
                return;
            }
        }
    }
}

/// Each time that Redis is reached it may be another one, or set otherwise.
async fn warn_of_eviction(journal: Journal) {
    match journal.eviction().await {
        Ok(Some(policy)) => tracing::warn!(
            policy,
            "redis will delete journals when it reaches its maxmemory: set maxmemory-policy noeviction"
        ),
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "redis does not say its maxmemory-policy"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use journal::NewEntry;

    use super::*;

    /// More than are taken at once: none of them may be passed over.
    #[tokio::test]
    async fn everything_of_a_flood_comes_to_its_channel() {
        let (journal, memory) = (Journal::in_memory(), Memory::new(usize::MAX));
        let events = Events::start(&journal, NonZeroUsize::MIN, &memory, &Supervisor::new());
        let channels: Vec<Channel> =
            (0..2 * UPDATES_AT_ONCE).map(|n| Channel::session(&n.to_string()).unwrap()).collect();
        let join = |channel| events.join(channel, &Arc::default(), 0);
        let joined: Vec<Membership> = channels.iter().map(join).collect();
        let heads = || joined.iter().filter_map(|one| one.watched().head());
        let until = async |all: &dyn Fn() -> usize, what: &str| {
            let mut waited = 0;
            while all() < joined.len() {
                assert!(waited < 1_000, "{} of {} {what}", all(), joined.len());
                tokio::time::sleep(Duration::from_millis(10)).await;
                waited += 1;
            }
        };
        until(&|| heads().count(), "are followed").await;

        for one in &joined {
            let entries = vec![NewEntry::new("e", "1")];
            journal.append(&one.watched().name, entries).await.unwrap();
        }

        until(&|| heads().flatten().count(), "have their event").await;
    }

    /// Red where a feed says how all stood before another one changed that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn feeds_whose_links_change_at_once_agree_on_the_state() {
        let workers = NonZeroUsize::new(2).unwrap();
        let memory = Memory::new(usize::MAX);
        let events = Events::start(&Journal::in_memory(), workers, &memory, &Supervisor::new());
        events.status().wait_for(|status| *status == Status::Ok).await.unwrap();
        let (handle, arrived) = (tokio::runtime::Handle::current(), AtomicUsize::new(0));
        // Both arrive here before either goes on, at the same moment: a lock would let one go first.
        let meet = |count: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * count {
                std::thread::yield_now();
            }
        };
        let change = |feed| {
            let _runtime = handle.enter();
            for round in 0..20_000 {
                for (step, up) in [(1, false), (2, true)] {
                    events.on_link(feed, up);
                    meet(4 * round + 2 * step - 1);
                    let is_well = *events.status.borrow() == Status::Ok;
                    meet(4 * round + 2 * step);
                    assert_eq!(is_well, up, "round {round}");
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                events.feeds.iter().map(|feed| scope.spawn(move || change(feed))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
