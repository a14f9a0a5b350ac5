//! A subscription is a cursor, not a queue: the position up to which its connection was given frames.
//!
//! Down: [`hub`](super::hub) → **subscription** → a conversation
//!
//! Late join, reconnect, lag, a lost notification and a restarted replica are all the same here: take what follows
//! the cursor from the tail; where the tail does not reach, ask for a page of the journal. An entry that is not
//! after the cursor is never written. Pure: no I/O, no clock.

use std::sync::Arc;

use journal::{Page, Since};
use protocol::frame::{CorrelationId, ErrorBody, RelayFrame, Target};
use protocol::{Channel, Entry, ErrorCode, Format, Frame, Offset, encode, merge};
use serde_json::value::RawValue;

use super::approvals::{self, Question};
use super::hub::Membership;
use super::pages::Request;
use super::pending::Pending;
use super::tail::Encoded;
use crate::memory::Memory;
use crate::websocket::TextFrame;

/// Entries taken from the tail in one step; then the connection's other subscriptions have their turn.
pub(super) const STEP_ENTRIES: usize = 64;
/// Repeated `subscribe`s that wait for one answer; beyond, the oldest is superseded.
const IDS_MAX: usize = 16;
/// Bytes of frames made from one page; the rest of it is read again when these are written, so that a
/// browser that does not read holds no more than this.
const STEP_BYTES: usize = 128 * 1024;

/// The result of a step.
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
    state: SubscriptionState,
    /// Questions that `subscribed` or `reset` announced, and how many of their frames were given.
    telling: Option<(Arc<Pending>, usize)>,
}

/// The `subscribe`s that one answer is for.
type Ids = Vec<Option<CorrelationId>>;

#[derive(Debug)]
enum SubscriptionState {
    /// Not answered: the journal is not followed yet.
    Joining { since: Option<Since>, ids: Ids },
    /// Not answered: a page, or what waits for an answer, is being read.
    JoiningRead { ids: Ids, has_news: bool },
    /// Takes what the tail has.
    Following(Delivery),
    /// `subscribe` was repeated: what waits for an answer is to be read for it.
    Repeated { delivery: Delivery, ids: Ids },
    /// A page, or what waits for an answer, is being read. Until it is there nothing is taken; `has_news`: the
    /// tail has changed since. `ids` have been repeated.
    Reading { delivery: Delivery, ids: Ids, has_news: bool },
}

/// How entries are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// `caught_up` is still to be said. Deltas are merged.
    CatchingUp,
    /// The tail ran away from a browser that is slow. Deltas are merged until it has caught up.
    Lagging,
    /// As they come.
    Live,
}

/// Where a subscription stands, and where its journal does.
#[derive(Clone, Copy, Debug)]
struct Position {
    offset: Option<Offset>,
    head: Option<Offset>,
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
        let state = SubscriptionState::Joining { since, ids: vec![id] };
        Self { target, format, membership, cursor: None, state, telling: None }
    }

    /// What the browser has subscribed to.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether this is what the browser calls so.
    pub(crate) fn is_to(&self, target: &Target) -> bool {
        self.target.channel == target.channel
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
        out: &mut Vec<TextFrame>,
    ) {
        (self.target, self.format) = (target, format);
        let has_approvals = approvals::may_stand_on(&self.target.channel);
        let ids = match &mut self.state {
            SubscriptionState::Joining { ids, .. } | SubscriptionState::JoiningRead { ids, .. } => {
                ids
            }
            _ if !has_approvals => {
                let head = self.membership.watched().head().flatten();
                let position = Position { offset: self.cursor, head };
                return self.say_subscribed(&[id], position, None, None, out);
            }
            SubscriptionState::Repeated { ids, .. } | SubscriptionState::Reading { ids, .. } => ids,
            SubscriptionState::Following(delivery) => {
                self.state = SubscriptionState::Repeated { delivery: *delivery, ids: vec![id] };
                return self.queue();
            }
        };
        let oldest = (ids.len() >= IDS_MAX).then(|| ids.remove(0));
        ids.push(id);
        if let Some(oldest) = oldest {
            self.say_superseded(oldest.as_deref(), out);
        }
        self.queue();
    }

    /// It ends, or another one takes its place: what was not answered hears so.
    pub(crate) fn supersede(self, out: &mut Vec<TextFrame>) {
        let ids = match &self.state {
            SubscriptionState::Joining { ids, .. }
            | SubscriptionState::JoiningRead { ids, .. }
            | SubscriptionState::Repeated { ids, .. }
            | SubscriptionState::Reading { ids, .. } => ids,
            SubscriptionState::Following(_) => return,
        };
        for id in ids {
            self.say_superseded(id.as_deref(), out);
        }
    }

    fn say_superseded(&self, id: Option<&RawValue>, out: &mut Vec<TextFrame>) {
        let channel = Some(self.target.channel.as_str());
        let message = format!("a later frame about `{}` came first", self.target.channel);
        let error = ErrorBody::new(ErrorCode::Superseded, &message);
        let frame = RelayFrame::Error { id, channel, error };
        out.push(TextFrame::new(frame.to_text(), self.membership.memory()));
    }

    /// Takes what the tail has after the cursor.
    pub(crate) fn step(&mut self, out: &mut Vec<TextFrame>) -> Next {
        self.membership.listen_again();
        if let SubscriptionState::JoiningRead { has_news, .. }
        | SubscriptionState::Reading { has_news, .. } = &mut self.state
        {
            *has_news = true;
            return Next::Wait;
        }
        if let Some(frame) = self.next_of_pending() {
            out.push(frame);
            return Next::Again;
        }
        let Some(head) = self.membership.watched().head() else { return Next::Wait };
        match &mut self.state {
            SubscriptionState::Joining { since, ids } => {
                let (since, ids) = (*since, std::mem::take(ids));
                // Read once this head was seen, so every change after it follows.
                self.cursor = match since {
                    None => head,
                    Some(Since::Offset(position)) if self.is_in_tail(position, head) => {
                        Some(position)
                    }
                    Some(since) => {
                        self.state = SubscriptionState::JoiningRead { ids, has_news: false };
                        return Next::Read(self.request(since, head, true));
                    }
                };
                if approvals::may_stand_on(&self.target.channel) {
                    self.state = SubscriptionState::JoiningRead { ids, has_news: false };
                    return Next::Ask(self.question(head));
                }
                let position = Position { offset: self.cursor, head };
                self.say_subscribed(&ids, position, None, None, out);
                self.state = SubscriptionState::Following(Delivery::CatchingUp);
            }
            SubscriptionState::Repeated { delivery, ids } => {
                let (delivery, ids) = (*delivery, std::mem::take(ids));
                self.state = SubscriptionState::Reading { delivery, ids, has_news: false };
                return Next::Ask(self.question(head));
            }
            _ => {}
        }
        self.take_from_tail(out)
    }

    /// Takes all that the tail has after the cursor, where this has had all before and has nothing else to say. False
    /// where nothing was taken because a [step](Self::step) must decide.
    pub(crate) fn take_live(&mut self, out: &mut Vec<TextFrame>) -> bool {
        let is_live = matches!(self.state, SubscriptionState::Following(Delivery::Live));
        if !is_live || self.telling.is_some() {
            return false;
        }
        let end = self.membership.watched().frames_after(self.cursor, self.format, out);
        if let Some(end) = end {
            self.cursor = end;
        }
        end.is_some()
    }

    /// A tail that never saw an entry cannot tell what the position is.
    fn is_in_tail(&self, position: Offset, head: Option<Offset>) -> bool {
        head.is_some() && self.membership.watched().after(Some(position), 0).is_some()
    }

    fn take_from_tail(&mut self, out: &mut Vec<TextFrame>) -> Next {
        let SubscriptionState::Following(delivery) = self.state else { return Next::Wait };
        let watched = Arc::clone(self.membership.watched());
        let Some((entries, head)) = watched.after(self.cursor, STEP_ENTRIES) else {
            self.state = SubscriptionState::Reading { delivery, ids: Vec::new(), has_news: false };
            let since = self.cursor.map_or(Since::Start, Since::Offset);
            return Next::Read(self.request(since, watched.head().flatten(), false));
        };
        let end = entries.last().map_or(self.cursor, |last| Some(last.entry.offset));
        if delivery == Delivery::Live {
            let memory = self.membership.memory();
            say_each(&self.target.channel, self.format, &entries, memory, out);
            self.cursor = end;
        } else {
            let entries: Vec<Arc<Entry>> = entries.iter().map(|e| Arc::clone(&e.entry)).collect();
            self.say_merged(&entries, out);
        }
        // Not all that was taken need have been said: a step is bounded in bytes, too.
        let is_all = self.cursor == end && (entries.len() < STEP_ENTRIES || self.cursor == head);
        if is_all {
            self.now_live(out);
        }
        if is_all { Next::Wait } else { Next::Again }
    }

    /// What waits for an answer came.
    pub(crate) fn on_pending(&mut self, pending: &Arc<Pending>, out: &mut Vec<TextFrame>) -> Next {
        let (delivery, ids) = match &mut self.state {
            SubscriptionState::JoiningRead { ids, .. } => {
                (Delivery::CatchingUp, std::mem::take(ids))
            }
            SubscriptionState::Reading { delivery, ids, .. } => (*delivery, std::mem::take(ids)),
            _ => return Next::Wait,
        };
        self.state = SubscriptionState::Following(delivery);
        let position = Position { offset: self.cursor, head: pending.head };
        self.say_subscribed(&ids, position, None, Some(pending), out);
        self.tell(Some(pending));
        Next::Again
    }

    /// A page that was asked for came; with what waits for an answer, where delivery starts with it.
    pub(crate) fn on_page(
        &mut self,
        page: &Page,
        pending: Option<&Arc<Pending>>,
        out: &mut Vec<TextFrame>,
    ) -> Next {
        let head = pending.map_or(page.head, |pending| pending.head);
        let position = Position { offset: page.start, head };
        let (mut delivery, ids, has_news) = match &mut self.state {
            SubscriptionState::JoiningRead { ids, has_news } => {
                let (ids, has_news) = (std::mem::take(ids), *has_news);
                self.say_subscribed(&ids, position, Some(page), pending, out);
                self.cursor = page.start;
                (Delivery::CatchingUp, Vec::new(), has_news)
            }
            SubscriptionState::Reading { delivery, ids, has_news } => {
                (*delivery, std::mem::take(ids), *has_news)
            }
            _ => return Next::Wait,
        };
        if let Some(reason) = page.reset {
            delivery = Delivery::CatchingUp;
            self.cursor = page.start;
            let frame = RelayFrame::Reset {
                channel: self.target.named(),
                reason: reason.as_str(),
                offset: position.offset.map(|offset| offset.to_string()),
                head: position.head.map(|offset| offset.to_string()),
                truncated: page.truncated,
                pending: pending.map(|pending| &*pending.first),
                pending_more: pending.is_some_and(|pending| pending.has_more()),
            };
            out.push(TextFrame::new(frame.to_text(), self.membership.memory()));
        }
        self.tell(pending);
        if self.telling.is_some() {
            // Those go before the first event: what the page holds is read again when they are written.
            self.state = match ids.is_empty() {
                true => SubscriptionState::Following(delivery),
                false => SubscriptionState::Repeated { delivery, ids },
            };
            return Next::Again;
        }
        if delivery == Delivery::Live {
            delivery = Delivery::Lagging;
        }
        self.state = SubscriptionState::Following(delivery);
        self.say_merged(&page.entries, out);
        let is_empty = page.entries.is_empty();
        if is_empty {
            self.now_live(out);
        }
        if !ids.is_empty()
            && let SubscriptionState::Following(delivery) = self.state
        {
            self.state = SubscriptionState::Repeated { delivery, ids };
            return Next::Again;
        }
        // The journal had nothing more when it was read. Where the tail does not reach us it is about to be
        // reset, which wakes us; to read at once again would only spin.
        let is_more = || {
            let newer = self.membership.watched().after(self.cursor, 1);
            newer.is_some_and(|(entries, _)| !entries.is_empty())
        };
        if !is_empty || has_news || is_more() { Next::Again } else { Next::Wait }
    }

    fn request(&self, since: Since, head: Option<Offset>, is_join: bool) -> Request {
        Request { name: self.membership.watched().name.clone(), since, head, is_join }
    }

    fn question(&self, head: Option<Offset>) -> Question {
        Question { channel: self.target.channel.clone(), head }
    }

    /// Frames with the questions that were announced follow; those announced before are announced anew.
    fn tell(&mut self, pending: Option<&Arc<Pending>>) {
        let Some(pending) = pending else { return };
        self.telling = pending.has_more().then(|| (Arc::clone(pending), 0));
    }

    fn next_of_pending(&mut self) -> Option<TextFrame> {
        let (pending, given) = self.telling.as_mut()?;
        let frame = pending.frame(&self.target, *given);
        *given += 1;
        if frame.is_none() {
            self.telling = None;
        }
        frame
    }

    fn say_merged(&mut self, entries: &[Arc<Entry>], out: &mut Vec<TextFrame>) {
        let memory = self.membership.memory();
        let end = say_merged(&self.target.channel, self.format, entries, memory, out);
        self.cursor = end.or(self.cursor);
    }

    fn say_subscribed(
        &self,
        ids: &[Option<CorrelationId>],
        position: Position,
        page: Option<&Page>,
        pending: Option<&Arc<Pending>>,
        out: &mut Vec<TextFrame>,
    ) {
        let recovered = page.is_none_or(|page| page.reset.is_none());
        for id in ids {
            let frame = RelayFrame::Subscribed {
                id: id.as_deref(),
                channel: self.target.named(),
                offset: position.offset.map(|offset| offset.to_string()),
                head: position.head.map(|offset| offset.to_string()),
                recovered,
                truncated: recovered && page.is_some_and(|page| page.truncated),
                pending: pending.map(|pending| &*pending.first),
                pending_more: pending.is_some_and(|pending| pending.has_more()),
            };
            out.push(TextFrame::new(frame.to_text(), self.membership.memory()));
        }
    }

    /// Nothing is missing any more.
    fn now_live(&mut self, out: &mut Vec<TextFrame>) {
        let SubscriptionState::Following(delivery) = &mut self.state else { return };
        if std::mem::replace(delivery, Delivery::Live) == Delivery::CatchingUp {
            let frame = RelayFrame::CaughtUp {
                channel: self.target.named(),
                offset: self.cursor.map(|offset| offset.to_string()),
            };
            out.push(TextFrame::new(frame.to_text(), self.membership.memory()));
        }
    }
}

/// Each entry as a frame of its own, shared by all who listen.
pub(super) fn say_each(
    channel: &Channel,
    format: Format,
    entries: &[Arc<Encoded>],
    memory: &Arc<Memory>,
    out: &mut Vec<TextFrame>,
) {
    out.extend(entries.iter().map(|entry| entry.frame(channel, format, memory)));
}

/// Merged, up to [`STEP_BYTES`]; up to where.
pub(super) fn say_merged(
    channel: &Channel,
    format: Format,
    entries: &[Arc<Entry>],
    memory: &Arc<Memory>,
    out: &mut Vec<TextFrame>,
) -> Option<Offset> {
    let (mut bytes, mut end) = (0, None);
    for frame in merge(entries.iter().map(|entry| &**entry)) {
        let (entry, merged) = match &frame {
            Frame::Single(entry) => (*entry, 1),
            Frame::Merged(entry, merged) => (entry, *merged),
        };
        let text = encode(format, channel, entry, merged);
        end = Some(frame.offset());
        bytes += text.len();
        out.push(TextFrame::new(text, memory));
        if bytes >= STEP_BYTES {
            break;
        }
    }
    end
}
