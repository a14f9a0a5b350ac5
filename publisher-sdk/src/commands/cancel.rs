//! A Cancel: it does not wait in any queue.
//!
//! [`inbox`](super::inbox) → **cancel** → [`Runs`](crate::run)

use std::sync::Arc;

use journal::Take;
use serde::Deserialize;

use super::Command;
use super::consumer::Consumer;
use super::inbox::Inbox;
use super::report::Report;
use crate::reason::Cancellation;
use crate::runs::{EARLY_LASTS, Hit};

/// The arguments of `cancel_agent`.
#[derive(Default, Deserialize)]
struct Cancel {
    #[serde(alias = "runId")]
    run_id: Option<String>,
    reason: Option<String>,
}

impl Inbox {
    /// Takes a Cancel, applies it, and reports what came of it.
    pub(super) fn cancel(self: &Arc<Self>, consumer: &Arc<Consumer>, command: journal::Command) {
        let is_old = consumer.is_old(command.offset);
        let Some(key) = command.key else {
            return self.cancel_now(command, is_old, Report::none());
        };
        let Some(membership) = consumer.admit_urgent(key).then(|| self.hold(consumer)).flatten()
        else {
            return;
        };
        let (inbox, consumer) = (Arc::clone(self), Arc::clone(consumer));
        self.in_background(async move {
            match inbox.take(&consumer, &command, key, false).await {
                Some(Take::Yours) => {
                    let report = Report::owed(membership, key, command.is_request);
                    inbox.cancel_now(command, is_old, report);
                }
                Some(Take::Gone) => consumer.forget(key),
                Some(Take::Fenced) | None => {}
            }
        });
    }

    fn cancel_now(self: &Arc<Self>, command: journal::Command, is_old: bool, report: Report) {
        let command = Command::new(command, Report::none());
        let Ok(cancel) = command.read::<Option<Cancel>>() else {
            // Never guess: without its `run_id` it would cancel everything.
            report.rejected("`run_id` and `reason` must be strings");
            return;
        };
        let Cancel { run_id, reason } = cancel.unwrap_or_default();
        let cancellation = Cancellation::by_user(command.by.clone(), reason);
        match run_id {
            None if is_old => report.rejected("it was sent before the agent was there"),
            run_id => match self.runs.cancel(&command.channel, run_id.as_deref(), &cancellation) {
                Hit::Cancelled => report.applied(),
                Hit::Nothing => report.rejected("nothing runs"),
                Hit::Ended => report.rejected("the run has ended"),
                Hit::TooMany => report.rejected("too many runs that have not begun are cancelled"),
                Hit::Early(begun) => {
                    let stopped = self.stopped.clone();
                    self.in_background(async move {
                        let begins = tokio::time::timeout(EARLY_LASTS, begun.cancelled());
                        match stopped.run_until_cancelled(begins).await {
                            Some(Ok(())) => report.applied(),
                            _ => report.rejected("no such run has begun"),
                        }
                    });
                }
            },
        }
        self.queue.show(command);
    }
}
