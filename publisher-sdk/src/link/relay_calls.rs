//! Calls that wait for their replies: in order, bounded, repeated on the next connection.
//!
//! [`relay_link`](super::relay_link) → **calls** → [`relay_client`](super::relay_client). No I/O happens here.

use std::collections::BTreeMap;

use journal::Unavailable;
use protocol::limits::{AGENT_CALLS_BYTES_MAX, AGENT_CALLS_MAX};
use protocol::{AgentCall, AgentMessage, CallBody, Channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::LinkError;

/// Calls that may wait, sent or not.
const WAITING_MAX: usize = 16 * 1024;

/// Where the reply goes.
pub(super) type ReplySender = oneshot::Sender<Result<AgentMessage, LinkError>>;

/// A call without a reply.
#[derive(Debug)]
struct WaitingCall {
    call: AgentCall,
    bytes: usize,
    reply: ReplySender,
    /// On this connection.
    is_sent: bool,
    /// It was sent once: it may be done.
    may_be_done: bool,
    is_withdrawn: bool,
    /// What it takes of the buffer, given back with the reply.
    _room: Option<std::sync::Arc<OwnedSemaphorePermit>>,
}

/// The calls of one agent, by their ids.
#[derive(Debug, Default)]
pub(super) struct WaitingCalls {
    last_id: u64,
    calls: BTreeMap<u64, WaitingCall>,
    /// Everything before this was sent on this connection.
    next_unsent: u64,
    sent: usize,
    sent_bytes: usize,
}

impl WaitingCalls {
    /// An id that is above all before it.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whether more calls may come in.
    pub(super) fn has_room(&self) -> bool {
        self.calls.len() < WAITING_MAX
    }

    /// A call comes in.
    pub(super) fn add(
        &mut self,
        channel: Channel,
        body: CallBody,
        reply: ReplySender,
        room: Option<std::sync::Arc<OwnedSemaphorePermit>>,
    ) {
        let call = AgentCall { id: self.next_id(), channel, body };
        let bytes = call.to_text().len();
        let waiting = WaitingCall {
            call,
            bytes,
            reply,
            is_sent: false,
            may_be_done: false,
            is_withdrawn: false,
            _room: room,
        };
        self.calls.insert(self.last_id, waiting);
    }

    /// The next call to send, within what the relay lets be under way.
    pub(super) fn next_to_send(&mut self) -> Option<String> {
        loop {
            let (id, waiting) = self.calls.range_mut(self.next_unsent..).next()?;
            if is_given_up(waiting) {
                let id = *id;
                self.calls.remove(&id);
                continue;
            }
            let is_first = self.sent == 0;
            let fits = self.sent < AGENT_CALLS_MAX
                && self.sent_bytes + waiting.bytes <= AGENT_CALLS_BYTES_MAX;
            if !is_first && !fits {
                return None;
            }
            (waiting.is_sent, waiting.may_be_done) = (true, true);
            self.sent += 1;
            self.sent_bytes += waiting.bytes;
            self.next_unsent = id + 1;
            return Some(waiting.call.to_text());
        }
    }

    /// Whether [`next_to_send`](Self::next_to_send) may give something.
    pub(super) fn has_unsent(&self) -> bool {
        let next = self.calls.range(self.next_unsent..).next();
        next.is_some_and(|(_, waiting)| {
            self.sent == 0
                || (self.sent < AGENT_CALLS_MAX
                    && self.sent_bytes + waiting.bytes <= AGENT_CALLS_BYTES_MAX)
        })
    }

    /// A reply has come. Gives the channel of a lease that was taken for a caller who has given it up.
    pub(super) fn on_reply(&mut self, id: u64, message: AgentMessage) -> Option<Channel> {
        let waiting = self.take(id)?;
        let is_lease = matches!(waiting.call.body, CallBody::Lease(_));
        let (reply, is_done) = match message {
            AgentMessage::Error { error, .. } => (Err(LinkError::of(&error)), false),
            message => (Ok(message), true),
        };
        let is_unwanted = waiting.reply.send(reply).is_err();
        (is_unwanted && is_done && is_lease).then_some(waiting.call.channel)
    }

    /// What was sent for callers who have given up since: to be withdrawn, each once.
    pub(super) fn given_up(&mut self) -> Vec<(u64, Channel)> {
        self.calls.retain(|_, waiting| waiting.is_sent || !is_given_up(waiting));
        let mut given_up = Vec::new();
        for (id, waiting) in &mut self.calls {
            if is_given_up(waiting) && !std::mem::replace(&mut waiting.is_withdrawn, true) {
                given_up.push((*id, waiting.call.channel.clone()));
            }
        }
        given_up
    }

    /// The connection broke: everything is sent again on the next one, but for what was given up.
    pub(super) fn begin_anew(&mut self) {
        self.calls.retain(|_, waiting| !is_given_up(waiting));
        for waiting in self.calls.values_mut() {
            (waiting.is_sent, waiting.is_withdrawn) = (false, false);
        }
        (self.next_unsent, self.sent, self.sent_bytes) = (0, 0, 0);
    }

    /// The relay refuses the agent: no call gets a reply.
    pub(super) fn refuse_all(&mut self, why: &str) {
        for (_, waiting) in std::mem::take(&mut self.calls) {
            let error = match waiting.call.body {
                CallBody::Publish(..) if waiting.may_be_done => {
                    LinkError::Unavailable(Unavailable(why.to_owned()))
                }
                _ => LinkError::Refused(why.to_owned()),
            };
            drop(waiting.reply.send(Err(error)));
        }
        (self.sent, self.sent_bytes) = (0, 0);
    }

    fn take(&mut self, id: u64) -> Option<WaitingCall> {
        let waiting = self.calls.remove(&id)?;
        if waiting.is_sent {
            self.sent -= 1;
            self.sent_bytes -= waiting.bytes;
        }
        Some(waiting)
    }
}

/// Its caller waits no more, and nothing is owed: an event is published and a report is made all the same.
fn is_given_up(waiting: &WaitingCall) -> bool {
    let is_for_its_caller = matches!(
        waiting.call.body,
        CallBody::Lease(_) | CallBody::Take(_) | CallBody::Ask(_) | CallBody::Progress(_)
    );
    is_for_its_caller && waiting.reply.is_closed()
}

#[cfg(test)]
mod tests {
    use protocol::agent::body::{LeaseCall, TakeCall};
    use uuid::Uuid;

    use super::*;

    type Reply = oneshot::Receiver<Result<AgentMessage, LinkError>>;

    fn add(calls: &mut WaitingCalls, body: CallBody) -> Reply {
        let (reply, replied) = oneshot::channel();
        calls.add(Channel::session("42").unwrap(), body, reply, None);
        replied
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

    fn ack(id: u64) -> AgentMessage {
        AgentMessage::Ack { id, offset: None, data: None }
    }

    #[test]
    fn no_more_is_under_way_than_the_relay_reads() {
        let mut calls = WaitingCalls::default();
        let replies: Vec<Reply> =
            (0..=AGENT_CALLS_MAX).map(|_| add(&mut calls, publish(1))).collect();
        assert_eq!(sent(&mut calls).len(), AGENT_CALLS_MAX);
        assert!(!calls.has_unsent());
        calls.on_reply(1, ack(1));
        assert_eq!(sent(&mut calls), [AGENT_CALLS_MAX as u64 + 1]);
        drop(replies);

        let mut calls = WaitingCalls::default();
        let replies: Vec<Reply> = (0..100).map(|_| add(&mut calls, publish(60_000))).collect();
        assert_eq!(sent(&mut calls).len(), AGENT_CALLS_BYTES_MAX / 60_100);
        drop(replies);
    }

    #[test]
    fn what_had_no_reply_is_sent_again_in_order_but_for_what_was_given_up() {
        let mut calls = WaitingCalls::default();
        let first = add(&mut calls, publish(1));
        drop(add(&mut calls, take()));
        let second = add(&mut calls, take());
        assert_eq!(sent(&mut calls), [1, 3], "given up before it was sent");
        drop(second);
        assert_eq!(calls.given_up().len(), 1, "it is withdrawn");
        assert!(calls.given_up().is_empty(), "once");
        drop(first);
        let _third = add(&mut calls, publish(1));

        calls.begin_anew();
        assert_eq!(sent(&mut calls), [1, 4], "an event is published whoever waits for it");
    }

    #[test]
    fn a_lease_that_comes_for_no_caller_is_released() {
        let mut calls = WaitingCalls::default();
        let reply = add(&mut calls, CallBody::Lease(LeaseCall::default()));
        assert_eq!(sent(&mut calls), [1]);
        drop(reply);
        assert_eq!(calls.on_reply(1, ack(1)), Channel::session("42").ok());
    }

    #[test]
    fn a_refusal_is_the_reply_to_all() {
        let mut calls = WaitingCalls::default();
        let mut replies = [add(&mut calls, publish(1)), add(&mut calls, take())];
        sent(&mut calls);
        calls.begin_anew();
        let mut late = add(&mut calls, publish(1));
        calls.refuse_all("no");
        let told = |reply: &mut Reply| reply.try_recv().unwrap().unwrap_err();
        assert!(matches!(told(&mut replies[0]), LinkError::Unavailable(_)), "it may be done");
        assert!(matches!(told(&mut replies[1]), LinkError::Refused(_)));
        assert!(matches!(told(&mut late), LinkError::Refused(_)));
        assert!(!calls.has_unsent());
    }
}
