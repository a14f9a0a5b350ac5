//! ▲ Up: what people ask of the agent, on its way to whoever does it.
//!
//! [`journal`] → **[`listener`] → [`inbox`]** → [`Commands`], and a Cancel also →
//! [`Run`](crate::Run)
//!
//! No command is lost in silence: each is handed out once, or its sender is told `command_status`
//! `rejected` with the reason, or (where nobody can be told, because it cannot be read) it is
//! logged.

pub(crate) mod inbox;
pub(crate) mod listener;
mod queue;
mod seen;

use std::sync::Arc;

use protocol::Channel;
use queue::Queue;
use serde::de::DeserializeOwned;

/// The name of the command that cancels runs.
pub(crate) const CANCEL: &str = "cancel_agent";

/// Something that a person asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Command {
    /// What to do, for example `cancel_agent`.
    pub name: String,
    /// The command's own id: the same command never arrives twice.
    pub command_id: String,
    /// Who asks: the token's subject. `None` where the relay asks for no tokens.
    pub by: Option<String>,
    /// Where it was sent: the agent's own channel, or one of its sessions.
    pub channel: Channel,
    /// With which arguments: JSON. See [`read`](Self::read).
    pub data: Box<str>,
}

impl Command {
    /// The arguments as a type.
    ///
    /// # Errors
    /// Those of `serde_json`, where the data does not fit the type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }
}

/// The agent's commands, as they come. Made by [`Agent::commands`](crate::Agent::commands).
///
/// 256 commands wait here for whoever takes them. A command that finds no room is not done and not
/// kept: its sender gets `command_status` `rejected` on the channel it was sent to. The same
/// happens to what nobody has taken when the agent ends. `cancel_agent` has cancelled its runs
/// before it stands here.
#[derive(Debug)]
pub struct Commands {
    queue: Arc<Queue>,
}

impl Commands {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self { queue }
    }

    /// The next command; `None` when the agent has ended. Cancel-safe. Where several wait, each
    /// command goes to one of them.
    pub async fn next(&mut self) -> Option<Command> {
        self.queue.next().await
    }
}
