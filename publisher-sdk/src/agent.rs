//! The agent: the handle that owns both ways, down and up.
//!
//! [`AgentOptions`] → **agent** → [`Publisher`] ▼, [`Commands`] ▲, [`Run`]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use journal::{Journal, Unavailable};
use protocol::{Channel, Kind};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::commands::inbox::{Inbox, Membership};
use crate::commands::listener;
use crate::events::buffer::Buffer;
use crate::events::writer;
use crate::lifecycle::{self, Stage};
use crate::options::CONNECT_TIMEOUT;
use crate::run::Runs;
use crate::{
    AgentOptions, Commands, ConnectError, FlushError, OpenError, PublishError, Publisher, Run,
};

/// How long [`Agent::close`] waits: as long as an orchestrator usually leaves a process for its
/// end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent. Cheap to clone; all clones are the same agent.
///
/// It lives as long as a clone, a [`Publisher`] or a [`Run`] of it does. When the last one is
/// dropped, what still waits to be written is written, as long as the runtime lives;
/// [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// `agent:{id}`
    pub(crate) channel: Channel,
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) runs: Arc<Runs>,
    ended: CancellationToken,
    /// Keeps the agent listening on its own channel.
    own: OnceLock<Membership>,
}

impl Agent {
    /// Connects to the Redis at `url`, with a new UUID as id and every default.
    ///
    /// # Errors
    /// As [`AgentOptions::connect`].
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::options().connect(url).await
    }

    /// How an agent shall be: an id of its own, another batch window, another buffer.
    pub fn options() -> AgentOptions {
        AgentOptions::default()
    }

    /// Returns when the agent listens.
    pub(crate) async fn start(
        channel: Channel,
        journal: Journal,
        window: Duration,
        buffer_bytes: usize,
        deadline: Instant,
    ) -> Result<Self, Option<Unavailable>> {
        let (follower, updates) = journal.follow();
        let buffer = Arc::new(Buffer::new(window, buffer_bytes));
        let runs = Arc::<Runs>::default();
        let inbox = Inbox::new(journal.clone(), follower, Arc::clone(&runs), Arc::clone(&buffer));
        let inbox = Arc::new(inbox);
        let ended = CancellationToken::new();
        tokio::spawn(writer::write(Arc::clone(&buffer), journal));
        tokio::spawn(listener::listen(updates, Arc::clone(&inbox), ended.clone()));
        // From here on, whoever drops this ends both tasks.
        let inner = Arc::new(Inner { channel, buffer, inbox, runs, ended, own: OnceLock::new() });
        let own = inner.inbox.join(&inner.channel, deadline).await?;
        inner.own.get_or_init(|| own);
        Ok(Self { inner })
    }

    /// The id under which commands reach the agent.
    pub fn id(&self) -> &str {
        self.inner.channel.id()
    }

    /// Opens the session `id`: publishes on `session:{id}`, and takes the commands sent there for
    /// as long as the handle or a clone of it lives. Returns when it listens.
    ///
    /// # Errors
    /// [`OpenError`]; [`NotListening`](OpenError::NotListening) when Redis is away for 10 seconds.
    pub async fn session(&self, id: &str) -> Result<Publisher, OpenError> {
        let channel = Channel::session(id)?;
        if self.inner.buffer.is_closed() {
            return Err(OpenError::Closed);
        }
        match self.inner.inbox.join(&channel, Instant::now() + CONNECT_TIMEOUT).await {
            Ok(membership) => {
                Ok(Publisher::new(Arc::clone(&self.inner), channel, Some(Arc::new(membership))))
            }
            Err(source) => Err(OpenError::NotListening { channel, source }),
        }
    }

    /// Publishes on any channel, `plan:7` for example, and takes no commands there.
    ///
    /// # Errors
    /// [`OpenError`] where `address` is none, or carries commands only.
    pub fn channel(&self, address: &str) -> Result<Publisher, OpenError> {
        let channel: Channel = address.parse()?;
        if channel.kind() == Kind::Service {
            return Err(OpenError::CommandsOnly(channel));
        }
        Ok(Publisher::new(Arc::clone(&self.inner), channel, None))
    }

    /// Publishes on the agent's own channel, `agent:{id}`.
    pub fn own_channel(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.inner), self.inner.channel.clone(), None)
    }

    /// The commands sent to the agent and to its open sessions.
    pub fn commands(&self) -> Commands {
        Commands::new(Arc::clone(&self.inner.inbox.queue))
    }

    /// Begins a run: until it ends, a `cancel_agent` for this agent cancels it. Says nothing yet,
    /// see
    /// [`Run::announce`].
    pub fn begin_run(&self, id: impl Into<String>) -> Run {
        Run::begin(&self.inner, &self.inner.channel, id.into())
    }

    /// Says `agent_spawned {agent_id, …fields}` on the agent's own channel, then on
    /// `global:events`. `fields` is an object, or `&()`. Agents that work in runs say it with
    /// [`Run::announce`] instead.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn spawned(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.inner.say(Stage::Spawned, lifecycle::fields(fields)?).await
    }

    /// Says `agent_completed {agent_id, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn completed(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.inner.say(Stage::Completed, lifecycle::fields(fields)?).await
    }

    /// Says `agent_failed {agent_id, error, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn failed(&self, error: &str, fields: &impl Serialize) -> Result<(), PublishError> {
        let mut fields = lifecycle::fields(fields)?;
        fields.insert("error".to_owned(), error.into());
        self.inner.say(Stage::Failed, fields).await
    }

    /// Says `agent_cancelled {agent_id, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn cancelled(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.inner.say(Stage::Cancelled, lifecycle::fields(fields)?).await
    }

    /// Waits until everything said so far, on every channel, is in the journal. While Redis is away
    /// that lasts, ten minutes at most.
    ///
    /// # Errors
    /// [`FlushError::Failed`] counts the events that were sent without waiting since the last flush
    /// and were lost.
    pub async fn flush(&self) -> Result<(), FlushError> {
        self.inner.buffer.flush().await
    }

    /// How many events that nobody waited for have been lost since the agent began. Each loss is
    /// logged, and the next [`flush`](Self::flush) reports it.
    pub fn lost_count(&self) -> u64 {
        self.inner.buffer.failed()
    }

    /// Ends the agent: it takes no commands and no events any more, and what it has said is written
    /// out. Waits at most 10 seconds.
    ///
    /// # Errors
    /// As [`flush`](Self::flush), and [`FlushError::Unfinished`] where Redis is away; the writing
    /// goes on as long as the runtime lives.
    pub async fn close(self) -> Result<(), FlushError> {
        self.inner.end();
        match timeout(CLOSE_TIMEOUT, self.inner.buffer.flush()).await {
            Ok(flushed) => flushed,
            Err(_) => Err(FlushError::Unfinished { count: self.inner.buffer.unsettled() }),
        }
    }
}

impl Inner {
    fn end(&self) {
        // First the inbox: it tells those whose commands nobody has taken.
        self.inbox.end();
        self.ended.cancel();
        self.buffer.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}
