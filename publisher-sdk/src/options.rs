//! Every option of an agent, its default and its reason.

use std::error::Error;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use journal::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, Parent, without_secrets};
use protocol::Channel;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::agent::Start;
use crate::link::{Link, LinkError};
use crate::runs::Current;
use crate::tokens::TokenSource;
use crate::watch::Patience;
use crate::{Agent, ConnectError, Run};

/// How long [`Agent::session`] waits for Redis, and one attempt of [`AgentOptions::connect`].
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time an agent that is not connected yet says that it waits; and between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Beyond a quarter of a second text appears in visible jumps.
pub(crate) const BATCH_WINDOW_MAX: Duration = Duration::from_millis(250);
/// A few of the largest events, so that one is never refused by an empty buffer.
pub(crate) const BUFFER_BYTES_MIN: usize = 256 * 1024;
/// More than this belongs in a store, not in an agent's memory.
pub(crate) const BUFFER_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// The options of an agent. Made by [`Agent::options`].
#[derive(Clone, Debug)]
pub struct AgentOptions {
    id: Option<String>,
    batch_window: Duration,
    buffer_bytes: usize,
    lease: Duration,
    connect_timeout: Option<Duration>,
    patience: Patience,
    parent: Option<Parent>,
    /// The parent's run, where that is of this process.
    parent_run: Option<Current>,
    tokens: Option<TokenSource>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            id: None,
            batch_window: Duration::from_millis(50),
            buffer_bytes: 8 * 1024 * 1024,
            lease: LEASE_DEFAULT,
            connect_timeout: None,
            patience: Patience::default(),
            parent: None,
            parent_run: None,
            tokens: None,
        }
    }
}

impl AgentOptions {
    /// The id under which commands reach the agent, on `agent:{id}`. Default: a new UUID.
    ///
    /// Of two agents with one id, the newer takes over and the older is
    /// [fenced](Agent::fenced): give each process its own.
    pub fn id(self, id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..self }
    }

    /// How long text deltas are collected, 0 to 250 ms. Default: 50 ms, which saves two thirds of
    /// Redis' work at 60 tokens a second and is not seen by a reader. The first delta of a turn
    /// never waits.
    pub fn batch_window(self, window: Duration) -> Self {
        Self { batch_window: window, ..self }
    }

    /// How many bytes of events may wait to be written, over all channels. Default: 8 MiB.
    ///
    /// What is sent without waiting is refused when they are full; what is awaited waits for room.
    pub fn buffer(self, bytes: usize) -> Self {
        Self { buffer_bytes: bytes, ..self }
    }

    /// After how long the agent is declared lost where it does not renew its lease, 2 seconds to 10
    /// minutes; it does so every third of that. Default: 15 seconds. The same as the relay's (`--lease`).
    /// A relay, and an attached journal, bring their own.
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// After how long without an answer of the program's own executor (a task blocks it) the agent's sessions are
    /// told: `agent.status_changed {status: "unresponsive", since}`, and `"responsive"` when it answers again. At least
    /// 100 ms. Default: 30 seconds.
    pub fn unresponsive_after(mut self, time: Duration) -> Self {
        self.patience.unresponsive_after = time;
        self
    }

    /// After how long without an answer of the program's own executor the agent's leases are not renewed any more: it is
    /// declared lost. Default: 10 minutes. Until then a program that blocks stays alive; its link and its leases live
    /// on a thread of their own. An attached [`Journal`](journal::Journal) lives on the program's executor and is not
    /// watched.
    pub fn lost_after(mut self, time: Duration) -> Self {
        self.patience.lost_after = time;
        self
    }

    /// How long [`connect`](Self::connect) and [`attach`](Self::attach) wait for Redis, or the relay, to be there.
    /// Default: as long as it takes, so that the order of starting does not matter; the log says what is waited for.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self { connect_timeout: Some(timeout), ..self }
    }

    /// The agent was spawned by the agent of `run`, for that run: a Cancel that cancels the run
    /// reaches this agent as well, whether it was sent to the agent or to the run's session. Whatever else
    /// cancels the run cancels this agent's runs too, with the same reason.
    pub fn child_of(self, run: &Run) -> Self {
        Self { parent: Some(run.as_parent()), parent_run: Some(run.current().clone()), ..self }
    }

    /// The agent was spawned by the agent `id`, in any process: a Cancel of that agent
    /// reaches this one as well.
    pub fn child_of_agent(self, id: impl Into<String>) -> Self {
        let parent = Parent { agent_id: id.into().into(), run_id: None, session: None };
        Self { parent: Some(parent), parent_run: None, ..self }
    }

    /// The token to show to a relay, where `url` is that of one: it grants `serve` on `agent:{id}`
    /// and on each session and service, and `publish` on each channel. It is not sent to Redis.
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { tokens: Some(TokenSource::Fixed(token.into().into())), ..self }
    }

    /// Where the token comes from that is shown to a relay: asked at each connect, and a minute before the token
    /// before ends, so that an agent outlives its tokens. It has five seconds.
    ///
    /// ```no_run
    /// # async fn fetch() -> Result<String, std::io::Error> { unimplemented!() }
    /// # async fn connect() -> Result<(), publisher_sdk::ConnectError> {
    /// let options = publisher_sdk::Agent::options().token_source(|| async { Ok(fetch().await?) });
    /// let agent = options.id("a1").connect("http://127.0.0.1:8080").await?;
    /// # Ok(()) }
    /// ```
    pub fn token_source<F>(self, source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self { tokens: Some(TokenSource::asked(source)), ..self }
    }

    /// Connects and begins to listen for commands. `url` is that of the Redis that the relay uses
    /// (`redis://…`, or `rediss://…` for TLS), or, for an agent without Redis, of any replica of the
    /// relay (`http://…`, `https://…`): everything is the same, with one hop more.
    ///
    /// Where it is not there yet, this waits for it, and says so in the log.
    ///
    /// # Errors
    /// [`ConnectError`]; [`Unreachable`](ConnectError::Unreachable) only where a
    /// [`connect_timeout`](Self::connect_timeout) was given.
    pub async fn connect(self, url: &str) -> Result<Agent, ConnectError> {
        let link = Link::open(url)?.with_lease(self.lease);
        self.come_in(&link, without_secrets(url)).await
    }

    /// The same over a [`Link`] that is there already, or a [`Journal`](journal::Journal): for a process of many
    /// agents, for an agent that shares its process with a relay, and for tests.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn attach(self, link: impl Into<Link>) -> Result<Agent, ConnectError> {
        self.come_in(&link.into(), "the attached link".to_owned()).await
    }

    async fn come_in(self, link: &Link, at: String) -> Result<Agent, ConnectError> {
        let agent = self.checked()?;
        let program = Handle::current();
        let home = link.thread().unwrap_or(&program);
        let watched = link.thread().map(|_| (program.clone(), self.patience));
        let ends = self.connect_timeout.map(|timeout| Instant::now() + timeout);
        let mut has_waited = false;
        loop {
            let attempt = Instant::now() + CONNECT_TIMEOUT;
            let start = Start {
                link: link.of_agent(agent.id(), self.tokens.clone())?,
                channel: agent.clone(),
                window: self.batch_window,
                buffer_bytes: self.buffer_bytes,
                parent: self.parent.clone(),
                parent_run: self.parent_run.clone(),
                watched: watched.clone(),
                deadline: ends.map_or(attempt, |ends| ends.min(attempt)),
            };
            let connected = match select(
                at_home(home, Agent::start(start)).boxed(),
                sleep(PAUSE).boxed(),
            )
            .await
            {
                Either::Left((connected, _)) => connected,
                Either::Right(((), connecting)) => {
                    if !std::mem::replace(&mut has_waited, true) {
                        tracing::warn!(agent_id = agent.id(), at, "no answer yet, waiting");
                    }
                    connecting.await
                }
            };
            let source = match connected {
                Ok(agent) => {
                    if has_waited {
                        tracing::info!(agent_id = agent.id(), at, "connected");
                    }
                    return Ok(agent);
                }
                Err(Some(LinkError::Refused(why))) => {
                    return Err(ConnectError::Refused { at, why });
                }
                Err(Some(LinkError::Unauthorized(why))) => {
                    return Err(ConnectError::Unauthorized { at, why });
                }
                Err(Some(LinkError::Unavailable(source))) => Some(source),
                Err(_) => None,
            };
            if let (Some(within), Some(ends)) = (self.connect_timeout, ends)
                && ends <= Instant::now()
            {
                return Err(ConnectError::Unreachable { at, within, source });
            }
            has_waited = true;
            let error = source.map(|source| source.to_string());
            tracing::warn!(agent_id = agent.id(), at, error, "still no answer, waiting");
            sleep(PAUSE).await;
        }
    }

    /// Everything that can be found wrong without Redis; the agent's channel.
    fn checked(&self) -> Result<Channel, ConnectError> {
        if self.batch_window > BATCH_WINDOW_MAX {
            return Err(ConnectError::BatchWindow { given: self.batch_window });
        }
        if !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&self.buffer_bytes) {
            return Err(ConnectError::Buffer { given: self.buffer_bytes });
        }
        if !(LEASE_MIN..=LEASE_MAX).contains(&self.lease) {
            return Err(ConnectError::Lease { given: self.lease });
        }
        if let Some(parent) = &self.parent {
            Channel::agent(&parent.agent_id)?;
        }
        if let Some(run) = &self.parent_run {
            run.check_id()?;
        }
        Ok(match &self.id {
            Some(id) => Channel::agent(id)?,
            None => Channel::agent(&Uuid::new_v4().to_string())?,
        })
    }
}

/// Starts the agent where its link lives. A caller that stops waiting ends it.
async fn at_home(
    home: &Handle,
    starting: impl Future<Output = Result<Agent, Option<LinkError>>> + Send + 'static,
) -> Result<Agent, Option<LinkError>> {
    AbortOnDropHandle::new(home.spawn(starting)).await.unwrap_or(Err(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_scheme_says_which_way() {
        for url in ["redis://h", "rediss://h", "http://h", "https://h"] {
            assert!(Link::open(url).is_ok(), "{url}");
        }
        for other in ["h:6379", "", "unix:///run/redis.sock", "redis:h", "ws://h"] {
            assert!(matches!(Link::open(other), Err(ConnectError::Scheme(_))), "{other}");
        }
    }

    #[test]
    fn knobs_out_of_bounds_are_named() {
        let window = Agent::options().batch_window(Duration::from_secs(1)).checked().unwrap_err();
        assert!(window.to_string().contains("250ms"), "{window}");
        let buffer = Agent::options().buffer(1_000).checked().unwrap_err();
        assert!(buffer.to_string().contains("1000"), "{buffer}");
        let lease = Agent::options().lease(Duration::from_millis(100)).checked().unwrap_err();
        assert!(lease.to_string().contains("100ms"), "{lease}");
        let id = Agent::options().id("a 1").checked().unwrap_err();
        assert!(matches!(id, ConnectError::Id(_)), "{id}");
        assert!(!id.is_retryable());
    }
}
