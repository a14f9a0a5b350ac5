//! ◆ What happens when a lease is not renewed: the agent is declared lost, once, and what it left is settled.

use std::time::Duration;

use protocol::{Channel, Kind};
use serde::Serialize;
use uuid::Uuid;

use super::lease::{LeasePhase, REMEMBERED, State};
use super::{Change, Condition, Deadline, Decision, Effect, Holder, Index, Record, Transacted};
use crate::{Journal, Name, NewEntry, Unavailable};

pub(super) fn lost_event(agent: &str, state: &State, reason: &str) -> NewEntry {
    #[derive(Serialize)]
    struct Lost<'a> {
        agent_id: &'a str,
        reason: &'a str,
        runs: &'a [Box<str>],
    }
    let lost = Lost { agent_id: agent, reason, runs: &state.runs };
    NewEntry::new("agent_lost", serde_json::to_string(&lost).expect("plain data"))
}

/// What is told on the firehose, once per incarnation.
fn lost_event_key(agent: &str, incarnation: u64) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("lost {agent} {incarnation}").as_bytes()).to_string()
}

/// A lease that was not renewed is lost; `None` where none is held.
fn lost(found: Option<State>, record: &Record) -> Decision<Option<State>> {
    let is_alive = |state: &State| state.phase == LeasePhase::Alive;
    let Some(mut state) = found.filter(is_alive) else { return Decision::Keep(None) };
    state.phase = LeasePhase::Lost;
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.condition = Condition::Due(Deadline::Lose);
    let lost = Holder { agent: record.id.clone(), incarnation: state.incarnation };
    change.effects = vec![
        Effect::Remove(Index::Agents, record.id.clone()),
        Effect::Due(Deadline::Lose, None),
        Effect::Due(Deadline::Settle, Some(Duration::ZERO)),
        Effect::Fence(lost),
    ];
    if record.channel.kind() != Kind::Service {
        change.effects.push(Effect::Event(lost_event(&record.id, &state, "lost")));
    }
    Decision::Set(change, Some(state))
}

/// What this incarnation left is settled. Taken anew meanwhile, its new holder has settled it.
fn settled(found: Option<State>, incarnation: u64) -> Decision<()> {
    let is_it = |s: &State| s.phase == LeasePhase::Lost && s.incarnation == incarnation;
    let Some(mut state) = found.filter(is_it) else { return Decision::Keep(()) };
    state.phase = LeasePhase::Settled;
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![Effect::Due(Deadline::Settle, None)];
    Decision::Set(change, ())
}

impl Journal {
    /// Deadline: the lease was not renewed.
    pub(super) async fn lose(&self, record: &Record) -> Result<(), Unavailable> {
        match self.transact(record, |found, _| lost(found, record)).await? {
            Transacted::Done(Some(state)) => {
                let runs = state.runs.join(" ");
                tracing::warn!(channel = %record.channel, agent = %record.id, runs, "agent lost");
                self.settle(record).await
            }
            Transacted::Done(None) => self.forget_deadline(record, Deadline::Lose).await,
            Transacted::Unmet | Transacted::Fenced => Ok(()),
        }
    }

    /// Deadline: what a lost agent left is settled. Whoever does it again does no harm.
    pub(super) async fn settle(&self, record: &Record) -> Result<(), Unavailable> {
        let state = self.state::<State>(record).await?;
        let Some(state) = state.filter(|state| state.phase == LeasePhase::Lost) else {
            return self.forget_deadline(record, Deadline::Settle).await;
        };
        let lost = Holder { agent: record.id.clone(), incarnation: state.incarnation };
        self.settle_open(&record.channel, &lost).await?;
        self.tell_firehose(&record.channel, &record.id, &state, "lost").await?;
        if record.channel.kind() == Kind::Agent
            && let Some(parent) = &state.parent
        {
            self.disown(parent, &lost).await?;
        }
        self.transact(record, |found, _| settled(found, lost.incarnation)).await?;
        Ok(())
    }

    /// The firehose hears of the agent, not of each of its channels.
    pub(super) async fn tell_firehose(
        &self,
        channel: &Channel,
        agent: &str,
        state: &State,
        reason: &str,
    ) -> Result<(), Unavailable> {
        if channel.kind() != Kind::Agent {
            return Ok(());
        }
        let event =
            lost_event(agent, state, reason).with_key(lost_event_key(agent, state.incarnation));
        let told = self.append(&Name::events(Channel::global_events()), vec![event]).await;
        told.map(drop).map_err(|error| Unavailable(error.to_string()))
    }
}
