//! The events of an agent's life: on its own channel first, then on `global:events`; and how a run ends, said alike
//! wherever it is said.
//!
//! [`Agent`](crate::Agent), [`Run`](crate::Run) → **lifecycle** → [`buffer`](crate::events), [`ends`](crate::ends)

use std::sync::Arc;

use journal::NewEntry;
use protocol::Channel;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::events::buffer::Buffer;
use crate::reason::within_bounds;
use crate::runs::Current;
use crate::{Cancellation, PublishError};

/// A moment of an agent's life.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LifecyclePhase {
    Spawned,
    Completed,
    Failed,
    Cancelled,
}

impl LifecyclePhase {
    const fn event(self) -> &'static str {
        match self {
            Self::Spawned => "agent_spawned",
            Self::Completed => "agent_completed",
            Self::Failed => "agent_failed",
            Self::Cancelled => "agent_cancelled",
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Completed,
    /// Why, in words for a person.
    Failed(String),
    Cancelled(Cancellation),
}

impl Outcome {
    /// As `complete` says it on the session.
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
        }
    }

    const fn phase(&self) -> LifecyclePhase {
        match self {
            Self::Completed => LifecyclePhase::Completed,
            Self::Failed(_) => LifecyclePhase::Failed,
            Self::Cancelled(_) => LifecyclePhase::Cancelled,
        }
    }

    fn fields(&self) -> Map<String, Value> {
        match self {
            Self::Completed => Map::new(),
            Self::Failed(error) => {
                Map::from_iter([("error".to_owned(), within_bounds(error).into())])
            }
            Self::Cancelled(why) => why.fields(),
        }
    }
}

/// A run's end, as it is told on each channel.
#[derive(Clone, Debug)]
pub(crate) struct RunEnd {
    /// On the agent's own channel.
    pub(crate) own: NewEntry,
    /// On the channel where the run was begun, if that is another.
    pub(crate) begun_on: Option<NewEntry>,
}

/// What the caller wants to say beside the agent's id: an object, or nothing.
pub(crate) fn fields(fields: &impl Serialize) -> Result<Map<String, Value>, PublishError> {
    match serde_json::to_value(fields).map_err(PublishError::Unserializable)? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => Err(PublishError::NotAnObject),
    }
}

/// What an agent tells of its life.
#[derive(Clone, Debug)]
pub(crate) struct LifecyclePublisher {
    /// `agent:{id}`
    pub(crate) channel: Channel,
    pub(crate) buffer: Arc<Buffer>,
    /// The agent's own executor: the program's may end in between.
    pub(crate) runtime: Handle,
}

impl LifecyclePublisher {
    /// Says it on both channels and waits. However early the caller stops waiting, both are
    /// written.
    pub(crate) async fn say(
        &self,
        phase: LifecyclePhase,
        fields: Map<String, Value>,
    ) -> Result<(), PublishError> {
        let entry = self.entry(phase, fields)?;
        let lifecycle = self.clone();
        let saying = self.runtime.spawn(async move {
            lifecycle.buffer.publish(&lifecycle.channel, entry.clone()).await?;
            lifecycle.buffer.publish(&Channel::global_events(), entry).await
        });
        saying.await.unwrap_or(Err(PublishError::Closed)).map(drop)
    }

    /// The end of `run` on each channel, each told once, however often it is tried.
    pub(crate) fn end(&self, run: &Current, outcome: &Outcome) -> Result<RunEnd, PublishError> {
        run.check_id()?;
        let with_key = |entry: NewEntry| entry.with_key(Uuid::new_v4().to_string());
        let mut fields = outcome.fields();
        fields.insert("runId".to_owned(), (&*run.id).into());
        let own = with_key(self.entry(outcome.phase(), fields)?);
        let complete = || json!({"runId": &*run.id, "outcome": outcome.as_str()}).to_string();
        let begun_on =
            (run.channel != self.channel).then(|| with_key(NewEntry::new("complete", complete())));
        Ok(RunEnd { own, begun_on })
    }

    /// The event, as it is appended.
    fn entry(
        &self,
        phase: LifecyclePhase,
        mut fields: Map<String, Value>,
    ) -> Result<NewEntry, PublishError> {
        fields.insert("agent_id".to_owned(), self.channel.id().into());
        let data = Value::Object(fields).to_string();
        protocol::check_data(&data)?;
        Ok(NewEntry::new(phase.event(), data))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_an_object_or_nothing() {
        assert_eq!(fields(&()).unwrap(), Map::new());
        assert_eq!(fields(&json!({"task": "x"})).unwrap().len(), 1);
        assert!(matches!(fields(&"task"), Err(PublishError::NotAnObject)));
    }
}
