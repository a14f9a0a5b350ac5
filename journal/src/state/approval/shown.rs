//! What people are shown of an approval: the question, and what came of it. Pure.
//!
//! [`approval`](super) → **shown**. The question stands in an event and among what is pending, with its id and its
//! end, which are added here; what came of it stands in an event, and in the command that tells the agent.

use protocol::{ApprovalAnswer, Asks};
use serde::Serialize;
use serde_json::value::RawValue;

use super::NewApproval;
use crate::NewEntry;

/// The event that shows the question.
fn question_event(asks: Asks) -> &'static str {
    match asks {
        Asks::Permission => "permission_request",
        Asks::Budget => "budget_exhausted",
    }
}

/// The command that carries the answer to the agent.
pub(super) fn command(asks: Asks, answer: &ApprovalAnswer) -> &'static str {
    match (asks, answer.allowed) {
        (Asks::Permission, _) => "permission_response",
        (Asks::Budget, true) => "budget_continue",
        (Asks::Budget, false) => "budget_stop",
    }
}

impl NewApproval {
    /// The event that shows it. Its id and its end come last: they win over fields of the same name.
    pub(super) fn event(&self, expires_at: u64) -> NewEntry {
        let id = serde_json::to_string(&*self.request_id).expect("a text serialises");
        let data = match self.asks {
            Asks::Permission => {
                let request = with(&self.question, &format!("\"requestId\":{id}"));
                format!("{{\"request\":{request},\"expires_at\":{expires_at}}}")
            }
            Asks::Budget => {
                with(&self.question, &format!("\"request_id\":{id},\"expires_at\":{expires_at}"))
            }
        };
        NewEntry::new(question_event(self.asks), data)
    }

    /// How it stands among what is pending, `event` showing it.
    pub(super) fn pending(&self, event: &NewEntry, expires_at: u64) -> String {
        #[derive(Serialize)]
        struct Question<'a> {
            event: &'a str,
            request_id: &'a str,
            data: &'a RawValue,
            expires_at: u64,
        }
        let data: &RawValue = serde_json::from_str(&event.data).unwrap_or(RawValue::NULL);
        let (event, request_id) = (&*event.name, &*self.request_id);
        serde_json::to_string(&Question { event, request_id, data, expires_at })
            .expect("plain data")
    }
}

/// The JSON object with more fields at its end.
fn with(object: &str, fields: &str) -> String {
    let start = object.trim().strip_suffix('}').unwrap_or("{").trim_end();
    let comma = if start.ends_with('{') { "" } else { "," };
    format!("{start}{comma}{fields}}}")
}

/// The event that tells everybody what came of it, in the words that its first users already have.
pub(super) fn answer_event(asks: Asks, request_id: &str, answer: &ApprovalAnswer) -> NewEntry {
    let ApprovalAnswer { allowed, always, reason, by, timed_out, .. } = answer;
    let reason = reason.as_deref();
    match asks {
        Asks::Permission => {
            let event = if *timed_out { "permission_timeout" } else { "permission_resolved" };
            permission_ended(event, request_id, *allowed, *always, by.as_deref(), reason)
        }
        Asks::Budget => budget_ended(request_id, *allowed, by.as_deref(), reason, *timed_out),
    }
}

/// The same where nobody waits for an answer any more.
pub(super) fn withdrawn_event(asks: Asks, request_id: &str) -> NewEntry {
    let reason = Some("withdrawn");
    match asks {
        Asks::Permission => {
            permission_ended("permission_resolved", request_id, false, false, None, reason)
        }
        Asks::Budget => budget_ended(request_id, false, None, reason, false),
    }
}

fn permission_ended(
    event: &str,
    request_id: &str,
    allowed: bool,
    always: bool,
    by: Option<&str>,
    reason: Option<&str>,
) -> NewEntry {
    let data = serde_json::json!({
        "requestId": request_id,
        "allowed": allowed,
        "alwaysAllow": always,
        "by": by,
        "reason": reason,
    });
    NewEntry::new(event, data.to_string())
}

fn budget_ended(
    request_id: &str,
    goes_on: bool,
    by: Option<&str>,
    reason: Option<&str>,
    timed_out: bool,
) -> NewEntry {
    let data = serde_json::json!({
        "request_id": request_id,
        "decision": if goes_on { "continue" } else { "stop" },
        "by": by,
        "reason": reason,
        "timed_out": timed_out,
    });
    NewEntry::new("budget_resolved", data.to_string())
}
