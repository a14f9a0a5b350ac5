//! What waits for an agent to read it: bounded in messages and in bytes.

use std::sync::Arc;

use protocol::AgentMessage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::memory::{Memory, Reserved};

/// Messages that may wait.
const MESSAGES_MAX: usize = 1024;
/// Bytes that may wait: a few of the largest commands.
const BYTES_MAX: usize = 1024 * 1024;

/// Where messages are put. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    memory: Arc<Memory>,
}

/// A message's text; its room is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) text: String,
    _room: (OwnedSemaphorePermit, Reserved),
}

/// An outbox, and where its messages come out.
pub(super) fn outbox(memory: &Arc<Memory>) -> (Outbox, mpsc::Receiver<Queued>) {
    let (queue, queued) = mpsc::channel(MESSAGES_MAX);
    let bytes = Arc::new(Semaphore::new(BYTES_MAX));
    (Outbox { queue, bytes, memory: Arc::clone(memory) }, queued)
}

impl Outbox {
    /// Waits for room. Nothing comes of it where the connection has ended.
    pub(super) async fn say(&self, message: &AgentMessage) {
        let text = message.to_text();
        let Ok(room) = Arc::clone(&self.bytes).acquire_many_owned(cost(&text)).await else {
            return;
        };
        drop(self.queue.send(self.queued(text, room)).await);
    }

    /// Whether messages wait for the agent to read them.
    pub(super) fn is_waiting(&self) -> bool {
        self.bytes.available_permits() < BYTES_MAX
    }

    /// Never waits; false if the agent must read first.
    pub(super) fn try_say(&self, message: &AgentMessage) -> bool {
        let text = message.to_text();
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(cost(&text));
        room.is_ok_and(|room| self.queue.try_send(self.queued(text, room)).is_ok())
    }

    fn queued(&self, text: String, room: OwnedSemaphorePermit) -> Queued {
        let reserved = self.memory.reserve(text.len());
        Queued { text, _room: (room, reserved) }
    }

    /// What counts all that this process holds.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

fn cost(text: &str) -> u32 {
    text.len().min(BYTES_MAX) as u32
}
