//! ▲ Up: from a browser's frame to the agent's commands journal.
//!
//! Nothing but a command frame becomes a command: no path leads here from a closing connection. The
//! answer to the browser says how many agents listen; what the agent then does comes down as events.

use std::time::Duration;

use journal::{AppendError, Journal, Name, NewEntry};
use protocol::frame::{Command, Refusal, Request};
use protocol::{DataError, ErrorCode, Kind, check_data};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::auth::Principal;

/// How long a browser waits for its `ack` while Redis is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Appends what people ask to the journals that agents follow.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    journal: Journal,
}

/// A command stands in the agent's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) command_id: Uuid,
    /// How many agents followed the journal at that moment. 0 is said honestly.
    pub(crate) listeners: u64,
}

impl Commands {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal }
    }

    /// Carries the command to the agent behind its channel.
    pub(crate) async fn send(
        &self,
        principal: &Principal,
        command: Command,
    ) -> Result<Accepted, Refusal> {
        let Command { channel, name, data, command_id } = command;
        if !principal.grant.may_command(&channel) {
            return Err(not_found(&channel));
        }
        if matches!(channel.kind(), Kind::Global | Kind::Service) {
            let message = format!("no agent is behind `{channel}`: command an agent or a session");
            return Err(Refusal::new(ErrorCode::BadRequest, message).about(channel.as_str()));
        }
        let user = principal.user.as_deref();
        let entry =
            NewEntry::new(name, stamped(command_id, user, &data)?).once(once_id(command_id, user));
        let name = Name::commands(channel.clone());
        let appended = tokio::time::timeout(PATIENCE, self.journal.append(&name, vec![entry]));
        match appended.await {
            Ok(Ok(appended)) => {
                let listeners = appended.first().map_or(0, |appended| appended.listeners);
                tracing::info!(%channel, %command_id, listeners, "a command was accepted");
                Ok(Accepted { command_id, listeners })
            }
            Ok(Err(error)) => Err(unavailable(&error).about(channel.as_str())),
            Err(_) => Err(Refusal::new(
                ErrorCode::Unavailable,
                "redis does not answer; the command may still be carried out when it does: send it again \
                 with the same `command_id` to learn its fate",
            )
            .about(channel.as_str())),
        }
    }

    /// Carries the request to whoever serves it. In this version nobody can.
    pub(crate) fn request(&self, principal: &Principal, request: &Request) -> Refusal {
        if !principal.grant.may_request(&request.method) {
            return not_found(&request.channel);
        }
        let (method, channel) = (&request.method, &request.channel);
        Refusal::new(ErrorCode::NoWorker, format!("nobody serves `{method}` at `{channel}`"))
    }
}

/// The command as the agent reads it: who asks is the relay's word, whatever the browser claims.
fn stamped(command_id: Uuid, by: Option<&str>, data: &str) -> Result<String, Refusal> {
    #[derive(Serialize)]
    struct Stamped<'a> {
        command_id: Uuid,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<&'a str>,
        data: &'a RawValue,
    }
    let refuse = |message: String| Refusal::new(ErrorCode::BadRequest, message);
    let data = serde_json::from_str(data).map_err(|error| refuse(format!("`data`: {error}")))?;
    let stamped = serde_json::to_string(&Stamped { command_id, by, data })
        .map_err(|error| refuse(format!("`data`: {error}")))?;
    // Once more, now that it is wrapped: what failed the reader's check would be acknowledged and lost.
    check_data(&stamped).map_err(|error| {
        let code = match error {
            DataError::Large(_) => ErrorCode::TooLarge,
            _ => ErrorCode::BadRequest,
        };
        Refusal::new(code, format!("the command as a whole: {error}"))
    })?;
    Ok(stamped)
}

/// One user's command ids are no other's: nobody can have another's command taken for a repetition.
fn once_id(command_id: Uuid, user: Option<&str>) -> String {
    Uuid::new_v5(&command_id, user.unwrap_or_default().as_bytes()).to_string()
}

fn not_found(channel: &protocol::Channel) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("there is no `{channel}` for you"))
        .about(channel.as_str())
}

fn unavailable(error: &AppendError) -> Refusal {
    let code = if error.is_retryable() { ErrorCode::Unavailable } else { ErrorCode::BadRequest };
    Refusal::new(code, error.to_string())
}
