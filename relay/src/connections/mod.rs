//! One viewer's [`Conversation`] together with the work that it asks for: reads, commands, requests, time.
//!
//! A transport polls it, hands it the viewer's frames, and writes what it [takes](Connection::take). All that a
//! connection waits for is in here, so dropping it ends the waiting, and nothing else.

mod registry;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use protocol::CloseCode;
use protocol::frame::RelayFrame;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::auth::{Key, Principal};
use crate::commands::Commands;
use crate::conversation::{Activity, Conversation, Done, Opening, Read, Work};
use crate::events::{Events, Status, WriteNow};
use crate::websocket::TextFrame;
pub(crate) use registry::ConnectionRegistry;
use registry::Mailbox;

/// While Redis is away a read is tried again this much later.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// What connections share.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub(crate) events: Arc<Events>,
    pub(crate) commands: Commands,
    pub(crate) registry: ConnectionRegistry,
    /// What tokens are signed with: one can be renewed.
    pub(crate) key: Option<Key>,
    pub(crate) leaving: CancellationToken,
    /// Over how long the connections of a leaving replica are sent elsewhere.
    pub(crate) drain_over: Duration,
}

/// One viewer of this replica.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<ConnectionState>,
    number: u64,
    conversation: Conversation,
    mailbox: Arc<Mailbox>,
    status: watch::Receiver<Status>,
    /// At most one page, and what is pending on each channel.
    reads: UnderWay<Abortable<BoxFuture<'static, Done>>>,
    by_slot: HashMap<u32, AbortHandle>,
    /// At most one: they are carried out one after the other.
    commands: UnderWay<BoxFuture<'static, Done>>,
    requests: UnderWay<BoxFuture<'static, Done>>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn open(
        shared: Arc<ConnectionState>,
        principal: Arc<Principal>,
        opening: Opening,
    ) -> Self {
        let (number, mailbox) = shared.registry.enter();
        let id = format!("{}-{number}", shared.commands.address());
        let now = Instant::now();
        let (events, wake) = (Arc::clone(&shared.events), Arc::clone(&mailbox.wake));
        let conversation =
            Conversation::open(events, wake, (shared.key.clone(), principal), &id, opening, now);
        let timer = Box::pin(tokio::time::sleep_until(conversation.deadline()));
        let status = shared.events.status();
        let mut connection = Self {
            shared,
            number,
            conversation,
            mailbox,
            status,
            reads: UnderWay::default(),
            by_slot: HashMap::new(),
            commands: UnderWay::default(),
            requests: UnderWay::default(),
            timer,
        };
        connection.on_news(false);
        connection
    }

    /// Its id, as its viewer knows it.
    pub(crate) fn id(&self) -> &str {
        self.conversation.id()
    }

    /// Goes on with all that does not depend on the transport; ready where something has changed, after which the
    /// transport looks again whether it can write and read.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        activity: impl Fn() -> Activity,
        is_blocked: bool,
    ) -> Poll<()> {
        let mut is_changed = false;
        if self.mailbox.wake.poll_woken(cx).is_ready() {
            is_changed = true;
            if self.mailbox.take_news() {
                self.on_news(is_blocked);
            }
            self.take_messages();
        }
        self.begin_work();
        if let Poll::Ready(Some(done)) = self.commands.poll_next(cx) {
            self.on_done(done);
            is_changed = true;
        }
        // What was read becomes frames: not before those that wait are gone. The read itself is not held up.
        while !is_blocked && let Poll::Ready(Some(done)) = self.reads.poll_next(cx) {
            if let Ok(done) = done {
                self.on_done(done);
                is_changed = true;
                break;
            }
        }
        while self.conversation.has_room()
            && let Poll::Ready(Some(done)) = self.requests.poll_next(cx)
        {
            self.on_done(done);
            is_changed = true;
        }
        let deadline = self.conversation.deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            self.conversation.on_time(Instant::now(), &activity());
            is_changed = true;
        }
        if is_changed { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A frame came.
    pub(crate) fn on_text(&mut self, text: &str, is_blocked: bool) {
        self.conversation.on_text(text, Instant::now(), is_blocked);
    }

    /// Whether the viewer's next frame is wanted now.
    pub(crate) fn wants_input(&self) -> bool {
        self.conversation.wants_input()
    }

    /// The code it ends with, once it has ended.
    pub(crate) fn end(&self) -> Option<CloseCode> {
        self.conversation.end()
    }

    /// Frames to write; none where nothing waits.
    pub(crate) fn take(&mut self, out: &mut Vec<TextFrame>) {
        self.conversation.take(out);
        self.begin_work();
    }

    /// What is new for one subscription, where nothing else is to be said first: see [`Conversation::take_live`].
    pub(crate) fn take_live(&mut self, slot: u32, out: &mut Vec<TextFrame>) -> bool {
        self.conversation.take_live(slot, out)
    }

    /// Who has events for it writes them itself, where it can.
    pub(crate) fn set_writer(&self, writer: Weak<dyn WriteNow>) {
        self.mailbox.wake.set_writer(writer);
    }

    /// Whether the transport shall send a sign of life of its own kind.
    pub(crate) fn take_ping(&mut self) -> bool {
        self.conversation.take_ping()
    }

    fn on_done(&mut self, done: Done) {
        // What was said before the end is written before it.
        self.take_messages();
        self.conversation.on_done(done);
    }

    fn take_messages(&mut self) {
        let messages = self.mailbox.take();
        messages.into_iter().for_each(|message| self.conversation.on_message(message));
    }

    fn on_news(&mut self, is_blocked: bool) {
        let status = *self.status.borrow_and_update();
        self.conversation.on_status(status);
        if self.shared.leaving.is_cancelled() {
            // Spread, so that not all come back to the other replicas at once. One that does not read is not told and
            // not waited for.
            let spread = if is_blocked { 0.0 } else { rand::rng().random() };
            let after = self.shared.drain_over.mul_f64(spread);
            self.conversation.on_leaving(Instant::now(), after);
        }
    }

    fn begin_work(&mut self) {
        for work in self.conversation.take_work() {
            match work {
                Work::Read(Read::Forget(slot)) => {
                    if let Some(read) = self.by_slot.remove(&slot) {
                        read.abort();
                    }
                }
                Work::Read(Read::Page(ticket, request)) => {
                    let events = Arc::clone(&self.shared.events);
                    let read = again(move || {
                        let (events, request) = (Arc::clone(&events), request.clone());
                        async move {
                            let (page, pending) = events.read(&request).await?;
                            Ok(Done::Page(ticket, page, pending))
                        }
                    });
                    self.begin_read(ticket.slot, read.boxed());
                }
                Work::Read(Read::Pending(ticket, question)) => {
                    let events = Arc::clone(&self.shared.events);
                    let read = again(move || {
                        let (events, question) = (Arc::clone(&events), question.clone());
                        async move { Ok(Done::Pending(ticket, events.ask(&question).await?)) }
                    });
                    self.begin_read(ticket.slot, read.boxed());
                }
                Work::Command(id, command) => {
                    let (commands, by) = self.who();
                    let done = async move { Done::Accepted(id, commands.send(&by, command).await) };
                    self.commands.push(done.boxed());
                }
                Work::Answer(id, answer) => {
                    let (commands, by) = self.who();
                    let done =
                        async move { Done::Accepted(id, commands.answer(&by, &answer).await) };
                    self.commands.push(done.boxed());
                }
                Work::Request(id, request) => {
                    let ((commands, by), mailbox) = (self.who(), Arc::clone(&self.mailbox));
                    let done = async move {
                        let reply = commands.request(&by, &request, |data| {
                            let command_id = request.command_id;
                            let frame = RelayFrame::RequestProgress { id: &id, command_id, data };
                            mailbox.post(frame.to_text());
                        });
                        let reply = reply.await;
                        Done::Replied(id, reply)
                    };
                    self.requests.push(done.boxed());
                }
            }
        }
    }

    /// What is wanted anew for a slot takes the place of what was wanted before.
    fn begin_read(&mut self, slot: u32, read: BoxFuture<'static, Done>) {
        let (handle, registration) = AbortHandle::new_pair();
        if let Some(before) = self.by_slot.insert(slot, handle) {
            before.abort();
        }
        self.reads.push(Abortable::new(read, registration));
    }

    fn who(&self) -> (Commands, Arc<Principal>) {
        (self.shared.commands.clone(), Arc::clone(self.conversation.principal()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.registry.leave(self.number);
    }
}

/// What is under way. Mostly nothing is: then it takes no memory, and is not polled.
struct UnderWay<T>(Option<FuturesUnordered<T>>);

impl<T> fmt::Debug for UnderWay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} under way", self.0.as_ref().map_or(0, FuturesUnordered::len))
    }
}

impl<T> Default for UnderWay<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Future> UnderWay<T> {
    fn push(&mut self, one: T) {
        self.0.get_or_insert_default().push(one);
    }

    /// What is done; `None` where nothing is under way.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T::Output>> {
        let Some(futures) = &mut self.0 else { return Poll::Ready(None) };
        let done = ready!(futures.poll_next_unpin(cx));
        if futures.is_empty() {
            self.0 = None;
        }
        Poll::Ready(done)
    }
}

/// While Redis is away the viewer stays, and this tries again.
async fn again<T>(read: impl Fn() -> T) -> Done
where
    T: Future<Output = Result<Done, crate::events::ReadError>>,
{
    loop {
        match read().await {
            Ok(done) => return done,
            Err(error) => tracing::debug!(%error, "a read has failed and is tried again"),
        }
        tokio::time::sleep(READ_AGAIN).await;
    }
}
