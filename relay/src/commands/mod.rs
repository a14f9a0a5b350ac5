//! ▲ Up: from what a person asks to the agent's commands journal, and back with what became of it.
//!
//! 1. a command, here; a Cancel [goes on](journal::Journal::cancel) to the agents that were spawned;
//! 2. an answer to an [approval](approvals): the first one wins;
//! 3. a [request], whose reply [notifies](replies) this replica.
//!
//! Nothing but a command frame becomes a command: a closing connection never leads here. Everything that
//! must survive this process stands in the journal, so any other replica can go on with it.

mod approvals;
mod replies;
mod request;

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use journal::{
    Cancel, Cancelled, CommandOutcome, Journal, NewCommand, SendError, Sent, Status, TooFast,
    Unavailable, WaitingClass, Walked,
};
use protocol::frame::{Cancels, Command, Refusal, RelayFrame};
use protocol::{Channel, ErrorCode, Kind, check_data};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::Principal;
use crate::supervisor::Supervisor;
use replies::Replies;
pub(crate) use request::Reply;

/// How long a browser waits for its `ack` while Redis is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the `ack` of a Cancel waits for the agents that were spawned; a reaper reaches the others.
const WALK_PATIENCE: Duration = Duration::from_secs(4);
/// What stands around a command's data in the journal, besides who asks: ids, times and names of fields.
const STAMP_BYTES: usize = 256;

/// Carries what people ask to the journals that agents follow.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    journal: Journal,
    replies: Arc<Replies>,
}

/// A command stands in the agent's journal, or was there before.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) command_id: Uuid,
    pub(crate) status: Status,
    pub(crate) detail: Option<Box<RawValue>>,
    /// How many agents are there to receive it; may be 0.
    pub(crate) listeners: u64,
    /// It waits for an agent.
    pub(crate) is_queued: bool,
    /// An agent has served the channel not long ago.
    pub(crate) is_known: bool,
    /// How many of the spawned agents a Cancel has reached so far, and of how many; where there are some.
    pub(crate) reached: Option<(u64, u64)>,
}

impl Accepted {
    /// The `ack` that answers `id`.
    pub(crate) fn frame<'a>(&'a self, id: Option<&'a RawValue>) -> RelayFrame<'a> {
        RelayFrame::Ack {
            id,
            command_id: self.command_id,
            status: self.status.as_str(),
            listeners: self.listeners,
            queued: self.is_queued,
            known: self.is_known,
            reached: self.reached.map(|(reached, _)| reached),
            of: self.reached.map(|(_, of)| of),
            detail: self.detail.as_deref(),
        }
    }
}

impl Commands {
    /// Begins to listen for replies.
    /// Messages for connections, which are notified at the same address, go to `messages`.
    pub(crate) fn start(
        journal: &Journal,
        messages: mpsc::Sender<(u64, String)>,
        supervisor: &Supervisor,
    ) -> Self {
        let replies = Replies::start(journal, messages, supervisor);
        Self { journal: journal.clone(), replies }
    }

    /// Where this replica is notified.
    pub(crate) fn address(&self) -> &str {
        self.replies.address()
    }

    /// Notifies the replica at `address` of a frame for its connection `number`; whether it is there.
    pub(crate) async fn notify(
        &self,
        address: &str,
        number: u64,
        frame: &str,
    ) -> Result<bool, Unavailable> {
        self.journal.notify(address, &format!("{number} {frame}")).await
    }

    /// Carries the command to the agent behind its channel.
    pub(crate) async fn send(
        &self,
        principal: &Principal,
        command: Command,
    ) -> Result<Accepted, Refusal> {
        let Command { channel, name, data, command_id, expires_in, may_wait, cancels } = command;
        if !principal.grant.may_command(&channel) {
            return Err(not_found(&channel));
        }
        if matches!(channel.kind(), Kind::Global | Kind::Service) {
            let message = format!("no agent is behind `{channel}`: command an agent or a session");
            return Err(Refusal::new(ErrorCode::BadRequest, message).about(channel.as_str()));
        }
        let by = principal.user.clone();
        check_as_stamped(&data, by.as_deref())?;
        let (name, data) = (name.into(), data.into());
        let new = NewCommand {
            channel,
            name,
            data,
            command_id,
            by,
            sender: principal.sender.clone(),
            class: match &cancels {
                None => WaitingClass::Ordinary,
                Some(Cancels { run_id: None, .. }) => WaitingClass::Cancel,
                Some(_) => WaitingClass::CancelRun,
            },
            expires_in,
            may_wait,
            answer_to: None,
        };
        let about = |refusal: Refusal| refusal.about(new.channel.as_str());
        let until = Instant::now() + WALK_PATIENCE;
        let Cancelled { sent, walked } = patiently(Box::pin(async {
            let Some(Cancels { run_id, reason }) = cancels else {
                let (sent, walked) = (self.journal.send(&new).await, Walked::default());
                return Ok(Cancelled { sent, walked });
            };
            let cancel = Cancel { run_id: run_id.map(Into::into), reason: reason.map(Into::into) };
            Ok(self.journal.cancel(&new, &cancel, until).await)
        }))
        .await
        .map_err(about)?;
        let reached = (walked.of > 0).then_some((walked.reached, walked.of));
        let goes_on = walked.listeners > 0 || walked.reached < walked.of;
        let accepted = match sent {
            Ok(Sent {
                outcome: CommandOutcome { status, detail }, listeners, is_known, ..
            }) => {
                let is_queued = listeners == 0 && status == Status::Accepted;
                let (detail, listeners) = (detail.and_then(raw), listeners + walked.listeners);
                Accepted { command_id, status, detail, listeners, is_queued, is_known, reached }
            }
            // The agent itself is gone; those that it spawned are not.
            Err(SendError::NoAgent | SendError::Busy(_) | SendError::TooFast(_)) if goes_on => {
                Accepted {
                    command_id,
                    status: Status::Accepted,
                    detail: None,
                    listeners: walked.listeners,
                    is_queued: false,
                    is_known: true,
                    reached,
                }
            }
            Err(error) => return Err(not_sent(&error, &new.channel)),
        };
        let NewCommand { channel, name, by, .. } = &new;
        let listeners = accepted.listeners;
        tracing::info!(%channel, name, by, %command_id, listeners, "a command was accepted");
        Ok(accepted)
    }
}

/// While Redis is away nobody waits for it longer than this; what was begun may still be done. The step is
/// boxed: every connection would hold its room otherwise.
async fn patiently<T>(
    step: Pin<Box<impl Future<Output = Result<T, Refusal>>>>,
) -> Result<T, Refusal> {
    let done = tokio::time::timeout(PATIENCE, step).await;
    done.unwrap_or_else(|_| Err(unavailable("redis does not answer")))
}

/// Whether the command, with all that is written around it, is something that every reader takes: what
/// failed there would be acknowledged and lost.
fn check_as_stamped(data: &str, by: Option<&str>) -> Result<(), Refusal> {
    let by = serde_json::to_string(&by).expect("a text serialises");
    let stamped = format!("{{\"by\":{by},\"data\":{data}{:STAMP_BYTES$}}}", "");
    check_data(&stamped)
        .map_err(|error| Refusal::new(error.code(), format!("the command as a whole: {error}")))
}

fn raw(json: Box<str>) -> Option<Box<RawValue>> {
    RawValue::from_string(json.into()).ok()
}

fn not_found(channel: &Channel) -> Refusal {
    Refusal::not_found(format_args!("`{channel}`")).about(channel.as_str())
}

fn not_sent(error: &SendError, channel: &Channel) -> Refusal {
    let refusal = match error {
        SendError::NoAgent => {
            let message = format!("no agent is there to hear `{channel}`: nothing was done");
            Refusal::new(ErrorCode::AgentUnavailable, message)
        }
        SendError::Busy(_) => {
            Refusal::new(ErrorCode::Busy, format!("`{channel}` is busy: {error}"))
        }
        SendError::Conflict(_) => Refusal::new(ErrorCode::Conflict, error.to_string()),
        SendError::TooFast(too_fast) => refuse_growth(too_fast),
        SendError::Unavailable(error) => unavailable(error),
        _ => Refusal::new(ErrorCode::Unavailable, error.to_string()),
    };
    refusal.about(channel.as_str())
}

/// Its sender has too much kept already.
pub(crate) fn refuse_growth(too_fast: &TooFast) -> Refusal {
    let refusal = Refusal::new(ErrorCode::RateLimited, too_fast.to_string());
    Refusal { retry_after: Some(too_fast.wait), ..refusal }
}

fn unavailable(error: impl Display) -> Refusal {
    let message = format!(
        "{error}; it may still be carried out: send it again with the same `command_id` to learn its outcome"
    );
    Refusal::new(ErrorCode::Unavailable, message)
}
