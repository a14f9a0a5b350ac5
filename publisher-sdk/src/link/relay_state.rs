//! What an agent's link to a relay is, whether or not there is a connection: the calls that wait, the leases
//! that are held, what is followed. No I/O happens here.
//!
//! [`relay_link`](super::relay_link) → **state** → [`relay_client`](super::relay_client)
//!
//! It is one state behind one lock, which is never held while waiting. Frames and the agent change it one after
//! the other, so a loss cannot fall between the reply that gives a lease and the moment when it counts as held.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use journal::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, Name, Reason, Since, Update};
use protocol::agent::body::{LeaseCall, Leased, WithdrawCall, Withdrawn};
use protocol::{AgentCall, AgentFrame, AgentMessage, CallBody, Channel, Entry};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::LinkError;
use super::lease::LeaseEnd;
use super::relay_calls::{CallKind, CallReply, WaitingCalls};

/// How long a relay may take to say `connected`: that needs no Redis.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// A relay pings three times in a lease. After this part of a lease without any frame it counts as gone; in the
/// rest of the lease the agent can come back.
const SILENCE_MAX: f64 = 0.8;

#[derive(Debug)]
pub(super) struct RelayState {
    /// `agent:{id}`, whose lease comes before all others.
    own: Channel,
    calls: WaitingCalls,
    /// Taken back on every connection.
    leases: HashMap<Channel, HeldLease>,
    /// Whose commands are followed, and where to go on after the next reconnect.
    followed: HashMap<Channel, Followed>,
    /// Leases that the relay may have given and that nobody wants: released on every connection until it says so. One
    /// that ran out instead would fence the agent.
    owed_releases: HashSet<Channel>,
    /// Frames that go before the calls.
    first: VecDeque<Utf8Bytes>,
    /// Those of them whose replies mean something, by their ids.
    replies: HashMap<u64, FirstReply>,
    /// The relay has said `connected`.
    is_up: bool,
    /// How long the relay's leases are.
    lease: Duration,
    heard_at: Instant,
    /// Why there is no connection.
    trouble: Option<String>,
    /// The relay refuses the agent, and says why.
    refused: Option<LinkError>,
    /// No task sends calls any more.
    has_ended: bool,
}

#[derive(Debug)]
struct Followed {
    since: Since,
    /// How many `follow`s have not been answered with `live`: until then what arrives belongs to an earlier one.
    unanswered: u32,
}

#[derive(Debug)]
struct HeldLease {
    incarnation: u64,
    end: LeaseEnd,
}

/// What the reply to one of the link's own frames decides.
#[derive(Debug)]
enum FirstReply {
    /// Whether the lease is still held.
    Lease(Channel),
    /// Whether the release is still owed.
    Release(Channel),
    /// Whether the call gets a reply of its own.
    Withdraw(u64),
    /// Whether the token has taken the place of the one before.
    Token,
}

/// A call's id, and where its reply arrives.
pub(super) type PlacedCall = (u64, oneshot::Receiver<Result<CallReply, LinkError>>);

/// What the agent does.
impl RelayState {
    pub(super) fn new(own: Channel) -> Self {
        Self {
            own,
            calls: WaitingCalls::default(),
            leases: HashMap::new(),
            followed: HashMap::new(),
            owed_releases: HashSet::new(),
            first: VecDeque::new(),
            replies: HashMap::new(),
            is_up: false,
            lease: LEASE_DEFAULT,
            heard_at: Instant::now(),
            trouble: None,
            refused: None,
            has_ended: false,
        }
    }

    /// Gives a call its place in the order.
    pub(super) fn call(
        &mut self,
        channel: &Channel,
        body: CallBody,
        kind: CallKind,
        room: OwnedSemaphorePermit,
    ) -> Result<PlacedCall, LinkError> {
        if self.has_ended {
            return Err(LinkError::unavailable("the link to the relay is closed"));
        }
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let (reply, replied) = oneshot::channel();
        Ok((self.calls.add(channel, body, kind, reply, room)?, replied))
    }

    /// The caller of a call does not wait any more: the call is not sent, or it is withdrawn.
    pub(super) fn give_up(&mut self, call: u64) {
        if let Some((channel, is_lease)) = self.calls.give_up(call) {
            if is_lease {
                self.owed_releases.insert(channel.clone());
            }
            let id = self.say_first(&channel, CallBody::Withdraw(WithdrawCall { call }));
            self.replies.insert(id, FirstReply::Withdraw(call));
        }
    }

    /// A lease was given, and its caller does not wait any more. If another caller waits for it, it is kept.
    pub(super) fn give_back(&mut self, channel: &Channel) {
        if !self.calls.has_lease(channel) {
            self.forget(channel);
            self.owed_releases.insert(channel.clone());
            if self.is_up {
                self.say_release(channel.clone());
            }
        }
    }

    /// The lease is not taken back any more: it ends with the connection, if it was not released.
    pub(super) fn forget(&mut self, channel: &Channel) {
        self.leases.remove(channel);
    }

    pub(super) fn follow(&mut self, channel: &Channel, since: Since) {
        let before = self.followed.get(channel).map_or(0, |followed| followed.unanswered);
        let unanswered = before + u32::from(self.is_up);
        self.followed.insert(channel.clone(), Followed { since, unanswered });
        if self.is_up {
            self.say_first(channel, CallBody::Follow(since));
        }
    }

    pub(super) fn unfollow(&mut self, channel: &Channel) {
        if self.followed.remove(channel).is_some() && self.is_up {
            self.say_first(channel, CallBody::Unfollow);
        }
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// Why no reply has come in time.
    pub(super) fn no_reply(&self) -> LinkError {
        LinkError::unavailable(self.trouble.as_deref().unwrap_or("the relay does not answer"))
    }

    fn say_release(&mut self, channel: Channel) {
        let id = self.say_first(&channel, CallBody::Release);
        self.replies.insert(id, FirstReply::Release(channel));
    }

    /// Brings another token.
    pub(super) fn say_token(&mut self, token: &str) {
        let id = self.calls.next_id();
        self.first.push_back(AgentFrame::auth_text(id, token).into());
        self.replies.insert(id, FirstReply::Token);
    }

    /// Before every call that waits.
    fn say_first(&mut self, channel: &Channel, body: CallBody) -> u64 {
        let call = AgentCall { id: self.calls.next_id(), channel: channel.clone(), body };
        self.first.push_back(call.to_text().into());
        call.id
    }
}

/// What the connection does.
impl RelayState {
    /// The next frame to write.
    pub(super) fn next_frame(&mut self) -> Option<Utf8Bytes> {
        if !self.is_up {
            return None;
        }
        self.first.pop_front().or_else(|| self.calls.next_to_send())
    }

    /// After how long without a frame the relay counts as gone.
    pub(super) fn silence_max(&self) -> Duration {
        if self.is_up { self.lease.mul_f64(SILENCE_MAX) } else { HANDSHAKE_MAX }
    }

    /// A relay has let the agent in.
    pub(super) fn on_connection(&mut self) {
        self.refused = None;
        self.heard_at = Instant::now();
    }

    /// An outage is waited out. A refusal is the reply to all calls, at once.
    pub(super) fn on_no_connection(&mut self, error: &LinkError) {
        self.trouble = Some(error.to_string());
        if !error.is_refusal() {
            tracing::debug!(%error, "the relay cannot be reached; waiting calls are kept");
            return;
        }
        if self.refused.replace(error.clone()).is_none() {
            tracing::warn!(%error, "the relay refuses the agent");
        }
        self.calls.refuse_all(error);
        if self.heard_at.elapsed() > self.lease {
            self.leases.drain().for_each(|(_, held)| held.end.lost.cancel());
        }
    }

    /// The connection broke.
    pub(super) fn on_break(&mut self, why: String) {
        tracing::warn!(why, "relay connection lost; calls without a reply are kept");
        self.is_up = false;
        self.first.clear();
        self.replies.clear();
        self.calls.begin_anew();
        self.trouble = Some(why);
    }

    /// No connection will be made any more.
    pub(super) fn on_end(&mut self) {
        self.has_ended = true;
        // The callers that wait are told so.
        self.calls = WaitingCalls::default();
    }

    /// Something has arrived; `message` is what it says, if it says anything. Returns what the agent is told of it;
    /// an error is the reason to give this connection up.
    pub(super) fn on_heard(
        &mut self,
        message: Option<AgentMessage>,
    ) -> Result<Option<Update>, String> {
        self.heard_at = Instant::now();
        let Some(message) = message else { return Ok(None) };
        Ok(match message {
            AgentMessage::Connected { lease_ms } => {
                self.on_connected(lease_ms);
                Some(Update::Link { up: true })
            }
            AgentMessage::Reconnect => return Err("the replica goes down".to_owned()),
            AgentMessage::Ack { id, offset, data } => {
                self.on_reply(id, Ok(CallReply { offset, data }))?;
                None
            }
            AgentMessage::Error { id: Some(id), error } => {
                self.on_reply(id, Err(LinkError::of(&error)))?;
                None
            }
            AgentMessage::Error { id: None, error } => {
                tracing::warn!(code = &*error.code, error.message, "the relay refuses a frame");
                None
            }
            AgentMessage::Fenced { channel } => {
                self.lose(&channel);
                None
            }
            AgentMessage::Released { channel } => {
                self.followed.remove(&channel);
                if let Some(held) = self.leases.remove(&channel) {
                    held.end.revoked.cancel();
                }
                None
            }
            AgentMessage::Authenticated { id, .. } => {
                self.replies.remove(&id);
                None
            }
            // The client asks for another one.
            AgentMessage::TokenExpiring { .. } => None,
            AgentMessage::Live { channel, offset } => {
                if let Some(followed) = self.followed.get_mut(&channel) {
                    followed.unanswered = followed.unanswered.saturating_sub(1);
                }
                Some(Update::Live { name: Name::commands(channel), head: offset })
            }
            AgentMessage::Reset { channel } => {
                if let Some(followed) = self.followed.get_mut(&channel) {
                    followed.since = Since::Start;
                }
                let (name, reason) = (Name::commands(channel), Reason::HistoryChanged);
                Some(Update::Reset { name, reason, head: None })
            }
            AgentMessage::Command { channel, offset, name, time_us, data } => {
                let Some(followed) = self.followed.get_mut(&channel) else { return Ok(None) };
                if followed.unanswered == 0 {
                    followed.since = Since::Offset(offset);
                }
                let entry = Entry { offset, time_us, name, data: data.get().into() };
                let (name, entries) = (Name::commands(channel), vec![Arc::new(entry)]);
                Some(Update::Entries { name, entries })
            }
        })
    }

    /// What must be said first on a new connection: the agent's own lease, the others, what is followed.
    fn on_connected(&mut self, lease_ms: Option<u64>) {
        let lease = lease_ms.map_or(LEASE_DEFAULT, Duration::from_millis);
        self.lease = lease.clamp(LEASE_MIN, LEASE_MAX);
        (self.is_up, self.trouble) = (true, None);
        let held = self.leases.iter().map(|(channel, held)| (channel.clone(), held.incarnation));
        let mut held: Vec<(Channel, u64)> = held.collect();
        held.sort_by_key(|(channel, _)| *channel != self.own);
        for (channel, incarnation) in held {
            self.say_lease(channel, incarnation);
        }
        for channel in self.owed_releases.clone() {
            self.say_release(channel);
        }
        let followed = self.followed.iter_mut().map(|(channel, followed)| {
            followed.unanswered = 1;
            (channel.clone(), followed.since)
        });
        for (channel, since) in followed.collect::<Vec<_>>() {
            self.say_first(&channel, CallBody::Follow(since));
        }
    }

    fn say_lease(&mut self, channel: Channel, incarnation: u64) {
        let call = LeaseCall { incarnation: Some(incarnation), parent: None };
        let id = self.say_first(&channel, CallBody::Lease(call));
        self.replies.insert(id, FirstReply::Lease(channel));
    }

    fn on_reply(&mut self, id: u64, reply: Result<CallReply, LinkError>) -> Result<(), String> {
        match (self.replies.remove(&id), reply) {
            (None, reply) => self.on_reply_to_call(id, reply),
            (Some(FirstReply::Withdraw(call)), Ok(reply)) => {
                // Otherwise the call's own reply comes, or has come.
                if read(&reply).is_ok_and(|Withdrawn { withdrawn }| withdrawn)
                    && let Some(withdrawn) = self.calls.remove(call)
                    && matches!(withdrawn.kind, CallKind::Lease(_))
                {
                    self.owed_releases.remove(&withdrawn.channel);
                }
            }
            // Without its own lease nothing else can be done: connect again, and repeat everything.
            (Some(FirstReply::Lease(channel)), Err(LinkError::Unavailable(why)))
                if channel == self.own =>
            {
                return Err(why.to_string());
            }
            (Some(FirstReply::Lease(channel)), Err(LinkError::Unavailable(_))) => {
                if let Some(held) = self.leases.get(&channel) {
                    self.say_lease(channel, held.incarnation);
                }
            }
            (Some(FirstReply::Release(channel)), Ok(_) | Err(LinkError::Refused(_))) => {
                self.owed_releases.remove(&channel);
            }
            (Some(FirstReply::Lease(channel)), Err(why)) => {
                tracing::warn!(%channel, %why, "a lease is lost");
                self.lose(&channel);
            }
            (Some(FirstReply::Token), Err(why)) => {
                tracing::warn!(%why, "the relay refuses a renewed token");
            }
            (Some(_), _) => {}
        }
        Ok(())
    }

    fn on_reply_to_call(&mut self, id: u64, reply: Result<CallReply, LinkError>) {
        let Some(call) = self.calls.remove(id) else { return };
        let mut is_held = false;
        if let (CallKind::Lease(end), Ok(reply)) = (&call.kind, &reply)
            && let Ok(Leased { incarnation }) = read(reply)
        {
            // It is held from its reply on: a loss can only come after it.
            let held = HeldLease { incarnation, end: end.clone() };
            self.leases.insert(call.channel.clone(), held);
            self.owed_releases.remove(&call.channel);
            is_held = true;
        }
        if call.reply.send(reply).is_err() && is_held {
            self.give_back(&call.channel);
        }
    }

    fn lose(&mut self, channel: &Channel) {
        if let Some(held) = self.leases.remove(channel) {
            held.end.lost.cancel();
        }
    }
}

/// What a reply says.
pub(super) fn read<A: serde::de::DeserializeOwned>(reply: &CallReply) -> Result<A, LinkError> {
    let data = reply.data.as_deref().map_or("null", RawValue::get);
    serde_json::from_str(data).map_err(|error| LinkError::unavailable(&error.to_string()))
}

#[cfg(test)]
mod tests;
