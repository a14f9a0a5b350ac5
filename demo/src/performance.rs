//! Plays a script: every event that a run consists of, at a human pace, until it is cancelled.
//!
//! [`script`](crate::script) → **performance** → [`publisher_sdk`]
//!
//! Only the run's beginning and end wait for Redis; everything else is sent without waiting, so a Redis
//! that restarts does not delay the agent.

use std::time::Duration;

use publisher_sdk::vocabulary::{
    ErrorEvent, ExecutionUpdate, PlanCompleted, PlanFailed, StatusChanged, StepOutput, StepState,
    StepStatus, TextComplete, ToolResult, ToolStart,
};
use publisher_sdk::{
    Agent, AskError, Budget, BudgetRequest, Cancellation, PermissionRequest, PublishError,
    Publisher, Reason, Run,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::script::{Beat, PermissionAsked, Script, Spent, Step, Tool};
use crate::tokens::tokens;

/// A pause between two tokens, in milliseconds.
const TOKEN_PAUSE_MS: std::ops::RangeInclusive<u64> = 15..=40;
/// A pause before a paragraph, in milliseconds: the model reads what it was given.
const THINK_PAUSE_MS: std::ops::RangeInclusive<u64> = 700..=1_300;
/// A pause before a tool, in milliseconds: the model writes what it will be given.
const TOOL_PAUSE_MS: std::ops::RangeInclusive<u64> = 300..=700;
/// How long a question waits for a person; then the answer is no, and the run is over.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long, after `shutdown`, a run's end may take to be written.
const GRACE: Duration = Duration::from_secs(3);

/// Where runs are performed.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) session: Publisher,
    pub(crate) plan: Publisher,
    pub(crate) shutdown: CancellationToken,
}

/// Why a run stopped before its script was over.
enum Stop {
    Cancelled,
    Failed(&'static str),
    Broken(PublishError),
}

impl From<PublishError> for Stop {
    fn from(error: PublishError) -> Self {
        Self::Broken(error)
    }
}

impl Stage {
    /// One run, from `agent_spawned` to `agent_completed`, `agent_failed` or `agent_cancelled`.
    pub(crate) async fn play(&self, script: &Script) -> Result<(), PublishError> {
        let run = self.session.begin_run(format!("run-{:.8}", Uuid::new_v4().simple()));
        self.patiently(run.announce(&json!({"task": script.task}))).await?;
        let mut performance = Performance { stage: self, script, run: &run, turn: 0, step: 0 };
        let played = performance.play().await;
        let step = performance.step;

        let ending = match played {
            Ok(()) => {
                self.plan.send_event(&PlanCompleted::new(script.summary).run_id(run.id()))?;
                self.patiently(run.complete()).await
            }
            Err(Stop::Cancelled) => {
                self.give_up(script, step, StepState::Cancelled, "cancelled")?;
                self.plan.send_event(&PlanFailed::new(cancelled_by(&run)).run_id(run.id()))?;
                self.patiently(run.stop()).await
            }
            Err(Stop::Failed(error)) => {
                self.give_up(script, step, StepState::Failed, error)?;
                self.plan.send_event(&PlanFailed::new(error).run_id(run.id()))?;
                self.session.send_event(&ErrorEvent::new(error).run_id(run.id()))?;
                self.patiently(run.fail(error)).await
            }
            // Dropping the run says that it failed.
            Err(Stop::Broken(error)) => Err(error),
        };
        self.agent.own_channel().send_event(&StatusChanged::new("resting"))?;
        ending
    }

    /// The step under way ends as `state`, those after it are cancelled.
    fn give_up(
        &self,
        script: &Script,
        at: usize,
        state: StepState,
        error: &str,
    ) -> Result<(), PublishError> {
        for (index, step) in script.steps.iter().enumerate().skip(at) {
            let status = if index == at {
                StepStatus::new(index as u64, step.name, state).error(error)
            } else {
                StepStatus::new(index as u64, step.name, StepState::Cancelled)
            };
            self.plan.send_event(&status)?;
        }
        Ok(())
    }

    /// Waits for Redis as long as it takes; after `shutdown`, a moment.
    async fn patiently(
        &self,
        said: impl Future<Output = Result<(), PublishError>>,
    ) -> Result<(), PublishError> {
        let too_late = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            said = said => said,
            // It goes on by itself, and closing the agent waits for it once more.
            () = too_late => Ok(()),
        }
    }
}

fn cancelled_by(run: &Run) -> String {
    let cancellation = run.cancellation();
    let (by, detail) = cancellation.map_or((None, None), |why| (why.by, why.detail));
    let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("cancelled{by}{detail}")
}

/// A run being played.
struct Performance<'a> {
    stage: &'a Stage,
    script: &'a Script,
    run: &'a Run,
    /// How many turns and tool uses there have been; it makes their ids.
    turn: u32,
    /// Which step is under way.
    step: usize,
}

impl Performance<'_> {
    async fn play(&mut self) -> Result<(), Stop> {
        self.begin()?;
        for (index, step) in self.script.steps.iter().enumerate() {
            self.step = index;
            self.status(StepState::Running)?;
            for (nth, beat) in step.beats.iter().enumerate() {
                let is_last = (index + 1, nth + 1) == (self.script.steps.len(), step.beats.len());
                self.beat(beat, is_last).await?;
            }
            if let Some(error) = step.fails {
                return Err(Stop::Failed(error));
            }
            self.status(StepState::Completed)?;
        }
        Ok(())
    }

    /// What the user asked, and the plan.
    fn begin(&self) -> Result<(), Stop> {
        let (stage, id) = (self.stage, self.run.id());
        stage.agent.own_channel().send_event(&StatusChanged::new("working"))?;
        let asked = json!({"role": "user", "text": self.script.ask, "runId": id});
        stage.session.send("message.created", &asked)?;
        let pending = |(index, step): (usize, &Step)| {
            let status = StepState::Pending;
            json!({"step_index": index, "name": step.name, "status": status})
        };
        let steps = self.script.steps.iter().enumerate().map(pending).collect();
        stage.plan.send_event(&ExecutionUpdate::new(steps).run_id(id))?;
        Ok(())
    }

    fn status(&self, state: StepState) -> Result<(), Stop> {
        let step = &self.script.steps[self.step];
        self.stage.plan.send_event(&StepStatus::new(self.step as u64, step.name, state))?;
        Ok(())
    }

    async fn beat(&mut self, beat: &Beat, is_last: bool) -> Result<(), Stop> {
        match beat {
            Beat::Say(text) => self.write(&[text], is_last).await,
            Beat::Together(texts) => self.write(texts, is_last).await,
            Beat::Use(tool) => self.use_tool(tool).await,
            Beat::MayI(asked) => self.may_i(asked).await,
            Beat::GoOn(spent) => self.go_on(spent).await,
            Beat::Report(output) => {
                let output = StepOutput::new(self.step as u64, *output);
                self.stage.plan.send_event(&output)?;
                Ok(())
            }
        }
    }

    /// Writes `texts` at the same time, each in a turn of its own. Cancelled, what is written
    /// stays.
    async fn write(&mut self, texts: &[&str], is_last: bool) -> Result<(), Stop> {
        struct StreamedTurn<'a> {
            turn: String,
            tokens: std::vec::IntoIter<&'a str>,
            written: String,
        }
        self.pause(rand::random_range(THINK_PAUSE_MS)).await?;
        let mut turns: Vec<StreamedTurn<'_>> = Vec::with_capacity(texts.len());
        for text in texts {
            let (turn, tokens) = (self.next_id("turn"), tokens(text).into_iter());
            turns.push(StreamedTurn { turn, tokens, written: String::with_capacity(text.len()) });
        }
        let mut stopped = Ok(());
        while stopped.is_ok() && turns.iter().any(|streamed| streamed.tokens.len() > 0) {
            stopped = self.pause(rand::random_range(TOKEN_PAUSE_MS)).await;
            if stopped.is_ok() {
                for streamed in &mut turns {
                    if let Some(token) = streamed.tokens.next() {
                        self.stage.session.text_delta(streamed.turn.as_str(), token)?;
                        streamed.written.push_str(token);
                    }
                }
            }
        }
        for streamed in turns {
            let complete = TextComplete::new(streamed.written).turn_id(streamed.turn);
            self.stage.session.send_event(&complete.is_intermediate(!is_last))?;
        }
        stopped
    }

    async fn use_tool(&mut self, tool: &Tool) -> Result<(), Stop> {
        self.pause(rand::random_range(TOOL_PAUSE_MS)).await?;
        let id = self.next_id("tool");
        let input: Value = serde_json::from_str(tool.input).unwrap_or_default();
        let start = ToolStart::new(tool.name, &id, input).tool_intent(tool.intent);
        self.stage.session.send_event(&start)?;
        self.pause(tool.takes_ms).await?;
        let result = ToolResult::new(id, tool.name, tool.result);
        self.stage.session.send_event(&result.is_error(tool.is_error))?;
        Ok(())
    }

    async fn may_i(&self, asked: &PermissionAsked) -> Result<(), Stop> {
        let PermissionAsked { tool, command, description } = asked;
        // Without an answer it may not: an agent that runs a command because nobody looked would be
        // a bad example.
        let ask = PermissionRequest::new(*tool, *command, *description)
            .for_run(self.run)
            .expires_in(ANSWER_WITHIN);
        self.answered(self.stage.session.ask_permission(ask), |permission| {
            if permission.allowed {
                return Ok(());
            }
            let by = match &permission.by {
                Some(by) => format!(" by {by}"),
                None if permission.timed_out => ": nobody answered in time".to_owned(),
                None => String::new(),
            };
            Err(Reason::User.saying(format!("{tool} was not allowed{by}")))
        })
        .await
    }

    async fn go_on(&self, spent: &Spent) -> Result<(), Stop> {
        let ask = BudgetRequest::new()
            .field("tokens", spent.tokens)
            .field("description", spent.description)
            .field("runId", self.run.id())
            .for_run(self.run)
            .expires_in(ANSWER_WITHIN);
        self.answered(self.stage.agent.own_channel().ask_budget(ask), |budget| match budget {
            Budget::Continue => Ok(()),
            Budget::Stop => Err(Reason::Budget.saying("the budget was not raised")),
        })
        .await
    }

    /// Waits for people, unless the run is cancelled meanwhile. A no is a Cancel.
    async fn answered<T>(
        &self,
        asked: impl Future<Output = Result<T, AskError>>,
        meaning: impl FnOnce(&T) -> Result<(), Cancellation>,
    ) -> Result<(), Stop> {
        let answer = tokio::select! {
            biased;
            () = self.stage.shutdown.cancelled() => return self.pause(0).await,
            answer = asked => answer,
        };
        match answer.as_ref().map(meaning) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(no)) => {
                self.run.cancel(no);
                Err(Stop::Cancelled)
            }
            Err(AskError::Cancelled) => Err(Stop::Cancelled),
            Err(error) => {
                tracing::warn!(%error, "a question could not be asked");
                Err(Stop::Failed("a question could not be asked"))
            }
        }
    }

    /// Waits, unless the run is cancelled or the process shuts down.
    async fn pause(&self, ms: u64) -> Result<(), Stop> {
        tokio::select! {
            biased;
            _ = self.run.cancelled() => Err(Stop::Cancelled),
            () = self.stage.shutdown.cancelled() => {
                self.run.cancel(Reason::Shutdown.saying("the agent is shutting down"));
                Err(Stop::Cancelled)
            }
            () = tokio::time::sleep(Duration::from_millis(ms)) => Ok(()),
        }
    }

    fn next_id(&mut self, what: &str) -> String {
        self.turn += 1;
        format!("{}-{what}-{}", self.run.id(), self.turn)
    }
}
