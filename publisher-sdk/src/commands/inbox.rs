//! Where commands come in: each once, a Cancel first of all to its runs.
//!
//! [`listener`](super::listener) → **inbox** → [`Commands`](crate::Commands), [`Runs`]
//!
//! Following begins at the head: what was sent before belongs to whoever listened then. The ids of
//! what a journal retains at that moment count as seen, so a journal that is read again from its
//! oldest entry (after a reset) repeats nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Follower, Journal, Name, NewEntry, Since, Unavailable};
use protocol::{Channel, Entry, Offset};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::queue::Queue;
use super::seen::Seen;
use super::{CANCEL, Command};
use crate::events::buffer::Buffer;
use crate::events::vocabulary::{CommandState, CommandStatus, Event};
use crate::run::{Cancellation, Runs};

/// How many retained commands are read at a time.
const PAGE_ENTRIES: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Inbox {
    journal: Journal,
    follower: Follower,
    followed: Mutex<HashMap<Channel, Followed>>,
    pub(crate) queue: Arc<Queue>,
    runs: Arc<Runs>,
    /// Where senders are told that a command was not taken.
    buffer: Arc<Buffer>,
}

/// A channel whose commands come in here.
#[derive(Debug)]
struct Followed {
    members: usize,
    seen: Seen,
    head: watch::Sender<Head>,
}

/// Where following began.
#[derive(Clone, Copy, Debug)]
enum Head {
    Unknown,
    Known(Option<Offset>),
}

/// Commands of a channel come in as long as one of these is held.
#[derive(Debug)]
pub(crate) struct Membership {
    inbox: Arc<Inbox>,
    channel: Channel,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.inbox.leave(&self.channel);
    }
}

/// What a command looks like in its journal.
#[derive(Deserialize)]
struct Fields<'a> {
    command_id: String,
    by: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The arguments of `cancel_agent`.
#[derive(Default, Deserialize)]
struct Cancel {
    #[serde(alias = "runId")]
    run_id: Option<String>,
    reason: Option<String>,
}

impl Inbox {
    pub(crate) fn new(
        journal: Journal,
        follower: Follower,
        runs: Arc<Runs>,
        buffer: Arc<Buffer>,
    ) -> Self {
        let (followed, queue) = (Mutex::default(), Arc::default());
        Self { journal, follower, followed, queue, runs, buffer }
    }

    /// From when this returns, whatever is sent to `channel` comes in.
    pub(crate) async fn join(
        self: &Arc<Self>,
        channel: &Channel,
        deadline: Instant,
    ) -> Result<Membership, Option<Unavailable>> {
        let name = Name::commands(channel.clone());
        let mut head = {
            let mut followed = self.followed();
            let followed = followed.entry(channel.clone()).or_insert_with(|| {
                self.follower.follow(&name, None);
                Followed {
                    members: 0,
                    seen: Seen::default(),
                    head: watch::Sender::new(Head::Unknown),
                }
            });
            followed.members += 1;
            followed.head.subscribe()
        };
        let membership = Membership { inbox: Arc::clone(self), channel: channel.clone() };
        let live = head.wait_for(|head| matches!(head, Head::Known(_)));
        let Ok(Ok(Head::Known(head))) =
            timeout_at(deadline, live).await.map(|live| live.map(|h| *h))
        else {
            return Err(None);
        };
        if let Some(head) = head {
            let remembering = self.remember(&name, head);
            timeout_at(deadline, remembering).await.map_err(|_| None)?.map_err(Some)?;
        }
        Ok(membership)
    }

    /// Marks everything up to `head` as seen.
    async fn remember(&self, name: &Name, head: Offset) -> Result<(), Unavailable> {
        let mut since = Since::Start;
        loop {
            let page = self.journal.read(name, since, PAGE_ENTRIES).await?;
            let old = |entry: &Entry| entry.offset.epoch == head.epoch && entry.offset.n <= head.n;
            if let Some(followed) = self.followed().get_mut(&name.channel) {
                for entry in page.entries.iter().filter(|entry| old(entry)) {
                    if let Ok(fields) = serde_json::from_str::<Fields<'_>>(&entry.data) {
                        followed.seen.is_new(&fields.command_id);
                    }
                }
            }
            match page.end() {
                Some(end) if page.has_more() && end.epoch == head.epoch && end.n < head.n => {
                    since = Since::Offset(end);
                }
                _ => return Ok(()),
            }
        }
    }

    fn leave(&self, channel: &Channel) {
        let mut all = self.followed();
        if let Some(followed) = all.get_mut(channel) {
            followed.members -= 1;
            if followed.members == 0 {
                all.remove(channel);
                self.follower.unfollow(&Name::commands(channel.clone()));
            }
        }
    }

    /// The channel is followed from `head` on.
    pub(super) fn went_live(&self, channel: &Channel, head: Option<Offset>) {
        if let Some(followed) = self.followed().get(channel) {
            followed.head.send_if_modified(|known| {
                let first = matches!(known, Head::Unknown);
                if first {
                    *known = Head::Known(head);
                }
                first
            });
        }
    }

    /// An entry of the channel's commands journal.
    pub(super) fn take_in(&self, channel: &Channel, entry: &Entry) {
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(&entry.data) else {
            tracing::warn!(%channel, offset = %entry.offset, "a command cannot be read and is not done");
            return;
        };
        let is_new = self
            .followed()
            .get_mut(channel)
            .is_some_and(|followed| followed.seen.is_new(&fields.command_id));
        if !is_new {
            tracing::debug!(%channel, command_id = fields.command_id, "a command came again");
            return;
        }
        let command = Command {
            name: entry.name.to_string(),
            command_id: fields.command_id,
            by: fields.by,
            channel: channel.clone(),
            data: fields.data.map_or("null", RawValue::get).into(),
        };
        let is_done = if command.name == CANCEL {
            let Ok(cancel) = command.read::<Option<Cancel>>() else {
                // Never guess: without its `run_id` it would cancel everything.
                return self.reject(&command, "`run_id` and `reason` must be strings");
            };
            self.cancel(&command, cancel.unwrap_or_default())
        } else {
            false
        };
        if let Err(command) = self.queue.put(command, is_done)
            && !is_done
        {
            self.reject(&command, "the agent has too many commands waiting");
        }
    }

    /// Whether a run was there to be cancelled.
    fn cancel(&self, command: &Command, cancel: Cancel) -> bool {
        let cancellation = Cancellation { by: command.by.clone(), reason: cancel.reason };
        self.runs.cancel(&command.channel, cancel.run_id.as_deref(), &cancellation)
    }

    /// Nothing comes in any more.
    pub(crate) fn end(&self) {
        for command in self.queue.close() {
            self.reject(&command, "the agent ended before it took the command");
        }
    }

    /// Tells the sender, and everybody who watches, that the command is not done.
    fn reject(&self, command: &Command, detail: &str) {
        let status = CommandStatus::new(&command.command_id, CommandState::Rejected).detail(detail);
        let told = serde_json::to_string(&status).is_ok_and(|data| {
            self.buffer.send(&command.channel, NewEntry::new(CommandStatus::NAME, data)).is_ok()
        });
        tracing::warn!(
            channel = %command.channel,
            command_id = command.command_id,
            name = command.name,
            sender_told = told,
            "a command is not done: {detail}"
        );
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Channel, Followed>> {
        self.followed.lock().expect("no code panics with this lock held")
    }
}
