//! One browser's conversation, whatever the transport: its frames in → subscriptions and commands; what
//! they have to say → frames out.
//!
//! Whoever owns the transport reads and writes at the same time, so that a browser that does not read can
//! still cancel; so the state is behind one lock, never held while waiting.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use journal::Page;
use protocol::frame::{
    self, Addressing, ClientFrame, Command, CorrelationId, Incoming, Outcome, Refusal, RelayFrame,
    Subscribe, Target,
};
use protocol::limits::{COMMANDS_PER_SECOND, PING_INTERVAL, REQUESTS_MAX, SUBSCRIPTIONS_MAX};
use protocol::{Channel, ErrorCode, Format};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::AppState;
use super::pace::Pace;
use crate::auth::Principal;
use crate::commands::Accepted;
use crate::events::{Next, Pending, Question, Request, Status, Subscription, Wake};

/// Answers that may wait for a browser to read; then nothing more is read from it.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Frames that are handed out at a time, so that the transport can write them with few calls.
const BATCH_BYTES: usize = 64 * 1024;

/// One browser's conversation.
#[derive(Debug)]
pub(super) struct Connection {
    app: Arc<AppState>,
    number: u64,
    principal: Arc<Principal>,
    /// The route's default.
    format: Format,
    wake: Arc<Wake>,
    /// An answer was taken: there may be room for more.
    room: Notify,
    /// A request was asked.
    asked: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Subscriptions at their slots; each with a serial, so that a page for one that has gone is known.
    slots: Vec<Option<(u64, Subscription)>>,
    serials: u64,
    /// Slots that have something new and had no turn yet.
    ready: VecDeque<u32>,
    answers: VecDeque<Bytes>,
    answers_bytes: usize,
    /// Requests that were asked and not begun.
    asked: Vec<(CorrelationId, frame::Request)>,
    /// Requests that are not answered.
    requests: usize,
    /// Of commands and requests.
    asks: Pace,
    /// Of Cancels and answers: a page that goes wild is not without its Stop.
    decisions: Pace,
}

/// A page that a subscription waits for.
#[derive(Debug)]
pub(super) struct Reading {
    slot: u32,
    serial: u64,
    pub(super) request: Request,
}

/// What waits for an answer, which a subscription wants to know.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) slot: u32,
    serial: u64,
    pub(super) question: Question,
}

impl Connection {
    pub(super) fn open(app: Arc<AppState>, principal: Arc<Principal>, format: Format) -> Arc<Self> {
        let number = app.registry.next_number();
        let connection = Arc::new(Self {
            app,
            number,
            principal,
            format,
            wake: Arc::default(),
            room: Notify::new(),
            asked: Notify::new(),
            state: Mutex::default(),
        });
        connection.app.registry.enter(number, &connection);
        let everyone =
            Target { channel: Channel::global_everyone(), addressing: Addressing::Channel };
        connection.insert(everyone.channel.clone(), |membership| {
            Subscription::to_everyone(everyone, membership)
        });
        let id = format!("{}-{number}", connection.app.commands.address());
        let server_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        connection.say(&RelayFrame::Connected {
            connection_id: &id,
            user: connection.principal.user.as_deref(),
            server_time: server_time.as_millis() as u64,
            ping_interval_ms: PING_INTERVAL.as_millis() as u64,
        });
        let status = *connection.app.events.status().borrow();
        if status == Status::Degraded {
            connection.say_status(status);
        }
        connection
    }

    /// Waits until there is something to [`take`](Self::take).
    pub(super) async fn woken(&self) {
        self.wake.woken().await;
    }

    /// Has whoever waits in [`woken`](Self::woken) look again.
    pub(super) fn wake(&self) {
        self.wake.wake();
    }

    /// Waits while the browser leaves too many answers unread.
    pub(super) async fn room(&self) {
        while self.state().answers_bytes > ANSWERS_BYTES_MAX {
            self.room.notified().await;
        }
    }

    pub(super) fn say(&self, frame: &RelayFrame<'_>) {
        self.say_text(frame.to_text());
    }

    /// For what nobody here asked for: it must not pile up where nobody reads.
    pub(super) fn say_if_there_is_room(&self, text: String) {
        if self.state().answers_bytes <= ANSWERS_BYTES_MAX {
            self.say_text(text);
        }
    }

    fn say_text(&self, text: String) {
        let text = Bytes::from(text);
        let mut state = self.state();
        state.answers_bytes += text.len();
        state.answers.push_back(text);
        drop(state);
        self.wake.wake();
    }

    pub(super) fn say_status(&self, status: Status) {
        self.say(&RelayFrame::RelayStatus { redis: status.as_str() });
    }

    fn say_refusal(&self, id: Option<&RawValue>, refusal: &Refusal) {
        let (channel, error) = (refusal.channel.as_deref(), refusal.body());
        self.say(&RelayFrame::Error { id, channel, error });
    }

    /// Frames that wait, answers first, then each subscription that has something new in turn; and what is
    /// needed to go on.
    pub(super) fn take(
        &self,
        out: &mut Vec<Bytes>,
        readings: &mut VecDeque<Reading>,
        pending_reads: &mut Vec<PendingRead>,
    ) {
        let mut state = self.state();
        if !state.answers.is_empty() {
            out.extend(std::mem::take(&mut state.answers));
            state.answers_bytes = 0;
            self.room.notify_one();
        }
        let news = self.wake.take_ready();
        state.ready.extend(news);
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(slot) = state.ready.pop_front()
        {
            let Some(Some((serial, subscription))) = state.slots.get_mut(slot as usize) else {
                continue;
            };
            let before = out.len();
            match subscription.step(out) {
                Next::Wait => {}
                Next::Again => subscription.queue(),
                Next::Read(request) => {
                    // What an earlier subscription in this slot wanted, nobody wants any more.
                    readings.retain(|reading| reading.slot != slot);
                    readings.push_back(Reading { slot, serial: *serial, request });
                }
                Next::Ask(question) => {
                    pending_reads.push(PendingRead { slot, serial: *serial, question })
                }
            }
            bytes += out[before..].iter().map(Bytes::len).sum::<usize>();
        }
        if !state.ready.is_empty() {
            self.wake.wake();
        }
    }

    /// A page came.
    pub(super) fn on_page(
        &self,
        reading: &Reading,
        page: &Page,
        pending: Option<&Pending>,
        out: &mut Vec<Bytes>,
    ) {
        let mut state = self.state();
        if let Some(Some((serial, subscription))) = state.slots.get_mut(reading.slot as usize)
            && *serial == reading.serial
            && subscription.on_page(page, pending, out) == Next::Again
        {
            subscription.queue();
        }
    }

    /// What waits for an answer came.
    pub(super) fn on_pending(
        &self,
        pending_read: &PendingRead,
        pending: &Pending,
        out: &mut Vec<Bytes>,
    ) {
        let mut state = self.state();
        if let Some(Some((serial, subscription))) = state.slots.get_mut(pending_read.slot as usize)
            && *serial == pending_read.serial
            && subscription.on_pending(pending, out) == Next::Again
        {
            subscription.queue();
        }
    }

    /// A frame came. Commands are sent one after the other, in the order of their frames.
    pub(super) async fn on_text(&self, text: &str) {
        let Incoming { id, frame } = frame::parse(text);
        if let Ok(frame) = &frame
            && let Err(refusal) = self.admit(frame)
        {
            return self.refuse(id.as_deref(), frame, &refusal);
        }
        match frame {
            Err(refusal) => self.say_refusal(id.as_deref(), &refusal),
            Ok(ClientFrame::Ping) => self.say(&RelayFrame::Pong { id: id.as_deref() }),
            Ok(ClientFrame::Pong) => {}
            Ok(ClientFrame::Subscribe(subscribes)) => {
                for subscribe in subscribes {
                    let done =
                        subscribe.and_then(|subscribe| self.subscribe(subscribe, id.clone()));
                    if let Err(refusal) = done {
                        self.say_refusal(id.as_deref(), &refusal);
                    }
                }
            }
            Ok(ClientFrame::Unsubscribe(targets)) => {
                for target in targets {
                    let done = target.and_then(|target| self.unsubscribe(&target, id.as_deref()));
                    if let Err(refusal) = done {
                        self.say_refusal(id.as_deref(), &refusal);
                    }
                }
            }
            Ok(ClientFrame::Command(command)) => {
                let accepted = self.app.commands.send(&self.principal, command).await;
                self.say_accepted(id.as_deref(), accepted);
            }
            Ok(ClientFrame::Answer(answer)) => {
                let accepted = self.app.commands.answer(&self.principal, &answer).await;
                self.say_accepted(id.as_deref(), accepted);
            }
            Ok(ClientFrame::Request(request)) => self.on_request(id, request),
        }
    }

    /// Whether the frame comes no faster than it may.
    fn admit(&self, frame: &ClientFrame) -> Result<(), Refusal> {
        let mut state = self.state();
        let pace = match frame {
            ClientFrame::Command(Command { cancels: Some(_), .. }) | ClientFrame::Answer(_) => {
                &mut state.decisions
            }
            ClientFrame::Command(_) | ClientFrame::Request(_) => &mut state.asks,
            _ => return Ok(()),
        };
        pace.admit(Instant::now()).map_err(|wait| {
            let message = format!("a connection may send {COMMANDS_PER_SECOND} a second");
            let refusal = Refusal::new(ErrorCode::RateLimited, message);
            Refusal { retry_after: Some(wait), ..refusal }
        })
    }

    /// Whoever sent a request waits for a `response`.
    fn refuse(&self, id: Option<&RawValue>, frame: &ClientFrame, refusal: &Refusal) {
        match frame {
            ClientFrame::Request(request) => {
                let (command_id, outcome) = (request.command_id, Outcome::Error(refusal.body()));
                self.say(&RelayFrame::Response { id, command_id, outcome });
            }
            _ => self.say_refusal(id, refusal),
        }
    }

    fn say_accepted(&self, id: Option<&RawValue>, accepted: Result<Accepted, Refusal>) {
        match accepted {
            Ok(accepted) => self.say(&accepted.frame(id)),
            Err(refusal) => self.say_refusal(id, &refusal),
        }
    }

    /// A request waits for its reply beside everything else.
    fn on_request(&self, id: Option<CorrelationId>, request: frame::Request) {
        let mut state = self.state();
        // `parse` lets no request through that has no id.
        if let Some(id) = id.clone().filter(|_| state.requests < REQUESTS_MAX) {
            state.requests += 1;
            state.asked.push((id, request));
            drop(state);
            self.asked.notify_one();
            return;
        }
        drop(state);
        let message = format!("{REQUESTS_MAX} requests of this connection wait for their replies");
        let refusal = Refusal::new(ErrorCode::LimitExceeded, message);
        self.refuse(id.as_deref(), &ClientFrame::Request(request), &refusal);
    }

    /// Sees to the replies, as long as the connection lives: with it the waiting ends, and nothing else.
    pub(super) async fn see_to_requests(&self) -> Infallible {
        let mut under_way = FuturesUnordered::new();
        loop {
            let asked = std::mem::take(&mut self.state().asked);
            under_way.extend(asked.into_iter().map(|(id, request)| async move {
                let reply = self.app.commands.request(&self.principal, &request, |data| {
                    let command_id = request.command_id;
                    let frame = RelayFrame::RequestProgress { id: &id, command_id, data };
                    self.say_if_there_is_room(frame.to_text());
                });
                let reply = reply.await;
                self.say(&reply.frame(Some(&id)));
                self.state().requests -= 1;
            }));
            tokio::select! {
                () = self.asked.notified() => {}
                Some(()) = under_way.next() => {}
            }
        }
    }

    /// Subscribes, or changes a subscription that stands.
    pub(super) fn subscribe(
        &self,
        subscribe: Subscribe,
        id: Option<CorrelationId>,
    ) -> Result<(), Refusal> {
        let Subscribe { target, since, format } = subscribe;
        if !self.principal.grant.may_subscribe(&target.channel) {
            return Err(not_found(&target));
        }
        let format = format.unwrap_or(match target.addressing {
            Addressing::Channel => self.format,
            Addressing::SessionId | Addressing::PlanId => Format::Flat,
        });
        let mut state = self.state();
        let standing =
            state.slots.iter().position(|s| s.as_ref().is_some_and(|(_, s)| s.is_to(&target)));
        match standing {
            Some(slot) if since.is_none() => {
                let mut out = Vec::new();
                if let Some((_, subscription)) = &mut state.slots[slot] {
                    subscription.again(target, format, id, &mut out);
                }
                state.answers_bytes += out.iter().map(Bytes::len).sum::<usize>();
                state.answers.extend(out);
                drop(state);
                self.wake.wake();
                return Ok(());
            }
            Some(slot) => state.slots[slot] = None,
            None => {
                // One slot is `global:everyone`'s.
                if state.slots.iter().flatten().count() > SUBSCRIPTIONS_MAX {
                    let message =
                        format!("a connection holds at most {SUBSCRIPTIONS_MAX} subscriptions");
                    return Err(
                        Refusal::new(ErrorCode::LimitExceeded, message).about(named(&target))
                    );
                }
            }
        }
        drop(state);
        self.insert(target.channel.clone(), |membership| {
            Subscription::new(target, format, since, id, membership)
        });
        Ok(())
    }

    fn unsubscribe(&self, target: &Target, id: Option<&RawValue>) -> Result<(), Refusal> {
        let mut state = self.state();
        let slot =
            state.slots.iter_mut().find(|s| s.as_ref().is_some_and(|(_, s)| s.is_to(target)));
        let Some(slot) = slot else {
            let message = format!("there is no subscription to `{}`", target.channel);
            return Err(Refusal::new(ErrorCode::NotFound, message).about(named(target)));
        };
        *slot = None;
        drop(state);
        self.say(&RelayFrame::Unsubscribed { id, channel: target.named() });
        Ok(())
    }

    fn insert(
        &self,
        channel: Channel,
        make: impl FnOnce(crate::events::Membership) -> Subscription,
    ) {
        let mut state = self.state();
        let free = state.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            state.slots.push(None);
            state.slots.len() - 1
        });
        state.serials += 1;
        let membership = self.app.events.join(&channel, &self.wake, slot as u32);
        let subscription = make(membership);
        subscription.queue();
        let serial = state.serials;
        state.slots[slot] = Some((serial, subscription));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.app.registry.leave(self.number);
    }
}

/// Missing and not granted look the same.
fn not_found(target: &Target) -> Refusal {
    let message = format!("there is no `{}` for you", target.channel);
    Refusal::new(ErrorCode::NotFound, message).about(named(target))
}

/// The channel, for an `error` frame.
fn named(target: &Target) -> &str {
    target.channel.as_str()
}
