//! Why a call came to nothing, in the words of those who called.

use protocol::{AgentHears, Channel};

use crate::{AppendError, LeaseError, Unavailable};

/// Why a call came to nothing.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    Fenced,
    Elsewhere(Channel),
    Busy,
    Not(String),
    Away(String),
}

impl Refused {
    pub(super) fn away(why: &str) -> Self {
        Self::Away(why.to_owned())
    }

    pub(super) fn of(hears: &AgentHears) -> Self {
        let message = hears.message.clone().unwrap_or_default();
        match (hears.code.as_deref(), &hears.channel) {
            (Some("fenced"), _) => Self::Fenced,
            (Some("elsewhere"), Some(channel)) => Self::Elsewhere(channel.clone()),
            (Some("busy"), _) => Self::Busy,
            _ if hears.retryable == Some(true) => Self::Away(message),
            _ => Self::Not(message),
        }
    }
}

impl From<Refused> for Unavailable {
    fn from(refused: Refused) -> Self {
        Self(match refused {
            Refused::Fenced => "the agent was declared lost".to_owned(),
            Refused::Elsewhere(channel) => format!("it stands on {channel}"),
            Refused::Busy => "too much waits already".to_owned(),
            Refused::Not(why) | Refused::Away(why) => why,
        })
    }
}

impl From<Refused> for LeaseError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Fenced => Self::Fenced,
            Refused::Not(why) => Self::Refused(why),
            refused => Self::Unavailable(refused.into()),
        }
    }
}

impl From<Refused> for AppendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Fenced => Self::Fenced,
            Refused::Not(why) => Self::Refused(why),
            Refused::Elsewhere(_) | Refused::Busy | Refused::Away(_) => Self::Unavailable,
        }
    }
}
