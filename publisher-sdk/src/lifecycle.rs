//! The events of an agent's life: on its own channel first, then on `global:events`.
//!
//! [`Agent`](crate::Agent), [`Run`](crate::Run) → **lifecycle** → [`buffer`](crate::events)

use std::sync::Arc;

use journal::NewEntry;
use protocol::Channel;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::PublishError;
use crate::events::buffer::Buffer;

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
        let saying = tokio::spawn(async move {
            lifecycle.buffer.publish(&lifecycle.channel, entry.clone()).await?;
            lifecycle.buffer.publish(&Channel::global_events(), entry).await
        });
        saying.await.unwrap_or(Err(PublishError::Closed)).map(drop)
    }

    /// The event, as it is appended.
    pub(crate) fn entry(
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
