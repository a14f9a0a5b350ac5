//! ◆ A question that nobody waits for any more is withdrawn: its asker gave up, left, or is lost.
//!
//! [`lease`](crate::state::lease), [`loss`](crate::state::loss) → **withdraw**. What an older incarnation leaves does
//! not touch what a newer one asks, and a durable question outlives every incarnation.

use protocol::limits::APPROVALS_MAX;
use protocol::{Asks, Channel};

use super::{ApprovalState, ended, parts, record, shown};
use crate::state::transact::read;
use crate::state::{Decision, Holder, Index, Record, Transacted};
use crate::{Journal, Unavailable};

impl Journal {
    /// The asker waits no more: everybody is told that the question is withdrawn, and an answer is told so, too. Without
    /// effect on a durable question, and on one that a newer incarnation asks.
    ///
    /// # Errors
    /// [`Unavailable`]; doing it again is harmless.
    pub async fn unask(
        &self,
        channel: &Channel,
        request_id: &str,
        holder: &Holder,
    ) -> Result<(), Unavailable> {
        self.withdraw(&record(channel, request_id), holder).await
    }

    /// The same for all that this incarnation, and older ones, wait for on the channel.
    pub(in crate::state) async fn unask_all(
        &self,
        channel: &Channel,
        holder: &Holder,
    ) -> Result<(), Unavailable> {
        let pending = self.some_of(channel, &Index::Approvals, APPROVALS_MAX).await?.members;
        let theirs =
            pending.iter().map(|member| parts(member)).filter(|(by, _)| *by == &*holder.agent);
        let records: Vec<Record> = theirs.map(|(_, id)| record(channel, id)).collect();
        if records.is_empty() {
            return Ok(());
        }
        let states = self.states(&records).await?;
        for (record, state) in records.iter().zip(&states) {
            let state = read::<ApprovalState>(record, state.as_deref());
            if state.is_some_and(|state| state.is_left_by(holder)) {
                self.withdraw(record, holder).await?;
            }
        }
        Ok(())
    }

    async fn withdraw(&self, record: &Record, holder: &Holder) -> Result<(), Unavailable> {
        let rule = |found, now_ms| withdrawn(found, now_ms, record, holder);
        if let Transacted::Done(Some(asks)) = self.transact(record, rule).await? {
            self.copy_told(record, asks).await;
        }
        Ok(())
    }
}

impl ApprovalState {
    /// Whether nobody waits for the answer when this incarnation does not.
    fn is_left_by(&self, holder: &Holder) -> bool {
        let is_theirs = self.asker.agent == holder.agent;
        let is_newer = self.asker.incarnation > holder.incarnation;
        self.is_pending() && is_theirs && !is_newer && !self.durable
    }
}

/// What was withdrawn is told like an answer, and the agent is told nothing.
pub(super) fn withdrawn(
    found: Option<ApprovalState>,
    now_ms: u64,
    record: &Record,
    holder: &Holder,
) -> Decision<Option<Asks>> {
    let Some(mut state) = found.filter(|state| state.is_left_by(holder)) else {
        return Decision::Keep(None);
    };
    state.withdrawn_at = Some(now_ms);
    let asks = state.asks;
    let event = shown::withdrawn_event(asks, &record.id);
    Decision::Set(ended(record, state, event), Some(asks))
}
