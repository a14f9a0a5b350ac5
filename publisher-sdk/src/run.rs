//! A run: what an agent is working on, what a Cancel cancels, and what always says how it ended.
//!
//! [`runs`](crate::runs) → **run** → [`lifecycle`](crate::lifecycle)

use std::fmt;

use journal::Parent;
use serde::Serialize;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::agent::Inner;
use crate::ends;
use crate::error::in_words;
use crate::lifecycle::{self, LifecyclePhase, Outcome};
use crate::runs::Current;
use crate::{Cancellation, PublishError, Publisher, Reason};

/// Something the agent is working on, from [`Agent::begin_run`](crate::Agent::begin_run) until it
/// is completed, failed, stopped or dropped.
///
/// A run that was [announced](Self::announce) always says how it ended, once: dropped, by an error
/// or a panic for example, it says `agent_failed`, or `agent_cancelled` if it was; when the agent
/// closes, `agent_cancelled` with the reason `shutdown`; and when the process is killed, whoever
/// notices says `agent_lost`.
///
/// ```
/// # use publisher_sdk::{Agent, Journal};
/// # async fn next_token() -> Option<&'static str> { None }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let agent = Agent::options().attach(Journal::in_memory()).await?;
/// let run = agent.begin_run("run-1");
/// run.announce(&serde_json::json!({"task": "Tidy up"})).await?;
/// let said = loop {
///     tokio::select! {
///         _ = run.cancelled() => break run.stop().await,
///         token = next_token() => match token {
///             Some(_) => {}
///             None => break run.complete().await,
///         }
///     }
/// };
/// said?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a run ends when it is dropped"]
pub struct Run {
    /// Where it was begun. It keeps a session open.
    publisher: Publisher,
    current: Current,
}

/// How a [scope](Run::scope) ended that did not complete.
#[derive(Error)]
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

impl<E: fmt::Display + fmt::Debug> fmt::Debug for ScopeError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_words(self, f)
    }
}

impl Run {
    pub(crate) fn begin(publisher: Publisher, id: String, parent: Option<&Current>) -> Self {
        let current = publisher.agent().runs.begin(publisher.channel(), id, parent);
        Self { publisher, current }
    }

    /// Begins a run that is a part of this one, on the same channel: whatever cancels this one cancels it as
    /// well. So it is with every run that begins within this one's [scope](Self::scope).
    pub fn begin_run(&self, id: impl Into<String>) -> Self {
        Self::begin(self.publisher.clone(), id.into(), Some(&self.current))
    }

    fn agent(&self) -> &Inner {
        self.publisher.agent()
    }

    pub(crate) fn current(&self) -> &Current {
        &self.current
    }

    /// The id it was begun with: `runId` in its events, `run_id` in a Cancel that means only this
    /// run.
    pub fn id(&self) -> &str {
        &self.current.id
    }

    /// The run, as what has spawned another agent.
    pub(crate) fn as_parent(&self) -> Parent {
        self.current.as_parent(self.agent().lifecycle.channel.id())
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
        self.current.cancellation().cloned()
    }

    /// Says that the run begins: `agent_spawned {agent_id, runId, …fields}`, on the agent's own
    /// channel and on `global:events`. Before that, the run is noted in the agent's leases, so that
    /// its end is told even if the process is killed. Where 8 MiB of ends wait to be told, this waits.
    ///
    /// # Errors
    /// [`PublishError`]; then the run goes on, unannounced. [`RunId`](PublishError::RunId) where its id has
    /// more than 128 bytes.
    pub async fn announce(&self, fields: &impl Serialize) -> Result<(), PublishError> {
        self.current.check_id()?;
        let mut fields = lifecycle::fields(fields)?;
        fields.insert("runId".to_owned(), self.id().into());
        let agent = self.agent();
        agent.ends.has_room().await;
        agent.runs.note(&self.current);
        let announced = async {
            agent.note_begun(&self.current).await.map_err(ends::refused)?;
            agent.lifecycle.say(LifecyclePhase::Spawned, fields).await
        };
        let announced = announced.await;
        if announced.is_err() {
            drop(agent.ends.owe(&self.current, None, None));
        }
        announced
    }

    /// Does `work` within the run, which it is lent, and ends the run as the work ends: `Ok` completes it, `Err`
    /// fails it, a Cancel drops the work where it stands and stops it, a panic fails it. An `Err` that comes when
    /// the run is cancelled is the Cancel's. A run that the work begins is a part of this one: where the
    /// work is dropped, it is told as cancelled, too.
    ///
    /// # Errors
    /// [`ScopeError`].
    ///
    /// ```
    /// # use publisher_sdk::{Agent, Journal};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let agent = Agent::options().attach(Journal::in_memory()).await?;
    /// let session = agent.session("42").await?;
    /// let run = session.begin_run("run-1");
    /// run.announce(&()).await?;
    /// let answer = run
    ///     .scope(async |run| {
    ///         session.send("looking", &serde_json::json!({"runId": run.id()}))?;
    ///         Ok::<_, publisher_sdk::PublishError>(42)
    ///     })
    ///     .await?;
    /// assert_eq!(answer, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn scope<T, E: fmt::Display + fmt::Debug>(
        self,
        work: impl AsyncFnOnce(&Run) -> Result<T, E>,
    ) -> Result<T, ScopeError<E>> {
        let token = self.current.token.clone();
        let done = token.run_until_cancelled_owned(self.current.within(work(&self))).await;
        match done {
            Some(Ok(result)) => {
                self.complete().await.map_err(ScopeError::Unsaid)?;
                Ok(result)
            }
            Some(Err(error)) if !self.is_cancelled() => {
                self.fail(&error.to_string()).await.map_err(ScopeError::Unsaid)?;
                Err(ScopeError::Failed(error))
            }
            Some(Err(_)) | None => {
                let why = self.cancelled_or_stopped();
                match self.stop().await {
                    // The replica that declared the agent lost has told it.
                    Ok(()) | Err(PublishError::Fenced) => Err(ScopeError::Cancelled(why)),
                    Err(error) => Err(ScopeError::Unsaid(error)),
                }
            }
        }
    }

    /// Ends the run, done: `complete {runId, outcome}` on the session where it was begun, and `agent_completed
    /// {agent_id, runId}`. Where 8 MiB of ends wait to be told, the run goes on until there is room; so it is with the
    /// other ways to end it.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn complete(self) -> Result<(), PublishError> {
        self.end(Outcome::Completed).await
    }

    /// Ends the run, not done: `complete {runId, outcome}`, and `agent_failed {agent_id, runId, error}`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn fail(self, error: &str) -> Result<(), PublishError> {
        self.end(Outcome::Failed(error.to_owned())).await
    }

    /// Ends the run, cancelled: `complete {runId, outcome}`, and `agent_cancelled {agent_id, runId, reason, by?,
    /// detail?}` with who cancelled it and why; where nobody did, the agent itself stopped it: `shutdown`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn stop(self) -> Result<(), PublishError> {
        let why = self.cancelled_or_stopped();
        self.end(Outcome::Cancelled(why)).await
    }

    fn cancelled_or_stopped(&self) -> Cancellation {
        self.cancellation().unwrap_or_else(|| Reason::Shutdown.into())
    }

    async fn end(self, outcome: Outcome) -> Result<(), PublishError> {
        let agent = self.agent();
        let end = agent.lifecycle.end(&self.current, &outcome)?;
        let room = agent.ends.room(&end).await;
        let owe = || agent.ends.owe(&self.current, Some(end), room);
        let Some(told) = agent.runs.end(self.current.key, owe) else {
            // The agent was closed, and has said so.
            return Ok(());
        };
        told.await.unwrap_or(Err(PublishError::Closed))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let agent = self.agent();
        let is_owed = agent.runs.is_noted(self.current.key);
        let outcome = match self.cancellation() {
            Some(why) => Outcome::Cancelled(why),
            None if std::thread::panicking() => Outcome::Failed("the agent panicked".to_owned()),
            None => Outcome::Failed("the run ended without a result".to_owned()),
        };
        let end = agent.lifecycle.end(&self.current, &outcome);
        agent.runs.end(self.current.key, || match end {
            Ok(end) if is_owed => drop(agent.ends.owe(&self.current, Some(end), None)),
            _ => {}
        });
    }
}
