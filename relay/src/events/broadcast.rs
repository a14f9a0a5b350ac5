//! What everybody receives: every connection's implicit subscription to `global:everyone`. It is live only: it has
//! no `subscribed`, no `reset` and no `caught_up`.
//!
//! Down: [`hub`](super::hub) → **broadcast** → a conversation

use std::sync::Arc;

use journal::{Page, Since};
use protocol::{Format, Offset};

use super::hub::Membership;
use super::pages::Request;
use super::subscription::{Next, STEP_ENTRIES, say_each, say_merged};
use crate::websocket::TextFrame;

/// One connection's subscription to `global:everyone`.
#[derive(Debug)]
pub(crate) struct Broadcast {
    membership: Membership,
    cursor: Option<Offset>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The journal is not followed yet.
    Joining,
    Following,
    /// The tail does not reach, a page is being read; `has_news`: the tail has changed since.
    Reading {
        has_news: bool,
    },
}

impl Broadcast {
    pub(crate) fn new(membership: Membership) -> Self {
        // What is published from now on is delivered, not only what is published after the first step.
        let head = membership.watched().head();
        let phase = if head.is_some() { Phase::Following } else { Phase::Joining };
        Self { membership, cursor: head.flatten(), phase }
    }

    /// Has the connection come to this subscription.
    pub(crate) fn queue(&self) {
        self.membership.queue();
    }

    /// Takes what the tail has after the cursor.
    pub(crate) fn step(&mut self, out: &mut Vec<TextFrame>) -> Next {
        self.membership.listen_again();
        if let Phase::Reading { has_news } = &mut self.phase {
            *has_news = true;
            return Next::Wait;
        }
        let watched = Arc::clone(self.membership.watched());
        let Some(head) = watched.head() else { return Next::Wait };
        if self.phase == Phase::Joining {
            (self.phase, self.cursor) = (Phase::Following, head);
            return Next::Wait;
        }
        let Some((entries, head)) = watched.after(self.cursor, STEP_ENTRIES) else {
            if let (Some(cursor), Some(head)) = (self.cursor, head)
                && cursor.epoch != head.epoch
            {
                // Live only, so a new epoch is not a reset: its first entry is the next one to show.
                let first = Offset::before(head.epoch, 1);
                let is_in_tail = watched.after(Some(first), 0).is_some();
                self.cursor = Some(if is_in_tail { first } else { head });
                return Next::Again;
            }
            self.phase = Phase::Reading { has_news: false };
            let since = self.cursor.map_or(Since::Start, Since::Offset);
            let name = watched.name.clone();
            let is_join = self.cursor.is_none();
            return Next::Read(Request { name, since, head, is_join });
        };
        say_each(&watched.name.channel, Format::Flat, &entries, self.membership.memory(), out);
        self.cursor = entries.last().map_or(self.cursor, |last| Some(last.entry.offset));
        if entries.len() < STEP_ENTRIES || self.cursor == head { Next::Wait } else { Next::Again }
    }

    /// A page that was asked for came.
    pub(crate) fn on_page(&mut self, page: &Page, out: &mut Vec<TextFrame>) -> Next {
        let has_news = self.phase == Phase::Reading { has_news: true };
        self.phase = Phase::Following;
        if page.reset.is_some() {
            self.cursor = page.head;
        } else {
            let memory = self.membership.memory();
            let channel = &self.membership.watched().name.channel;
            let end = say_merged(channel, Format::Flat, &page.entries, memory, out);
            self.cursor = end.or(self.cursor);
        }
        if has_news || !page.entries.is_empty() { Next::Again } else { Next::Wait }
    }
}
