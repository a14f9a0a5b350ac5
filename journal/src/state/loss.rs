//! ◆ What happens when a lease is not renewed: the agent is declared lost, once, and what it left is settled.

use std::time::Duration;

use protocol::{Channel, Kind};
use serde::Serialize;
use uuid::Uuid;

use super::lease::{LeasePhase, REMEMBERED, State};
use super::{Change, Committed, Condition, Deadline, Effect, Holder, Index, Record};
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

impl Journal {
    /// Deadline: the lease was not renewed.
    pub(super) async fn lose(&self, record: &Record) -> Result<(), Unavailable> {
        let mut found = self.snapshot(record).await?.state;
        for _ in super::races() {
            let state = super::read::<State>(record, found.as_deref());
            let Some(mut state) = state.filter(|state| state.phase == LeasePhase::Alive) else {
                return self.forget_deadline(record, Deadline::Lose).await;
            };
            state.phase = LeasePhase::Lost;
            let mut change = Change::new(record, found, &state);
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
            match self.commit(&change).await? {
                Committed::Conflict(now) => found = now,
                Committed::Unmet => return Ok(()),
                _ => {
                    let runs = state.runs.join(" ");
                    tracing::warn!(channel = %record.channel, agent = %record.id, runs, "an agent is lost");
                    return self.settle(record).await;
                }
            }
        }
        Err(super::contended(record))
    }

    /// Deadline: what a lost agent left is settled. Whoever does it again does no harm.
    pub(super) async fn settle(&self, record: &Record) -> Result<(), Unavailable> {
        let found = self.snapshot(record).await?.state;
        let state = super::read::<State>(record, found.as_deref());
        let Some(mut state) = state.filter(|state| state.phase == LeasePhase::Lost) else {
            return self.forget_deadline(record, Deadline::Settle).await;
        };
        let lost = Holder { agent: record.id.clone(), incarnation: state.incarnation };
        self.settle_open(&record.channel, &lost).await?;
        self.tell_firehose(&record.channel, &record.id, &state, "lost").await?;
        if record.channel.kind() == Kind::Agent
            && let Some(parent) = &state.parent
        {
            self.disown(parent, &record.id).await?;
        }
        state.phase = LeasePhase::Settled;
        let mut change = Change::new(record, found, &state);
        change.lifetime = Some(REMEMBERED);
        change.effects = vec![Effect::Due(Deadline::Settle, None)];
        // Taken anew meanwhile: then its new holder has settled it.
        self.commit(&change).await.map(drop)
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
