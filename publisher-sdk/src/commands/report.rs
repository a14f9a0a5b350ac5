//! Reports what came of a command: once, whatever its owner does with it.
//!
//! [`Command`](super::Command), [`service`](crate::service) → **report** → [`journal`]

use journal::{CommandOutcome, Status};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::inbox::Membership;
use super::progress::Progress;
use crate::link::persist;
use crate::reason::within_bounds;

/// Why a request is not answered with a result.
///
/// ```
/// use publisher_sdk::RequestError;
///
/// let error = RequestError::new("quota_exceeded", "three sessions are open already").retryable();
/// assert!(error.retryable);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RequestError {
    /// A word that a program can compare, for example `bad_request`.
    pub code: String,
    /// In words for a person.
    pub message: String,
    /// Whether the same request, made again later, can succeed.
    #[serde(default)]
    pub retryable: bool,
}

impl RequestError {
    /// An error that the same request would meet again.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retryable: false }
    }

    /// The same request, made again later, can succeed.
    #[must_use]
    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }
}

/// The report that is owed for a command that was taken. Dropped, it says that nothing was done.
#[derive(Debug)]
pub(crate) struct Report(Option<Owed>);

#[derive(Debug)]
struct Owed {
    /// The channel's lease is held until the report is made: without the lease it may not be made.
    membership: Membership,
    key: Uuid,
    is_request: bool,
    progress: Progress,
}

impl Report {
    pub(super) fn owed(membership: Membership, key: Uuid, is_request: bool) -> Self {
        let progress = match is_request {
            true => Progress::of(membership.inbox(), membership.channel(), key),
            false => Progress::nobody_waits(),
        };
        Self(Some(Owed { membership, key, is_request, progress }))
    }

    /// Where the progress of the request is told.
    pub(crate) fn progress(&self) -> Progress {
        self.0.as_ref().map_or_else(Progress::nobody_waits, |owed| owed.progress.clone())
    }

    /// Nobody waits for a report.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Done.
    pub(crate) fn applied(mut self) {
        self.make(Status::Applied, |_| None);
    }

    /// Done, with a request's reply, as it is written. One that no reader takes is an error of the agent's.
    pub(crate) fn replied(mut self, result: &(impl Serialize + ?Sized)) {
        let checked = serde_json::to_string(result).map_err(|error| error.to_string());
        let checked = checked.and_then(|reply| match protocol::check_detail(&reply) {
            Ok(()) => Ok(reply),
            Err(error) => Err(format!("the reply: {error}")),
        });
        match checked {
            Ok(reply) => self.make(Status::Applied, |_| Some(reply.into())),
            Err(message) => self.refused(&RequestError::new("bad_reply", message)),
        }
    }

    /// Not done.
    pub(crate) fn rejected(mut self, why: &str) {
        self.reject(why);
    }

    /// A request, not done.
    pub(crate) fn refused(mut self, error: &RequestError) {
        self.make(Status::Rejected, |is_request| {
            let (code, message) = (within_bounds(&error.code), within_bounds(&error.message));
            Some(if is_request {
                let retryable = error.retryable;
                json(&RequestError {
                    code: code.to_owned(),
                    message: message.to_owned(),
                    retryable,
                })
            } else {
                json(message)
            })
        });
    }

    fn reject(&mut self, why: &str) {
        let why = within_bounds(why);
        self.make(Status::Rejected, |is_request| {
            Some(if is_request { json(&RequestError::new("rejected", why)) } else { json(why) })
        });
    }

    /// Made in the background, however long Redis is away; closing the agent waits for it.
    fn make(&mut self, status: Status, detail: impl FnOnce(bool) -> Option<Box<str>>) {
        let Some(Owed { membership, key, is_request, .. }) = self.0.take() else { return };
        let outcome = CommandOutcome { status, detail: detail(is_request) };
        let inbox = std::sync::Arc::clone(membership.inbox());
        let making = async move {
            let (inbox, channel) = (membership.inbox(), membership.channel());
            let holder = inbox.leases.holder();
            match persist(|| inbox.link.finish(channel, key, holder, &outcome)).await {
                Ok(true) => {}
                Ok(false) => tracing::debug!(%channel, %key, "a report came too late"),
                Err(error) => tracing::warn!(%channel, %key, %error, "a report is refused"),
            }
            membership.forget(key);
        };
        let fenced = inbox.leases.fenced().clone();
        inbox.in_background(async move {
            // The process that declared the agent lost has answered.
            fenced.run_until_cancelled(making).await;
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.reject(if std::thread::panicking() {
            "the agent panicked over it"
        } else {
            "the agent dropped it"
        });
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> Box<str> {
    serde_json::to_string(value).expect("plain data is JSON").into()
}
