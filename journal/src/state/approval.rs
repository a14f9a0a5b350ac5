//! ▲ A question that an agent asks and waits for: pending until the first answer, or its default in time.
//!
//! The question, its place among the channel's pending approvals, the answer, and the command that tells the agent
//! each change in one step. So every joiner sees what is pending, the first answer wins on all replicas,
//! and the agent receives it, whatever dies in between.

use std::time::Duration;

use protocol::limits::APPROVALS_MAX;
use protocol::{ApprovalAnswer, Asks, Channel, Kind, Offset, Resolved};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

use super::command::Stamped;
use super::{
    Change, Condition, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Transacted,
    copy,
};
use crate::{Journal, NewEntry, Unavailable};

/// How long an answer is remembered: as long as the journal that holds the question.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(25 * 3_600);

/// A question.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// Where it is shown, and who may answer it.
    pub channel: Channel,
    /// Its id. Asked again with the same one, it is the same approval.
    pub request_id: Box<str>,
    /// What is asked for.
    pub asks: Asks,
    /// The event that shows it: a JSON object.
    pub data: Box<str>,
    /// Until when it can be answered.
    pub expires_in: Duration,
    /// What holds when nobody answers: allowed, or go on.
    pub default: bool,
    /// The digest of what is shown. An answer that names another one is refused.
    pub digest: Option<Box<str>>,
}

/// The result of an attempt to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is pending.
    Pending,
    /// It was answered before.
    Answered(ApprovalAnswer),
}

/// Why nothing was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AskError {
    /// The id is in use on another channel.
    #[error("an approval of this id stands on `{0}`")]
    Elsewhere(Channel),
    /// The agent was declared lost, or taken over by a newer incarnation.
    #[error("a newer incarnation of the agent has taken over, or this one was declared lost")]
    Fenced,
    /// Too many wait for answers on the channel.
    #[error("{APPROVALS_MAX} approvals wait for answers on this channel already")]
    Busy,
    /// The journal could not be reached; asking again is harmless.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// An approval that waits for an answer, as joiners see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub request_id: Box<str>,
    /// `{"event", "request_id", "data", "expires_at"}`, JSON.
    pub question: Box<str>,
}

/// An approval's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ApprovalState {
    asks: Asks,
    agent_id: Box<str>,
    default: bool,
    /// Until when it can be answered, Unix milliseconds.
    expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<ApprovalAnswer>,
}

/// The event that shows the question.
fn question_event(asks: Asks) -> &'static str {
    match asks {
        Asks::Permission => "permission_request",
        Asks::Budget => "budget_exhausted",
    }
}

/// The command that carries the answer to the agent, and the event that tells everybody else.
fn answer_names(asks: Asks, answer: &ApprovalAnswer) -> (&'static str, &'static str) {
    match (asks, answer.allowed, answer.timed_out) {
        (Asks::Permission, _, false) => ("permission_response", "permission_resolved"),
        (Asks::Permission, _, true) => ("permission_response", "permission_timeout"),
        (Asks::Budget, true, _) => ("budget_continue", "budget_resolved"),
        (Asks::Budget, false, _) => ("budget_stop", "budget_resolved"),
    }
}

fn record(channel: &Channel, request_id: &str) -> Record {
    Record { kind: RecordKind::Approval, channel: channel.clone(), id: request_id.into() }
}

impl Journal {
    /// Asks: publishes the question and enters it among the channel's pending approvals, in one step. Asked
    /// again, by a successor too, it gets the standing approval or its answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, holder: &Holder, new: &NewApproval) -> Result<Asked, AskError> {
        let lifetime = new.expires_in + REMEMBERED;
        let place = self.place_approval(&new.request_id, &new.channel, lifetime).await?;
        if place != new.channel {
            return Err(AskError::Elsewhere(place));
        }
        let record = record(&new.channel, &new.request_id);
        let rule = |found, now_ms| asked(found, now_ms, holder, new);
        match self.transact(&record, rule).await? {
            Transacted::Done(Asked::Pending) => {
                self.copy_at_once(&new.channel, new.asks, &new.request_id, &new.event()).await;
                Ok(Asked::Pending)
            }
            Transacted::Done(answered) => Ok(answered),
            Transacted::Fenced => Err(AskError::Fenced),
            Transacted::Unmet => Err(AskError::Busy),
        }
    }

    /// On which channel the approval stands: an answer needs no address.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn find_approval(&self, request_id: &str) -> Result<Option<Channel>, Unavailable> {
        self.approval_place(request_id).await
    }

    /// Answers an approval: the first answer wins, on any replica.
    ///
    /// # Errors
    /// [`Unavailable`]; answering again with the same `command_id` tells whether it was the first.
    pub async fn resolve(
        &self,
        channel: &Channel,
        request_id: &str,
        asks: Asks,
        answer: &ApprovalAnswer,
        digest: Option<&str>,
    ) -> Result<Resolved, Unavailable> {
        let record = record(channel, request_id);
        let rule = |found, now_ms| resolved(found, now_ms, &record, asks, answer, digest);
        let Some((resolved, told)) = self.transact(&record, rule).await?.done() else {
            return Ok(Resolved::Unknown);
        };
        if let Some(answer) = told {
            self.copy_at_once(channel, asks, request_id, &answer_event(asks, request_id, &answer))
                .await;
        }
        Ok(resolved)
    }

    /// What waits for an answer on `channel`, and the newest event at that moment.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn pending(
        &self,
        channel: &Channel,
    ) -> Result<(Option<Offset>, Vec<Pending>), Unavailable> {
        let (head, approvals) = self.approvals(channel).await?;
        let pending = approvals.into_iter();
        let pending =
            pending.map(|(request_id, question)| Pending { request_id, question }).collect();
        Ok((head, pending))
    }

    /// Deadline: nobody answered in time.
    pub(super) async fn time_out(&self, record: &Record) -> Result<(), Unavailable> {
        match self.transact(record, |found, now_ms| timed_out(found, now_ms, record)).await?.done()
        {
            Some(Timeout::Now(asks, answer)) => {
                let event = answer_event(asks, &record.id, &answer);
                self.copy_at_once(&record.channel, asks, &record.id, &event).await;
                Ok(())
            }
            Some(Timeout::Forgotten) => Ok(()),
            Some(Timeout::No) | None => self.forget_deadline(record, Deadline::TimeOut).await,
        }
    }

    async fn copy_at_once(
        &self,
        channel: &Channel,
        asks: Asks,
        request_id: &str,
        event: &NewEntry,
    ) {
        if let Some(record) = copy_of(channel, asks, request_id, event) {
            copy::at_once(&record, self.copy(&record)).await;
        }
    }
}

/// What an agent's budget does is of interest to those who watch all agents.
fn copy_of(channel: &Channel, asks: Asks, request_id: &str, event: &NewEntry) -> Option<Record> {
    let is_copied = asks == Asks::Budget && channel.kind() == Kind::Agent;
    let key =
        || Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {request_id}", event.name).as_bytes());
    is_copied.then(|| copy::record(channel, &key().to_string()))
}

/// The step that tells it owes the copy.
fn owed(channel: &Channel, asks: Asks, request_id: &str, event: &NewEntry) -> Vec<Effect> {
    let copy = copy_of(channel, asks, request_id, event);
    copy.map_or_else(Vec::new, |record| copy::owed(&record, event))
}

fn answer_event(asks: Asks, request_id: &str, answer: &ApprovalAnswer) -> NewEntry {
    let (_, event) = answer_names(asks, answer);
    NewEntry::new(event, told(asks, request_id, answer))
}

fn question(new: &NewApproval, expires_at: u64) -> String {
    #[derive(Serialize)]
    struct Question<'a> {
        event: &'a str,
        request_id: &'a str,
        data: &'a RawValue,
        expires_at: u64,
    }
    let data: &RawValue = serde_json::from_str(&new.data).unwrap_or(RawValue::NULL);
    let (event, request_id) = (question_event(new.asks), &*new.request_id);
    serde_json::to_string(&Question { event, request_id, data, expires_at }).expect("plain data")
}

/// The event that tells everybody, in the words that its first users already have.
fn told(asks: Asks, request_id: &str, answer: &ApprovalAnswer) -> String {
    let told = match asks {
        Asks::Permission => serde_json::json!({
            "requestId": request_id,
            "allowed": answer.allowed,
            "alwaysAllow": answer.always,
            "by": answer.by,
            "reason": answer.reason,
        }),
        Asks::Budget => serde_json::json!({
            "request_id": request_id,
            "decision": if answer.allowed { "continue" } else { "stop" },
            "by": answer.by,
            "reason": answer.reason,
            "timed_out": answer.timed_out,
        }),
    };
    told.to_string()
}

/// The first call shows the question; a repeated call finds the same approval.
fn asked(
    found: Option<ApprovalState>,
    now_ms: u64,
    holder: &Holder,
    new: &NewApproval,
) -> Decision<Asked> {
    if let Some(state) = found {
        return Decision::Keep(state.answer.map_or(Asked::Pending, Asked::Answered));
    }
    let state = ApprovalState {
        asks: new.asks,
        agent_id: holder.agent.clone(),
        default: new.default,
        expires_at: now_ms + new.expires_in.as_millis() as u64,
        digest: new.digest.clone(),
        answer: None,
    };
    let mut change = Change::new(&state);
    change.lifetime = Some(new.expires_in + REMEMBERED);
    change.holder = Some(holder.clone());
    change.condition = Condition::Room(Index::Approvals, APPROVALS_MAX as u64);
    let shown = question(new, state.expires_at);
    change.effects = vec![
        Effect::Event(new.event()),
        Effect::Put(Index::Approvals, new.request_id.clone(), shown.into()),
        Effect::Due(Deadline::TimeOut, Some(new.expires_in)),
    ];
    change.effects.extend(owed(&new.channel, new.asks, &new.request_id, &new.event()));
    Decision::Set(change, Asked::Pending)
}

/// The first answer that fits holds; after its time it is the default. With what everybody is told now.
fn resolved(
    found: Option<ApprovalState>,
    now_ms: u64,
    record: &Record,
    asks: Asks,
    answer: &ApprovalAnswer,
    digest: Option<&str>,
) -> Decision<(Resolved, Option<ApprovalAnswer>)> {
    let Some(mut state) = found else { return Decision::Keep((Resolved::Unknown, None)) };
    if let Some(before) = state.answer.take() {
        let is_same = before.command_id == answer.command_id && before.by == answer.by;
        let resolved = if is_same { Resolved::Yours } else { Resolved::Already(before) };
        return Decision::Keep((resolved, None));
    }
    if state.asks != asks {
        return Decision::Keep((Resolved::OtherKind, None));
    }
    if now_ms >= state.expires_at {
        let default = state.default(record, now_ms);
        let change = answered(record, state, &default);
        return Decision::Set(change, (Resolved::Already(default.clone()), Some(default)));
    }
    if digest.is_some() && state.digest.as_deref() != digest {
        return Decision::Keep((Resolved::OtherDigest, None));
    }
    let change = answered(record, state, answer);
    Decision::Set(change, (Resolved::Yours, Some(answer.clone())))
}

/// What becomes of an approval's deadline.
enum Timeout {
    Now(Asks, ApprovalAnswer),
    Forgotten,
    No,
}

fn timed_out(found: Option<ApprovalState>, now_ms: u64, record: &Record) -> Decision<Timeout> {
    match found {
        None => {
            let change = Change::forgotten(record, Deadline::TimeOut, Index::Approvals);
            Decision::Set(change, Timeout::Forgotten)
        }
        Some(state) if state.answer.is_none() && now_ms >= state.expires_at => {
            let (asks, default) = (state.asks, state.default(record, now_ms));
            Decision::Set(answered(record, state, &default), Timeout::Now(asks, default))
        }
        Some(_) => Decision::Keep(Timeout::No),
    }
}

impl NewApproval {
    fn event(&self) -> NewEntry {
        NewEntry::new(question_event(self.asks), self.data.clone())
    }
}

impl ApprovalState {
    /// What holds where nobody answers in time.
    fn default(&self, record: &Record, now_ms: u64) -> ApprovalAnswer {
        ApprovalAnswer {
            allowed: self.default,
            always: false,
            reason: Some("nobody answered in time".into()),
            by: None,
            at: now_ms,
            timed_out: true,
            command_id: format!("timeout-{}", record.id).into(),
        }
    }
}

fn answered(record: &Record, mut state: ApprovalState, answer: &ApprovalAnswer) -> Change {
    let asks = state.asks;
    let (command, _) = answer_names(asks, answer);
    let event = answer_event(asks, &record.id, answer);
    let owed = owed(&record.channel, asks, &record.id, &event);
    state.answer = Some(answer.clone());
    let data = serde_json::json!({
        "request_id": &*record.id,
        "agent_id": state.agent_id,
        "answer": answer,
    });
    let data = serde_json::value::to_raw_value(&data).expect("plain data");
    let stamped = Stamped {
        command_id: answer.command_id.to_string(),
        // Nobody takes it: it tells of a state.
        key: None,
        by: answer.by.as_deref().map(ToOwned::to_owned),
        request: false,
        expires_at: None,
        data: Some(&data),
    };
    let stamped = serde_json::to_string(&stamped).expect("plain data");
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![
        Effect::Event(event),
        Effect::Remove(Index::Approvals, record.id.clone()),
        Effect::Due(Deadline::TimeOut, None),
        Effect::Command(NewEntry::new(command, stamped)),
    ];
    change.effects.extend(owed);
    change
}

#[cfg(test)]
mod tests;
