//! A subscription is a cursor, not a queue: the position up to which its connection was given frames.
//!
//! Down: [`hub`](super::hub) → **subscription** → a route
//!
//! Late join, reconnect, lag, a lost notification and a restarted replica are all the same here: take what follows
//! the cursor from the tail; where the tail does not reach, ask for a page of the journal. What is not
//! after the cursor is never written. Pure: no I/O, no clock.

use std::sync::Arc;

use bytes::Bytes;
use journal::{Page, Since};
use protocol::frame::{CorrelationId, RelayFrame, Target};
use protocol::{Entry, Format, Frame, Offset, encode, merge};

use super::approvals::{self, Pending, Question};
use super::hub::Membership;
use super::pages::Request;
use super::tail::Encoded;

/// Entries taken from the tail in one step; then the connection's other subscriptions have their turn.
const STEP_ENTRIES: usize = 64;
/// Repeated `subscribe`s that wait for one answer; beyond, the oldest is answered by the newest.
const IDS_MAX: usize = 16;
/// Bytes of frames made from one page; the rest of it is read again when these are written, so that a
/// browser that does not read holds no more than this.
const STEP_BYTES: usize = 128 * 1024;

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing to do until the hub wakes it.
    Wait,
    /// There is more: come back after the others.
    Again,
    /// Read this, then hand it to [`Subscription::on_page`].
    Read(Request),
    /// Ask this, then hand the answer to [`Subscription::on_pending`].
    Ask(Question),
}

/// One connection's subscription to one channel.
#[derive(Debug)]
pub(crate) struct Subscription {
    target: Target,
    format: Format,
    membership: Membership,
    /// Up to where frames were given; `None`: nothing was ever there to give.
    cursor: Option<Offset>,
    phase: Phase,
    reading: Reading,
    /// Repeated `subscribe`s that are not answered yet.
    repeated: Vec<Option<CorrelationId>>,
}

/// Whether something was asked for that continues the cursor. Until it is there nothing else is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    No,
    Yes,
    /// And the tail has changed since.
    YesAndNews,
}

#[derive(Debug)]
enum Phase {
    /// Not answered yet: the journal is not followed, or the position not confirmed.
    Joining { since: Option<Since>, ids: Vec<Option<CorrelationId>> },
    /// Answered; `caught_up` is still to be said. Deltas are merged.
    CatchingUp,
    /// The tail ran away from a browser that is slow. Deltas are merged until it has caught up.
    Lagging,
    /// As it comes.
    Live,
    /// `global:everyone`: as it comes, without a word about it, and nothing is caught up.
    Everyone { joined: bool },
}

impl Subscription {
    /// A subscription that will be answered once its position is known.
    pub(crate) fn new(
        target: Target,
        format: Format,
        since: Option<Since>,
        id: Option<CorrelationId>,
        membership: Membership,
    ) -> Self {
        let phase = Phase::Joining { since, ids: vec![id] };
        let (cursor, reading, repeated) = (None, Reading::No, Vec::new());
        Self { target, format, membership, cursor, phase, reading, repeated }
    }

    /// The silent subscription of every connection to `global:everyone`.
    pub(crate) fn to_everyone(target: Target, membership: Membership) -> Self {
        // What is published from now on is heard, not only what is published after the first step.
        let head = membership.watched().head();
        let phase = Phase::Everyone { joined: head.is_some() };
        let (format, cursor) = (Format::Flat, head.flatten());
        let (reading, repeated) = (Reading::No, Vec::new());
        Self { target, format, membership, cursor, phase, reading, repeated }
    }

    /// Whether the browser asked for it, and may ask again.
    pub(crate) fn is_to(&self, target: &Target) -> bool {
        self.target.channel == target.channel && !matches!(self.phase, Phase::Everyone { .. })
    }

    /// Has the connection come to this subscription.
    pub(crate) fn queue(&self) {
        self.membership.queue();
    }

    /// A repeated `subscribe` without `since`: answered with where it stands.
    pub(crate) fn again(
        &mut self,
        target: Target,
        format: Format,
        id: Option<CorrelationId>,
        out: &mut Vec<Bytes>,
    ) {
        (self.target, self.format) = (target, format);
        let is_joining = matches!(self.phase, Phase::Joining { .. });
        if !is_joining && !approvals::may_stand_on(&self.target.channel) {
            let head = self.membership.watched().head().flatten();
            self.say_subscribed(&[id], (self.cursor, head), true, None, out);
            return;
        }
        let ids = match &mut self.phase {
            Phase::Joining { ids, .. } => ids,
            _ => &mut self.repeated,
        };
        ids.truncate(IDS_MAX - 1);
        ids.push(id);
        self.queue();
    }

    /// Takes what the tail has after the cursor.
    pub(crate) fn step(&mut self, out: &mut Vec<Bytes>) -> Next {
        self.membership.listen_again();
        if self.reading != Reading::No {
            self.reading = Reading::YesAndNews;
            return Next::Wait;
        }
        let Some(head) = self.membership.watched().head() else { return Next::Wait };
        if !self.repeated.is_empty() {
            return self.ask(head);
        }
        match &mut self.phase {
            Phase::Joining { since, .. } => {
                let since = *since;
                // What is pending is read after this position was seen, so every change after it follows.
                self.cursor = match since {
                    None => head,
                    Some(Since::Offset(position)) if self.is_in_tail(position, head) => {
                        Some(position)
                    }
                    Some(since) => return self.read(since, head),
                };
                if approvals::may_stand_on(&self.target.channel) {
                    return self.ask(head);
                }
                self.joined((self.cursor, head), true, None, out);
            }
            Phase::Everyone { joined } if !*joined => {
                *joined = true;
                self.cursor = head;
                return Next::Wait;
            }
            _ => {}
        }
        self.take_from_tail(out)
    }

    /// A tail that never saw an entry cannot tell what the position is.
    fn is_in_tail(&self, position: Offset, head: Option<Offset>) -> bool {
        head.is_some() && self.membership.watched().after(Some(position), 0).is_some()
    }

    fn take_from_tail(&mut self, out: &mut Vec<Bytes>) -> Next {
        let watched = Arc::clone(self.membership.watched());
        let Some((entries, head)) = watched.after(self.cursor, STEP_ENTRIES) else {
            let head = watched.head().flatten();
            return match (&self.phase, self.cursor) {
                // Live only, so a new epoch is no reset: its first entry is the next one to show.
                (Phase::Everyone { .. }, Some(cursor))
                    if head.is_some_and(|head| head.epoch != cursor.epoch) =>
                {
                    let first = head.map(|head| Offset::before(head.epoch, 1));
                    let is_in_tail = watched.after(first, 0).is_some();
                    self.cursor = if is_in_tail { first } else { head };
                    Next::Again
                }
                (_, None) => self.read(Since::Start, head),
                (_, Some(cursor)) => self.read(Since::Offset(cursor), head),
            };
        };
        let end = entries.last().map_or(self.cursor, |last| Some(last.entry.offset));
        if matches!(self.phase, Phase::CatchingUp | Phase::Lagging) {
            let entries: Vec<Arc<Entry>> = entries.iter().map(|e| Arc::clone(&e.entry)).collect();
            self.say_merged(&entries, out);
        } else {
            self.say_each(&entries, out);
            self.cursor = end;
        }
        // Not all that was taken need have been said: a step is bounded in bytes, too.
        let is_all = self.cursor == end && (entries.len() < STEP_ENTRIES || self.cursor == head);
        if is_all {
            self.now_live(out);
        }
        if is_all { Next::Wait } else { Next::Again }
    }

    /// What waits for an answer came.
    pub(crate) fn on_pending(&mut self, pending: &Pending, out: &mut Vec<Bytes>) -> Next {
        self.reading = Reading::No;
        let from = (self.cursor, pending.head);
        if matches!(self.phase, Phase::Joining { .. }) {
            self.joined(from, true, Some(pending), out);
        }
        let ids = std::mem::take(&mut self.repeated);
        self.say_subscribed(&ids, from, true, Some(pending), out);
        Next::Again
    }

    /// A page that was asked for came; with what waits for an answer, where delivery starts with it.
    pub(crate) fn on_page(
        &mut self,
        page: &Page,
        pending: Option<&Pending>,
        out: &mut Vec<Bytes>,
    ) -> Next {
        let news = std::mem::replace(&mut self.reading, Reading::No) == Reading::YesAndNews;
        if matches!(self.phase, Phase::Everyone { .. }) {
            if page.reset.is_some() {
                self.cursor = page.head;
            } else {
                self.say_merged(&page.entries, out);
            }
            return if news || !page.entries.is_empty() { Next::Again } else { Next::Wait };
        }
        let was_joining = matches!(self.phase, Phase::Joining { .. });
        let head = pending.map_or(page.head, |pending| pending.head);
        self.joined((page.start, head), page.reset.is_none(), pending, out);
        if let Some(reason) = page.reset {
            self.phase = Phase::CatchingUp;
            let frame = RelayFrame::Reset {
                channel: self.target.named(),
                reason: reason.as_str(),
                offset: page.start.map(|offset| offset.to_string()),
                head: head.map(|offset| offset.to_string()),
                pending: pending.map(|pending| &*pending.approvals),
            };
            out.push(frame.to_text().into());
        }
        if was_joining || page.reset.is_some() {
            self.cursor = page.start;
        }
        if matches!(self.phase, Phase::Live) {
            self.phase = Phase::Lagging;
        }
        self.say_merged(&page.entries, out);
        if page.entries.is_empty() {
            // The journal had nothing more when it was read. Where the tail does not reach us it is about to
            // be reset, which wakes us; pending_read at once again would only spin.
            self.now_live(out);
            let newer = self.membership.watched().after(self.cursor, 1);
            let is_more = newer.is_some_and(|(entries, _)| !entries.is_empty());
            return if news || is_more { Next::Again } else { Next::Wait };
        }
        Next::Again
    }

    fn read(&mut self, since: Since, head: Option<Offset>) -> Next {
        self.reading = Reading::Yes;
        let name = self.membership.watched().name.clone();
        let is_join = matches!(self.phase, Phase::Joining { .. });
        Next::Read(Request { name, since, head, is_join })
    }

    fn ask(&mut self, head: Option<Offset>) -> Next {
        self.reading = Reading::Yes;
        Next::Ask(Question { channel: self.target.channel.clone(), head })
    }

    fn say_each(&self, entries: &[Arc<Encoded>], out: &mut Vec<Bytes>) {
        out.extend(entries.iter().map(|e| e.frame(&self.target.channel, self.format)));
    }

    /// Merged, up to [`STEP_BYTES`]; the cursor follows.
    fn say_merged(&mut self, entries: &[Arc<Entry>], out: &mut Vec<Bytes>) {
        let mut bytes = 0;
        for frame in merge(entries.iter().map(|entry| &**entry)) {
            let (entry, merged) = match &frame {
                Frame::Single(entry) => (*entry, 1),
                Frame::Merged(entry, merged) => (entry, *merged),
            };
            let text = encode(self.format, &self.target.channel, entry, merged);
            self.cursor = Some(frame.offset());
            bytes += text.len();
            out.push(text.into());
            if bytes >= STEP_BYTES {
                break;
            }
        }
    }

    /// The first answer, where it is still to be given.
    fn joined(
        &mut self,
        from: (Option<Offset>, Option<Offset>),
        recovered: bool,
        pending: Option<&Pending>,
        out: &mut Vec<Bytes>,
    ) {
        if let Phase::Joining { ids, .. } = &mut self.phase {
            let ids = std::mem::take(ids);
            self.phase = Phase::CatchingUp;
            self.say_subscribed(&ids, from, recovered, pending, out);
        }
    }

    fn say_subscribed(
        &self,
        ids: &[Option<CorrelationId>],
        (offset, head): (Option<Offset>, Option<Offset>),
        recovered: bool,
        pending: Option<&Pending>,
        out: &mut Vec<Bytes>,
    ) {
        for id in ids {
            let frame = RelayFrame::Subscribed {
                id: id.as_deref(),
                channel: self.target.named(),
                offset: offset.map(|offset| offset.to_string()),
                head: head.map(|offset| offset.to_string()),
                recovered,
                pending: pending.map(|pending| &*pending.approvals),
            };
            out.push(frame.to_text().into());
        }
    }

    fn now_live(&mut self, out: &mut Vec<Bytes>) {
        if matches!(self.phase, Phase::Everyone { .. }) {
            return;
        }
        if !matches!(std::mem::replace(&mut self.phase, Phase::Live), Phase::CatchingUp) {
            return;
        }
        let frame = RelayFrame::CaughtUp {
            channel: self.target.named(),
            offset: self.cursor.map(|offset| offset.to_string()),
        };
        out.push(frame.to_text().into());
    }
}
