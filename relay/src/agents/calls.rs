//! The calls of one agent's connection: checked, bounded, and done in order per channel.
//!
//! [`route`](super::route) → **calls** → [`session`](super::session), [`offers`](super::offers)
//!
//! Channels do not wait for each other, but for one thing: while the lease of the agent's own channel is being
//! taken, everything else waits for it. On a channel, publishes are pipelined, and so are calls about different
//! commands; any other call waits for those before it. What a call may do is asked of the grant when it comes, and
//! again when it is begun.

mod renewal;

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use protocol::agent::body::{FinishCall, ProgressCall, TakeCall, WithdrawCall};
use protocol::limits::{
    AGENT_CALLS_BYTES_MAX, AGENT_CALLS_MAX, AGENT_CHANNELS_MAX, AUTHS_BURST, UNREADABLE_MAX,
};
use protocol::{
    AgentCall, AgentError, AgentFrame, AgentMessage, CallBody, CallError, Channel, ErrorCode, Kind,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::offers::Offer;
use super::outbox::Outbox;
use super::permission;
use super::session::AgentSession;
use crate::auth::{Key, Principal};
use crate::conversation::Pace;
use crate::memory::Reserved;

/// Calls about different commands of one channel that are done at a time.
const COMMANDS_AT_ONCE: usize = 16;

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    /// What tokens are signed with.
    key: Option<Key>,
    /// Of tokens.
    auths: Pace,
    offer: Offer,
    shared: Arc<CallsState>,
    /// Channels that the agent serves.
    served: HashMap<Channel, Served>,
    workers: JoinSet<()>,
    /// Frames in a row in which not even an id could be read.
    unreadable: usize,
}

/// Why a channel counts as served.
#[derive(Debug, Default)]
struct Served {
    is_leased: bool,
    is_followed: bool,
}

#[derive(Debug)]
struct CallsState {
    /// Who the agent is by its token, which can be renewed.
    principal: watch::Sender<Arc<Principal>>,
    session: AgentSession,
    outbox: Outbox,
    queues: Mutex<Queues>,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Calls wait for room: the connection is not read.
    is_full: AtomicBool,
    /// How many leases of the agent's own channel are being taken.
    own_leases: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Queues {
    /// A channel is here as long as a worker does its calls.
    channels: HashMap<Channel, Queue>,
    /// Calls without a reply, each with a digest of its content.
    under_way: HashMap<u64, u64>,
    /// Channels whose lease was refused: the agent does not serve them.
    refused_leases: Vec<Channel>,
    /// The id of the last publish of each channel.
    published: HashMap<Channel, u64>,
}

/// What an id stands for.
enum Admitted {
    New,
    Repetition,
    Conflict(String),
}

impl Queues {
    /// `publish`: on which channel, where the call is one. Its id is its number in the channel's order: one that is
    /// not higher than those before it would be taken for an event that is there already.
    fn admit(&mut self, id: u64, digest: u64, publish: Option<&Channel>) -> Admitted {
        match self.under_way.get(&id) {
            Some(before) if *before == digest => return Admitted::Repetition,
            Some(_) => {
                return Admitted::Conflict(format!("another call with the id {id} is under way"));
            }
            None => {}
        }
        if let Some(channel) = publish {
            if self.published.len() >= AGENT_CHANNELS_MAX && !self.published.contains_key(channel) {
                self.published.clear();
            }
            let last = self.published.entry(channel.clone()).or_default();
            if id <= *last {
                return Admitted::Conflict(format!(
                    "a publish needs a higher id than the last one of its channel, {last}"
                ));
            }
            *last = id;
        }
        self.under_way.insert(id, digest);
        Admitted::New
    }
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<QueuedWork>,
    more: Arc<Notify>,
}

#[derive(Debug)]
enum QueuedWork {
    Call(AgentCall, Room),
    /// The grant does not reach to the channel any more: its lease ends behind what was begun before.
    Revoke,
}

/// Calls of a channel that are begun and not answered.
#[derive(Default)]
struct Begun<'a> {
    published: FuturesOrdered<BoxFuture<'a, (AgentMessage, Room)>>,
    /// `take`, `progress` and `finish`: those of one command wait for each other.
    on_commands: FuturesUnordered<BoxFuture<'a, (Uuid, AgentMessage, Room)>>,
    keys: HashSet<Uuid>,
}

impl Begun<'_> {
    fn is_empty(&self) -> bool {
        self.published.is_empty() && self.on_commands.is_empty()
    }

    /// Whether something that is begun must be over before this begins.
    fn must_end_before(&self, body: &CallBody) -> bool {
        match command_key(body) {
            _ if matches!(body, CallBody::Publish(..)) => !self.on_commands.is_empty(),
            Some(key) => {
                let is_full = self.on_commands.len() >= COMMANDS_AT_ONCE;
                !self.published.is_empty() || is_full || self.keys.contains(&key)
            }
            None => !self.is_empty(),
        }
    }

    /// The next that is over. Cancel-safe.
    async fn next(&mut self) -> Option<(AgentMessage, Room)> {
        tokio::select! {
            Some(done) = self.published.next() => Some(done),
            Some((key, message, room)) = self.on_commands.next() => {
                self.keys.remove(&key);
                Some((message, room))
            }
            else => None,
        }
    }
}

/// The command that the call is about.
fn command_key(body: &CallBody) -> Option<Uuid> {
    match body {
        CallBody::Take(TakeCall { key, .. })
        | CallBody::Progress(ProgressCall { key, .. })
        | CallBody::Finish(FinishCall { key, .. }) => Some(*key),
        _ => None,
    }
}

/// What a call takes of the bounds until it is answered.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit, Reserved);

impl Calls {
    pub(super) fn new(
        (key, principal): (Option<Key>, Arc<Principal>),
        offer: Offer,
        session: AgentSession,
        outbox: Outbox,
    ) -> Self {
        let shared = Arc::new(CallsState {
            principal: watch::Sender::new(principal),
            session,
            outbox,
            queues: Mutex::default(),
            count: Arc::new(Semaphore::new(AGENT_CALLS_MAX)),
            bytes: Arc::new(Semaphore::new(AGENT_CALLS_BYTES_MAX)),
            is_full: AtomicBool::new(false),
            own_leases: watch::Sender::new(0),
        });
        let auths = Pace::new(1, AUTHS_BURST);
        let (served, workers) = (HashMap::new(), JoinSet::new());
        Self { key, auths, offer, shared, served, workers, unreadable: 0 }
    }

    /// Who the agent is, as its tokens are renewed.
    pub(super) fn principal(&self) -> watch::Receiver<Arc<Principal>> {
        self.shared.principal.subscribe()
    }

    /// Says whether the connection is not read because too many calls are under way.
    pub(super) fn fullness(&self) -> impl Fn() -> bool + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.is_full.load(Ordering::SeqCst)
    }

    /// Takes a frame in. Waits for room, and for the agent to read its errors; never for a call.
    ///
    /// False where a worker has panicked: the connection is of no use any more.
    pub(super) async fn on_text(&mut self, text: &str) -> bool {
        while let Some(ended) = self.workers.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a worker of an agent's connection panicked");
                return false;
            }
        }
        let frame = AgentFrame::parse(text);
        let is_readable = !matches!(&frame, Err(CallError { id: None, .. }));
        self.unreadable = if is_readable { 0 } else { self.unreadable + 1 };
        let refused = match frame {
            Ok(AgentFrame::Call(call)) => self.on_call(call, text).await,
            Ok(AgentFrame::Auth { id, token }) => self.on_auth(id, &token).await,
            Err(error) => Err(error.to_message()),
        };
        if let Err(message) = refused {
            self.shared.outbox.say(&message).await;
        }
        true
    }

    /// Whether too many frames in a row could not be read.
    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable >= UNREADABLE_MAX
    }

    async fn on_call(&mut self, call: AgentCall, text: &str) -> Result<(), AgentMessage> {
        let (id, channel) = (call.id, call.channel.clone());
        let refused_leases = std::mem::take(&mut self.shared.queues().refused_leases);
        for refused in refused_leases {
            self.leave(&refused, |served| served.is_leased = false);
        }
        let refuse = |code, message: String| AgentMessage::Error {
            id: Some(id),
            error: AgentError::new(code, message),
        };
        if let Some(refused) = self.shared.refused(&call) {
            return Err(refused);
        }
        if matches!(call.body, CallBody::Lease(_) | CallBody::Follow(_))
            && self.served.len() >= AGENT_CHANNELS_MAX
            && !self.served.contains_key(&channel)
        {
            let message = format!("an agent serves at most {AGENT_CHANNELS_MAX} channels");
            return Err(refuse(ErrorCode::LimitExceeded, message));
        }
        match &call.body {
            CallBody::Follow(since) => {
                self.served.entry(channel.clone()).or_default().is_followed = true;
                self.offer.follow(&channel, *since);
                return Ok(());
            }
            CallBody::Unfollow => {
                self.leave(&channel, |served| served.is_followed = false);
                self.offer.unfollow(&channel);
                return Ok(());
            }
            CallBody::Withdraw(WithdrawCall { call }) => {
                let data = self.shared.withdraw(&channel, *call);
                let data = serde_json::value::to_raw_value(&data).ok();
                self.shared.outbox.say(&AgentMessage::Ack { id, offset: None, data }).await;
                return Ok(());
            }
            CallBody::Lease(_) => {
                self.served.entry(channel.clone()).or_default().is_leased = true;
            }
            CallBody::Release => self.leave(&channel, |served| served.is_leased = false),
            _ => {}
        }
        let digest = digest(text);
        let is_publish = matches!(call.body, CallBody::Publish(..));
        match self.shared.queues().admit(id, digest, is_publish.then_some(&channel)) {
            Admitted::New => {}
            // The reply to the first is the reply to both.
            Admitted::Repetition => return Ok(()),
            Admitted::Conflict(message) => return Err(refuse(ErrorCode::Conflict, message)),
        }
        let room = self.shared.room(text.len()).await;
        if self.shared.is_own_lease(&call) {
            self.shared.own_leases.send_modify(|leases| *leases += 1);
        }
        self.enqueue(channel, QueuedWork::Call(call, room));
        Ok(())
    }

    fn enqueue(&mut self, channel: Channel, queued: QueuedWork) {
        if self.shared.enqueue(&channel, queued) {
            let shared = Arc::clone(&self.shared);
            self.workers.spawn(async move { shared.work(&channel).await });
        }
    }

    fn leave(&mut self, channel: &Channel, how: impl FnOnce(&mut Served)) {
        if let Some(served) = self.served.get_mut(channel) {
            how(served);
            if !served.is_leased && !served.is_followed {
                self.served.remove(channel);
            }
        }
    }
}

impl CallsState {
    /// Room for a call of so many bytes. Until there is room the connection is not read, and its silence does
    /// not count.
    async fn room(&self, bytes: usize) -> Room {
        let cost = bytes.min(AGENT_CALLS_BYTES_MAX) as u32;
        let reserved = self.outbox.memory().reserve(bytes);
        let (count, bytes) = (Arc::clone(&self.count), Arc::clone(&self.bytes));
        let waiting = async move {
            let count = count.acquire_owned().await.expect("it is never closed");
            (count, bytes.acquire_many_owned(cost).await.expect("it is never closed"), reserved)
        };
        let mut waiting = std::pin::pin!(waiting);
        if let Some(room) = waiting.as_mut().now_or_never() {
            return room;
        }
        self.is_full.store(true, Ordering::SeqCst);
        let room = waiting.await;
        self.is_full.store(false, Ordering::SeqCst);
        room
    }

    /// Why the grant does not permit the call, as it is now.
    fn refused(&self, call: &AgentCall) -> Option<AgentMessage> {
        let address = permission::refused(&self.principal.borrow().grant, call)?;
        let message = format!("`{address}` not found or not permitted");
        let error = AgentError::new(ErrorCode::NotFound, message);
        Some(AgentMessage::Error { id: Some(call.id), error })
    }

    /// True where the channel needs a worker.
    fn enqueue(&self, channel: &Channel, queued: QueuedWork) -> bool {
        let mut queues = self.queues();
        match queues.channels.entry(channel.clone()) {
            Entry::Occupied(mut queue) => {
                queue.get_mut().work.push_back(queued);
                queue.get().more.notify_one();
                false
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Queue::default()).work.push_back(queued);
                true
            }
        }
    }

    /// Does what is queued for a channel in its order, until there is nothing.
    async fn work(&self, channel: &Channel) {
        let more = self.queues().channels.get(channel).map(|queue| Arc::clone(&queue.more));
        let Some(more) = more else { return };
        let mut begun = Begun::default();
        loop {
            let next = {
                let mut queues = self.queues();
                let queue = queues.channels.get_mut(channel);
                let next = queue.and_then(|queue| queue.work.pop_front());
                if next.is_none() && begun.is_empty() {
                    queues.channels.remove(channel);
                    return;
                }
                next
            };
            let Some(queued) = next else {
                tokio::select! {
                    Some((message, room)) = begun.next() => self.answer(message, room).await,
                    () = more.notified() => {}
                }
                continue;
            };
            if *channel.id() != *self.session.agent() || channel.kind() != Kind::Agent {
                // What it may do elsewhere depends on who it is.
                drop(self.own_leases.subscribe().wait_for(|leases| *leases == 0).await);
            }
            let QueuedWork::Call(call, room) = queued else {
                while let Some((message, room)) = begun.next().await {
                    self.answer(message, room).await;
                }
                self.release_revoked(channel).await;
                continue;
            };
            while begun.must_end_before(&call.body) {
                let Some((message, room)) = begun.next().await else { break };
                self.answer(message, room).await;
            }
            let refused = self.refused(&call);
            match command_key(&call.body) {
                _ if matches!(call.body, CallBody::Publish(..)) && refused.is_none() => {
                    let publishing = self.session.publish(call).await;
                    begun.published.push_back(publishing.map(|message| (message, room)).boxed());
                }
                Some(key) if refused.is_none() => {
                    let doing = self.session.perform(call, &self.outbox);
                    begun.on_commands.push(doing.map(move |done| (key, done, room)).boxed());
                    begun.keys.insert(key);
                }
                _ => {
                    let is_own_lease = self.is_own_lease(&call);
                    let is_lease = matches!(call.body, CallBody::Lease(_));
                    let message = match refused {
                        Some(refused) => refused,
                        None => self.session.perform(call, &self.outbox).await,
                    };
                    // A repetition that is refused leaves the lease that is held.
                    let is_refused = matches!(message, AgentMessage::Error { .. });
                    if is_lease && is_refused && !self.session.holds(channel) {
                        self.queues().refused_leases.push(channel.clone());
                    }
                    self.answer(message, room).await;
                    // After its reply: whatever waited for it is answered later.
                    if is_own_lease {
                        self.own_leases.send_modify(|leases| *leases -= 1);
                    }
                }
            }
            while let Some(Some((message, room))) = begun.next().now_or_never() {
                self.answer(message, room).await;
            }
        }
    }

    async fn answer(&self, message: AgentMessage, room: Room) {
        if let AgentMessage::Ack { id, .. } | AgentMessage::Error { id: Some(id), .. } = &message {
            self.queues().under_way.remove(id);
        }
        drop(room);
        self.outbox.say(&message).await;
    }

    /// Takes a call back that is not begun; whether it was.
    fn withdraw(&self, channel: &Channel, id: u64) -> serde_json::Value {
        let mut queues = self.queues();
        let queue = queues.channels.get_mut(channel);
        let at = queue.as_ref().and_then(|queue| {
            queue.work.iter().position(|queued| {
                matches!(queued, QueuedWork::Call(call, _)
                    if call.id == id && !matches!(call.body, CallBody::Lease(_)))
            })
        });
        if let (Some(queue), Some(at)) = (queue, at) {
            queue.work.remove(at);
            queues.under_way.remove(&id);
        }
        serde_json::json!({"withdrawn": at.is_some()})
    }

    fn is_own_lease(&self, call: &AgentCall) -> bool {
        let is_own = *call.channel.id() == *self.session.agent();
        is_own && call.channel.kind() == Kind::Agent && matches!(call.body, CallBody::Lease(_))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().expect("no code panics with this lock held")
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
