//! One channel's commands: each is taken before it is handed out, in order, when a caller wants it.
//!
//! [`inbox`](super::inbox) → **consumer** → [`queue`](super::queue), [`service`](crate::service)
//!
//! Channels do not wait for each other: each consumer has a task of its own.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use journal::Take;
use protocol::{Channel, Offset};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Command;
use super::inbox::Inbox;
use super::queue::{Place, Queue};
use super::report::Report;
use super::seen::Seen;
use crate::service::{Pool, Worker};

/// How many commands wait here; more stay in the channel's waiting list and are read when these are done.
/// As many as wait on an agent's channel, so this is met on services only.
const PENDING_MAX: usize = 1_024;

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) channel: Channel,
    /// To whom commands are handed.
    outlet: Outlet,
    state: Mutex<ConsumerState>,
    /// Notified when something is pending.
    wakeup: Notify,
    /// Where following began.
    pub(super) head: watch::Sender<Head>,
    /// Nothing is taken any more.
    pub(super) left: CancellationToken,
}

#[derive(Debug, Default)]
struct ConsumerState {
    pending: VecDeque<journal::Command>,
    /// What is pending, being taken, or not reported yet: it may be read again.
    known: HashSet<Uuid>,
    /// What needs no taking.
    seen: Seen,
    /// There was no room for a command: it and all that come after it are read later, in their order.
    is_behind: bool,
    /// What waits was asked for since then.
    has_asked: bool,
}

/// The newest command when following began.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    Unknown,
    Known(Option<Offset>),
}

#[derive(Clone, Debug)]
pub(crate) enum Outlet {
    Queue(Arc<Queue>),
    Pool(Arc<Pool>),
}

/// Where a command goes when it has been taken.
enum Room {
    Place(Place),
    Worker(Worker),
}

impl Consumer {
    pub(super) fn new(channel: Channel, outlet: Outlet, left: CancellationToken) -> Self {
        let (state, wakeup) = (Mutex::default(), Notify::new());
        Self { channel, outlet, state, wakeup, head: watch::Sender::new(Head::Unknown), left }
    }

    pub(super) fn is_service(&self) -> bool {
        matches!(self.outlet, Outlet::Pool(_))
    }

    /// Whether it was sent before this agent followed the channel.
    pub(super) fn is_old(&self, at: Offset) -> bool {
        match *self.head.borrow() {
            Head::Known(Some(head)) => head.epoch == at.epoch && at.n <= head.n,
            Head::Known(None) | Head::Unknown => false,
        }
    }

    /// Whether a command that needs no taking comes for the first time.
    pub(super) fn is_first(&self, command_id: &str) -> bool {
        self.state().seen.is_new(command_id)
    }

    /// A command for whose taking nobody waits; whether it came for the first time.
    pub(super) fn admit_urgent(&self, key: Uuid) -> bool {
        self.state().known.insert(key)
    }

    /// A command that is to be taken in its turn.
    pub(super) fn admit(&self, command: journal::Command) {
        let mut state = self.state();
        let Some(key) = command.key else { return };
        if state.is_behind || state.known.contains(&key) {
            return;
        }
        if state.pending.len() >= PENDING_MAX {
            state.is_behind = true;
            return;
        }
        state.known.insert(key);
        state.pending.push_back(command);
        self.wakeup.notify_one();
    }

    /// The command is over: read again, it is found out to be.
    pub(super) fn forget(&self, key: Uuid) {
        self.state().known.remove(&key);
    }

    /// Hands out what comes, until all listeners are gone.
    pub(super) async fn work(self: Arc<Self>, inbox: Arc<Inbox>) {
        while let Some(Some(room)) = self.left.run_until_cancelled(self.room()).await {
            let Some(command) = self.next() else { continue };
            let (Some(membership), Some(key)) = (inbox.hold(&self), command.key) else { return };
            let is_idempotent = matches!(&room, Room::Worker(worker) if worker.is_idempotent());
            match inbox.take(&self, &command, key, is_idempotent).await {
                Some(Take::Yours) => {
                    let report = Report::owed(membership, key, command.is_request);
                    if let Some(command) = Command::taken(command, report) {
                        room.permit(command, &inbox);
                    }
                }
                // Another agent has it, or it has expired.
                Some(Take::Gone) => self.forget(key),
                Some(Take::Fenced) | None => return,
            }
            if self.has_room_again() {
                inbox.follow_again(&self.channel);
            }
        }
    }

    /// Waits for a command that is pending, and for somebody who wants it.
    async fn room(&self) -> Option<Room> {
        loop {
            let rung = self.wakeup.notified();
            if !self.state().pending.is_empty() {
                break;
            }
            rung.await;
        }
        match &self.outlet {
            Outlet::Queue(queue) => queue.place().await.map(Room::Place),
            Outlet::Pool(pool) => pool.worker().await.map(Room::Worker),
        }
    }

    fn next(&self) -> Option<journal::Command> {
        self.state().pending.pop_front()
    }

    /// The channel is followed. If what waits was asked for, it comes in now.
    pub(super) fn reads_on(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.has_asked) {
            state.is_behind = false;
        }
    }

    /// Whether what waits must be asked for: nothing is pending, and commands were passed over.
    fn has_room_again(&self) -> bool {
        let mut state = self.state();
        let is_due = state.pending.is_empty() && state.is_behind && !state.has_asked;
        state.has_asked |= is_due;
        is_due
    }

    fn state(&self) -> MutexGuard<'_, ConsumerState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl Room {
    fn permit(self, command: Command, inbox: &Inbox) {
        match self {
            Self::Place(place) => {
                if let Err(command) = place.put(command) {
                    command.rejected("the agent ended before it took the command");
                }
            }
            Self::Worker(worker) => worker.work(command, inbox),
        }
    }
}
