//! ◆ What happens when a lease is not renewed: the agent is declared lost, once, and what it left is settled.

use std::time::Duration;

use protocol::{Channel, Kind};
use serde::Serialize;
use uuid::Uuid;

use super::lease::{REMEMBERED, Stage, State};
use super::{Change, Committed, Condition, Duty, Effect, Holder, Index, Thing};
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
fn lost_once_id(agent: &str, incarnation: u64) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("lost {agent} {incarnation}").as_bytes()).to_string()
}

impl Journal {
    /// Duty: the lease was not renewed.
    pub(super) async fn lose(&self, thing: &Thing) -> Result<(), Unavailable> {
        let mut found = self.look(thing).await?.state;
        for _ in super::races() {
            let state = super::read::<State>(thing, found.as_deref());
            let Some(mut state) = state.filter(|state| state.stage == Stage::Alive) else {
                return self.forget_duty(thing, Duty::Lose).await;
            };
            state.stage = Stage::Lost;
            let mut change = Change::new(thing, found, &state);
            change.lifetime = Some(REMEMBERED);
            change.condition = Condition::Due(Duty::Lose);
            let lost = Holder { agent: thing.id.clone(), incarnation: state.incarnation };
            change.effects = vec![
                Effect::Remove(Index::Agents, thing.id.clone()),
                Effect::Due(Duty::Lose, None),
                Effect::Due(Duty::Settle, Some(Duration::ZERO)),
                Effect::Fence(lost),
            ];
            if thing.channel.kind() != Kind::Service {
                change.effects.push(Effect::Event(lost_event(&thing.id, &state, "lost")));
            }
            match self.commit(&change).await? {
                Committed::Conflict(now) => found = now,
                Committed::Unmet => return Ok(()),
                _ => {
                    let runs = state.runs.join(" ");
                    tracing::warn!(channel = %thing.channel, agent = %thing.id, runs, "an agent is lost");
                    return self.settle(thing).await;
                }
            }
        }
        Err(super::contended(thing))
    }

    /// Duty: what a lost agent left is settled. Whoever does it again does no harm.
    pub(super) async fn settle(&self, thing: &Thing) -> Result<(), Unavailable> {
        let found = self.look(thing).await?.state;
        let state = super::read::<State>(thing, found.as_deref());
        let Some(mut state) = state.filter(|state| state.stage == Stage::Lost) else {
            return self.forget_duty(thing, Duty::Settle).await;
        };
        let lost = Holder { agent: thing.id.clone(), incarnation: state.incarnation };
        self.settle_open(&thing.channel, &lost).await?;
        self.tell_firehose(&thing.channel, &thing.id, &state, "lost").await?;
        if thing.channel.kind() == Kind::Agent
            && let Some(parent) = &state.parent
        {
            self.disown(parent, &thing.id).await?;
        }
        state.stage = Stage::Settled;
        let mut change = Change::new(thing, found, &state);
        change.lifetime = Some(REMEMBERED);
        change.effects = vec![Effect::Due(Duty::Settle, None)];
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
        let event = lost_event(agent, state, reason).once(lost_once_id(agent, state.incarnation));
        let told = self.append(&Name::events(Channel::global_events()), vec![event]).await;
        told.map(drop).map_err(|error| Unavailable(error.to_string()))
    }
}
