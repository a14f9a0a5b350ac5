//! Calls that wait for their replies: in order, bounded, repeated on the next connection.
//!
//! [`relay_state`](super::relay_state) → **calls** → a relay. No I/O happens here.

use std::collections::{BTreeMap, HashSet};

use journal::Unavailable;
use protocol::limits::{AGENT_CALLS_BYTES_MAX, AGENT_CALLS_MAX, AGENT_FRAME_BYTES_MAX};
use protocol::{AgentCall, CallBody, Channel, Offset};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::LinkError;
use super::lease::LeaseEnd;

/// Events and questions that are under way at most, and their bytes: the rest is room for what ends work.
const BEGINNING_MAX: usize = AGENT_CALLS_MAX / 4 * 3;
const BEGINNING_BYTES_MAX: usize = AGENT_CALLS_BYTES_MAX / 4 * 3;

/// What a call that was done came to.
#[derive(Debug, Default)]
pub(super) struct CallReply {
    /// Where a published event stands.
    pub(super) offset: Option<Offset>,
    pub(super) data: Option<Box<RawValue>>,
}

/// Where the reply goes.
pub(super) type ReplySender = oneshot::Sender<Result<CallReply, LinkError>>;

/// A call without a reply.
#[derive(Debug)]
pub(super) struct WaitingCall {
    pub(super) channel: Channel,
    pub(super) kind: CallKind,
    pub(super) reply: ReplySender,
    text: Utf8Bytes,
    /// An event or a question: it leaves room for what ends work.
    is_beginning: bool,
    /// On this connection.
    is_sent: bool,
    /// It was sent once: it may be done.
    may_be_done: bool,
    /// Its caller does not wait any more.
    is_given_up: bool,
    /// What it takes of a buffer, given back with the reply.
    _room: OwnedSemaphorePermit,
}

/// What the link itself must know of a call.
#[derive(Debug)]
pub(super) enum CallKind {
    Publish,
    Lease(LeaseEnd),
    Other,
}

/// The calls of one agent, by their ids.
#[derive(Debug, Default)]
pub(super) struct WaitingCalls {
    last_id: u64,
    calls: BTreeMap<u64, WaitingCall>,
    /// Everything before this was sent on this connection.
    next_unsent: u64,
    ahead: Ahead,
    sent: Sum,
    /// Of these, events and questions.
    beginning: Sum,
}

/// What goes before events that wait for room: calls on channels on which nothing waits before them.
#[derive(Debug, Default)]
struct Ahead {
    /// Everything before this was looked at; each call is, once.
    next: u64,
    /// Channels on which something that was looked at waits.
    behind: HashSet<Channel>,
}

/// Calls, and the bytes of their frames.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    calls: usize,
    bytes: usize,
}

impl Sum {
    fn fits(self, bytes: usize, calls_max: usize, bytes_max: usize) -> bool {
        self.calls < calls_max && self.bytes + bytes <= bytes_max
    }

    fn add(&mut self, bytes: usize) {
        (self.calls, self.bytes) = (self.calls + 1, self.bytes + bytes);
    }

    fn take(&mut self, bytes: usize) {
        (self.calls, self.bytes) = (self.calls - 1, self.bytes - bytes);
    }
}

impl WaitingCalls {
    /// An id that is above all before it.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Adds a call and returns its id. `room` may be more than the call takes: the rest is given back at once.
    pub(super) fn add(
        &mut self,
        channel: &Channel,
        body: CallBody,
        kind: CallKind,
        reply: ReplySender,
        mut room: OwnedSemaphorePermit,
    ) -> Result<u64, LinkError> {
        let is_beginning = matches!(body, CallBody::Publish(..) | CallBody::Ask(_));
        let call = AgentCall { id: self.next_id(), channel: channel.clone(), body };
        let text = call.to_text();
        if text.len() > AGENT_FRAME_BYTES_MAX {
            let message = format!("a call has at most {AGENT_FRAME_BYTES_MAX} bytes");
            return Err(LinkError::Refused(message));
        }
        drop(room.split(room.num_permits().saturating_sub(cost(text.len()))));
        let AgentCall { id, channel, .. } = call;
        let waiting = WaitingCall {
            channel,
            kind,
            reply,
            text: text.into(),
            is_beginning,
            is_sent: false,
            may_be_done: false,
            is_given_up: false,
            _room: room,
        };
        self.calls.insert(id, waiting);
        Ok(id)
    }

    /// The next call to send, within what the relay lets be under way: in order, but that what ends work does not wait
    /// for events of other channels that wait for room.
    pub(super) fn next_to_send(&mut self) -> Option<Utf8Bytes> {
        let mut unsent =
            self.calls.range(self.next_unsent..).filter(|(_, waiting)| !waiting.is_sent);
        let (id, waiting) = unsent.next()?;
        let (id, fits) = (*id, self.fits(waiting));
        self.next_unsent = id;
        let id = if fits { id } else { self.next_ahead()? };
        let waiting = self.calls.get_mut(&id)?;
        (waiting.is_sent, waiting.may_be_done) = (true, true);
        let bytes = waiting.text.len();
        self.sent.add(bytes);
        if waiting.is_beginning {
            self.beginning.add(bytes);
        }
        Some(waiting.text.clone())
    }

    fn fits(&self, waiting: &WaitingCall) -> bool {
        let bytes = waiting.text.len();
        let has_part = || self.beginning.fits(bytes, BEGINNING_MAX, BEGINNING_BYTES_MAX);
        let has_room = self.sent.fits(bytes, AGENT_CALLS_MAX, AGENT_CALLS_BYTES_MAX);
        has_room && (!waiting.is_beginning || has_part())
    }

    /// The first call that fits and overtakes none of its own channel.
    fn next_ahead(&mut self) -> Option<u64> {
        if self.ahead.next <= self.next_unsent {
            self.ahead = Ahead { next: self.next_unsent, behind: HashSet::new() };
        }
        for (id, waiting) in self.calls.range(self.ahead.next..) {
            let may_go = !waiting.is_beginning && !self.ahead.behind.contains(&waiting.channel);
            if may_go && !self.fits(waiting) {
                return None;
            }
            self.ahead.next = id + 1;
            if may_go {
                return Some(*id);
            }
            if !self.ahead.behind.contains(&waiting.channel) {
                self.ahead.behind.insert(waiting.channel.clone());
            }
        }
        None
    }

    /// The call is over, by its reply or because it was withdrawn.
    pub(super) fn remove(&mut self, id: u64) -> Option<WaitingCall> {
        let waiting = self.calls.remove(&id)?;
        if waiting.is_sent {
            self.sent.take(waiting.text.len());
            if waiting.is_beginning {
                self.beginning.take(waiting.text.len());
            }
        }
        Some(waiting)
    }

    /// The caller does not wait any more. Returns the channel of a call that was sent, which must be withdrawn, and
    /// whether it takes a lease.
    pub(super) fn give_up(&mut self, id: u64) -> Option<(Channel, bool)> {
        let waiting = self.calls.get_mut(&id)?;
        waiting.is_given_up = true;
        if waiting.is_sent {
            let is_lease = matches!(waiting.kind, CallKind::Lease(_));
            return Some((waiting.channel.clone(), is_lease));
        }
        self.calls.remove(&id);
        None
    }

    /// Whether a lease of the channel is being taken.
    pub(super) fn has_lease(&self, channel: &Channel) -> bool {
        let is_it = |waiting: &WaitingCall| {
            matches!(waiting.kind, CallKind::Lease(_))
                && waiting.channel == *channel
                && !waiting.is_given_up
        };
        self.calls.values().any(is_it)
    }

    /// The connection broke: everything is sent again on the next one, but for what was given up.
    pub(super) fn begin_anew(&mut self) {
        self.calls.retain(|_, waiting| !waiting.is_given_up);
        self.calls.values_mut().for_each(|waiting| waiting.is_sent = false);
        self.count_anew();
    }

    /// The relay refuses the agent: no call gets a reply.
    pub(super) fn refuse_all(&mut self, refusal: &LinkError) {
        for (_, waiting) in std::mem::take(&mut self.calls) {
            let error = match waiting.kind {
                CallKind::Publish if waiting.may_be_done => {
                    LinkError::Unavailable(Unavailable(refusal.to_string()))
                }
                _ => refusal.clone(),
            };
            drop(waiting.reply.send(Err(error)));
        }
        self.count_anew();
    }

    /// Nothing is under way.
    fn count_anew(&mut self) {
        (self.sent, self.beginning) = (Sum::default(), Sum::default());
        (self.next_unsent, self.ahead) = (0, Ahead::default());
    }
}

/// What a call of so many bytes takes of a buffer, with what is kept beside it.
pub(super) const fn cost(bytes: usize) -> usize {
    /// About what the map and the reply's channel take, so that the number of small calls is bounded, too.
    const BESIDE: usize = 512;
    bytes + BESIDE
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::agent::body::TakeCall;
    use tokio::sync::Semaphore;
    use uuid::Uuid;

    use super::*;

    type Reply = oneshot::Receiver<Result<CallReply, LinkError>>;

    fn add(calls: &mut WaitingCalls, body: CallBody) -> (u64, Reply) {
        add_on(calls, "42", body)
    }

    fn add_on(calls: &mut WaitingCalls, session: &str, body: CallBody) -> (u64, Reply) {
        let kind = match body {
            CallBody::Publish(..) => CallKind::Publish,
            _ => CallKind::Other,
        };
        let room = Arc::new(Semaphore::new(1 << 20)).try_acquire_many_owned(1 << 20).unwrap();
        let (reply, replied) = oneshot::channel();
        let channel = Channel::session(session).unwrap();
        (calls.add(&channel, body, kind, reply, room).unwrap(), replied)
    }

    fn publish(n: usize) -> CallBody {
        CallBody::Publish("x".into(), format!("\"{}\"", "x".repeat(n)).into())
    }

    fn take() -> CallBody {
        CallBody::Take(TakeCall { key: Uuid::nil(), idempotent: false })
    }

    fn sent(calls: &mut WaitingCalls) -> Vec<u64> {
        std::iter::from_fn(|| calls.next_to_send())
            .map(|text| AgentCall::parse(&text).unwrap().id)
            .collect()
    }

    #[test]
    fn no_more_is_under_way_than_the_relay_reads() {
        let mut calls = WaitingCalls::default();
        let _replies: Vec<_> = (0..=AGENT_CALLS_MAX).map(|_| add(&mut calls, take())).collect();
        assert_eq!(sent(&mut calls).len(), AGENT_CALLS_MAX);
        assert!(calls.next_to_send().is_none());
        calls.remove(1);
        assert_eq!(sent(&mut calls), [AGENT_CALLS_MAX as u64 + 1]);

        let mut calls = WaitingCalls::default();
        let _replies: Vec<_> = (0..100).map(|_| add(&mut calls, publish(60_000))).collect();
        assert_eq!(sent(&mut calls).len(), BEGINNING_BYTES_MAX / 60_100);
    }

    /// However many events wait, and of whichever sessions, the end of work on another channel goes at once; on its own
    /// channel it keeps its place.
    #[test]
    fn what_ends_work_finds_room_beside_events_that_wait() {
        let mut calls = WaitingCalls::default();
        let mut replies: Vec<_> = (0..2_000).map(|_| add(&mut calls, publish(1))).collect();
        let (behind, reply) = add(&mut calls, take());
        replies.push((behind, reply));
        replies.push(add_on(&mut calls, "43", publish(1)));
        let mut ends = Vec::new();
        for session in ["44", "45"] {
            let (id, reply) = add_on(&mut calls, session, take());
            replies.push((id, reply));
            ends.push(id);
        }
        let (second, reply) = add_on(&mut calls, "44", take());
        replies.push((second, reply));

        let events = BEGINNING_MAX as u64;
        let expected: Vec<u64> = (1..=events).chain(ends).chain([second]).collect();
        assert_eq!(sent(&mut calls), expected);

        calls.remove(1);
        assert_eq!(sent(&mut calls), [events + 1]);
        let (late, reply) = add_on(&mut calls, "46", take());
        replies.push((late, reply));
        assert_eq!(sent(&mut calls), [late]);
        let mut all = Vec::new();
        for id in 2..=late {
            calls.remove(id);
            all.extend(sent(&mut calls));
        }
        let rest: Vec<u64> = (events + 2..=behind + 1).collect();
        assert_eq!(all, rest, "each once, those of a channel in their order");

        calls.begin_anew();
        assert!(sent(&mut calls).is_empty(), "all were answered");
    }

    #[test]
    fn what_had_no_reply_is_sent_again_in_order_but_for_what_was_given_up() {
        let mut calls = WaitingCalls::default();
        let _first = add(&mut calls, publish(1));
        let (unsent, _) = add(&mut calls, take());
        assert_eq!(calls.give_up(unsent), None);
        let (second, _) = add(&mut calls, take());
        assert_eq!(sent(&mut calls), [1, 3], "given up before it was sent");
        let channel = Channel::session("42").unwrap();
        assert_eq!(calls.give_up(second), Some((channel, false)), "it must be withdrawn");
        let _third = add(&mut calls, publish(1));

        calls.begin_anew();
        assert_eq!(sent(&mut calls), [1, 4], "an event is published although its caller is gone");
    }

    #[test]
    fn a_refusal_is_the_reply_to_all() {
        let mut calls = WaitingCalls::default();
        let mut replies = [add(&mut calls, publish(1)).1, add(&mut calls, take()).1];
        sent(&mut calls);
        calls.begin_anew();
        let (_, mut late) = add(&mut calls, publish(1));
        calls.refuse_all(&LinkError::Refused("no".to_owned()));
        let told = |reply: &mut Reply| reply.try_recv().unwrap().unwrap_err();
        assert!(matches!(told(&mut replies[0]), LinkError::Unavailable(_)), "it may be done");
        assert!(matches!(told(&mut replies[1]), LinkError::Refused(_)));
        assert!(matches!(told(&mut late), LinkError::Refused(_)));
        assert!(calls.next_to_send().is_none());
    }
}
