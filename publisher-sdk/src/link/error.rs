//! Why a call on a link failed, whichever link it is.

use journal::{AppendError, AskError, LeaseError, Unavailable};
use protocol::{AgentError, Channel};
use thiserror::Error;

use crate::error::FENCED;

/// Why a call failed.
#[derive(Clone, Debug, Error)]
pub(crate) enum LinkError {
    /// The agent was declared lost, or a newer incarnation has taken over.
    #[error("{FENCED}")]
    Fenced,
    /// A question of this id stands on another channel.
    #[error("a question of this id stands on `{0}`")]
    Elsewhere(Channel),
    /// Too many questions wait already.
    #[error("too many questions wait already")]
    Busy,
    /// The relay refuses for good.
    #[error("the relay refuses: {0}")]
    Refused(String),
    /// The record could not be reached; the same call may be tried again.
    #[error(transparent)]
    Unavailable(Unavailable),
}

impl LinkError {
    pub(crate) fn unavailable(why: &str) -> Self {
        Self::Unavailable(Unavailable(why.to_owned()))
    }

    pub(super) fn of(error: &AgentError) -> Self {
        let message = error.message.clone();
        match (&*error.code, &error.channel) {
            ("fenced", _) => Self::Fenced,
            ("elsewhere", Some(channel)) => Self::Elsewhere(channel.clone()),
            ("busy", _) => Self::Busy,
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
            LeaseError::Unavailable(error) => Self::Unavailable(error),
            error => Self::unavailable(&error.to_string()),
        }
    }
}

impl From<AskError> for LinkError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Fenced => Self::Fenced,
            AskError::Elsewhere(channel) => Self::Elsewhere(channel),
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
            LinkError::Refused(why) => Self::Refused(why),
            LinkError::Elsewhere(_) | LinkError::Busy | LinkError::Unavailable(_) => {
                Self::Unavailable
            }
        }
    }
}
