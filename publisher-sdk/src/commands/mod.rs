//! ▲ Up: what people ask of the agent, on its way to the code that does it.
//!
//! [`journal`] → **[`listener`] → [`inbox`] → [`consumer`]** → [`Commands`],
//! [`service`](crate::service); a Cancel → [`Run`](crate::Run); an answer →
//! [`approvals`](crate::approvals)
//!
//! A command is done at most once, over every crash: it is taken, in one atomic step that only one
//! agent can make, before it is handed out. A command that is not taken stays in its journal, for an
//! agent that comes later, until it expires. What was taken is reported: `applied`, or `rejected` with the
//! reason.

mod cancel;
pub(crate) mod consumer;
pub(crate) mod inbox;
pub(crate) mod listener;
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod report;
mod seen;

use std::sync::Arc;

use protocol::Channel;
use queue::Queue;
use report::{Report, RequestError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::PublishError;

/// The name of the command that cancels runs.
pub(crate) const CANCEL: &str = "cancel_agent";

/// Something that a person asks of the agent. Only this agent has it: report what came of it.
///
/// Dropped without a report, it is reported as `rejected`. Reports are made in the background and
/// reach every viewer of the channel as `command_status`; a request's reply reaches its sender.
///
/// ```
/// # use publisher_sdk::{Agent, Journal};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let agent = Agent::options().attach(Journal::in_memory()).await?;
/// # tokio::spawn(agent.clone().close());
/// let mut commands = agent.commands();
/// while let Some(command) = commands.next().await {
///     match (command.name.as_str(), command.method()) {
///         ("pause", _) => command.applied(),
///         (_, Some("model")) => command.reply(&serde_json::json!({"name": "large"})),
///         _ => command.rejected("this agent can be paused and asked for its model, and nothing else"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Command {
    /// What to do, for example `cancel_agent`; `request` where somebody waits for a reply, see
    /// [`method`](Self::method).
    pub name: String,
    /// The command's own id: the same command never arrives twice.
    pub command_id: String,
    /// Who asks: the token's subject. `None` where the relay asks for no tokens.
    pub by: Option<String>,
    /// Where it was sent: the agent's own channel, or one of its sessions.
    pub channel: Channel,
    /// With which arguments: JSON; of a request its params. See [`read`](Self::read).
    pub data: Box<str>,
    method: Option<Box<str>>,
    report: Report,
}

/// What the entry of a request holds.
#[derive(Deserialize)]
struct Asked<'a> {
    method: Box<str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

impl Command {
    pub(super) fn new(command: journal::Command, report: Report) -> Self {
        Self {
            name: command.name.into(),
            command_id: command.command_id.into(),
            by: command.by.map(Into::into),
            channel: command.channel,
            data: command.data,
            method: None,
            report,
        }
    }

    /// The same of one that was taken. `None` for a request that cannot be read: it has been refused.
    pub(super) fn taken(command: journal::Command, report: Report) -> Option<Self> {
        if !command.is_request {
            return Some(Self::new(command, report));
        }
        let (method, params): (_, Box<str>) = match serde_json::from_str(&command.data) {
            Ok(Asked { method, params }) => (method, params.map_or("null", RawValue::get).into()),
            Err(error) => {
                report.refused(&RequestError::new("bad_request", error.to_string()));
                return None;
            }
        };
        Some(Self { method: Some(method), data: params, ..Self::new(command, report) })
    }

    /// What a request asks for, `sessions.create` for example. `None` where it is not a request: then nobody waits
    /// for a [`reply`](Self::reply).
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// The arguments as a type; of a request its params.
    ///
    /// # Errors
    /// Those of `serde_json`, where the data does not fit the type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }

    /// Says that it is done. Does not wait. A `cancel_agent` has been reported already.
    pub fn applied(self) {
        self.report.applied();
    }

    /// Says that it is not done, and why, in words for a person. Does not wait.
    pub fn rejected(self, why: &str) {
        self.report.rejected(why);
    }

    /// Tells the waiting callers how far the request has come. See [`Request::progress`](crate::Request::progress).
    ///
    /// # Errors
    /// [`PublishError`] if the data is not JSON, or too large.
    pub fn progress(&self, data: &impl Serialize) -> Result<(), PublishError> {
        self.report.progress().say(data)
    }

    /// Answers a request. Does not wait. The `result` is carried as it is written: the order of keys and every digit
    /// of a `RawValue`, too. One that cannot be written as JSON, or is too large, is an error of the agent's and
    /// answered as such.
    pub fn reply(self, result: &impl Serialize) {
        self.report.replied(result);
    }

    /// Answers a request with an error. Does not wait.
    pub fn refuse(self, error: &RequestError) {
        self.report.refused(error);
    }

    pub(crate) fn progress_handle(&self) -> progress::Progress {
        self.report.progress()
    }

    pub(crate) fn into_report(self) -> Report {
        self.report
    }
}

/// The agent's commands, as they come. Made by [`Agent::commands`](crate::Agent::commands).
///
/// A command is taken when somebody waits for it in [`next`](Self::next); until then it stays in its
/// journal, over a restart of the agent too, and expires in its time. `cancel_agent` does not wait:
/// it has cancelled its runs, and has been reported, before it stands here.
#[derive(Debug)]
pub struct Commands {
    queue: Arc<Queue>,
}

impl Commands {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self { queue }
    }

    /// The next command; `None` when the agent has ended or was
    /// [fenced](crate::Agent::fenced). Cancel-safe. Where several wait, each command goes to one of
    /// them.
    pub async fn next(&mut self) -> Option<Command> {
        self.queue.next().await
    }
}
