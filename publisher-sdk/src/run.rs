//! Runs: what an agent is working on, and what a Cancel cancels.
//!
//! [`inbox`](crate::commands) → **runs** → whoever waits for [`Run::cancelled`]
//!
//! A Cancel reaches the runs that are current when it arrives, and nothing else: not the next run,
//! not the run of another agent or of another session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use protocol::{Channel, Kind};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::PublishError;
use crate::agent::Inner;
use crate::lifecycle::{self, Stage};

/// Who cancelled a run, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cancellation {
    /// The token's subject. `None` where the relay asks for no tokens, and where the agent itself
    /// cancelled [`Run::token`].
    pub by: Option<String>,
    /// What they wrote.
    pub reason: Option<String>,
}

/// Something the agent is working on, from [`Agent::begin_run`](crate::Agent::begin_run) until it
/// is completed, failed, stopped or dropped.
///
/// A run that was [announced](Self::announce) always says how it ended: dropped, it says
/// `agent_failed`, or `agent_cancelled` if it was.
///
/// ```
/// # use publisher_sdk::{Agent, Run};
/// # async fn next_token() -> Option<&'static str> { None }
/// # async fn example(agent: Agent) -> Result<(), publisher_sdk::PublishError> {
/// let mut run = agent.begin_run("run-1");
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
    key: u64,
    current: Current,
    /// `agent_spawned` was said, so an end must be.
    is_announced: bool,
}

impl Run {
    pub(crate) fn begin(agent: &Arc<Inner>, channel: &Channel, id: String) -> Self {
        let (key, current) = agent.runs.begin(channel, id);
        Self { agent: Arc::clone(agent), key, current, is_announced: false }
    }

    /// The id it was begun with: `runId` in its events, `run_id` in a Cancel that means only this
    /// run.
    pub fn id(&self) -> &str {
        &self.current.id
    }

    /// Is cancelled with the run. Cancelling it cancels the run.
    pub fn token(&self) -> CancellationToken {
        self.current.token.clone()
    }

    /// Cancels the run from the agent's own side, because it shuts down for example.
    pub fn cancel(&self, reason: impl Into<String>) {
        let reason = Some(reason.into());
        self.current.cancellation.get_or_init(|| Cancellation { by: None, reason });
        self.current.token.cancel();
    }

    /// Whether somebody has cancelled the run.
    pub fn is_cancelled(&self) -> bool {
        self.current.token.is_cancelled()
    }

    /// Waits until somebody cancels the run. Cancel-safe.
    pub async fn cancelled(&self) -> Cancellation {
        self.current.token.cancelled().await;
        self.cancellation().unwrap_or_default()
    }

    /// Who cancelled the run, and why; `None` as long as nobody has.
    pub fn cancellation(&self) -> Option<Cancellation> {
        self.is_cancelled().then(|| self.current.cancellation.get().cloned().unwrap_or_default())
    }

    /// Says that the run begins: `agent_spawned {agent_id, runId, …fields}`, on the agent's own
    /// channel and on `global:events`.
    ///
    /// # Errors
    /// [`PublishError`]; then the run goes on, unannounced.
    pub async fn announce(&mut self, fields: &impl Serialize) -> Result<(), PublishError> {
        let fields = self.fields(lifecycle::fields(fields)?);
        self.agent.say(Stage::Spawned, fields).await?;
        self.is_announced = true;
        Ok(())
    }

    /// Ends the run, done: `agent_completed {agent_id, runId}`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn complete(mut self) -> Result<(), PublishError> {
        self.is_announced = false;
        let fields = self.fields(Map::new());
        self.agent.say(Stage::Completed, fields).await
    }

    /// Ends the run, not done: `agent_failed {agent_id, runId, error}`.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn fail(mut self, error: &str) -> Result<(), PublishError> {
        self.is_announced = false;
        let fields = self.fields(failed(error));
        self.agent.say(Stage::Failed, fields).await
    }

    /// Ends the run, cancelled: `agent_cancelled {agent_id, runId, reason?, by?}` with who
    /// cancelled it and why.
    ///
    /// # Errors
    /// [`PublishError`]; the run has ended all the same.
    pub async fn stop(mut self) -> Result<(), PublishError> {
        self.is_announced = false;
        let fields = self.fields(cancelled(self.cancellation()));
        self.agent.say(Stage::Cancelled, fields).await
    }

    fn fields(&self, mut fields: Map<String, Value>) -> Map<String, Value> {
        fields.insert("runId".to_owned(), self.id().into());
        fields
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.agent.runs.end(self.key);
        if self.is_announced {
            let (stage, fields) = match self.cancellation() {
                Some(cancellation) => (Stage::Cancelled, cancelled(Some(cancellation))),
                None => (Stage::Failed, failed("the run ended without a result")),
            };
            self.agent.say_without_waiting(stage, self.fields(fields));
        }
    }
}

fn failed(error: &str) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), error.into())])
}

fn cancelled(cancellation: Option<Cancellation>) -> Map<String, Value> {
    let Cancellation { by, reason } = cancellation.unwrap_or_default();
    let by = by.map(|by| ("by".to_owned(), by.into()));
    let reason = reason.map(|reason| ("reason".to_owned(), reason.into()));
    by.into_iter().chain(reason).collect()
}

/// The runs that are current.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_key: u64,
    current: HashMap<u64, Current>,
}

#[derive(Clone, Debug)]
struct Current {
    id: Arc<str>,
    /// The session it was begun on, or the agent's own channel.
    channel: Channel,
    token: CancellationToken,
    cancellation: Arc<OnceLock<Cancellation>>,
}

impl Runs {
    fn begin(&self, channel: &Channel, id: String) -> (u64, Current) {
        let current = Current {
            id: id.into(),
            channel: channel.clone(),
            token: CancellationToken::new(),
            cancellation: Arc::default(),
        };
        let mut state = self.state();
        state.next_key += 1;
        let key = state.next_key;
        state.current.insert(key, current.clone());
        (key, current)
    }

    fn end(&self, key: u64) {
        self.state().current.remove(&key);
    }

    /// Cancels the current runs that a Cancel on `channel` means: sent to the agent, all; sent to a
    /// session, those begun on it. Whether there was one.
    pub(crate) fn cancel(
        &self,
        channel: &Channel,
        run_id: Option<&str>,
        cancellation: &Cancellation,
    ) -> bool {
        let state = self.state();
        let meant = state.current.values().filter(|run| {
            (channel.kind() == Kind::Agent || run.channel == *channel)
                && run_id.is_none_or(|id| id == &*run.id)
        });
        let mut any = false;
        for run in meant {
            // The first one is remembered.
            run.cancellation.get_or_init(|| cancellation.clone());
            run.token.cancel();
            any = true;
        }
        any
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_reaches_the_runs_it_means_and_no_other() {
        let runs = Runs::default();
        let agent = Channel::agent("a").unwrap();
        let (one, two) = (Channel::session("1").unwrap(), Channel::session("2").unwrap());
        let nobody = Cancellation::default();
        assert!(!runs.cancel(&agent, None, &nobody), "nothing is current");

        let (_, a) = runs.begin(&one, "run-a".to_owned());
        let (_, b) = runs.begin(&two, "run-b".to_owned());
        let (key, c) = runs.begin(&agent, "run-c".to_owned());
        let state = || [&a, &b, &c].map(|run| run.token.is_cancelled());
        assert_eq!(state(), [false; 3], "an earlier cancel does nothing later on");

        assert!(!runs.cancel(&agent, Some("run-x"), &nobody));
        assert!(!runs.cancel(&one, Some("run-b"), &nobody));
        assert!(runs.cancel(&one, None, &nobody));
        assert_eq!(state(), [true, false, false]);
        assert!(runs.cancel(&agent, Some("run-b"), &nobody));
        assert_eq!(state(), [true, true, false]);
        runs.end(key);
        runs.cancel(&agent, None, &nobody);
        assert_eq!(state(), [true, true, false], "what has ended is not cancelled");
    }

    #[test]
    fn whoever_cancels_first_is_remembered() {
        let runs = Runs::default();
        let agent = Channel::agent("a").unwrap();
        let (_, run) = runs.begin(&agent, "run".to_owned());
        for by in ["ann", "ben"] {
            let cancellation = Cancellation { by: Some(by.to_owned()), reason: None };
            runs.cancel(&agent, None, &cancellation);
        }
        assert_eq!(run.cancellation.get().and_then(|c| c.by.as_deref()), Some("ann"));
    }
}
