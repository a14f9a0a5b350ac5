//! An answer to an approval: the approval stands on the channel that the answer names, or is found by its id; the
//! grant is asked about its channel, and the answer is given once.
//!
//! The first answer wins on all replicas; later ones are told who was first.

use journal::{Asks, Resolved, Status};
use protocol::frame::{Answer, Refusal, Resolution};
use protocol::{Channel, ErrorCode};

use super::{Accepted, Commands, patiently, unavailable};
use crate::auth::Principal;

impl Commands {
    /// Answers an approval.
    pub(crate) async fn answer(
        &self,
        principal: &Principal,
        answer: &Answer,
    ) -> Result<Accepted, Refusal> {
        patiently(Box::pin(self.resolve(principal, answer))).await
    }

    async fn resolve(&self, principal: &Principal, answer: &Answer) -> Result<Accepted, Refusal> {
        let request_id = &answer.request_id;
        let channel = self.asked_on(principal, answer).await?;
        let asks = answer.asks;
        let given = journal::ApprovalAnswer {
            allowed: answer.allowed,
            always: answer.always,
            reason: answer.reason.as_deref().map(Into::into),
            by: principal.user.clone(),
            // The journal's clock says when.
            at: 0,
            timed_out: false,
            command_id: answer.command_id.to_string().into(),
        };
        let resolved = self
            .journal
            .resolve(&channel, request_id, asks, &given, answer.digest.as_deref())
            .await
            .map_err(unavailable)?;
        match resolved {
            Resolved::Yours => {}
            Resolved::Already(first) => return Err(came_late(asks, first)),
            Resolved::OtherDigest => {
                let message = format!("the digest is not that of what `{request_id}` asks");
                return Err(Refusal::new(ErrorCode::DigestMismatch, message));
            }
            Resolved::OtherKind => {
                let message = match asks {
                    Asks::Permission => "it asks for a budget: `budget_continue` or `budget_stop`",
                    Asks::Budget => "it asks for a permission: `permission_response`",
                };
                let message = format!("`{request_id}` takes another answer: {message}");
                return Err(Refusal::new(ErrorCode::BadRequest, message));
            }
            Resolved::Conflict => {
                let part = match asks {
                    Asks::Permission => "`allowed` or `alwaysAllow`",
                    Asks::Budget => "`type`",
                };
                let message =
                    format!("this `command_id` was used for an answer with another {part}");
                return Err(Refusal::new(ErrorCode::Conflict, message));
            }
            Resolved::Withdrawn(at) => return Err(withdrawn(at)),
            Resolved::Unknown => return Err(unknown(request_id)),
        }
        // The answer counts, whether an agent receives it now or not.
        let listeners = self.journal.listeners(&channel).await.unwrap_or(0);
        let command_id = answer.command_id;
        let journal::ApprovalAnswer { allowed, by, .. } = &given;
        tracing::info!(%channel, request_id, allowed, by, listeners, "an approval was answered");
        let (status, is_queued) = (Status::Applied, listeners == 0);
        let (is_known, reached) = (true, None);
        Ok(Accepted { command_id, status, detail: None, listeners, is_queued, is_known, reached })
    }
}

impl Commands {
    /// Of several approvals of one id, the one that this sender may answer.
    async fn asked_on(&self, principal: &Principal, answer: &Answer) -> Result<Channel, Refusal> {
        let request_id = &answer.request_id;
        let found = match &answer.channel {
            Some(channel) => vec![channel.clone()],
            None => self.journal.find_approval(request_id).await.map_err(unavailable)?,
        };
        let mut found = found.into_iter().filter(|channel| principal.grant.may_command(channel));
        match (found.next(), found.next()) {
            (Some(channel), None) => Ok(channel),
            (None, _) if answer.channel.is_none() => {
                let what = format_args!(
                    "approval `{request_id}`, whose `channel` or `sessionId` was not given,"
                );
                Err(Refusal::not_found(what))
            }
            (None, _) => Err(unknown(request_id)),
            (Some(_), Some(_)) => {
                let message = format!(
                    "several questions have the id `{request_id}`: name the `channel` or the `sessionId`"
                );
                Err(Refusal::new(ErrorCode::Ambiguous, message))
            }
        }
    }
}

fn unknown(request_id: &str) -> Refusal {
    Refusal::not_found(format_args!("approval `{request_id}`"))
}

fn withdrawn(at: u64) -> Refusal {
    let message = "the question was withdrawn: nobody waits for an answer";
    let resolution = Some(Resolution { by: None, at, decision: "withdrawn" });
    Refusal { resolution, ..Refusal::new(ErrorCode::AlreadyResolved, message) }
}

fn came_late(asks: Asks, first: journal::ApprovalAnswer) -> Refusal {
    let decision = match (asks, first.allowed) {
        (Asks::Permission, true) => "allowed",
        (Asks::Permission, false) => "denied",
        (Asks::Budget, true) => "continue",
        (Asks::Budget, false) => "stop",
    };
    let (code, message) = match &first.by {
        _ if first.timed_out => (ErrorCode::Expired, "nobody answered in time".to_owned()),
        Some(by) => (ErrorCode::AlreadyResolved, format!("`{by}` answered first")),
        None => (ErrorCode::AlreadyResolved, "somebody answered first".to_owned()),
    };
    let resolution = Some(Resolution { by: first.by, at: first.at, decision });
    Refusal { resolution, ..Refusal::new(code, message) }
}
