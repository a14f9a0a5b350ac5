//! The agent: the handle that owns both directions, down and up.
//!
//! [`AgentOptions`] → **agent** → [`Publisher`] ▼, [`Commands`] ▲, [`Run`]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use journal::{NoteCall, Parent};
use protocol::{Channel, Kind};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::closing::Closing;
use crate::commands::consumer::Outlet;
use crate::commands::inbox::{Inbox, JoinError, Membership};
use crate::commands::listener;
use crate::ends::{Ends, Teller};
use crate::events::buffer::Buffer;
use crate::events::writer;
use crate::leases::Leases;
use crate::lifecycle::{self, LifecyclePhase, LifecyclePublisher};
use crate::link::{LeaseHandle, LinkError, RecordLink, persist_until};
use crate::options::CONNECT_TIMEOUT;
use crate::reason::within_bounds;
use crate::runs::{Current, Runs};
use crate::watch::{Patience, Watch};
use crate::{
    AgentOptions, Commands, ConnectError, FlushError, OpenError, PublishError, Publisher, Reason,
    Run,
};

/// How long [`Agent::close`] waits: as long as an orchestrator usually leaves a process for its
/// end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long runs may take to end by themselves when the process is asked to end.
const GRACE: Duration = Duration::from_secs(3);

/// An agent. Cheap to clone; all clones are the same agent.
///
/// It holds a *lease*, its proof of life, on its own channel and on each session it has open. A
/// process that dies or stands still for 15 seconds is declared lost: every viewer receives
/// `agent_lost`, and the agent, should it go on, is [fenced](Self::fenced). A second agent of the
/// same id takes over at once, and the first one is fenced.
///
/// A connected agent's link and leases live on a thread of their own: a task that blocks the program's executor does
/// not kill it. After 30 seconds its sessions are [told](AgentOptions::unresponsive_after), and after 10 minutes it is
/// [lost](AgentOptions::lost_after).
///
/// It lives as long as a clone, a [`Publisher`] or a [`Run`] of it does. When the last one is
/// dropped, what still waits to be written is written and the leases are released, as long as the
/// process lives; [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) lifecycle: LifecyclePublisher,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) ends: Arc<Ends>,
    parent: Option<Parent>,
    is_closing: AtomicBool,
    /// Everything is ended.
    closed: CancellationToken,
    /// Where its link lives.
    runtime: Handle,
    /// Keeps the agent listening on its own channel.
    own: OnceLock<Membership>,
}

/// What an agent is started with.
pub(crate) struct Start {
    pub(crate) channel: Channel,
    pub(crate) link: RecordLink,
    pub(crate) window: Duration,
    pub(crate) buffer_bytes: usize,
    pub(crate) parent: Option<Parent>,
    /// The parent's run, where that is of this process.
    pub(crate) parent_run: Option<Current>,
    /// The program's executor, where that is not the one on which the agent is started.
    pub(crate) watched: Option<(Handle, Patience)>,
    pub(crate) deadline: Instant,
}

impl Agent {
    /// Connects to the Redis at `url`, with a new UUID as id and every default.
    ///
    /// # Errors
    /// As [`AgentOptions::connect`].
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::options().connect(url).await
    }

    /// The options of an agent: its id, its batch window, its buffer and more.
    pub fn options() -> AgentOptions {
        AgentOptions::default()
    }

    /// Returns when the agent is known to be alive, and listens.
    pub(crate) async fn start(start: Start) -> Result<Self, Option<LinkError>> {
        let Start { channel, link, window, buffer_bytes, parent, parent_run, watched, deadline } =
            start;
        let lease = first_lease(&link, &channel, parent.as_ref(), deadline).await.map_err(Some)?;
        let fenced = CancellationToken::new();
        let buffer = Arc::new(Buffer::new(window, buffer_bytes, fenced.clone()));
        let events = link.as_producer(&lease.holder);
        let leases = Leases::new(link.clone(), lease, fenced.clone());
        let (follower, updates) = link.follow();
        let runs = Arc::new(Runs::new(parent_run));
        let teller = Teller {
            buffer: Arc::clone(&buffer),
            events: events.clone(),
            leases: Arc::clone(&leases),
            runs: Arc::clone(&runs),
        };
        let inbox = Arc::new(Inbox::new(link, follower, leases, Arc::clone(&runs)));
        if let Some((program, patience)) = watched {
            let (leases, stopped) = (Arc::clone(&inbox.leases), inbox.stopped.clone());
            let watch = Watch { program, patience, leases, buffer: Arc::clone(&buffer), stopped };
            tokio::spawn(watch.run());
        }
        tokio::spawn(writer::write(Arc::clone(&buffer), events));
        tokio::spawn(listener::listen(updates, Arc::clone(&inbox)));
        tokio::spawn(mind_the_fence(Arc::clone(&inbox), Arc::clone(&runs)));
        tokio::spawn(mind_what_is_revoked(Arc::clone(&inbox), Arc::clone(&runs)));
        // From here on, dropping this ends everything.
        let inner = Arc::new(Inner {
            lifecycle: LifecyclePublisher {
                channel: channel.clone(),
                buffer,
                runtime: Handle::current(),
            },
            inbox,
            runs,
            ends: Arc::new(Ends::new(teller)),
            parent,
            is_closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
            runtime: Handle::current(),
            own: OnceLock::new(),
        });
        let outlet = Outlet::Queue(Arc::clone(&inner.inbox.queue));
        let own =
            inner.inbox.join(&channel, outlet, deadline).await.map_err(|error| match error {
                JoinError::Late(source) => source.map(LinkError::Unavailable),
                JoinError::Refused(why) => Some(LinkError::Refused(why)),
                JoinError::Unauthorized(why) => Some(LinkError::Unauthorized(why)),
                _ => None,
            })?;
        inner.own.get_or_init(|| own);
        Ok(Self { inner })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The id under which commands reach the agent.
    pub fn id(&self) -> &str {
        self.inner.lifecycle.channel.id()
    }

    /// Opens the session `id`: publishes on `session:{id}`, and takes the commands sent there for
    /// as long as the handle or a clone of it lives; also those that were sent while no agent was
    /// there, and have not expired. Returns when the agent is known to be there, and listens.
    ///
    /// # Errors
    /// [`OpenError`]; [`NotListening`](OpenError::NotListening) when Redis is away for 10 seconds.
    pub async fn session(&self, id: &str) -> Result<Publisher, OpenError> {
        let channel = Channel::session(id)?;
        let outlet = Outlet::Queue(Arc::clone(&self.inner.inbox.queue));
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let membership = self.inner.open(&channel, outlet, deadline).await?;
        Ok(Publisher::new(Arc::clone(&self.inner), channel, Some(Arc::new(membership))))
    }

    /// Publishes on any channel, `plan:7` for example, and takes no commands there.
    ///
    /// # Errors
    /// [`OpenError`] if `address` is not a channel's address, or carries commands only.
    pub fn channel(&self, address: &str) -> Result<Publisher, OpenError> {
        let channel: Channel = address.parse()?;
        if channel.kind() == Kind::Service {
            return Err(OpenError::CommandsOnly(channel));
        }
        Ok(Publisher::new(Arc::clone(&self.inner), channel, None))
    }

    /// Publishes on the agent's own channel, `agent:{id}`.
    pub fn own_channel(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.inner), self.inner.lifecycle.channel.clone(), None)
    }

    /// The commands sent to the agent and to its open sessions.
    pub fn commands(&self) -> Commands {
        Commands::new(Arc::clone(&self.inner.inbox.queue))
    }

    /// Begins a run: until it ends, a `cancel_agent` for this agent cancels it; one that named it
    /// up to ten minutes before has done so. Says nothing yet, see [`Run::announce`].
    pub fn begin_run(&self, id: impl Into<String>) -> Run {
        Run::begin(self.own_channel(), id.into(), None)
    }

    /// Whether the agent was declared lost, or a newer one of its id has taken over. That is the end
    /// of this `Agent`: its runs are cancelled with [`Reason::Lost`], what it publishes is refused
    /// with [`PublishError::Fenced`], and no command reaches it. Connect again to go on, as a new
    /// incarnation.
    pub fn is_fenced(&self) -> bool {
        self.inner.inbox.leases.fenced().is_cancelled()
    }

    /// Waits until the agent is [fenced](Self::is_fenced). Cancel-safe.
    pub async fn fenced(&self) {
        self.inner.inbox.leases.fenced().cancelled().await;
    }

    /// Says `agent_spawned {agent_id, …fields}` on the agent's own channel, then on
    /// `global:events`. `fields` is an object, or `&()`. Agents that work in runs say it with
    /// [`Run::announce`] instead.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn spawned(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.inner.lifecycle.say(LifecyclePhase::Spawned, lifecycle::fields(fields)?).await
    }

    /// Says `agent_completed {agent_id, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn completed(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.inner.lifecycle.say(LifecyclePhase::Completed, lifecycle::fields(fields)?).await
    }

    /// Says `agent_failed {agent_id, error, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn failed(&self, error: &str, fields: &impl Serialize) -> Result<(), PublishError> {
        let mut fields = lifecycle::fields(fields)?;
        fields.insert("error".to_owned(), within_bounds(error).into());
        self.inner.lifecycle.say(LifecyclePhase::Failed, fields).await
    }

    /// Says `agent_cancelled {agent_id, reason, …fields}`, as [`spawned`](Self::spawned) does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn cancelled(
        &self,
        reason: Reason,
        fields: &impl Serialize,
    ) -> Result<(), PublishError> {
        let mut fields = lifecycle::fields(fields)?;
        fields.extend(crate::Cancellation::from(reason).fields());
        self.inner.lifecycle.say(LifecyclePhase::Cancelled, fields).await
    }

    /// Waits until everything said so far, on every channel, is in the journal. While Redis is away
    /// that lasts, ten minutes at most.
    ///
    /// # Errors
    /// [`FlushError::Failed`] counts the events that were sent without waiting since the last flush
    /// and were lost.
    pub async fn flush(&self) -> Result<(), FlushError> {
        self.inner.flush().await
    }

    /// How many events that nobody waited for have been lost since the agent began. Each loss is
    /// logged, and the next [`flush`](Self::flush) reports it.
    pub fn lost_count(&self) -> u64 {
        self.inner.lifecycle.buffer.failed()
    }

    /// Ends the agent. It takes no commands and no events any more; announced runs that are still
    /// open say `agent_cancelled` with the reason `shutdown`; what was said and reported is written
    /// out, handlers under way end, and the leases are released: the agent is gone, and not lost.
    /// Waits at most 10 seconds.
    ///
    /// # Errors
    /// As [`flush`](Self::flush), and [`FlushError::Unfinished`] where Redis is away; the writing
    /// goes on as long as the runtime lives.
    pub async fn close(self) -> Result<(), FlushError> {
        self.inner.close().await
    }

    /// From now on, when the process is asked to end (SIGTERM, SIGINT), every run is cancelled with
    /// the reason `shutdown`, has 3 seconds to end by itself, and the agent is
    /// [closed](Self::close). The handle gives the outcome; then it is time to exit. It does not
    /// keep the agent alive. It also resolves, with `Ok`, when the agent ends in another way: to restart
    /// an agent after a loss, look at [`is_fenced`](Self::is_fenced).
    ///
    /// # Errors
    /// If the system does not let the process listen for signals.
    pub fn shutdown_on_signal(&self) -> std::io::Result<JoinHandle<Result<(), FlushError>>> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let agent = Arc::downgrade(&self.inner);
        let stopped = self.inner.inbox.stopped.clone();
        Ok(tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = stopped.cancelled() => return Ok(()),
            }
            let Some(agent) = agent.upgrade() else { return Ok(()) };
            tracing::info!(agent_id = agent.lifecycle.channel.id(), "asked to end");
            agent.runs.cancel_all(Reason::Shutdown);
            // Runs that have not ended then are ended.
            let _ended = timeout(GRACE, agent.runs.all_ended()).await;
            agent.close().await
        }))
    }
}

impl Inner {
    /// Joins a channel, with the errors of opening it.
    pub(crate) async fn open(
        &self,
        channel: &Channel,
        outlet: Outlet,
        deadline: Instant,
    ) -> Result<Membership, OpenError> {
        self.inbox.join(channel, outlet, deadline).await.map_err(|error| {
            let channel = channel.clone();
            match error {
                JoinError::Late(source) => OpenError::NotListening { channel, source },
                JoinError::Refused(why) => OpenError::Refused(why),
                JoinError::Unauthorized(why) => OpenError::Unauthorized(why),
                JoinError::Taken => OpenError::AlreadyServed(channel),
                JoinError::Fenced => OpenError::Fenced,
                JoinError::Closed => OpenError::Closed,
            }
        })
    }

    /// Waits until all that was said, and all ends of runs that are due, are in the journal.
    pub(crate) async fn flush(&self) -> Result<(), FlushError> {
        let (flushed, ()) = tokio::join!(self.lifecycle.buffer.flush(), self.ends.told());
        flushed
    }

    /// Notes that the run has begun: on the own channel, and on the one it was begun on.
    pub(crate) async fn note_begun(&self, run: &Current) -> Result<(), LinkError> {
        let (leases, begun_on) = (Arc::clone(&self.inbox.leases), run.channel.clone());
        let note = NoteCall::begun([(&*run.id).into()]);
        // Runs to its end also if the caller has stopped waiting: the run's end comes after it.
        let noting = self.runtime.spawn(async move {
            leases.note(leases.own(), &note).await?;
            if begun_on != *leases.own() {
                leases.note(&begun_on, &note).await?;
            }
            Ok(())
        });
        noting.await.unwrap_or_else(|_| Err(LinkError::unavailable("the runtime ends")))
    }

    async fn close(&self) -> Result<(), FlushError> {
        let closed = self.closed.clone();
        let closing = match self.begin_closing() {
            Some(closing) => self.runtime.spawn(async move {
                let _ends_with_this = closed.drop_guard();
                closing.close().await
            }),
            // Another call closes it already: wait for that one.
            None => {
                let buffer = Arc::clone(&self.lifecycle.buffer);
                self.runtime.spawn(async move {
                    closed.cancelled().await;
                    buffer.flush().await
                })
            }
        };
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(closed) => closed.unwrap_or(Err(FlushError::Stopped)),
            Err(_) => Err(FlushError::Unfinished { count: self.lifecycle.buffer.unsettled() }),
        }
    }

    /// `None` where it has begun.
    fn begin_closing(&self) -> Option<Closing> {
        let is_first = !self.is_closing.swap(true, Ordering::SeqCst);
        is_first.then(|| Closing {
            lifecycle: self.lifecycle.clone(),
            inbox: Arc::clone(&self.inbox),
            runs: Arc::clone(&self.runs),
            ends: Arc::clone(&self.ends),
            parent: self.parent.clone(),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(closing) = self.begin_closing() {
            closing.begin();
            self.runtime.spawn(closing.close());
        }
    }
}

/// Takes the lease that makes the agent known, and declares whose child it is.
async fn first_lease(
    link: &RecordLink,
    channel: &Channel,
    parent: Option<&Parent>,
    deadline: Instant,
) -> Result<LeaseHandle, LinkError> {
    let lease = async || {
        let lease = link.lease(channel, channel.id(), None, parent).await?;
        if let Some(parent) = parent
            && let Err(error) = link.adopt(parent, &lease.holder).await
        {
            drop(lease.release().await);
            return Err(error);
        }
        Ok(lease)
    };
    let leased = persist_until(deadline, async || match lease().await {
        // A newer one has come in between: this one is newer still.
        Err(LinkError::Fenced) => Err(LinkError::unavailable("another agent of this id comes in")),
        leased => leased,
    });
    leased.await
}

/// Ends everything of the agent when it is fenced.
async fn mind_the_fence(inbox: Arc<Inbox>, runs: Arc<Runs>) {
    let fenced = inbox.leases.fenced().clone();
    if inbox.stopped.run_until_cancelled(fenced.cancelled()).await.is_some() {
        tracing::warn!(
            agent_id = %inbox.leases.holder().agent,
            "fenced: a newer agent of this id has taken over, or this one was declared lost"
        );
        runs.cancel_all(Reason::Lost);
        inbox.stop();
    }
}

/// Ends the runs on channels to which the agent's token does not reach any more: the relay has told that they are over.
async fn mind_what_is_revoked(inbox: Arc<Inbox>, runs: Arc<Runs>) {
    let minding = async {
        loop {
            let channel = inbox.leases.next_revoked().await;
            tracing::warn!(%channel, "the agent's token does not reach to this channel any more");
            runs.cancel(&channel, None, &Reason::Revoked.into());
            inbox.leases.forget(&channel).await;
        }
    };
    inbox.stopped.run_until_cancelled(Box::pin(minding)).await;
}
