//! ◆ What an agent asks about its budget stands on `global:events` as well: the question, and what came of it.
//!
//! [`approval`](super) → **firehose**. The step that tells something leaves it to be copied, with a deadline. The caller
//! of that step copies at once; where it fails or dies, a reaper copies, oldest first, so that no end overtakes its
//! question. In the slot of `global:events` the copy, and its place among what is pending there, are one step.

use std::time::Duration;

use protocol::limits::{FIREHOSE_APPROVAL_BYTES_MAX, FIREHOSE_APPROVALS_MAX};
use protocol::{Asks, Channel, Kind};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::ApprovalState;
use crate::state::{
    Change, Condition, Deadline, Decision, Effect, Index, Record, RecordKind, Snapshot, Transacted,
    copy,
};
use crate::{Journal, NewEntry, Unavailable};

/// How long it is remembered that a copy was made.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// Something that was told and is not copied yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UncopiedPhase {
    event: Box<str>,
    data: Box<str>,
    round: u32,
    /// Of a question: until when it can be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending_until: Option<u64>,
}

impl ApprovalState {
    /// `event` is told in this step; on an agent's own channel a budget's is to be copied.
    pub(super) fn told(&mut self, channel: &Channel, event: &NewEntry) -> Option<Effect> {
        let is_copied = self.asks == Asks::Budget && channel.kind() == Kind::Agent;
        is_copied.then(|| {
            let (event, data) = (event.name.clone(), event.data.clone());
            let pending_until = self.is_pending().then_some(self.expires_at);
            self.uncopied.push(UncopiedPhase { event, data, round: self.round, pending_until });
            Effect::Due(Deadline::CopyApproval, Some(copy::COPY_AFTER))
        })
    }
}

/// When an entry there ends.
#[derive(Deserialize)]
struct Ends {
    expires_at: u64,
}

impl Journal {
    /// Copies now, if something is to be copied; waits for it as long as no reaper does it.
    pub(super) async fn copy_told(&self, approval: &Record, asks: Asks) {
        if asks == Asks::Budget && approval.channel.kind() == Kind::Agent {
            copy::at_once(approval, self.copy_approval(approval)).await;
        }
    }

    /// Deadline: what is not copied yet is copied. Doing it again is harmless.
    pub(in crate::state) async fn copy_approval(&self, record: &Record) -> Result<(), Unavailable> {
        let state = self.state::<ApprovalState>(record).await?;
        let uncopied = state.map_or_else(Vec::new, |state| state.uncopied);
        if uncopied.is_empty() {
            return self.forget_deadline(record, Deadline::CopyApproval).await;
        }
        for one in &uncopied {
            self.copy_one(record, one).await?;
        }
        let copied = |found: Option<ApprovalState>, now_ms| {
            let Some(mut state) = found else { return Decision::Keep(()) };
            state.uncopied.retain(|one| !uncopied.contains(one));
            let mut change = Change::new(&state);
            change.lifetime = Some(state.lifetime(now_ms));
            if state.uncopied.is_empty() {
                change.effects = vec![Effect::Due(Deadline::CopyApproval, None)];
            }
            Decision::Set(change, ())
        };
        self.transact(record, copied).await?;
        Ok(())
    }

    async fn copy_one(&self, approval: &Record, one: &UncopiedPhase) -> Result<(), Unavailable> {
        let copy = copy_record(approval, one);
        let rule = |enters: bool| {
            move |found: Option<Copied>, _| match found {
                Some(_) => Decision::Keep(()),
                None => Decision::Set(step(approval, one, enters), ()),
            }
        };
        let new = || Snapshot::default();
        if self.transact_from(&copy, new(), rule(true)).await? == Transacted::Unmet {
            self.forget_ended(&copy.channel).await?;
            if self.transact_from(&copy, new(), rule(true)).await? == Transacted::Unmet {
                self.transact_from(&copy, new(), rule(false)).await?;
            }
        }
        Ok(())
    }

    /// Makes room: what has ended, and whose end has not come here, is not pending.
    async fn forget_ended(&self, firehose: &Channel) -> Result<(), Unavailable> {
        let (_, now_ms, pending) = self.approvals(firehose).await?;
        let ended = pending.into_iter().filter(|(_, question)| has_ended(question, now_ms));
        let mut change = Change::removal();
        change.effects = ended.map(|(id, _)| Effect::Remove(Index::Approvals, id)).collect();
        let record =
            Record { kind: RecordKind::Copy, channel: firehose.clone(), id: "ended".into() };
        self.commit(&record, None, &change).await?;
        Ok(())
    }
}

/// Whether an entry of what is pending is over by the journal's clock.
pub(super) fn has_ended(question: &str, now_ms: u64) -> bool {
    serde_json::from_str(question).is_ok_and(|Ends { expires_at }| expires_at <= now_ms)
}

/// It stands on `global:events`.
#[derive(Debug, Serialize, Deserialize)]
struct Copied {}

/// Under which key the copy is made once.
fn copy_record(approval: &Record, one: &UncopiedPhase) -> Record {
    let UncopiedPhase { event, round, .. } = one;
    let key = format!("{event} {} {} {round}", approval.channel, approval.id);
    let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string();
    Record { kind: RecordKind::Copy, channel: Channel::global_events(), id: key.into() }
}

/// The copy; a question `enters` what is pending, where it is small enough.
fn step(approval: &Record, one: &UncopiedPhase, enters: bool) -> Change {
    let mut change = Change::new(&Copied {});
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![Effect::Event(NewEntry::new(one.event.clone(), one.data.clone()))];
    let id = format!("{} {}", approval.channel, approval.id).into();
    match one.pending_until {
        None => change.effects.push(Effect::Remove(Index::Approvals, id)),
        Some(until) if enters && one.data.len() <= FIREHOSE_APPROVAL_BYTES_MAX => {
            change.condition = Condition::Room(Index::Approvals, FIREHOSE_APPROVALS_MAX as u64);
            let entry = entry(approval, one, until);
            change.effects.push(Effect::Put(Index::Approvals, id, entry.into()));
        }
        Some(_) => {}
    }
    change
}

/// How a question stands among what is pending: with the channel on which it is answered.
fn entry(approval: &Record, one: &UncopiedPhase, expires_at: u64) -> String {
    #[derive(Serialize)]
    struct Entry<'a> {
        event: &'a str,
        request_id: &'a str,
        channel: &'a Channel,
        data: &'a RawValue,
        expires_at: u64,
    }
    let data: &RawValue = serde_json::from_str(&one.data).unwrap_or(RawValue::NULL);
    let (event, request_id, channel) = (&*one.event, &*approval.id, &approval.channel);
    serde_json::to_string(&Entry { event, request_id, channel, data, expires_at })
        .expect("plain data")
}
