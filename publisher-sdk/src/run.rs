//! A run: what an agent is working on, what a Cancel cancels, and what always says how it ended.
//!
//! [`runs`](crate::runs) → **run** → [`lifecycle`](crate::lifecycle)

use std::fmt;
use std::sync::Arc;

use journal::{NewEntry, Parent};
use protocol::{Channel, Kind};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::Inner;
use crate::ends;
use crate::lifecycle::{self, LifecyclePhase};
use crate::reason::within_bounds;
use crate::runs::Current;
use crate::{Cancellation, PublishError, Reason};

/// Something the agent is working on, from [`Agent::begin_run`](crate::Agent::begin_run) until it
/// is completed, failed, stopped or dropped.
///
/// A run that was [announced](Self::announce) always says how it ended, once: dropped, by an error
/// or a panic for example, it says `agent_failed`, or `agent_cancelled` if it was; when the agent
/// closes, `agent_cancelled` with the reason `shutdown`; and when the process is killed, whoever
/// notices says `agent_lost`.
///
/// ```
/// # use publisher_sdk::{Agent, Run};
/// # async fn next_token() -> Option<&'static str> { None }
/// # async fn example(agent: Agent) -> Result<(), publisher_sdk::PublishError> {
/// let run = agent.begin_run("run-1");
/// run.announce(&serde_json::json!({"task": "Tidy up"})).await?;
/// loop {
///     tokio::select! {
///         _ = run.cancelled() => break run.stop().await,
///         token = next_token() => match token {
///             Some(_) => {}
///             None => break run.complete().await,
///         }
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a run ends when it is dropped"]
pub struct Run {
    agent: Arc<Inner>,
    current: Current,
}

/// How a [scope](Run::scope) ended that did not complete.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScopeError<E: fmt::Display + fmt::Debug> {
    /// Somebody cancelled the run; the work was dropped where it stood.
    #[error("the run was cancelled")]
    Cancelled(Cancellation),
    /// The work failed.
    #[error("the run failed: {0}")]
    Failed(E),
    /// The run's end could not be said.
    #[error(transparent)]
    Unsaid(PublishError),
}

impl Run {
    pub(crate) fn begin(agent: &Arc<Inner>, channel: &Channel, id: String) -> Self {
        Self { agent: Arc::clone(agent), current: agent.runs.begin(channel, id) }
    }

    /// The id it was begun with: `runId` in its events, `run_id` in a Cancel that means only this
    /// run.
    pub fn id(&self) -> &str {
        &self.current.id
    }

    /// The run, as what has spawned another agent.
    pub(crate) fn as_parent(&self) -> Parent {
        let session = &self.current.channel;
        Parent {
            agent_id: self.agent.lifecycle.channel.id().into(),
            run_id: Some(self.id().into()),
            session: (session.kind() == Kind::Session).then(|| session.clone()),
        }
    }

    /// Is cancelled with the run. Cancelling it cancels nothing else.
    pub fn token(&self) -> CancellationToken {
        self.current.token.child_token()
    }

    /// Cancels the run from the agent's own side: `run.cancel(Reason::Timeout)`, or
    /// `run.cancel(Reason::Budget.saying("1,000 tokens"))`.
    pub fn cancel(&self, why: impl Into<Cancellation>) {
        self.current.cancel(why.into());
    }

    /// Whether somebody has cancelled the run.
    pub fn is_cancelled(&self) -> bool {
        self.current.token.is_cancelled()
    }

    /// Waits until somebody cancels the run. Cancel-safe.
    pub async fn cancelled(&self) -> Cancellation {
        self.current.token.cancelled().await;
        self.cancellation().unwrap_or_else(|| Reason::Shutdown.into())
    }

    /// Who cancelled the run, and why; `None` as long as nobody has.
    pub fn cancellation(&self) -> Option<Cancellation> {
        self.is_cancelled().then(|| self.current.cancellation.get().cloned()).flatten()
    }

    /// Says that the run begins: `agent_spawned {agent_id, runId, …fields}`, on the agent's own
    /// channel and on `global:events`. Before that, the run is noted in the agent's leases, so that
    /// its end is told even if the process is killed. Where 8 MiB of ends wait to be told, this waits.
    ///
    /// # Errors
    /// [`PublishError`]; then the run goes on, unannounced.
    pub async fn announce(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        let fields = self.fields(lifecycle::fields(fields)?);
        self.agent.ends.has_room().await;
        self.agent.runs.note(&self.current);
        let announced = async {
            self.agent.note_begun(&self.current).await.map_err(ends::refused)?;
            self.agent.lifecycle.say(LifecyclePhase::Spawned, fields).await
        };
        let announced = announced.await;
        if announced.is_err() {
            drop(self.agent.ends.owe(&self.current, None, None));
        }
        announced
    }

    /// Does `work` within the run, and ends the run as the work ends: `Ok` completes it, `Err` fails
    /// it, a Cancel drops the work where it stands and stops it, a panic fails it.
    ///
    /// # Errors
    /// [`ScopeError`].
    ///
    /// ```
    /// # async fn answer() -> Result<u32, std::io::Error> { Ok(42) }
    /// # async fn example(agent: publisher_sdk::Agent) -> Result<(), Box<dyn std::error::Error>> {
    /// let run = agent.begin_run("run-1");
    /// run.announce(&()).await?;
    /// let answer = run.scope(answer()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn scope<T, E: fmt::Display + fmt::Debug>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ScopeError<E>> {
        let done = self.current.token.clone().run_until_cancelled_owned(work).await;
        match done {
            Some(Ok(result)) => {
                self.complete().await.map_err(ScopeError::Unsaid)?;
                Ok(result)
            }
            Some(Err(error)) => {
                self.fail(&error.to_string()).await.map_err(ScopeError::Unsaid)?;
                Err(ScopeError::Failed(error))
            }
            None => {
                let why = self.cancellation().unwrap_or_else(|| Reason::Shutdown.into());
                match self.stop().await {
                    // The replica that declared the agent lost has told it.
                    Ok(()) | Err(PublishError::Fenced) => Err(ScopeError::Cancelled(why)),
                    Err(error) => Err(ScopeError::Unsaid(error)),
                }
            }
        }
    }

    /// Ends the run, done: `agent_completed {agent_id, runId}`. Where 8 MiB of ends wait to be told, the run
    /// goes on until there is room; so it is with the other ways to end it.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn complete(self) -> Result<(), PublishError> {
        self.end(LifecyclePhase::Completed, Map::new()).await
    }

    /// Ends the run, not done: `agent_failed {agent_id, runId, error}`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn fail(self, error: &str) -> Result<(), PublishError> {
        self.end(LifecyclePhase::Failed, failed(error)).await
    }

    /// Ends the run, cancelled: `agent_cancelled {agent_id, runId, reason, by?, detail?}` with who
    /// cancelled it and why; where nobody did, the agent itself stopped it: `shutdown`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn stop(self) -> Result<(), PublishError> {
        let why = self.cancellation().unwrap_or_else(|| Reason::Shutdown.into());
        self.end(LifecyclePhase::Cancelled, why.fields()).await
    }

    async fn end(
        self,
        phase: LifecyclePhase,
        fields: Map<String, Value>,
    ) -> Result<(), PublishError> {
        let entry = self.agent.lifecycle.entry(phase, self.fields(fields))?;
        let ends = &self.agent.ends;
        let room = ends.room(&entry).await;
        let owe = || ends.owe(&self.current, Some(with_key(entry)), room);
        let Some(told) = self.agent.runs.end(self.current.key, owe) else {
            // The agent was closed, and has said so.
            return Ok(());
        };
        told.await.unwrap_or(Err(PublishError::Closed))
    }

    fn fields(&self, mut fields: Map<String, Value>) -> Map<String, Value> {
        fields.insert("runId".to_owned(), self.id().into());
        fields
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let is_owed = self.agent.runs.is_noted(self.current.key);
        let (phase, fields) = match self.cancellation() {
            Some(why) => (LifecyclePhase::Cancelled, why.fields()),
            None if std::thread::panicking() => {
                (LifecyclePhase::Failed, failed("the agent panicked"))
            }
            None => (LifecyclePhase::Failed, failed("the run ended without a result")),
        };
        let fields = self.fields(fields);
        let entry = self.agent.lifecycle.entry(phase, fields);
        self.agent.runs.end(self.current.key, || match entry {
            Ok(entry) if is_owed => {
                drop(self.agent.ends.owe(&self.current, Some(with_key(entry)), None));
            }
            _ => {}
        });
    }
}

/// An end is told once, however often it is tried.
pub(crate) fn with_key(entry: NewEntry) -> NewEntry {
    entry.with_key(Uuid::new_v4().to_string())
}

fn failed(error: &str) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), within_bounds(error).into())])
}
