//! ◆ Decides whether a lease that was found belongs to an incarnation of the agent, to an older or to a newer one.
//! Pure. The only place that decides it.
//!
//! [`lease`](super::lease), [`note`](super::note), [`renewal`](super::renewal) → **standing**. The higher
//! incarnation wins, always. A missing state does not mean a newer owner: Redis may have lost it.

use std::time::Duration;

use protocol::limits::AGENT_KNOWN;
use protocol::{Channel, Kind};

use super::lease::{LeasePhase, LeaseState, REMEMBERED};
use super::loss::{self, OpenRuns};
use super::{Change, Deadline, Effect, Holder, Index, Record};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is this incarnation's.
    Own(LeaseState),
    /// The lease is missing: this incarnation writes its own.
    Missing,
    /// It is an older incarnation's, alive or not: this one takes over.
    Older(LeaseState),
    /// This incarnation has left.
    Released,
    /// It is a newer incarnation's, or this one was declared lost.
    Fenced,
}

pub(super) fn of(found: Option<LeaseState>, holder: &Holder) -> Standing {
    let Some(state) = found else { return Standing::Missing };
    match (state.incarnation.cmp(&holder.incarnation), state.phase) {
        (std::cmp::Ordering::Less, _) => Standing::Older(state),
        (std::cmp::Ordering::Equal, LeasePhase::Alive) => Standing::Own(state),
        (std::cmp::Ordering::Equal, LeasePhase::Released) => Standing::Released,
        _ => Standing::Fenced,
    }
}

/// How an agent stands in the index of a channel's agents. A renewal that finds another version of the lease there
/// knows that Redis has come back with an older one, or that the lease was taken anew elsewhere.
pub(super) fn index_value(incarnation: u64, version: u64) -> Box<str> {
    format!("{incarnation} {version}").into()
}

/// The lease lasts from now on, and the agent is known to be there.
pub(super) fn alive(holder: &Holder, version: u64, lasts: Duration) -> Vec<Effect> {
    let value = index_value(holder.incarnation, version);
    vec![
        Effect::Put(Index::Agents, holder.agent.clone(), value),
        Effect::Due(Deadline::Lose, Some(lasts)),
    ]
}

/// From now on it is known for a while that an agent has served the channel.
pub(super) fn seen(channel: &Channel) -> Effect {
    Effect::Write(Record::seen(channel), "1".to_owned(), AGENT_KNOWN)
}

/// The older incarnation is fenced; where it lived, it is told as replaced, and settled.
pub(super) fn take_over(change: &mut Change, record: &Record, older: &LeaseState, open: &OpenRuns) {
    let holder = Holder { agent: record.id.clone(), incarnation: older.incarnation };
    if older.phase == LeasePhase::Alive {
        loss::begin(change, record, older, "replaced", open);
    }
    change.effects.push(Effect::Fence(holder));
}

/// The lease is over by loss.
pub(super) fn lost(
    found: Option<LeaseState>,
    record: &Record,
    open: &OpenRuns,
) -> Option<(Change, LeaseState)> {
    let state = found.filter(|state| state.phase == LeasePhase::Alive)?;
    let state = LeaseState { phase: LeasePhase::Lost, ..state };
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.condition = super::Condition::Due(Deadline::Lose);
    let holder = Holder { agent: record.id.clone(), incarnation: state.incarnation };
    change.effects = vec![
        Effect::Remove(Index::Agents, record.id.clone()),
        Effect::Due(Deadline::Lose, None),
        Effect::Fence(holder),
        seen(&record.channel),
    ];
    loss::begin(&mut change, record, &state, "lost", open);
    Some((change, state))
}

/// Whether events of the agent's life are told on the channel: requests to a service make none.
pub(super) fn is_told(record: &Record) -> bool {
    record.channel.kind() != Kind::Service
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_incarnation_wins_and_a_missing_state_is_nobodys() {
        let holder = Holder { agent: "a".into(), incarnation: 5 };
        let found = |incarnation, phase| LeaseState {
            phase,
            incarnation,
            taking: uuid::Uuid::nil(),
            version: 0,
            step: uuid::Uuid::nil(),
            since: 0,
            parent: None,
        };
        assert_eq!(of(None, &holder), Standing::Missing);
        for phase in [LeasePhase::Alive, LeasePhase::Lost, LeasePhase::Released] {
            let older = found(4, phase);
            assert_eq!(of(Some(older.clone()), &holder), Standing::Older(older));
            assert_eq!(of(Some(found(6, phase)), &holder), Standing::Fenced);
        }
        let own = found(5, LeasePhase::Alive);
        assert_eq!(of(Some(own.clone()), &holder), Standing::Own(own));
        assert_eq!(of(Some(found(5, LeasePhase::Lost)), &holder), Standing::Fenced);
        assert_eq!(of(Some(found(5, LeasePhase::Released)), &holder), Standing::Released);
    }
}
