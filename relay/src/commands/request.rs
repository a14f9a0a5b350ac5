//! A request: a command whose reply is waited for, up to a deadline. It always ends in one [`Reply`].
//!
//! The reply stands in the journal. So it is the same for everyone who asks again with the same `command_id`,
//! through any replica, and dropping the wait changes nothing.

use std::time::Duration;

use journal::{CommandOutcome, Growth, Kept, NewCommand, SendError, Sent, Status, WaitingClass};
use protocol::frame::{ErrorBody, Outcome, Refusal, RelayFrame, Request};
use protocol::{Channel, ErrorCode, Kind, Object};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use super::replies::{Heard, ReplyWaiter};
use super::{Commands, PATIENCE, check_as_stamped, not_found, not_sent, raw, unavailable};
use crate::auth::Principal;

/// What a request's entry is called; what is wanted stands in its data.
const NAME: &str = "request";
/// The pace of reading when no notification arrived.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What the deadline's own step may take.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(1);

/// What counts for a reply that its asker does not wait for.
const UNSEEN_REPLY_BYTES: usize = 16 * 1024;

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) command_id: Uuid,
    pub(crate) outcome: Result<Box<RawValue>, Failure>,
}

/// Why the request failed: the relay's reason, or the worker's.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Box<str>,
    pub(crate) message: Box<str>,
    pub(crate) retryable: bool,
    retry_after: Option<Duration>,
}

impl Reply {
    /// The reply as a frame that answers `id`.
    pub(crate) fn frame<'a>(&'a self, id: Option<&'a RawValue>) -> RelayFrame<'a> {
        let outcome = match &self.outcome {
            Ok(result) => Outcome::Result(result),
            Err(failure) => Outcome::Error(failure.body()),
        };
        RelayFrame::Response { id, command_id: self.command_id, outcome }
    }
}

impl Failure {
    fn new(code: ErrorCode, message: impl Into<Box<str>>) -> Self {
        let (code, retryable) = (code.as_str().into(), code.is_retryable());
        Self { code, message: message.into(), retryable, retry_after: None }
    }

    pub(crate) fn body(&self) -> ErrorBody<'_> {
        let Self { code, message, retryable, retry_after } = self;
        let retry_after_ms = retry_after.map(|wait| wait.as_millis() as u64);
        ErrorBody { code, message, retryable: *retryable, resolution: None, retry_after_ms }
    }

    /// The status by HTTP. A worker's own code is one that we do not know.
    pub(crate) fn http_status(&self) -> u16 {
        let known = ErrorCode::ALL.iter().find(|code| code.as_str() == &*self.code);
        known.unwrap_or(&ErrorCode::Rejected).http_status()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { retry_after: refusal.retry_after, ..Self::new(refusal.code, refusal.message) }
    }
}

impl Commands {
    /// Carries the request to the worker that serves it, and waits for the reply. How far it has come meanwhile goes to
    /// `on_progress`.
    pub(crate) async fn request(
        &self,
        principal: &Principal,
        request: &Request,
        on_progress: impl Fn(&RawValue),
    ) -> Reply {
        let outcome = self.reply_to(principal, request, on_progress).await;
        Reply { command_id: request.command_id, outcome }
    }

    async fn reply_to(
        &self,
        principal: &Principal,
        request: &Request,
        on_progress: impl Fn(&RawValue),
    ) -> Result<Box<RawValue>, Failure> {
        let Request { channel, method, params, timeout, command_id } = request;
        let deadline = Instant::now() + *timeout;
        let is_service = channel.kind() == Kind::Service;
        let grant = &principal.grant;
        if !grant.may_request(method) || !(is_service || grant.may_command(channel)) {
            return Err(not_found(channel).into());
        }
        if channel.kind() == Kind::Global {
            let message = format!(
                "`{channel}` has no worker and no agent: ask a service, an agent or a session"
            );
            return Err(Failure::new(ErrorCode::BadRequest, message));
        }
        let data = format!("{{\"method\":\"{method}\",\"params\":{params}}}");
        check_as_stamped(&data, principal.user.as_deref())?;
        let new = NewCommand {
            channel: channel.clone(),
            name: NAME.into(),
            data: data.into(),
            command_id: *command_id,
            by: principal.user.clone(),
            sender: principal.sender.clone(),
            class: WaitingClass::Ordinary,
            expires_in: *timeout,
            may_wait: false,
            answer_to: Some(self.replies.address().into()),
        };
        let waiter = self.replies.wait_for(new.key());
        // Boxed, like all that a request which only waits has no use for.
        let sending = Box::pin(self.journal.send(&new));
        let sent = tokio::time::timeout(PATIENCE.min(*timeout), sending).await;
        let sent = sent.map_err(|_| unavailable("redis does not answer"))?;
        let Sent { key, outcome, .. } = sent.map_err(|error| refuse(&error, channel, method))?;
        tracing::debug!(%channel, %command_id, method, "a request is under way");
        let mut reply = KeptReply::of(self.journal.growth(), &principal.sender, &outcome);
        let outcome = self.wait(channel, key, outcome, &waiter, deadline, on_progress).await;
        reply.is(outcome.as_ref());
        outcome.map_or_else(|| Err(too_late(*timeout)), |outcome| read(outcome, *timeout))
    }

    /// The final outcome; `None` if it did not come in time.
    async fn wait(
        &self,
        channel: &Channel,
        key: Uuid,
        mut outcome: CommandOutcome,
        waiter: &ReplyWaiter,
        deadline: Instant,
        on_progress: impl Fn(&RawValue),
    ) -> Option<CommandOutcome> {
        let mut look_at = deadline.min(Instant::now() + LOOK_EVERY);
        while !outcome.status.is_final() {
            let heard = tokio::time::timeout_at(look_at, waiter.heard()).await;
            if let Ok(Heard::Progress(data)) = heard {
                if let Some(data) = raw(data) {
                    on_progress(&data);
                }
                if Instant::now() < look_at {
                    continue;
                }
            }
            look_at = deadline.min(Instant::now() + LOOK_EVERY);
            let looked = if Instant::now() >= deadline {
                let gave_up = Box::pin(self.journal.give_up(channel, key));
                let gave_up = tokio::time::timeout(GIVE_UP_WITHIN, gave_up).await;
                return gave_up.ok()?.ok();
            } else {
                tokio::time::timeout_at(deadline, Box::pin(self.journal.outcome(channel, key)))
                    .await
            };
            // Redis away, or come back without it: the deadline ends the waiting.
            if let Ok(Ok(Some(now))) = looked {
                outcome = now;
            }
        }
        Some(outcome)
    }
}

/// A reply is kept for ten minutes, and the asker's pace counts it once: when it comes, or when the asker hangs up.
struct KeptReply<'a> {
    growth: &'a Growth,
    sender: &'a str,
    bytes: usize,
}

impl<'a> KeptReply<'a> {
    /// `before`: where the request stands. What was asked before has been counted.
    fn of(growth: &'a Growth, sender: &'a str, before: &CommandOutcome) -> Self {
        let bytes = if before.status.is_final() { 0 } else { UNSEEN_REPLY_BYTES };
        Self { growth, sender, bytes }
    }

    fn is(&mut self, outcome: Option<&CommandOutcome>) {
        let detail = outcome.and_then(|outcome| outcome.detail.as_ref());
        self.bytes = if self.bytes == 0 { 0 } else { detail.map_or(0, |detail| detail.len()) };
    }
}

impl Drop for KeptReply<'_> {
    fn drop(&mut self) {
        self.growth.charge(self.sender, Kept::Briefly { is_cancel: false }, self.bytes);
    }
}

fn refuse(error: &SendError, channel: &Channel, method: &str) -> Failure {
    match error {
        SendError::NoAgent if channel.kind() == Kind::Service => {
            Failure::new(ErrorCode::NoWorker, format!("no worker serves `{method}` at `{channel}`"))
        }
        SendError::Unavailable(error) => unavailable(error).into(),
        _ => not_sent(error, channel).into(),
    }
}

fn too_late(timeout: Duration) -> Failure {
    let message = format!("no reply came within {} ms", timeout.as_millis());
    Failure::new(ErrorCode::Timeout, message)
}

/// What the final outcome means to the one who asked.
fn read(outcome: CommandOutcome, timeout: Duration) -> Result<Box<RawValue>, Failure> {
    #[derive(Deserialize)]
    struct Theirs {
        code: Box<str>,
        message: Box<str>,
        retryable: Option<bool>,
    }
    let detail = outcome.detail.as_deref().unwrap_or("null");
    match outcome.status {
        Status::Applied => raw(detail.into())
            .ok_or_else(|| Failure::new(ErrorCode::Unavailable, "the reply cannot be read")),
        Status::Rejected => {
            let theirs = serde_json::from_str(detail);
            if let Ok(Object(Theirs { code, message, retryable })) = theirs {
                let retryable = retryable.unwrap_or(false);
                return Err(Failure { code, message, retryable, retry_after: None });
            }
            Err(match serde_json::from_str::<Box<str>>(detail).as_deref() {
                Ok("lost") => {
                    Failure::new(ErrorCode::WorkerLost, "the worker that had begun it was lost")
                }
                Ok(why) => Failure::new(ErrorCode::Rejected, why),
                Err(_) => Failure::new(ErrorCode::Rejected, "it was rejected without a reason"),
            })
        }
        Status::Accepted | Status::Delivered | Status::Expired => Err(too_late(timeout)),
    }
}
