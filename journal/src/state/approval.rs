//! ▲ A question that an agent asks and waits for: pending until the first answer, or its default in time.
//!
//! The question, its place among the channel's pending approvals, the answer, and the command that tells the agent
//! each change in one step. So every joiner sees what is pending, the first answer wins on all replicas,
//! and the agent receives it, whatever dies in between. An id stands for what was asked: the same again is the
//! repetition, anything else is a conflict. [`shown`]: what people see of it; [`withdraw`]: nobody waits any more.

mod shown;
mod withdraw;

use std::time::Duration;

use protocol::limits::APPROVALS_MAX;
use protocol::{ApprovalAnswer, Asks, Channel, Kind, Offset, Resolved};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::command::Stamped;
use super::digest::digest;
use super::{
    Change, Condition, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Transacted,
    copy,
};
use crate::{Journal, NewEntry, Unavailable};
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
            Transacted::Done(Ok((Asked::Pending, round))) => {
                // The copy is found by the event's name.
                self.copy_at_once(&record, new.asks, round, &new.event(0)).await;
                Ok(Asked::Pending)
            }
            Transacted::Done(Ok((answered, _))) => Ok(answered),
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
        let Some((resolved, told)) = self.transact(&record, rule).await?.done() else {
            return Ok(Resolved::Unknown);
        };
        if let Some((answer, round)) = told {
            let event = answer_event(asks, request_id, &answer);
            self.copy_at_once(&record, asks, round, &event).await;
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
            Some(Timeout::Now(asks, answer, round)) => {
                let event = answer_event(asks, &record.id, &answer);
                self.copy_at_once(record, asks, round, &event).await;
                Ok(())
            }
            Some(Timeout::Forgotten) => Ok(()),
            Some(Timeout::No) | None => self.forget_deadline(record, Deadline::TimeOut).await,
        }
    }

    async fn copy_at_once(&self, approval: &Record, asks: Asks, round: u32, event: &NewEntry) {
        if let Some(record) = copy_of(approval, asks, round, event) {
            copy::at_once(&record, self.copy(&record)).await;
        }
    }
}

/// What an agent's budget does is of interest to those who watch all agents.
fn copy_of(approval: &Record, asks: Asks, round: u32, event: &NewEntry) -> Option<Record> {
    let Record { channel, id, .. } = approval;
    let is_copied = asks == Asks::Budget && channel.kind() == Kind::Agent;
    let key = || {
        let copy = format!("{} {channel} {id} {round}", event.name);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, copy.as_bytes())
    };
    is_copied.then(|| copy::record(channel, &key().to_string()))
}

/// The step that tells it owes the copy.
fn owed(approval: &Record, asks: Asks, round: u32, event: &NewEntry) -> Vec<Effect> {
    let copy = copy_of(approval, asks, round, event);
    copy.map_or_else(Vec::new, |record| copy::owed(&record, event))
}

/// With which round it stands, or the part that differs.
type Repeated = Result<(Asked, u32), &'static str>;

/// The first call shows the question; the same asked again finds the same approval. What differs is named. What was
/// withdrawn is shown anew.
fn asked(
    found: Option<ApprovalState>,
    now_ms: u64,
    holder: &Holder,
    new: &NewApproval,
    question: &str,
) -> Decision<Repeated> {
    let round = match found {
        None => 0,
        Some(state) => match state.differs(holder, new, question) {
            Some(part) => return Decision::Keep(Err(part)),
            None if state.withdrawn_at.is_none() => return repeated(state, now_ms, holder),
            None => state.round + 1,
        },
    };
    let state = ApprovalState {
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
    };
    let mut change = Change::new(&state);
    change.lifetime = Some(new.expires_in + REMEMBERED);
    change.holder = Some(holder.clone());
    change.condition = Condition::Room(Index::Approvals, APPROVALS_MAX as u64);
    let event = new.event(state.expires_at);
    let pending = new.pending(&event, state.expires_at);
    change.effects = vec![
        Effect::Event(event.clone()),
        Effect::Put(Index::Approvals, new.request_id.clone(), pending.into()),
        Effect::Due(Deadline::TimeOut, Some(new.expires_in)),
    ];
    let record = record(&new.channel, &new.request_id);
    change.effects.extend(owed(&record, new.asks, round, &event));
    Decision::Set(change, Ok((Asked::Pending, round)))
}

/// The approval stands. A higher incarnation of its agent that asks the same becomes the asker.
fn repeated(mut state: ApprovalState, now_ms: u64, holder: &Holder) -> Decision<Repeated> {
    let round = state.round;
    if let Some(answer) = state.answer {
        return Decision::Keep(Ok((Asked::Answered(answer), round)));
    }
    if holder.incarnation <= state.asker.incarnation {
        return Decision::Keep(Ok((Asked::Pending, round)));
    }
    state.asker = holder.clone();
    let left = Duration::from_millis(state.expires_at.saturating_sub(now_ms));
    let mut change = Change::new(&state);
    change.lifetime = Some(left + REMEMBERED);
    change.holder = Some(holder.clone());
    Decision::Set(change, Ok((Asked::Pending, round)))
}

/// The first answer that fits holds; after its time it is the default. With what everybody is told now.
fn resolved(
    found: Option<ApprovalState>,
    now_ms: u64,
    record: &Record,
    asks: Asks,
    answer: &ApprovalAnswer,
    digest: Option<&str>,
) -> Decision<(Resolved, Option<(ApprovalAnswer, u32)>)> {
    let Some(mut state) = found else { return Decision::Keep((Resolved::Unknown, None)) };
    if let Some(before) = state.answer.take() {
        let is_repeated = before.command_id == answer.command_id && before.by == answer.by;
        let is_same = before.allowed == answer.allowed && before.always == answer.always;
        let resolved = match (is_repeated, is_same) {
            (true, true) => Resolved::Yours,
            (true, false) => Resolved::Conflict,
            (false, _) => Resolved::Already(before),
        };
        return Decision::Keep((resolved, None));
    }
    if let Some(at) = state.withdrawn_at {
        return Decision::Keep((Resolved::Withdrawn(at), None));
    }
    if state.asks != asks {
        return Decision::Keep((Resolved::OtherKind, None));
    }
    let round = state.round;
    if now_ms >= state.expires_at {
        let default = state.default(record, now_ms);
        let change = answered(record, state, &default);
        return Decision::Set(change, (Resolved::Already(default.clone()), Some((default, round))));
    }
    if digest.is_some() && state.digest.as_deref() != digest {
        return Decision::Keep((Resolved::OtherDigest, None));
    }
    let change = answered(record, state, answer);
    Decision::Set(change, (Resolved::Yours, Some((answer.clone(), round))))
}

/// What becomes of an approval's deadline.
enum Timeout {
    Now(Asks, ApprovalAnswer, u32),
    Forgotten,
    No,
}

fn timed_out(found: Option<ApprovalState>, now_ms: u64, record: &Record) -> Decision<Timeout> {
    match found {
        None => {
            let change = Change::forgotten(record, Deadline::TimeOut, Index::Approvals);
            Decision::Set(change, Timeout::Forgotten)
        }
        Some(state) if state.is_pending() && now_ms >= state.expires_at => {
            let (asks, round) = (state.asks, state.round);
            let default = state.default(record, now_ms);
            Decision::Set(answered(record, state, &default), Timeout::Now(asks, default, round))
        }
        Some(_) => Decision::Keep(Timeout::No),
    }
}

impl ApprovalState {
    fn is_pending(&self) -> bool {
        self.answer.is_none() && self.withdrawn_at.is_none()
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
    let mut change = ended(record, &state, event);
    change.effects.push(Effect::Command(NewEntry::new(command, stamped)));
    change
}

/// The step in which it ends, as `event` tells everybody.
fn ended(record: &Record, state: &ApprovalState, event: NewEntry) -> Change {
    let mut change = Change::new(state);
    change.lifetime = Some(REMEMBERED);
    let owed = owed(record, state.asks, state.round, &event);
    change.effects = vec![
        Effect::Event(event),
        Effect::Remove(Index::Approvals, record.id.clone()),
        Effect::Due(Deadline::TimeOut, None),
    ];
    change.effects.extend(owed);
    change
}

#[cfg(test)]
mod tests;
