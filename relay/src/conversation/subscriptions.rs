//! The subscriptions of one viewer: which of them have something new, and what they wait to read.
//!
//! One page is read at a time, so that a viewer's memory does not grow with its subscriptions. The pending approvals
//! are small and shared, so they are read for all subscriptions at once, at most once for each.

use std::collections::VecDeque;
use std::sync::Arc;

use journal::Page;
use protocol::frame::{CorrelationId, Refusal, Subscribe, Target};
use protocol::limits::SUBSCRIPTIONS_MAX;
use protocol::{Channel, ErrorCode, Format};

use crate::events::{
    Broadcast, Events, Membership, Next, Pending, Question, Request, Subscription, Wake,
};

use crate::websocket::TextFrame;

/// Frames that are handed out at a time, so that the transport can write them with few calls.
const BATCH_BYTES: usize = 64 * 1024;

/// The slot of the broadcast.
const EVERYONE: u32 = u32::MAX;

/// Which subscription a read is for: its slot, and a serial, so that what comes for one that has gone is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) slot: u32,
    serial: u64,
}

/// What a subscription waits to read.
#[derive(Debug)]
pub(crate) enum Read {
    Page(Ticket, Request),
    Pending(Ticket, Question),
    /// Nobody wants what is being read for this slot any more.
    Forget(u32),
}

#[derive(Debug)]
pub(super) struct Subscriptions {
    events: Arc<Events>,
    wake: Arc<Wake>,
    everyone: Broadcast,
    /// Boxed: most viewers have one, and a list makes room for four.
    slots: Vec<Option<(u64, Box<Subscription>)>>,
    serials: u64,
    /// Slots that have something new and had no turn yet.
    ready: VecDeque<u32>,
    pages: VecDeque<(Ticket, Request)>,
    page_under_way: Option<Ticket>,
}

impl Subscriptions {
    /// Subscribed to the broadcast.
    pub(super) fn new(events: Arc<Events>, wake: Arc<Wake>) -> Self {
        let everyone = events.join(&Channel::global_everyone(), &wake, EVERYONE);
        let everyone = Broadcast::new(everyone);
        everyone.queue();
        Self {
            events,
            wake,
            everyone,
            slots: Vec::new(),
            serials: 0,
            ready: VecDeque::new(),
            pages: VecDeque::new(),
            page_under_way: None,
        }
    }

    /// Subscribes, or changes a subscription that stands; where that is answered at once, in `out`.
    pub(super) fn subscribe(
        &mut self,
        subscribe: Subscribe,
        format: Format,
        id: Option<CorrelationId>,
        reads: &mut Vec<Read>,
        out: &mut Vec<TextFrame>,
    ) -> Result<(), Refusal> {
        let Subscribe { target, since, .. } = subscribe;
        match self.slot_of(&target) {
            Some(slot) if since.is_none() => {
                if let Some((_, subscription)) = &mut self.slots[slot] {
                    subscription.again(target, format, id, out);
                }
                return Ok(());
            }
            Some(slot) => self.clear(slot, reads, out),
            None if self.slots.iter().flatten().count() >= SUBSCRIPTIONS_MAX => {
                let message =
                    format!("a connection holds at most {SUBSCRIPTIONS_MAX} subscriptions");
                let refusal = Refusal::new(ErrorCode::LimitExceeded, message);
                return Err(refusal.about(target.channel.as_str()));
            }
            None => {}
        }
        self.insert(&target.channel.clone(), |membership| {
            Subscription::new(target, format, since, id, membership)
        });
        Ok(())
    }

    pub(super) fn unsubscribe(
        &mut self,
        target: &Target,
        reads: &mut Vec<Read>,
        out: &mut Vec<TextFrame>,
    ) -> Result<(), Refusal> {
        let Some(slot) = self.slot_of(target) else {
            let message = format!("no subscription to `{}`", target.channel);
            let refusal = Refusal::new(ErrorCode::NotFound, message);
            return Err(refusal.about(target.channel.as_str()));
        };
        self.clear(slot, reads, out);
        Ok(())
    }

    /// Ends each subscription to a channel that is not permitted (any more); what they were to.
    pub(super) fn end_unless(
        &mut self,
        permits: impl Fn(&Channel) -> bool,
        reads: &mut Vec<Read>,
        out: &mut Vec<TextFrame>,
    ) -> Vec<Target> {
        let mut ended = Vec::new();
        for slot in 0..self.slots.len() {
            let target = self.slots[slot].as_ref().map(|(_, subscription)| subscription.target());
            if let Some(target) = target.filter(|target| !permits(&target.channel)).cloned() {
                self.clear(slot, reads, out);
                ended.push(target);
            }
        }
        ended
    }

    /// Frames of each subscription that has something new, in turn, and what they need to read to go on.
    pub(super) fn take(&mut self, reads: &mut Vec<Read>, out: &mut Vec<TextFrame>) {
        self.ready.extend(self.wake.take_ready());
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(slot) = self.ready.pop_front()
        {
            let before = out.len();
            match self.slots.get_mut(slot as usize) {
                _ if slot == EVERYONE => match self.everyone.step(out) {
                    Next::Again => self.everyone.queue(),
                    Next::Read(request) => {
                        self.pages.push_back((Ticket { slot, serial: 0 }, request));
                    }
                    Next::Wait | Next::Ask(_) => {}
                },
                Some(Some((serial, subscription))) => {
                    let ticket = Ticket { slot, serial: *serial };
                    match subscription.step(out) {
                        Next::Wait => {}
                        Next::Again => subscription.queue(),
                        Next::Read(request) => self.pages.push_back((ticket, request)),
                        Next::Ask(question) => reads.push(Read::Pending(ticket, question)),
                    }
                }
                _ => {}
            }
            bytes += out[before..].iter().map(TextFrame::len).sum::<usize>();
        }
        if !self.ready.is_empty() {
            self.wake.wake();
        }
        self.next_page(reads);
    }

    /// What is new for the subscription in `slot`, where it has all that came before and nothing else is to be said
    /// first. False where it must be [taken](Self::take) instead, or as well.
    pub(super) fn take_live(&mut self, slot: u32, out: &mut Vec<TextFrame>) -> bool {
        match self.slots.get_mut(slot as usize) {
            Some(Some((_, subscription))) => subscription.take_live(out),
            _ => false,
        }
    }

    /// A page came.
    pub(super) fn on_page(
        &mut self,
        ticket: Ticket,
        page: &Page,
        pending: Option<&Arc<Pending>>,
        out: &mut Vec<TextFrame>,
    ) {
        if self.page_under_way == Some(ticket) {
            self.page_under_way = None;
            // The next one is asked for when this one was taken.
            self.wake.wake();
        }
        if ticket.slot != EVERYONE {
            self.hand(ticket, |subscription| subscription.on_page(page, pending, out));
        } else if self.everyone.on_page(page, out) == Next::Again {
            self.everyone.queue();
        }
    }

    /// What waits for an answer came.
    pub(super) fn on_pending(
        &mut self,
        ticket: Ticket,
        pending: &Arc<Pending>,
        out: &mut Vec<TextFrame>,
    ) {
        self.hand(ticket, |subscription| subscription.on_pending(pending, out));
    }

    fn hand(&mut self, ticket: Ticket, what: impl FnOnce(&mut Subscription) -> Next) {
        if let Some(Some((serial, subscription))) = self.slots.get_mut(ticket.slot as usize)
            && *serial == ticket.serial
            && what(subscription) == Next::Again
        {
            subscription.queue();
        }
    }

    fn next_page(&mut self, reads: &mut Vec<Read>) {
        if self.page_under_way.is_none()
            && let Some((ticket, request)) = self.pages.pop_front()
        {
            self.page_under_way = Some(ticket);
            reads.push(Read::Page(ticket, request));
        }
    }

    fn slot_of(&self, target: &Target) -> Option<usize> {
        let is_it = |slot: &Option<(u64, Box<Subscription>)>| {
            slot.as_ref().is_some_and(|(_, subscription)| subscription.is_to(target))
        };
        self.slots.iter().position(is_it)
    }

    /// What the subscription waited for, nobody wants any more.
    fn clear(&mut self, slot: usize, reads: &mut Vec<Read>, out: &mut Vec<TextFrame>) {
        if let Some((_, subscription)) = self.slots[slot].take() {
            subscription.supersede(out);
        }
        let slot = slot as u32;
        self.pages.retain(|(ticket, _)| ticket.slot != slot);
        if self.page_under_way.is_some_and(|ticket| ticket.slot == slot) {
            self.page_under_way = None;
        }
        reads.push(Read::Forget(slot));
        self.next_page(reads);
    }

    fn insert(&mut self, channel: &Channel, make: impl FnOnce(Membership) -> Subscription) {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.serials += 1;
        let subscription = Box::new(make(self.events.join(channel, &self.wake, slot as u32)));
        subscription.queue();
        self.slots[slot] = Some((self.serials, subscription));
    }
}
