//! Follow: a live link made gap-free.
//!
//! One task per [`Updates`] owns a [`FollowState`] per followed journal. Joining is always the same: register
//! interest → wait for the link's confirmation → compare the head, and read since the position where it
//! differs → follow. A broken link, an overflow, a jump of n, another epoch and a silence that hides a
//! lost last entry all lead back into that same path, so there is one way to recover.
//!
//! Down: [`link`](crate::link) → **follow** → the relay's hub, or an agent's commands

mod state;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use protocol::frame::Since;
use protocol::{Entry, Offset};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::link::{Link, Request, Signal};
use crate::{Journal, Name, Page, Reason, Side, Unavailable, Waiting};
use state::{FollowState, Next, Ticket};

/// How many updates may wait for the consumer. A consumer that stands still makes the link overflow,
/// which is healed by reading.
const UPDATES: usize = 256;
/// How many heads are asked for in one go.
const HEADS_BATCH: usize = 500;
/// How many pages are read at a time: the pool's connections, less two for heads.
const PAGES_AT_ONCE: usize = 6;
/// The pace at which missed names are collected and failed reads tried again.
const TICK: Duration = Duration::from_millis(100);
/// How many entries one page read asks for.
const PAGE_ENTRIES: usize = 1000;

/// What happens on the followed journals, in order per journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The link came up or broke. Broken, it is remade for ever; what was missed is read.
    Link {
        /// Whether it is up.
        up: bool,
    },
    /// The journal is followed; what comes after `head` (or after the position asked for) follows.
    Live {
        /// Which journal.
        name: Name,
        /// Its newest entry; `None` if nothing was appended yet.
        head: Option<Offset>,
    },
    /// The next entries, without a gap.
    Entries {
        /// Which journal.
        name: Name,
        /// In order.
        entries: Vec<Arc<Entry>>,
    },
    /// What was handed out is not continued; everything retained follows.
    Reset {
        /// Which journal.
        name: Name,
        /// Why.
        reason: Reason,
        /// Its newest entry.
        head: Option<Offset>,
    },
    /// The [`address`](Follower::address) was notified. Notifications may be lost.
    Notified {
        /// The text of the notification.
        text: Box<str>,
    },
}

/// Says what to follow. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Follower {
    address: Arc<str>,
    changes: Arc<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    waiting: Mutex<VecDeque<InterestChange>>,
    some: Notify,
}

#[derive(Debug)]
enum InterestChange {
    Follow(Name, Option<Since>),
    Unfollow(Name),
}

impl Follower {
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
        self.changes.waiting.lock().expect("no code panics with this lock held").push_back(change);
        self.changes.some.notify_one();
    }
}

/// The stream of updates. Dropping it ends the link.
#[derive(Debug)]
pub struct Updates {
    updates: mpsc::Receiver<Update>,
}

impl Updates {
    /// The next update; `None` when the runtime shuts down. Cancel-safe.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

pub(crate) fn start(journal: Journal) -> (Follower, Updates) {
    let (updates, received) = mpsc::channel(UPDATES);
    let changes = Arc::new(Changes::default());
    let link = journal.link();
    let follower = Follower { address: (&*link.address).into(), changes: Arc::clone(&changes) };
    let follow = Follow {
        journal,
        changes,
        link,
        updates,
        is_up: false,
        followed: HashMap::new(),
        requests: VecDeque::new(),
        heads: Vec::new(),
        pages: VecDeque::new(),
        pages_reading: 0,
        reads: FuturesUnordered::new(),
        lives: 0,
    };
    tokio::spawn(follow.run());
    (follower, Updates { updates: received })
}

/// The result of a read.
enum ReadAnswer {
    Heads(Vec<(Name, Ticket)>, Result<Vec<Option<Offset>>, Unavailable>),
    Page(Name, Ticket, Result<Page, Unavailable>),
    /// What waits on a channel whose commands are followed from the start, or anew for this reason.
    Waiting(Name, Ticket, Option<Reason>, Result<Waiting, Unavailable>),
}

/// The consumer is gone.
struct Gone;

struct Follow {
    journal: Journal,
    changes: Arc<Changes>,
    link: Link,
    updates: mpsc::Sender<Update>,
    is_up: bool,
    followed: HashMap<Name, FollowState>,
    /// Requests that wait for room in the link.
    requests: VecDeque<Request>,
    /// The journals whose head is to be asked for.
    heads: Vec<(Name, Ticket)>,
    /// The journals that are to be read.
    pages: VecDeque<(Name, Ticket)>,
    pages_reading: usize,
    reads: FuturesUnordered<BoxFuture<'static, ReadAnswer>>,
    lives: u64,
}

impl Follow {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let changes = Arc::clone(&self.changes);
        let requests = self.link.requests.clone();
        let updates = self.updates.clone();
        loop {
            self.start_reads();
            let step = tokio::select! {
                signal = self.link.signals.recv() => match signal {
                    Some(signal) => self.on_signal(signal).await,
                    None => Err(Gone),
                },
                () = changes.some.notified() => {
                    self.on_changes();
                    Ok(())
                }
                permit = requests.reserve(), if !self.requests.is_empty() => {
                    match (permit, self.requests.pop_front()) {
                        (Ok(permit), Some(request)) => {
                            permit.send(request);
                            Ok(())
                        }
                        _ => Err(Gone),
                    }
                }
                Some(answer) = self.reads.next(), if !self.reads.is_empty() => self.on_answer(answer).await,
                _ = tick.tick() => {
                    self.on_tick();
                    Ok(())
                }
                () = updates.closed() => Err(Gone),
            };
            if step.is_err() {
                return;
            }
        }
    }

    fn on_changes(&mut self) {
        let changes = std::mem::take(
            &mut *self.changes.waiting.lock().expect("no code panics with this lock held"),
        );
        let mut follow = Vec::new();
        for change in changes {
            match change {
                InterestChange::Follow(name, since) => {
                    self.lives += 1;
                    self.followed.insert(name.clone(), FollowState::new(self.lives, since));
                    follow.push(name);
                }
                InterestChange::Unfollow(name) => {
                    if self.followed.remove(&name).is_some() {
                        self.send_follows(&mut follow);
                        self.requests.push_back(Request::Unfollow(name));
                    }
                }
            }
        }
        self.send_follows(&mut follow);
    }

    fn send_follows(&mut self, names: &mut Vec<Name>) {
        // While the link is down nobody can be asked; `Up` then asks for everything that is wanted.
        if self.is_up && !names.is_empty() {
            self.requests.push_back(Request::Follow(std::mem::take(names)));
        }
    }

    async fn on_signal(&mut self, signal: Signal) -> Result<(), Gone> {
        match signal {
            Signal::Up => {
                self.is_up = true;
                self.requests.clear();
                let mut names: Vec<Name> = self.followed.keys().cloned().collect();
                self.send_follows(&mut names);
                self.emit(Update::Link { up: true }).await
            }
            Signal::Down => {
                self.is_up = false;
                self.requests.clear();
                self.followed.values_mut().for_each(FollowState::detach);
                self.emit(Update::Link { up: false }).await
            }
            Signal::Confirmed(names) => {
                for name in names {
                    if let Some(follow_state) = self.followed.get_mut(&name)
                        && follow_state.confirmed()
                    {
                        self.heads.push((name, follow_state.ticket()));
                    }
                }
                Ok(())
            }
            Signal::Notified(text) => self.emit(Update::Notified { text }).await,
            Signal::Entries(name, entries, _room) => {
                let Some(follow_state) = self.followed.get_mut(&name) else { return Ok(()) };
                let next = follow_state.take(entries, Instant::now());
                self.go_on(name, next).await
            }
        }
    }

    async fn on_answer(&mut self, answer: ReadAnswer) -> Result<(), Gone> {
        match answer {
            ReadAnswer::Heads(names, heads) => {
                let heads = heads.map_or_else(
                    |_| vec![None; names.len()],
                    |heads| heads.into_iter().map(Some).collect(),
                );
                for ((name, ticket), head) in names.into_iter().zip(heads) {
                    let Some(follow_state) = self.follow_state(&name, ticket) else { continue };
                    let Some(head) = head else {
                        follow_state.read_failed();
                        continue;
                    };
                    let announce = follow_state.announce(head);
                    let next = follow_state.compare(head, Instant::now());
                    if announce {
                        self.emit(Update::Live { name: name.clone(), head }).await?;
                    }
                    self.go_on(name, next).await?;
                }
                Ok(())
            }
            ReadAnswer::Page(name, ticket, page) => {
                self.pages_reading -= 1;
                let Some(follow_state) = self.follow_state(&name, ticket) else { return Ok(()) };
                let Ok(page) = page else {
                    follow_state.read_failed();
                    return Ok(());
                };
                if let (Some(reason), Side::Commands) = (page.reset, name.side) {
                    self.read_waiting(name, ticket, Some(reason));
                    return Ok(());
                }
                let (head, reset) = (page.head, page.reset);
                let (entries, next) = follow_state.continue_with(page, Instant::now());
                if let Some(reason) = reset {
                    tracing::info!(journal = %name, reason = reason.as_str(), "a followed journal lost what was handed out");
                    self.emit(Update::Reset { name: name.clone(), reason, head }).await?;
                }
                if !entries.is_empty() {
                    self.emit(Update::Entries { name: name.clone(), entries }).await?;
                }
                self.go_on(name, next).await
            }
            ReadAnswer::Waiting(name, ticket, reset, waiting) => {
                self.on_waiting(name, ticket, reset, waiting).await
            }
        }
    }

    async fn on_waiting(
        &mut self,
        name: Name,
        ticket: Ticket,
        reset: Option<Reason>,
        waiting: Result<Waiting, Unavailable>,
    ) -> Result<(), Gone> {
        self.pages_reading -= 1;
        let Some(follow_state) = self.follow_state(&name, ticket) else { return Ok(()) };
        let Ok(Waiting { head, entries }) = waiting else {
            follow_state.read_failed();
            return Ok(());
        };
        let next = follow_state.continue_at(head, Instant::now());
        if let Some(reason) = reset {
            tracing::info!(journal = %name, reason = reason.as_str(), "followed commands were lost or trimmed");
            self.emit(Update::Reset { name: name.clone(), reason, head }).await?;
        }
        if !entries.is_empty() {
            self.emit(Update::Entries { name: name.clone(), entries }).await?;
        }
        self.go_on(name, next).await
    }

    fn read_waiting(&mut self, name: Name, ticket: Ticket, reset: Option<Reason>) {
        let journal = self.journal.clone();
        self.pages_reading += 1;
        self.reads.push(Box::pin(async move {
            let waiting = journal.waiting(&name.channel).await;
            ReadAnswer::Waiting(name, ticket, reset, waiting)
        }));
    }

    /// The follow state, if the question is still open.
    fn follow_state(&mut self, name: &Name, ticket: Ticket) -> Option<&mut FollowState> {
        self.followed.get_mut(name).filter(|follow_state| follow_state.ticket() == ticket)
    }

    async fn go_on(&mut self, name: Name, next: Next) -> Result<(), Gone> {
        match next {
            Next::Wait => Ok(()),
            Next::Emit(entries) => self.emit(Update::Entries { name, entries }).await,
            Next::EmitAndRead(entries) => {
                self.read_page(&name);
                if entries.is_empty() {
                    return Ok(());
                }
                self.emit(Update::Entries { name, entries }).await
            }
        }
    }

    fn on_tick(&mut self) {
        for name in self.link.missed.take() {
            if let Some(follow_state) = self.followed.get_mut(&name)
                && follow_state.missed()
            {
                self.read_page(&name);
            }
        }
        let now = Instant::now();
        for (name, follow_state) in &mut self.followed {
            if follow_state.must_retry() || follow_state.is_due(now) {
                self.heads.push((name.clone(), follow_state.ticket()));
            }
        }
    }

    fn start_reads(&mut self) {
        while !self.heads.is_empty() {
            let rest = self.heads.split_off(self.heads.len().min(HEADS_BATCH));
            let named = std::mem::replace(&mut self.heads, rest);
            let journal = self.journal.clone();
            self.reads.push(Box::pin(async move {
                let names: Vec<Name> = named.iter().map(|(name, _)| name.clone()).collect();
                let heads = journal.heads(&names).await;
                ReadAnswer::Heads(named, heads)
            }));
        }
        while self.pages_reading < PAGES_AT_ONCE
            && let Some((name, ticket)) = self.pages.pop_front()
        {
            let Some(since) =
                self.follow_state(&name, ticket).map(|follow_state| follow_state.position())
            else {
                continue;
            };
            if (name.side, since) == (Side::Commands, Since::Start) {
                self.read_waiting(name, ticket, None);
                continue;
            }
            let journal = self.journal.clone();
            self.pages_reading += 1;
            self.reads.push(Box::pin(async move {
                let page = journal.read(&name, since, PAGE_ENTRIES).await;
                ReadAnswer::Page(name, ticket, page)
            }));
        }
    }

    fn read_page(&mut self, name: &Name) {
        if let Some(follow_state) = self.followed.get(name) {
            self.pages.push_back((name.clone(), follow_state.ticket()));
        }
    }

    async fn emit(&mut self, update: Update) -> Result<(), Gone> {
        self.updates.send(update).await.map_err(|_| Gone)
    }
}
