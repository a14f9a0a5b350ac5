//! Follow: a live link made gap-free, by the task that consumes what comes of it.
//!
//! [`Updates`] owns a [`FollowState`] per followed journal. Joining is always the same: register
//! interest → wait for the link's confirmation → compare the head, and read since the position where it
//! differs → follow. A broken link, an overflow, a jump of n, another epoch and a silence that hides a
//! lost last entry all lead back into that same path, so there is one way to recover.
//!
//! Down: [`link`](crate::link) → **follow** → the relay's hub, or an agent's commands

mod followed;
mod interest;
mod state;

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use protocol::frame::Since;
use protocol::{Entry, Offset};
use tokio::task::{JoinSet, coop};
use tokio::time::{Instant, Sleep};

use crate::link::{FollowId, Link, Signal};
use crate::{Journal, Name, Page, Reason, Side, Unavailable, Waiting};
use followed::{Followed, Table};
pub use interest::Follower;
use interest::{Interest, InterestChange};
use state::{Next, Ticket};

/// How many heads are asked for in one go.
const HEADS_BATCH: usize = 500;
/// How many pages are read at a time: the pool's connections, less two for heads.
const PAGES_AT_ONCE: usize = 6;
/// Deadlines are looked at in this pace, so that heads are asked for together.
const TICK: Duration = Duration::from_millis(100);
/// How many entries one page read asks for.
const PAGE_ENTRIES: usize = 1000;
/// How many signals of the link are taken before the rest has its turn.
const SIGNALS_IN_A_ROW: u32 = 64;

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

/// The stream of updates. Dropping it ends the link.
///
/// The link to Redis is read by the task that asks for the [next](Self::next) update, without a queue in between. So while
/// nobody asks, nothing comes in, and nothing is dropped: after long, Redis cuts the link at its output limit, and what was
/// missed is read, as after any break.
#[derive(Debug)]
pub struct Updates {
    journal: Journal,
    interest: Arc<Interest>,
    link: Link,
    is_up: bool,
    followed: Table,
    /// What is to be handed out, in order.
    ready: VecDeque<Update>,
    /// The journals whose head is to be asked for.
    heads: Vec<(FollowId, Ticket)>,
    /// The journals that are to be read.
    pages: VecDeque<(FollowId, Ticket)>,
    pages_reading: usize,
    /// In tasks: a read holds a connection that others wait for, also where its owner stands still.
    reads: JoinSet<ReadAnswer>,
    /// Until the first deadline. `None` where nothing is due.
    timer: Option<Pin<Box<Sleep>>>,
    /// Before that, deadlines are not looked at again.
    next_tick: Instant,
    signals_left: u32,
    /// The runtime shuts down: it has ended a task of ours.
    is_over: bool,
}

/// The result of a read.
enum ReadAnswer {
    Heads(Vec<(FollowId, Ticket)>, Result<Vec<Option<Offset>>, Unavailable>),
    Page(FollowId, Ticket, Result<Page, Unavailable>),
    /// What waits on a channel whose commands are followed from the start, or anew for this reason.
    Waiting(FollowId, Ticket, Option<Reason>, Result<Waiting, Unavailable>),
}

impl Updates {
    pub(crate) fn start(journal: Journal) -> (Follower, Self) {
        let link = journal.link();
        let (follower, interest) = Follower::new(link.address());
        let updates = Self {
            journal,
            interest,
            link,
            is_up: false,
            followed: Table::default(),
            ready: VecDeque::new(),
            heads: Vec::new(),
            pages: VecDeque::new(),
            pages_reading: 0,
            reads: JoinSet::new(),
            timer: None,
            next_tick: Instant::now(),
            signals_left: SIGNALS_IN_A_ROW,
            is_over: false,
        };
        (follower, updates)
    }

    /// The next update; `None` when the runtime shuts down. Cancel-safe. To be called within a tokio runtime, again and
    /// again: what the link brings is read meanwhile, and only meanwhile.
    pub async fn next(&mut self) -> Option<Update> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for a caller that polls.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let coop = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(update) = self.ready.pop_front() {
                coop.made_progress();
                return Poll::Ready(Some(update));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            if self.signals_left > 0
                && let Poll::Ready(signal) = self.link.poll_signal(cx)
            {
                self.signals_left -= 1;
                self.on_signal(signal);
                continue;
            }
            let is_link_polled = self.signals_left > 0;
            self.signals_left = SIGNALS_IN_A_ROW;
            if !self.poll_rest(cx) && is_link_polled {
                return Poll::Pending;
            }
        }
    }

    /// Everything but the link. True where something came of it, so that all must be polled again.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> bool {
        let changes = self.interest.take(cx.waker());
        if !changes.is_empty() {
            self.on_changes(changes);
            return true;
        }
        if self.poll_timer(cx) {
            return true;
        }
        self.start_reads();
        match self.reads.poll_join_next(cx) {
            Poll::Ready(Some(Ok(answer))) => {
                self.on_answer(answer);
                true
            }
            Poll::Ready(Some(Err(error))) if error.is_panic() => resume_unwind(error.into_panic()),
            Poll::Ready(Some(Err(_))) => {
                self.is_over = true;
                true
            }
            Poll::Ready(None) | Poll::Pending => false,
        }
    }

    /// True where deadlines have passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.followed.next_due() else {
            self.timer = None;
            return false;
        };
        let at = due.max(self.next_tick);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = Instant::now();
        self.next_tick = now + TICK;
        self.timer = None;
        while let Some(id) = self.followed.take_due(now) {
            if let Some(followed) = self.followed.get(id)
                && followed.state.must_ask(now)
            {
                self.heads.push((id, followed.state.ticket()));
            }
            self.followed.schedule(id);
        }
        true
    }

    fn on_changes(&mut self, changes: VecDeque<InterestChange>) {
        let (now, mut follow) = (Instant::now(), Vec::new());
        for change in changes {
            match change {
                InterestChange::Follow(name, since) => {
                    let id = self.followed.insert(&name, since, now);
                    follow.push((id, name));
                }
                InterestChange::Unfollow(name) => {
                    if self.followed.remove(&name) {
                        self.follow(&mut follow);
                        self.link.unfollow(&name);
                    }
                }
            }
        }
        self.follow(&mut follow);
    }

    fn follow(&mut self, names: &mut Vec<(FollowId, Name)>) {
        // While the link is down nobody can be asked; `Up` then asks for everything that is wanted.
        if self.is_up && !names.is_empty() {
            self.link.follow(std::mem::take(names));
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Up => {
                self.is_up = true;
                let mut names = self.followed.names();
                self.follow(&mut names);
                self.ready.push_back(Update::Link { up: true });
            }
            Signal::Down => {
                self.is_up = false;
                self.followed.each(|followed| followed.state.detach());
                self.ready.push_back(Update::Link { up: false });
            }
            Signal::Confirmed(ids) => {
                for id in ids {
                    if let Some(followed) = self.followed.get(id)
                        && followed.state.confirmed()
                    {
                        self.heads.push((id, followed.state.ticket()));
                    }
                }
            }
            Signal::Missed(id) => {
                if let Some(followed) = self.followed.get(id)
                    && followed.state.missed()
                {
                    self.read_page(id);
                }
            }
            Signal::Notified(text) => self.ready.push_back(Update::Notified { text }),
            Signal::Entries(id, entries) => {
                let Some(followed) = self.followed.get(id) else { return };
                let next = followed.state.take(entries, Instant::now());
                self.go_on(id, next);
            }
        }
    }

    fn on_answer(&mut self, answer: ReadAnswer) {
        match answer {
            ReadAnswer::Heads(asked, Ok(heads)) => {
                for ((id, ticket), head) in asked.into_iter().zip(heads) {
                    let Some(followed) = self.asking(id, ticket) else { continue };
                    let announce = followed.state.announce(head);
                    let next = followed.state.compare(head, Instant::now());
                    let name = followed.name.clone();
                    if announce {
                        self.ready.push_back(Update::Live { name, head });
                    }
                    self.go_on(id, next);
                }
            }
            ReadAnswer::Heads(asked, Err(_)) => {
                asked.into_iter().for_each(|(id, ticket)| self.read_failed(id, ticket));
            }
            ReadAnswer::Page(id, ticket, page) => {
                self.pages_reading -= 1;
                match page {
                    Ok(page) => self.on_page(id, ticket, page),
                    Err(_) => self.read_failed(id, ticket),
                }
            }
            ReadAnswer::Waiting(id, ticket, reset, waiting) => {
                self.pages_reading -= 1;
                match waiting {
                    Ok(waiting) => self.on_waiting(id, ticket, reset, waiting),
                    Err(_) => self.read_failed(id, ticket),
                }
            }
        }
    }

    fn on_page(&mut self, id: FollowId, ticket: Ticket, page: Page) {
        let Some(followed) = self.asking(id, ticket) else { return };
        let name = followed.name.clone();
        if let (Some(reason), Side::Commands) = (page.reset, name.side) {
            self.read_waiting(id, ticket, name, Some(reason));
            return;
        }
        let (head, reset) = (page.head, page.reset);
        let (entries, next) = followed.state.continue_with(page, Instant::now());
        if let Some(reason) = reset {
            tracing::info!(journal = %name, reason = reason.as_str(), "a followed journal lost what was handed out");
            self.ready.push_back(Update::Reset { name, reason, head });
        }
        self.hand_out(id, entries);
        self.go_on(id, next);
    }

    fn on_waiting(
        &mut self,
        id: FollowId,
        ticket: Ticket,
        reset: Option<Reason>,
        waiting: Waiting,
    ) {
        let Some(followed) = self.asking(id, ticket) else { return };
        let Waiting { head, entries } = waiting;
        let next = followed.state.continue_at(head, Instant::now());
        if let Some(reason) = reset {
            let name = followed.name.clone();
            tracing::info!(journal = %name, reason = reason.as_str(), "followed commands were lost or trimmed");
            self.ready.push_back(Update::Reset { name, reason, head });
        }
        self.hand_out(id, entries);
        self.go_on(id, next);
    }

    fn read_failed(&mut self, id: FollowId, ticket: Ticket) {
        if let Some(followed) = self.asking(id, ticket) {
            followed.state.read_failed(Instant::now());
            self.followed.schedule(id);
        }
    }

    /// What is followed, if the question is still open.
    fn asking(&mut self, id: FollowId, ticket: Ticket) -> Option<&mut Followed> {
        self.followed.get(id).filter(|followed| followed.state.ticket() == ticket)
    }

    fn go_on(&mut self, id: FollowId, next: Next) {
        match next {
            Next::Wait => {}
            Next::Emit(entries) => self.hand_out(id, entries),
            Next::EmitAndRead(entries) => {
                self.hand_out(id, entries);
                self.read_page(id);
            }
        }
        self.followed.schedule(id);
    }

    fn hand_out(&mut self, id: FollowId, entries: Vec<Arc<Entry>>) {
        if let Some(followed) = self.followed.get(id)
            && !entries.is_empty()
        {
            self.ready.push_back(Update::Entries { name: followed.name.clone(), entries });
        }
    }

    fn read_page(&mut self, id: FollowId) {
        if let Some(followed) = self.followed.get(id) {
            self.pages.push_back((id, followed.state.ticket()));
        }
    }

    fn read_waiting(&mut self, id: FollowId, ticket: Ticket, name: Name, reset: Option<Reason>) {
        let journal = self.journal.clone();
        self.pages_reading += 1;
        self.reads.spawn(async move {
            let waiting = journal.waiting(&name.channel).await;
            ReadAnswer::Waiting(id, ticket, reset, waiting)
        });
    }

    fn start_reads(&mut self) {
        while !self.heads.is_empty() {
            let rest = self.heads.split_off(self.heads.len().min(HEADS_BATCH));
            let mut asked = std::mem::replace(&mut self.heads, rest);
            asked.retain(|(id, ticket)| self.asking(*id, *ticket).is_some());
            if asked.is_empty() {
                continue;
            }
            let names: Vec<Name> = asked
                .iter()
                .filter_map(|(id, _)| self.followed.get(*id).map(|followed| followed.name.clone()))
                .collect();
            let journal = self.journal.clone();
            self.reads.spawn(async move {
                let heads = journal.heads(&names).await;
                ReadAnswer::Heads(asked, heads)
            });
        }
        while self.pages_reading < PAGES_AT_ONCE
            && let Some((id, ticket)) = self.pages.pop_front()
        {
            let Some(followed) = self.asking(id, ticket) else { continue };
            let (name, since) = (followed.name.clone(), followed.state.position());
            if (name.side, since) == (Side::Commands, Since::Start) {
                self.read_waiting(id, ticket, name, None);
                continue;
            }
            let journal = self.journal.clone();
            self.pages_reading += 1;
            self.reads.spawn(async move {
                let page = journal.read(&name, since, PAGE_ENTRIES).await;
                ReadAnswer::Page(id, ticket, page)
            });
        }
    }
}
