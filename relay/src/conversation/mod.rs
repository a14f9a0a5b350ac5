//! One viewer's conversation, on any transport: a state machine without I/O.
//!
//! In: its frames as text, wake-ups of its subscriptions, what was read or done for it, the time. Out: frames, what
//! is to be read or [done](Work), the code it ends with. A [`Connection`](crate::connections::Connection) does the
//! work; a transport reads, writes and closes.
//!
//! Commands are answered in the order of their frames: while one is being carried out, no other frame is wanted.
//! The frames of a viewer that does not read are still received: frames are wanted as long as its
//! [outbox](ViewerOutbox) has room.

pub(crate) mod lifecycle;
mod outbox;
mod pace;
mod subscriptions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use journal::Page;
use protocol::frame::{
    self, Addressing, Answer, AuthToken, ClientFrame, Command, CorrelationId, Incoming, Outcome,
    Refusal, RelayFrame, Subscribe, Target,
};
use protocol::limits::{
    AUTHS_BURST, COMMANDS_BURST, COMMANDS_PER_SECOND, PING_INTERVAL, REQUESTS_MAX,
    SUBSCRIBES_BURST, SUBSCRIBES_PER_SECOND, UNREADABLE_MAX,
};
use protocol::{Channel, CloseCode, ErrorCode, Format};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::auth::{self, Key, Principal};
use crate::commands::{Accepted, Reply};
use crate::events::{Events, Pending, Status, Wake};
use crate::websocket::TextFrame;
use lifecycle::Lifecycle;
pub(crate) use lifecycle::{Activity, Due, GrantEnd, Heartbeat, Silence};
use outbox::ViewerOutbox;
pub(crate) use pace::Pace;
use subscriptions::Subscriptions;
pub(crate) use subscriptions::{Read, Ticket};

/// Why a subscription ends that the new token does not permit.
const REVOKED: &str = "revoked";

/// What is to be done for a viewer.
#[derive(Debug)]
pub(crate) enum Work {
    Read(Read),
    Command(Option<CorrelationId>, Command),
    Answer(Option<CorrelationId>, Answer),
    Request(CorrelationId, frame::Request),
}

/// What was done.
#[derive(Debug)]
pub(crate) enum Done {
    Page(Ticket, Page, Option<Arc<Pending>>),
    Pending(Ticket, Arc<Pending>),
    /// A command, or an answer to an approval.
    Accepted(Option<CorrelationId>, Result<Accepted, Refusal>),
    Replied(CorrelationId, Reply),
}

/// How a conversation begins.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The other end of the connection.
    pub(crate) peer: SocketAddr,
    /// The transport's default.
    pub(crate) format: Format,
    pub(crate) heartbeat: Heartbeat,
    /// Subscribed to from the start.
    pub(crate) subscribe: Option<Subscribe>,
}

/// One viewer's conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// The connection's id, and its other end: for the log.
    id: Box<str>,
    peer: SocketAddr,
    /// What tokens are signed with.
    key: Option<Key>,
    principal: Arc<Principal>,
    format: Format,
    subscriptions: Subscriptions,
    lifecycle: Lifecycle,
    outbox: ViewerOutbox,
    /// Frames of pages that came, which no transport has taken yet.
    read: Vec<TextFrame>,
    work: Vec<Work>,
    /// A command is being carried out.
    is_answering: bool,
    /// Requests that are not answered.
    requests: usize,
    /// Of commands and requests.
    asks: Pace,
    /// Of Cancels and answers: a page that sends too much can still cancel.
    decisions: Pace,
    /// Of tokens.
    auths: Pace,
    /// Of channels subscribed to.
    subscribes: Pace,
    /// Frames in a row that could not be read.
    unreadable: usize,
    /// What was last said about Redis.
    said_status: Status,
    ping_wanted: bool,
    end: Option<CloseCode>,
}

impl Conversation {
    pub(crate) fn open(
        events: Arc<Events>,
        wake: Arc<Wake>,
        (key, principal): (Option<Key>, Arc<Principal>),
        connection_id: &str,
        opening: Opening,
        now: Instant,
    ) -> Self {
        let mut conversation = Self {
            id: connection_id.into(),
            peer: opening.peer,
            lifecycle: Lifecycle::new(now, principal.remaining(), opening.heartbeat),
            key,
            principal,
            format: opening.format,
            outbox: ViewerOutbox::new(events.memory()),
            subscriptions: Subscriptions::new(events, wake),
            read: Vec::new(),
            work: Vec::new(),
            is_answering: false,
            requests: 0,
            auths: Pace::new(1, AUTHS_BURST),
            asks: Pace::new(COMMANDS_PER_SECOND, COMMANDS_BURST),
            decisions: Pace::new(COMMANDS_PER_SECOND, COMMANDS_BURST),
            subscribes: Pace::new(SUBSCRIBES_PER_SECOND, SUBSCRIBES_BURST),
            unreadable: 0,
            said_status: Status::Ok,
            ping_wanted: false,
            end: None,
        };
        let server_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let connected = RelayFrame::Connected {
            connection_id,
            user: conversation.principal.user.as_deref(),
            server_time: server_time.as_millis() as u64,
            ping_interval_ms: PING_INTERVAL.as_millis() as u64,
        };
        conversation.outbox.say(&connected);
        if let Some(subscribe) = opening.subscribe {
            let target = subscribe.target.clone();
            if let Err(refusal) = conversation.subscribe(subscribe, None) {
                conversation.say_refusal(None, &refusal.about(target.channel.as_str()));
            }
        }
        conversation
    }

    /// The connection's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Who the viewer is, and what is permitted to it.
    pub(crate) fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Whether the viewer's next frame is wanted now.
    pub(crate) fn wants_input(&self) -> bool {
        !self.is_answering && self.has_room()
    }

    /// Whether there is room for one more answer.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// The code it ends with, once it has ended.
    pub(crate) fn end(&self) -> Option<CloseCode> {
        self.end
    }

    /// Frames that wait, answers first, then each subscription that has something new in turn.
    pub(crate) fn take(&mut self, out: &mut Vec<TextFrame>) {
        self.outbox.take(out);
        out.append(&mut self.read);
        let mut reads = Vec::new();
        self.subscriptions.take(&mut reads, out);
        self.begin(reads);
    }

    /// What is new for one subscription, where nothing else is to be said first: see [`Subscriptions::take_live`].
    pub(crate) fn take_live(&mut self, slot: u32, out: &mut Vec<TextFrame>) -> bool {
        self.end.is_none()
            && self.outbox.is_empty()
            && self.read.is_empty()
            && self.subscriptions.take_live(slot, out)
    }

    /// Whether the transport shall send a sign of life of its own kind.
    pub(crate) fn take_ping(&mut self) -> bool {
        std::mem::take(&mut self.ping_wanted)
    }

    /// What is to be done now.
    pub(crate) fn take_work(&mut self) -> Vec<Work> {
        std::mem::take(&mut self.work)
    }

    /// A frame came. `is_blocked`: nothing can be written now.
    pub(crate) fn on_text(&mut self, text: &str, now: Instant, is_blocked: bool) {
        if self.lifecycle.is_over(now) {
            self.end = Some(CloseCode::TokenExpired);
            return;
        }
        let Incoming { id, frame, is_readable } = frame::parse(text);
        self.unreadable = if is_readable { 0 } else { self.unreadable + 1 };
        if self.unreadable >= UNREADABLE_MAX {
            self.end = Some(CloseCode::Unreadable);
            return;
        }
        if let Ok(frame) = &frame
            && let Err(refusal) = self.admit(frame, now)
        {
            return self.refuse(id.as_deref(), frame, &refusal);
        }
        match frame {
            Err(refusal) => self.say_refusal(id.as_deref(), &refusal),
            Ok(ClientFrame::Ping) => {
                let pong = RelayFrame::Pong { id: id.as_deref() };
                self.outbox.push_pong(pong.to_text(), is_blocked);
            }
            Ok(ClientFrame::Pong) => {}
            Ok(ClientFrame::Subscribe(subscribes)) => {
                self.each(subscribes, id.as_deref(), |this, subscribe| {
                    this.may_subscribe(&subscribe, now)?;
                    this.subscribe(subscribe, id.clone())
                });
            }
            Ok(ClientFrame::Unsubscribe(targets)) => {
                self.each(targets, id.as_deref(), |this, target| {
                    this.unsubscribe(&target, id.as_deref())
                });
            }
            Ok(ClientFrame::Command(command)) => {
                self.is_answering = true;
                self.work.push(Work::Command(id, command));
            }
            Ok(ClientFrame::Answer(answer)) => {
                self.is_answering = true;
                self.work.push(Work::Answer(id, answer));
            }
            Ok(ClientFrame::Request(request)) => self.on_request(id, request),
            Ok(ClientFrame::Auth(token)) => self.renew(id.as_deref(), &token, now),
        }
    }

    /// Something was done.
    pub(crate) fn on_done(&mut self, done: Done) {
        match done {
            Done::Page(ticket, page, pending) => {
                self.subscriptions.on_page(ticket, &page, pending.as_ref(), &mut self.read);
            }
            Done::Pending(ticket, pending) => {
                self.subscriptions.on_pending(ticket, &pending, &mut self.read);
            }
            Done::Accepted(id, accepted) => {
                self.is_answering = false;
                match accepted {
                    Ok(accepted) => self.outbox.say(&accepted.frame(id.as_deref())),
                    Err(refusal) => self.say_refusal(id.as_deref(), &refusal),
                }
            }
            Done::Replied(id, reply) => {
                self.requests -= 1;
                self.outbox.say(&reply.frame(Some(&id)));
            }
        }
    }

    /// A frame came for this connection from elsewhere.
    pub(crate) fn on_message(&mut self, frame: String) {
        self.outbox.push_if_there_is_room(frame);
    }

    /// Redis may have gone or come back. Said once per change.
    pub(crate) fn on_status(&mut self, status: Status) {
        if status != self.said_status {
            self.said_status = status;
            self.outbox.say(&RelayFrame::RelayStatus { redis: status.as_str() });
        }
    }

    /// The replica leaves; this viewer is to come back elsewhere, `after` a while.
    pub(crate) fn on_leaving(&mut self, now: Instant, after: Duration) {
        if !self.lifecycle.is_leaving() {
            self.lifecycle.leave(now, after);
            let after_ms = after.as_millis() as u64;
            self.outbox.say(&RelayFrame::Reconnect { after_ms });
        }
    }

    /// When [`on_time`](Self::on_time) wants to be called.
    pub(crate) fn deadline(&self) -> Instant {
        self.lifecycle.deadline()
    }

    /// The deadline has come.
    pub(crate) fn on_time(&mut self, now: Instant, activity: &Activity) {
        if activity.is_blocked {
            let (connection, user) = (&*self.id, self.principal.user.as_deref());
            tracing::debug!(connection, user, peer = %self.peer, "a connection is slow: bytes wait for it");
        }
        while let Some(due) = self.lifecycle.on_time(now, activity, self.is_answering) {
            match due {
                Due::Ping { is_visible } => {
                    self.ping_wanted = true;
                    if is_visible {
                        self.outbox.say(&RelayFrame::Ping);
                    }
                }
                Due::Expiring { left } => {
                    let in_ms = left.as_millis() as u64;
                    self.outbox.say(&RelayFrame::TokenExpiring { in_ms });
                }
                Due::Close(code) => {
                    self.end = Some(code);
                    return;
                }
            }
        }
    }

    /// Does it for each of a frame's channels; each that is refused has an error of its own.
    fn each<T>(
        &mut self,
        list: Vec<Result<T, Refusal>>,
        id: Option<&RawValue>,
        mut what: impl FnMut(&mut Self, T) -> Result<(), Refusal>,
    ) {
        for one in list {
            if let Err(refusal) = one.and_then(|one| what(self, one)) {
                self.say_refusal(id, &refusal);
            }
        }
    }

    /// A channel after the other, no faster than others can bear.
    fn may_subscribe(&mut self, subscribe: &Subscribe, now: Instant) -> Result<(), Refusal> {
        self.subscribes.admit(now).map_err(|wait| {
            let message =
                format!("a connection may subscribe to {SUBSCRIBES_PER_SECOND} channels a second");
            let refusal = Refusal::new(ErrorCode::RateLimited, message);
            let refusal = Refusal { retry_after: Some(wait), ..refusal };
            refusal.about(subscribe.target.channel.as_str())
        })
    }

    fn subscribe(
        &mut self,
        subscribe: Subscribe,
        id: Option<CorrelationId>,
    ) -> Result<(), Refusal> {
        let target = &subscribe.target;
        if !self.principal.grant.may_subscribe(&target.channel) {
            return Err(not_permitted(&target.channel));
        }
        let format = subscribe.format.unwrap_or(match target.addressing {
            Addressing::Channel => self.format,
            Addressing::SessionId | Addressing::PlanId => Format::Flat,
        });
        let channel = target.channel.clone();
        let (mut reads, mut out) = (Vec::new(), Vec::new());
        self.subscriptions.subscribe(subscribe, format, id, &mut reads, &mut out)?;
        let (connection, user) = (&*self.id, self.principal.user.as_deref());
        tracing::debug!(connection, user, peer = %self.peer, %channel, "a connection has subscribed");
        out.into_iter().for_each(|frame| self.outbox.push(frame));
        self.begin(reads);
        Ok(())
    }

    fn unsubscribe(&mut self, target: &Target, id: Option<&RawValue>) -> Result<(), Refusal> {
        let (mut reads, mut out) = (Vec::new(), Vec::new());
        self.subscriptions.unsubscribe(target, &mut reads, &mut out)?;
        out.into_iter().for_each(|frame| self.outbox.push(frame));
        self.begin(reads);
        self.outbox.say(&RelayFrame::Unsubscribed { id, channel: target.named(), reason: None });
        Ok(())
    }

    /// A token takes the place of the one before; where it is refused, that holds until its end.
    fn renew(&mut self, id: Option<&RawValue>, token: &AuthToken, now: Instant) {
        let principal = match auth::renew(self.key.as_ref(), &self.principal, token.as_str()) {
            Ok(principal) => Arc::new(principal),
            Err(refusal) => return self.say_refusal(id, &refusal),
        };
        self.lifecycle.renew(now, principal.remaining());
        let expires_at = principal.expires_at_ms();
        self.outbox.say(&RelayFrame::Authenticated { id, expires_at });
        let (mut reads, mut out) = (Vec::new(), Vec::new());
        let permits = |channel: &Channel| principal.grant.may_subscribe(channel);
        let ended = self.subscriptions.end_unless(permits, &mut reads, &mut out);
        out.into_iter().for_each(|frame| self.outbox.push(frame));
        for target in ended {
            let (id, reason) = (None, Some(REVOKED));
            let ended = RelayFrame::Unsubscribed { id, channel: target.named(), reason };
            // Behind what was read for it and waits.
            self.read.push(self.outbox.frame(&ended));
        }
        self.principal = principal;
        self.begin(reads);
    }

    fn begin(&mut self, reads: Vec<Read>) {
        self.work.extend(reads.into_iter().map(Work::Read));
    }

    /// Whether the frame comes no faster than it may.
    fn admit(&mut self, frame: &ClientFrame, now: Instant) -> Result<(), Refusal> {
        if matches!(frame, ClientFrame::Auth(_)) {
            return self.auths.admit(now).map_err(|wait| too_fast(wait, "one token"));
        }
        let pace = match frame {
            ClientFrame::Command(Command { cancels: Some(_), .. }) | ClientFrame::Answer(_) => {
                &mut self.decisions
            }
            ClientFrame::Command(_) | ClientFrame::Request(_) => &mut self.asks,
            _ => return Ok(()),
        };
        pace.admit(now).map_err(|wait| too_fast(wait, &COMMANDS_PER_SECOND.to_string()))
    }

    /// A request waits for its reply beside everything else.
    fn on_request(&mut self, id: Option<CorrelationId>, request: frame::Request) {
        // `parse` refuses a request without an id.
        if let Some(id) = id.clone().filter(|_| self.requests < REQUESTS_MAX) {
            self.requests += 1;
            return self.work.push(Work::Request(id, request));
        }
        let message = format!("{REQUESTS_MAX} requests of this connection wait for their replies");
        let refusal = Refusal::new(ErrorCode::LimitExceeded, message);
        self.refuse(id.as_deref(), &ClientFrame::Request(request), &refusal);
    }

    /// A client that sent a request waits for a `response`.
    fn refuse(&mut self, id: Option<&RawValue>, frame: &ClientFrame, refusal: &Refusal) {
        match frame {
            ClientFrame::Request(request) => {
                let (command_id, outcome) = (request.command_id, Outcome::Error(refusal.body()));
                self.outbox.say(&RelayFrame::Response { id, command_id, outcome });
            }
            _ => self.say_refusal(id, refusal),
        }
    }

    fn say_refusal(&mut self, id: Option<&RawValue>, refusal: &Refusal) {
        let (channel, error) = (refusal.channel.as_deref(), refusal.body());
        self.outbox.say(&RelayFrame::Error { id, channel, error });
    }
}

fn not_permitted(channel: &Channel) -> Refusal {
    let refusal = if *channel == Channel::global_events() {
        // Its route may have been taken for a session's.
        Refusal::not_found("`global:events` (a session called `events` is at `/ws/session:events`)")
    } else {
        Refusal::not_found(format_args!("`{channel}`"))
    };
    refusal.about(channel.as_str())
}

fn too_fast(wait: Duration, most: &str) -> Refusal {
    let message = format!("a connection may send {most} a second");
    let refusal = Refusal::new(ErrorCode::RateLimited, message);
    Refusal { retry_after: Some(wait), ..refusal }
}

#[cfg(test)]
mod tests;
