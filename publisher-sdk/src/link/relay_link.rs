//! One agent's way through a relay: calls over its WebSocket, each with its reply.
//!
//! [`RecordLink`](super::RecordLink) → **relay** → [`relay_state`](super::relay_state), which
//! [`relay_client`](super::relay_client) carries to the relay and back

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use journal::{AppendError, Appended, NewEntry, Update};
use protocol::agent::body::{LeaseCall, Leased};
use protocol::limits::{AGENT_CALLS_BYTES_MAX, AGENT_FRAME_BYTES_MAX};
use protocol::{CallBody, Channel, check_data};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lease::LeaseEnd;
use super::relay_calls::{CallKind, CallReply, cost};
use super::relay_client::{self, RelayClient};
use super::relay_state::{RelayState, read};
use super::{AppendReceipt, LinkError};
use crate::ConnectError;
use crate::tokens::TokenSource;

/// What may wait to be published, in bytes: 16 MiB, as in a journal.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// The same for all other calls: what may be under way, and as much again.
const CALL_BYTES: usize = 2 * AGENT_CALLS_BYTES_MAX;
/// How long a call waits for its reply: longer than a relay waits for its Redis, and shorter than
/// [`CONNECT_TIMEOUT`](crate::options::CONNECT_TIMEOUT), so that an agent that cannot connect is told why.
/// Publishing waits as long as it takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// How many updates may wait for the agent.
const UPDATES: usize = 256;

/// One agent's way through a relay. Dropped, it ends the connection.
#[derive(Debug)]
pub(crate) struct RelayLink {
    shared: Arc<RelayShared>,
    publish_room: Arc<Semaphore>,
    call_room: Arc<Semaphore>,
    /// Until the agent follows.
    updates: Mutex<Option<mpsc::Receiver<Update>>>,
    _connection: DropGuard,
}

/// What the agent and the task that has the connection share.
#[derive(Debug)]
pub(crate) struct RelayShared {
    state: Mutex<RelayState>,
    /// Notified when the state has changed: the task looks at it.
    pub(super) changed: Notify,
    /// Notified when the token that was shown ends soon.
    pub(super) token_ends: Notify,
    /// The agent has ended.
    pub(super) unwanted: CancellationToken,
}

impl RelayShared {
    /// Changes the state, and lets the task look at it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut RelayState) -> T) -> T {
        let changed = change(&mut self.state());
        self.changed.notify_one();
        changed
    }

    pub(super) fn state(&self) -> MutexGuard<'_, RelayState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl RelayLink {
    pub(super) fn open(
        url: &str,
        agent: &str,
        tokens: Option<TokenSource>,
    ) -> Result<Self, ConnectError> {
        let request = relay_client::request(url, agent)?;
        let shared = Arc::new(RelayShared {
            state: Mutex::new(RelayState::new(Channel::agent(agent)?)),
            changed: Notify::new(),
            token_ends: Notify::new(),
            unwanted: CancellationToken::new(),
        });
        let connection = shared.unwanted.clone().drop_guard();
        let (told, updates) = mpsc::channel(UPDATES);
        let client = RelayClient { request, tokens, shared: Arc::clone(&shared), updates: told };
        tokio::spawn(client.run());
        Ok(Self {
            shared,
            publish_room: Arc::new(Semaphore::new(BUFFER_BYTES)),
            call_room: Arc::new(Semaphore::new(CALL_BYTES)),
            updates: Mutex::new(Some(updates)),
            _connection: connection,
        })
    }

    /// Makes a call, and waits for its reply. A caller that stops waiting takes the call back.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        channel: &Channel,
        body: CallBody,
    ) -> Result<A, LinkError> {
        read(&self.reply(channel, body, CallKind::Other).await?)
    }

    /// Takes a lease, and keeps it over every reconnect.
    pub(super) async fn lease(
        &self,
        channel: &Channel,
        call: LeaseCall,
    ) -> Result<(u64, LeaseEnd), LinkError> {
        let end = LeaseEnd::default();
        let reply = self.reply(channel, CallBody::Lease(call), CallKind::Lease(end.clone()));
        let Leased { incarnation } = read(&reply.await?)?;
        Ok((incarnation, end))
    }

    async fn reply(
        &self,
        channel: &Channel,
        body: CallBody,
        kind: CallKind,
    ) -> Result<CallReply, LinkError> {
        let replied = async {
            // As much as the largest takes; what is left of it goes back as soon as the size is known.
            let room = take_room(&self.call_room, cost(AGENT_FRAME_BYTES_MAX)).await;
            let lease = matches!(kind, CallKind::Lease(_)).then_some(channel);
            let placed = self.shared.change(|state| state.call(channel, body, kind, room));
            let (id, replied) = placed?;
            let mut call = MadeCall { shared: &self.shared, id, lease, replied };
            (&mut call.replied).await.unwrap_or_else(|_| Err(self.shared.state().no_reply()))
        };
        let replied = timeout(CALL_TIMEOUT, replied).await;
        replied.unwrap_or_else(|_| Err(self.shared.state().no_reply()))
    }

    /// Publishes all entries or, where that is an error, none.
    pub(super) async fn enqueue(
        &self,
        channel: &Channel,
        entries: Vec<NewEntry>,
    ) -> Result<AppendReceipt, AppendError> {
        for entry in &entries {
            check_data(&entry.data).map_err(|error| AppendError::Refused(error.to_string()))?;
        }
        let bytes = entries.iter().map(publish_cost).sum();
        if bytes > BUFFER_BYTES {
            return Err(AppendError::TooLarge { bytes, limit: BUFFER_BYTES });
        }
        let mut room = take_room(&self.publish_room, bytes).await;
        let replies = self.shared.change(|state| {
            let publish = |entry: NewEntry| {
                let room = room.split(publish_cost(&entry)).expect("it is a part of the sum");
                let body = CallBody::Publish(entry.name, entry.data);
                Ok(state.call(channel, body, CallKind::Publish, room)?.1)
            };
            entries.into_iter().map(publish).collect::<Result<Vec<_>, LinkError>>()
        })?;
        let appended = async move {
            let mut appended = Vec::with_capacity(replies.len());
            for replied in replies {
                // Absent where it is a repetition of something that stands somewhere before.
                let CallReply { offset, .. } =
                    replied.await.map_err(|_| AppendError::Unavailable)??;
                appended.push(Appended { offset, listeners: 0 });
            }
            Ok(appended)
        };
        Ok(appended.boxed())
    }

    /// The lease is not kept any more.
    pub(super) fn forget(&self, channel: &Channel) {
        self.shared.change(|state| state.forget(channel));
    }

    /// Ends the connection. What is under way is not waited for.
    pub(super) fn abandon(&self) {
        self.shared.unwanted.cancel();
    }

    /// How long the relay's leases are.
    pub(super) fn lease_length(&self) -> Duration {
        self.shared.state().lease()
    }

    /// An agent follows once.
    pub(super) fn follow(&self) -> (Arc<RelayShared>, mpsc::Receiver<Update>) {
        let updates = self.updates.lock().expect("no code panics with this lock held").take();
        (Arc::clone(&self.shared), updates.unwrap_or_else(|| mpsc::channel(1).1))
    }
}

/// A call whose reply is awaited.
struct MadeCall<'a> {
    shared: &'a RelayShared,
    id: u64,
    /// Of which channel it takes the lease.
    lease: Option<&'a Channel>,
    replied: oneshot::Receiver<Result<CallReply, LinkError>>,
}

impl Drop for MadeCall<'_> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            self.replied.close();
            state.give_up(self.id);
            // The lease was given, and the caller did not see it.
            if let (Some(channel), Ok(Ok(_))) = (self.lease, self.replied.try_recv()) {
                state.give_back(channel);
            }
        });
    }
}

/// What publishing the entry takes of the buffer.
fn publish_cost(entry: &NewEntry) -> usize {
    cost(entry.name.len() + entry.data.len())
}

async fn take_room(room: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let room = Arc::clone(room).acquire_many_owned(bytes as u32);
    room.await.expect("it is never closed")
}
