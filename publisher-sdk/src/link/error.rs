//! Why a call on a link failed, whichever link it is.

use journal::{AdoptError, AppendError, AskError, LeaseError, Unavailable};
use protocol::AgentError;
use thiserror::Error;

use crate::error::FENCED;

/// Why a call failed.
#[derive(Clone, Debug, Error)]
pub(crate) enum LinkError {
    /// The agent was declared lost, or a newer incarnation has taken over.
    #[error("{FENCED}")]
    Fenced,
    /// The id was used for something else.
    #[error("{0}")]
    Conflict(String),
    /// Too many questions wait already.
    #[error("too many questions wait already")]
    Busy,
    /// It is refused for good.
    #[error("refused: {0}")]
    Refused(String),
    /// The relay refuses the token.
    #[error("the relay refuses the agent's token: {0}")]
    Unauthorized(String),
    /// The record could not be reached; the same call may be tried again.
    #[error(transparent)]
    Unavailable(Unavailable),
}

impl LinkError {
    /// Whether the relay refuses the agent, for whatever reason.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unauthorized(_))
    }

    pub(crate) fn unavailable(why: &str) -> Self {
        Self::Unavailable(Unavailable(why.to_owned()))
    }

    pub(super) fn of(error: &AgentError) -> Self {
        let message = error.message.clone();
        match &*error.code {
            "fenced" => Self::Fenced,
            "conflict" => Self::Conflict(message),
            "busy" => Self::Busy,
            _ if error.retryable => Self::Unavailable(Unavailable(message)),
            _ => Self::Refused(message),
        }
    }
}

impl From<Unavailable> for LinkError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<LeaseError> for LinkError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Fenced => Self::Fenced,
            LeaseError::Conflict => Self::Conflict(error.to_string()),
            LeaseError::Full => Self::Refused(error.to_string()),
            LeaseError::Unavailable(error) => Self::Unavailable(error),
            error => Self::unavailable(&error.to_string()),
        }
    }
}

impl From<AdoptError> for LinkError {
    fn from(error: AdoptError) -> Self {
        match error {
            AdoptError::Unavailable(error) => Self::Unavailable(error),
            full => Self::Refused(full.to_string()),
        }
    }
}

impl From<AskError> for LinkError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Fenced => Self::Fenced,
            AskError::Conflict(_) => Self::Conflict(error.to_string()),
            AskError::Busy => Self::Busy,
            AskError::Unavailable(error) => Self::Unavailable(error),
            error => Self::unavailable(&error.to_string()),
        }
    }
}

impl From<LinkError> for AppendError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Fenced => Self::Fenced,
            LinkError::Refused(why) | LinkError::Conflict(why) => Self::Refused(why),
            LinkError::Unauthorized(_) => Self::Refused(error.to_string()),
            LinkError::Busy | LinkError::Unavailable(_) => Self::Unavailable,
        }
    }
}
