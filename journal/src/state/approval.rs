//! ▲ A question that an agent asks and waits for: pending until the first answer, or its default in time.
//!
//! The question, its place among the channel's pending approvals, the answer, and the command that tells the agent
//! each change in one step. So every joiner sees what is pending, the first answer wins on all replicas,
//! and the agent receives it, whatever dies in between. An id stands for what was asked: the same again is the
//! repetition, anything else is a conflict. [`shown`]: what people see of it; [`withdraw`]: nobody waits any more;
//! [`firehose`]: what stands on `global:events` as well.

mod firehose;
mod shown;
mod withdraw;

use std::time::Duration;

use protocol::limits::{APPROVALS_MAX, APPROVALS_PER_AGENT_MAX};
use protocol::{ApprovalAnswer, Asks, Channel, Kind, Offset, Resolved};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::command::Stamped;
use super::digest::digest;
use super::{
    Change, Condition, Deadline, Decision, Effect, Holder, Index, Part, Record, RecordKind,
    Transacted,
};
use crate::{Journal, NewEntry, Unavailable};
use firehose::{UncopiedPhase, has_ended};
use shown::answer_event;

/// How long an answer is remembered: as long as the journal that holds the question.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(25 * 3_600);

/// A question.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// Where it is shown, and who may answer it.
    pub channel: Channel,
    /// Its id on the channel. It stands for all that is asked: asked again, it is the same approval.
    pub request_id: Box<str>,
    /// What is asked for.
    pub asks: Asks,
    /// What is shown, a JSON object ([`protocol::check_question`]): of a permission the event's `request`, of a
    /// budget its fields. Its id and its end are added.
    pub question: Box<str>,
    /// Until when it can be answered.
    pub expires_in: Duration,
    /// What holds when nobody answers: allowed, or go on.
    pub default: bool,
    /// The digest of what is shown. An answer that names another one is refused.
    pub digest: Option<Box<str>>,
    /// It outlives the agent that asks: asked again after a restart, it is the same.
    pub durable: bool,
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
    /// The id was used on the channel, and this part of what was asked was another.
    #[error("this `request_id` was used on this channel with another `{0}`")]
    Conflict(&'static str),
    /// The agent was declared lost, or taken over by a newer incarnation.
    #[error("a newer incarnation of the agent has taken over, or this one was declared lost")]
    Fenced,
    /// Too many wait for answers on the channel.
    #[error(
        "{APPROVALS_PER_AGENT_MAX} questions of this agent, or {APPROVALS_MAX} of all agents, wait for answers on this channel already"
    )]
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
    /// Who asks; the newest incarnation of the agent that has asked.
    #[serde(flatten)]
    asker: Holder,
    /// The digest of the question, byte for byte.
    question: Box<str>,
    default: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    durable: bool,
    /// Until when it can be answered, Unix milliseconds.
    expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<ApprovalAnswer>,
    /// When its asker gave it up, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    withdrawn_at: Option<u64>,
    /// How often it was withdrawn and asked again.
    #[serde(default)]
    round: u32,
    /// What was told and does not stand on `global:events` yet, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    uncopied: Vec<UncopiedPhase>,
}

/// How it stands among what is pending on its channel.
fn member(agent: &str, request_id: &str) -> Box<str> {
    format!("{agent} {request_id}").into()
}

/// The agent and the request id; on `global:events` the channel and the request id.
fn parts(member: &str) -> (&str, &str) {
    member.split_once(' ').unwrap_or(("", member))
}

fn record(channel: &Channel, request_id: &str) -> Record {
    Record { kind: RecordKind::Approval, channel: channel.clone(), id: request_id.into() }
}

impl Journal {
    /// Asks: publishes the question and enters it among the channel's pending approvals, in one step. The same
    /// asked again, by a successor too, gets the standing approval or its answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, holder: &Holder, new: &NewApproval) -> Result<Asked, AskError> {
        self.place_approval(&new.request_id, &new.channel, new.expires_in + REMEMBERED).await?;
        let (record, question) = (record(&new.channel, &new.request_id), digest(&new.question));
        let rule = |found, now_ms| asked(found, now_ms, holder, new, &question);
        match self.transact(&record, rule).await? {
            Transacted::Done(Ok(Asked::Pending)) => {
                self.copy_told(&record, new.asks).await;
                Ok(Asked::Pending)
            }
            Transacted::Done(Ok(answered)) => Ok(answered),
            Transacted::Done(Err(part)) => Err(AskError::Conflict(part)),
            Transacted::Fenced => Err(AskError::Fenced),
            Transacted::Unmet => Err(AskError::Busy),
        }
    }

    /// On which channels approvals of this id stand, at most [`APPROVAL_PLACES_MAX`](protocol::limits::APPROVAL_PLACES_MAX): an answer that can be
    /// for one of them only needs no address.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn find_approval(&self, request_id: &str) -> Result<Vec<Channel>, Unavailable> {
        self.approval_places(request_id).await
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
        let Some(resolved) = self.transact(&record, rule).await?.done() else {
            return Ok(Resolved::Unknown);
        };
        if matches!(resolved, Resolved::Yours | Resolved::Already(_)) {
            self.copy_told(&record, asks).await;
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
        let (head, now_ms, approvals) = self.approvals(channel).await?;
        // Elsewhere the step in which a question ends takes it away.
        let is_over =
            |question: &str| channel.kind() == Kind::Global && has_ended(question, now_ms);
        let pending = approvals.into_iter().filter(|(_, question)| !is_over(question));
        let pending = pending
            .map(|(member, question)| Pending { request_id: parts(&member).1.into(), question });
        Ok((head, pending.collect()))
    }

    /// Deadline: nobody answered in time.
    pub(super) async fn time_out(&self, record: &Record) -> Result<(), Unavailable> {
        match self.transact(record, |found, now_ms| timed_out(found, now_ms, record)).await?.done()
        {
            Some(Timeout::Now(asks)) => {
                self.copy_told(record, asks).await;
                Ok(())
            }
            Some(Timeout::Lost) => self.forget_lost(record).await,
            Some(Timeout::No) | None => self.forget_deadline(record, Deadline::TimeOut).await,
        }
    }

    /// The record is gone, and with it who asked: its place is found by its id.
    async fn forget_lost(&self, record: &Record) -> Result<(), Unavailable> {
        let pending = self.some_of(&record.channel, &Index::Approvals, APPROVALS_MAX).await?;
        let mut change = Change::removal();
        change.effects = vec![Effect::Due(Deadline::TimeOut, None)];
        let lost = pending.members.into_iter().filter(|member| parts(member).1 == &*record.id);
        change.effects.extend(lost.map(|member| Effect::Remove(Index::Approvals, member)));
        // Asked again meanwhile, it stands.
        self.commit(record, None, &change).await?;
        Ok(())
    }
}

/// The first call shows the question; the same asked again finds the same approval. What differs is named. What was
/// withdrawn is shown anew.
fn asked(
    found: Option<ApprovalState>,
    now_ms: u64,
    holder: &Holder,
    new: &NewApproval,
    question: &str,
) -> Decision<Result<Asked, &'static str>> {
    let (round, uncopied) = match found {
        None => (0, Vec::new()),
        Some(state) => match state.differs(holder, new, question) {
            Some(part) => return Decision::Keep(Err(part)),
            None if state.withdrawn_at.is_none() => return repeated(state, now_ms, holder),
            None => (state.round + 1, state.uncopied),
        },
    };
    let mut state = ApprovalState {
        asks: new.asks,
        asker: holder.clone(),
        question: question.into(),
        default: new.default,
        durable: new.durable,
        expires_at: now_ms + new.expires_in.as_millis() as u64,
        digest: new.digest.clone(),
        answer: None,
        withdrawn_at: None,
        round,
        uncopied,
    };
    let event = new.event(state.expires_at);
    let copy = state.told(&new.channel, &event);
    let mut change = Change::new(&state);
    change.lifetime = Some(new.expires_in + REMEMBERED);
    change.holder = Some(holder.clone());
    let place = member(&holder.agent, &new.request_id);
    let part = Part {
        owner: holder.agent.clone(),
        member: place.clone(),
        of_owner: APPROVALS_PER_AGENT_MAX as u64,
        of_all: APPROVALS_MAX as u64,
    };
    change.condition = Condition::Part(Index::Approvals, part);
    let pending = new.pending(&event, state.expires_at);
    change.effects = vec![
        Effect::Event(event),
        Effect::Put(Index::Approvals, place, pending.into()),
        Effect::Due(Deadline::TimeOut, Some(new.expires_in)),
    ];
    change.effects.extend(copy);
    Decision::Set(change, Ok(Asked::Pending))
}

/// The approval stands. A higher incarnation of its agent that asks the same becomes the asker.
fn repeated(
    mut state: ApprovalState,
    now_ms: u64,
    holder: &Holder,
) -> Decision<Result<Asked, &'static str>> {
    if let Some(answer) = state.answer {
        return Decision::Keep(Ok(Asked::Answered(answer)));
    }
    if holder.incarnation <= state.asker.incarnation {
        return Decision::Keep(Ok(Asked::Pending));
    }
    state.asker = holder.clone();
    let mut change = Change::new(&state);
    change.lifetime = Some(state.lifetime(now_ms));
    change.holder = Some(holder.clone());
    Decision::Set(change, Ok(Asked::Pending))
}

/// The first answer that fits holds; after its time it is the default.
fn resolved(
    found: Option<ApprovalState>,
    now_ms: u64,
    record: &Record,
    asks: Asks,
    answer: &ApprovalAnswer,
    digest: Option<&str>,
) -> Decision<Resolved> {
    let Some(mut state) = found else { return Decision::Keep(Resolved::Unknown) };
    if let Some(before) = state.answer.take() {
        let is_repeated = before.command_id == answer.command_id && before.by == answer.by;
        let is_same = before.allowed == answer.allowed && before.always == answer.always;
        let resolved = match (is_repeated, is_same) {
            (true, true) => Resolved::Yours,
            (true, false) => Resolved::Conflict,
            (false, _) => Resolved::Already(before),
        };
        return Decision::Keep(resolved);
    }
    if let Some(at) = state.withdrawn_at {
        return Decision::Keep(Resolved::Withdrawn(at));
    }
    if state.asks != asks {
        return Decision::Keep(Resolved::OtherKind);
    }
    if now_ms >= state.expires_at {
        let default = state.default(record, now_ms);
        let change = answered(record, state, &default);
        return Decision::Set(change, Resolved::Already(default));
    }
    if digest.is_some() && state.digest.as_deref() != digest {
        return Decision::Keep(Resolved::OtherDigest);
    }
    // One clock says when, whoever answers.
    let answer = ApprovalAnswer { at: now_ms, ..answer.clone() };
    Decision::Set(answered(record, state, &answer), Resolved::Yours)
}

/// What becomes of an approval's deadline.
enum Timeout {
    Now(Asks),
    Lost,
    No,
}

fn timed_out(found: Option<ApprovalState>, now_ms: u64, record: &Record) -> Decision<Timeout> {
    match found {
        None => Decision::Keep(Timeout::Lost),
        Some(state) if state.is_pending() && now_ms >= state.expires_at => {
            let (asks, default) = (state.asks, state.default(record, now_ms));
            Decision::Set(answered(record, state, &default), Timeout::Now(asks))
        }
        Some(_) => Decision::Keep(Timeout::No),
    }
}

impl ApprovalState {
    fn is_pending(&self) -> bool {
        self.answer.is_none() && self.withdrawn_at.is_none()
    }

    /// How long it is kept from now on.
    fn lifetime(&self, now_ms: u64) -> Duration {
        let left = if self.is_pending() { self.expires_at.saturating_sub(now_ms) } else { 0 };
        Duration::from_millis(left) + REMEMBERED
    }

    /// The part in which what is asked is another than what was asked.
    fn differs(&self, holder: &Holder, new: &NewApproval, question: &str) -> Option<&'static str> {
        let parts = [
            ("agent", self.asker.agent == holder.agent),
            ("asks", self.asks == new.asks),
            ("question", *self.question == *question),
            ("default", self.default == new.default),
            ("digest", self.digest == new.digest),
            ("durable", self.durable == new.durable),
        ];
        parts.into_iter().find(|(_, is_same)| !is_same).map(|(part, _)| part)
    }

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
    let command = shown::command(asks, answer);
    let event = answer_event(asks, &record.id, answer);
    state.answer = Some(answer.clone());
    let data = serde_json::json!({
        "request_id": &*record.id,
        "agent_id": state.asker.agent,
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
    let mut change = ended(record, state, event);
    change.effects.push(Effect::Command(NewEntry::new(command, stamped)));
    change
}

/// The step in which it ends, as `event` tells everybody.
fn ended(record: &Record, mut state: ApprovalState, event: NewEntry) -> Change {
    let copy = state.told(&record.channel, &event);
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![
        Effect::Event(event),
        Effect::Remove(Index::Approvals, member(&state.asker.agent, &record.id)),
        Effect::Due(Deadline::TimeOut, None),
    ];
    change.effects.extend(copy);
    change
}

#[cfg(test)]
mod tests;
