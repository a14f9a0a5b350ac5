//! Why a run was cancelled, with the names used on the wire.

use protocol::limits::REASON_CHARS_MAX;
use serde::Serialize;
use serde_json::{Map, Value};

/// Why a run ended before it was done: `reason` in its terminal event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// A person cancelled it.
    User,
    /// Its budget was spent, and nobody let it go on.
    Budget,
    /// It took too long.
    Timeout,
    /// The agent was declared lost, or a newer one of its id has taken over.
    Lost,
    /// The agent's token does not reach to its channel any more.
    Revoked,
    /// The agent ends, or stopped of its own will.
    Shutdown,
}

impl Reason {
    /// The same with words for a person.
    ///
    /// ```
    /// use publisher_sdk::Reason;
    ///
    /// let cancellation = Reason::Timeout.saying("no answer within a minute");
    /// assert_eq!(cancellation.reason, Reason::Timeout);
    /// ```
    pub fn saying(self, detail: impl Into<String>) -> Cancellation {
        Cancellation { reason: self, by: None, detail: Some(detail.into()) }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Budget => "budget",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Revoked => "revoked",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Who cancelled a run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cancellation {
    /// Why.
    pub reason: Reason,
    /// The token's subject. `None` where the relay asks for no tokens, and where no person
    /// cancelled.
    pub by: Option<String>,
    /// What they wrote.
    pub detail: Option<String>,
}

impl From<Reason> for Cancellation {
    fn from(reason: Reason) -> Self {
        Self { reason, by: None, detail: None }
    }
}

/// Words for a person as they fit into an event: cut after 4,096 characters.
pub(crate) fn within_bounds(words: &str) -> &str {
    words.char_indices().nth(REASON_CHARS_MAX).map_or(words, |(end, _)| &words[..end])
}

impl Cancellation {
    /// As a person's command says it.
    pub(crate) fn by_user(by: Option<String>, detail: Option<String>) -> Self {
        Self { reason: Reason::User, by, detail }
    }

    /// `{reason, by?, detail?}`, for the terminal event.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let reason = ("reason".to_owned(), self.reason.as_str().into());
        let by = self.by.as_deref().map(|by| ("by".to_owned(), by.into()));
        let detail = self.detail.as_deref().map(within_bounds);
        let detail = detail.map(|detail| ("detail".to_owned(), detail.into()));
        [reason].into_iter().chain(by).chain(detail).collect()
    }
}
