//! The record: append, read since, follow. The only code that speaks Redis.
//!
//! A channel has two journals, its events and its commands ([`Name`]). [`Journal`] is one type for
//! both backends of a journal: Redis ([`Journal::open`]) and this process' memory
//! ([`Journal::in_memory`]). Both keep the same promises, checked by one conformance suite:
//!
//! - **append** is atomic, ordered per caller, and idempotent under retries: an entry that was
//!   acknowledged is there once;
//! - **read** continues exactly after a position, or says why it cannot ([`Reason`]);
//! - **follow** is gap-free: what the live link loses is read from the journal before anything newer
//!   is handed out.
//!
//! ```
//! # use journal::{Journal, Name, NewEntry, Since, Update};
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let journal = Journal::in_memory();
//! let name = Name::events("session:42".parse().unwrap());
//! let (follower, mut updates) = journal.follow();
//! follower.follow(&name, None);
//! assert!(matches!(updates.next().await, Some(Update::Link { up: true })));
//! assert!(matches!(updates.next().await, Some(Update::Live { head: None, .. })));
//!
//! let hello = NewEntry::new("text_delta", r#"{"delta":"Hello"}"#);
//! let offset = journal.append(&name, vec![hello]).await.unwrap()[0].offset;
//!
//! let page = journal.read(&name, Since::Start, 100).await.unwrap();
//! assert_eq!(Some(page.entries[0].offset), offset);
//! let Some(Update::Entries { entries, .. }) = updates.next().await else { panic!() };
//! assert_eq!(entries, page.entries);
//! # });
//! ```

mod address;
mod append;
mod backoff;
mod counts;
mod follow;
mod growth;
mod link;
mod memory;
mod name;
mod read;
mod redis;
mod retention;
mod state;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

pub use address::without_secrets;
pub use append::{AppendError, Appended, NewEntry, Receipt};
pub use backoff::Backoff;
pub use follow::{Follower, Update, Updates};
pub use growth::{Growth, Kept, TooFast};
pub use name::{Name, Side};
use protocol::Channel;
pub use protocol::agent::body::{ListChange, NoteCall};
pub use protocol::frame::Since;
pub use protocol::{ApprovalAnswer, Asks, Parent, Resolved, Status, Take};
pub use read::{Page, Reason, Unavailable, Waiting};
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use redis::properties;
pub use redis::{NotReady, OpenError};
pub use retention::{Keep, Retention};
pub use state::Holder;
pub use state::alive::{Alive, AlivePage};
pub use state::approval::{AskError, Asked, NewApproval, Pending};
pub use state::command::{Command, CommandOutcome, NewCommand, SendError, Sent};
pub use state::family::AdoptError;
pub use state::lease::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, Lease, LeaseError};
pub use state::reaper::Reaper;
pub use state::tree::{AgentTree, TreeAgent, TreeParent};
pub use state::waiting::WaitingClass;
pub use state::walk::{Cancel, Cancelled, Walked};

pub use counts::{COUNTS_LIFETIME, ReplicaCounts};

use memory::Memory;
use redis::Redis;
use state::alive::Sample;
use state::renewal::Leases;
use state::{Change, Committed, Deadline, Index, Live, Members, Record, Snapshot};
use tasks::Tasks;

/// Every journal of one deployment. Cheap to clone; all clones share connections and order.
#[derive(Clone, Debug)]
pub struct Journal {
    backend: Backend,
    tasks: Tasks,
    /// The leases that are held through this journal's clones.
    leases: Arc<Leases>,
    /// How long a lease lasts that is not renewed.
    lease: Duration,
    /// The producer under whose name this clone appends; `None`: the process itself.
    producer: Option<Producer>,
    /// How fast senders may have more kept.
    growth: Arc<Growth>,
}

/// One incarnation of an agent, as the author of events.
#[derive(Clone, Debug)]
struct Producer {
    /// No other incarnation has this name.
    name: Arc<str>,
    incarnation: u64,
}

/// Where journals live. The two keep the same promises; what differs is who shares them and for how
/// long.
#[derive(Clone, Debug)]
enum Backend {
    Memory(Arc<Memory>),
    Redis(Arc<Redis>),
}

/// Asks the backend. Memory answers at once, Redis may fail.
macro_rules! ask {
    ($journal:ident.$question:ident($($argument:expr),*)) => {
        match &$journal.backend {
            Backend::Memory(memory) => Ok(memory.$question($($argument),*)),
            Backend::Redis(redis) => redis.$question($($argument),*).await,
        }
    };
}
pub(crate) use ask;

impl Journal {
    /// Journals in this process' memory: all clones share them, and they are gone when the process exits.
    pub fn in_memory() -> Self {
        Self::in_memory_keeping(Retention::default())
    }

    /// The same, keeping as much as `retention` says.
    pub fn in_memory_keeping(retention: Retention) -> Self {
        Self::at(Backend::Memory(Arc::new(Memory::new(retention))), Tasks::new())
    }

    /// Journals in the Redis at `url` (`redis://` or `rediss://`). Does not wait for it: connections are
    /// made when they are needed and remade for ever. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`] if `url` is not a Redis URL that we understand.
    pub fn open(url: &str) -> Result<Self, OpenError> {
        let tasks = Tasks::new();
        Ok(Self::at(Backend::Redis(Arc::new(Redis::open(url, &tasks)?)), tasks))
    }

    fn at(backend: Backend, tasks: Tasks) -> Self {
        Self {
            backend,
            tasks,
            leases: Arc::default(),
            lease: LEASE_DEFAULT,
            producer: None,
            growth: Arc::default(),
        }
    }

    /// Waits until a task of this journal has panicked that appends or renews for all its clones: from then on it does
    /// not keep its promises, and its process had better end. Answers with the task's name.
    pub async fn failed(&self) -> &'static str {
        self.tasks.failed().await
    }

    /// The same journal with leases that last for `lease` unless they are renewed, every third of that. All
    /// agents and relays of a deployment use the same length. Default: [`LEASE_DEFAULT`].
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { leases: Arc::default(), lease, ..self }
    }

    /// How long a lease lasts that is not renewed.
    pub fn lease_length(&self) -> Duration {
        self.lease
    }

    /// A clone that appends as the incarnation of an agent: once `holder` is lost, or a newer one has taken
    /// over a channel's lease, its appends there fail with [`AppendError::Fenced`].
    #[must_use]
    pub fn as_producer(&self, holder: &Holder) -> Self {
        let producer = Producer { name: holder.producer().into(), incarnation: holder.incarnation };
        Self { producer: Some(producer), ..self.clone() }
    }

    /// How fast each sender may have more kept, through all clones. Commands are counted where they are sent; for the
    /// rest, ask.
    pub fn growth(&self) -> &Growth {
        &self.growth
    }

    /// Whether the journals live in this process only.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.backend, Backend::Memory(_))
    }

    /// Tries out what a relay needs: that the journals can be reached and written, and that the user of Redis may do all
    /// that a relay does.
    ///
    /// # Errors
    /// [`NotReady`] says what does not work, and whether waiting may help.
    pub async fn ready(&self) -> Result<(), NotReady> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Redis(redis) => redis.ready().await,
        }
    }

    /// The policy by which Redis deletes journals when it reaches its `maxmemory`; `None` where that is
    /// `noeviction`, as it must be.
    ///
    /// # Errors
    /// [`Unavailable`] where Redis does not say.
    pub async fn eviction(&self) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(_) => Ok(None),
            Backend::Redis(redis) => redis.eviction().await,
        }
    }

    /// The fields of the retention settings in Redis that cannot be read: the defaults hold instead.
    ///
    /// # Errors
    /// [`Unavailable`] where Redis does not say.
    pub async fn malformed_retention(&self) -> Result<Vec<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(_) => Ok(Vec::new()),
            Backend::Redis(redis) => redis.malformed_retention().await,
        }
    }

    /// Writes what every appender shall keep from now on. In memory it is given at the start.
    ///
    /// # Errors
    /// [`Unavailable`] where Redis does not answer.
    pub async fn keep(&self, retention: &Retention) -> Result<(), Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => memory.keep(retention.clone()),
            Backend::Redis(redis) => redis.keep(retention).await?,
        }
        Ok(())
    }

    /// Takes the entries' place in the journal's order at once, waiting only for room in the bounded
    /// buffer (16 MiB per `Journal`): what this caller enqueues later stands later. The [`Receipt`]
    /// resolves when they are in the journal; dropping it changes nothing.
    ///
    /// While Redis is away or refuses them the entries wait and are retried, each at most once in the journal,
    /// for ten minutes. A caller that cannot wait so long takes them back ([`Receipt::until`]).
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] where the buffer could never hold the entries.
    pub async fn enqueue(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
    ) -> Result<Receipt, AppendError> {
        match &self.backend {
            Backend::Memory(memory) => {
                Ok(Receipt::done(memory.append(name, entries, self.producer_name())))
            }
            Backend::Redis(redis) => redis.enqueue(name, entries, self.producer_name()).await,
        }
    }

    /// [`enqueue`](Self::enqueue) that never waits.
    ///
    /// # Errors
    /// [`AppendError::Full`] where the buffer has no room now.
    pub fn try_enqueue(&self, name: &Name, entries: Vec<NewEntry>) -> Result<Receipt, AppendError> {
        match &self.backend {
            Backend::Memory(memory) => {
                Ok(Receipt::done(memory.append(name, entries, self.producer_name())))
            }
            Backend::Redis(redis) => redis.try_enqueue(name, entries, self.producer_name()),
        }
    }

    /// [`enqueue`](Self::enqueue) of an entry that its author has numbered, for an agent behind a relay. Only
    /// a clone made by [`as_producer`](Self::as_producer) can do it, and it numbers all it appends.
    ///
    /// The ids of one incarnation and journal ascend in the author's order. No matter which clone or process appends
    /// an id, also several at once, it is in the journal once: an id that is not above the newest one there counts
    /// as a repetition and is acknowledged, without `offset` if that is not known any more. So an author that
    /// comes back repeats, in order, everything that was not acknowledged; an id that was refused is not used
    /// again.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue).
    pub async fn enqueue_numbered(
        &self,
        name: &Name,
        id: u64,
        entry: NewEntry,
    ) -> Result<Receipt, AppendError> {
        let Some(producer) = &self.producer else {
            return Err(AppendError::Refused("only an agent's events are numbered".to_owned()));
        };
        match &self.backend {
            Backend::Memory(memory) => {
                Ok(Receipt::done(memory.append_numbered(name, id, entry, &producer.name)))
            }
            Backend::Redis(redis) => redis.enqueue_numbered(name, id, entry, producer).await,
        }
    }

    /// Appends `entries` in order and waits until they are in the journal.
    ///
    /// # Errors
    /// See [`AppendError`]. After [`AppendError::Unavailable`] the outcome is unknown.
    pub async fn append(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
    ) -> Result<Vec<Appended>, AppendError> {
        self.enqueue(name, entries).await?.await
    }

    /// What follows `since`, at most `entries_max` entries and about 1 MiB.
    ///
    /// # Errors
    /// [`Unavailable`] where Redis does not answer.
    pub async fn read(
        &self,
        name: &Name,
        since: Since,
        entries_max: usize,
    ) -> Result<Page, Unavailable> {
        ask!(self.read(name, since, entries_max))
    }

    /// The newest command of `channel`, and what waits to be taken up to there, oldest first. An agent
    /// that begins to serve the channel reads this, and follows from that head.
    ///
    /// # Errors
    /// [`Unavailable`] where Redis does not answer.
    pub async fn waiting(&self, channel: &Channel) -> Result<Waiting, Unavailable> {
        ask!(self.waiting(channel))
    }

    /// The newest position of each journal in `names`; `None` if the journal does not exist.
    pub(crate) async fn heads(
        &self,
        names: &[Name],
    ) -> Result<Vec<Option<protocol::Offset>>, Unavailable> {
        ask!(self.heads(names))
    }

    /// Follows journals over a live link of its own, which ends with the [`Updates`].
    pub fn follow(&self) -> (Follower, Updates) {
        Updates::start(self.clone())
    }

    /// Notifies the follower at this [`address`](Follower::address) with `text`: false if nobody listens there.
    /// The notification may get lost all the same.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn notify(&self, address: &str, text: &str) -> Result<bool, Unavailable> {
        ask!(self.notify(address, text))
    }

    fn producer_name(&self) -> Option<&Arc<str>> {
        self.producer.as_ref().map(|producer| &producer.name)
    }

    fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    async fn snapshot(&self, record: &Record) -> Result<Snapshot, Unavailable> {
        ask!(self.snapshot(record))
    }

    /// Which agents' leases on the channel last.
    async fn live(&self, channel: &Channel) -> Result<Live, Unavailable> {
        ask!(self.live(channel))
    }

    /// `expected`: the record's state as it was read.
    async fn commit(
        &self,
        record: &Record,
        expected: Option<&str>,
        change: &Change,
    ) -> Result<Committed, Unavailable> {
        ask!(self.commit(record, expected, change))
    }

    async fn list(&self, channel: &Channel, index: &Index) -> Result<Members, Unavailable> {
        ask!(self.list(channel, index))
    }

    async fn due(&self, most: usize) -> Result<Vec<(Deadline, Record)>, Unavailable> {
        ask!(self.due(most))
    }

    async fn forget_deadline(
        &self,
        record: &Record,
        deadline: Deadline,
    ) -> Result<(), Unavailable> {
        ask!(self.forget_deadline(record, deadline))
    }

    async fn renew(
        &self,
        leases: &[(Record, Box<str>)],
        lasts: Duration,
    ) -> Result<Vec<usize>, Unavailable> {
        ask!(self.renew(leases, lasts))
    }

    async fn leased(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Box<str>>, Unavailable> {
        ask!(self.leased(after, limit))
    }

    async fn states(&self, records: &[Record]) -> Result<Vec<Option<String>>, Unavailable> {
        ask!(self.states(records))
    }

    async fn some_of(
        &self,
        channel: &Channel,
        index: &Index,
        most: usize,
    ) -> Result<Sample, Unavailable> {
        ask!(self.some_of(channel, index, most))
    }

    async fn samples(&self, indexes: &[(Channel, Index)]) -> Result<Vec<Sample>, Unavailable> {
        ask!(self.samples(indexes))
    }

    async fn place_approval(
        &self,
        request_id: &str,
        channel: &Channel,
        lifetime: Duration,
    ) -> Result<(), Unavailable> {
        ask!(self.place_approval(request_id, channel, lifetime))
    }

    async fn approval_places(&self, request_id: &str) -> Result<Vec<Channel>, Unavailable> {
        ask!(self.approval_places(request_id))
    }

    /// The newest event of the channel, the journal's clock, Unix milliseconds, and the questions that wait, by
    /// their ids.
    async fn approvals(
        &self,
        channel: &Channel,
    ) -> Result<(Option<protocol::Offset>, u64, Members), Unavailable> {
        ask!(self.approvals(channel))
    }

    fn link(&self) -> link::Link {
        match &self.backend {
            Backend::Memory(memory) => link::Link::Memory(memory.link()),
            Backend::Redis(redis) => link::Link::Redis(Box::new(redis.link())),
        }
    }
}
