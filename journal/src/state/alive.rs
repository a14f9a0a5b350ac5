//! ◆ Which agents are alive, in pages: no answer grows with the number of agents, runs or channels.

use protocol::Channel;
use serde::Serialize;

use super::lease::{LeasePhase, LeaseState, record};
use super::{Holder, Index, Record};
use crate::{Journal, Parent, Unavailable};

/// How many runs and channels of each agent are shown.
pub(crate) const SHOWN_MAX: usize = 100;

/// An agent that is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alive {
    /// Its id.
    pub agent_id: Box<str>,
    /// Since when, Unix milliseconds.
    pub since: u64,
    /// Runs that have begun and not ended, at most 100 of them.
    pub runs: Vec<Box<str>>,
    /// How many there are.
    pub runs_total: u64,
    /// The channels that it serves, at most 100 of them.
    pub channels: Vec<Box<str>>,
    /// How many there are.
    pub channels_total: u64,
    /// Who spawned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// Some of the agents that are alive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AlivePage {
    /// In the order of their ids; a page is not all before the next one.
    pub agents: Vec<Alive>,
    /// Behind which agent the next page begins, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Box<str>>,
}

/// Some members of an index, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) members: Vec<Box<str>>,
    pub(crate) total: u64,
}

impl Journal {
    /// Who is alive, `limit` of them at most, behind the agent `after`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn alive(&self, after: Option<&str>, limit: usize) -> Result<AlivePage, Unavailable> {
        let mut ids = self.leased(after, limit.saturating_add(1)).await?;
        let has_more = ids.len() > limit;
        ids.truncate(limit);
        let next = ids.last().filter(|_| has_more).cloned();
        let states = self.living(&ids).await?;
        let indexes = states.iter().flat_map(|(record, state)| {
            let holder = Holder { agent: record.id.clone(), incarnation: state.incarnation };
            let producer: Box<str> = holder.producer().into();
            let channel = &record.channel;
            [
                (channel.clone(), Index::Runs(producer.clone())),
                (channel.clone(), Index::Channels(producer)),
            ]
        });
        let mut samples = self.samples(&indexes.collect::<Vec<_>>()).await?.into_iter();
        let agents = states.into_iter().map(|(record, state)| {
            let (runs, channels) =
                (samples.next().unwrap_or_default(), samples.next().unwrap_or_default());
            Alive {
                agent_id: record.id,
                since: state.since,
                runs: runs.members,
                runs_total: runs.total,
                channels: channels.members,
                channels_total: channels.total,
                parent: state.parent,
            }
        });
        let mut agents: Vec<Alive> = agents.collect();
        agents.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
        Ok(AlivePage { agents, next })
    }

    /// Those of the agents that are alive, with the lease of each on its own channel.
    pub(super) async fn living(
        &self,
        ids: &[Box<str>],
    ) -> Result<Vec<(Record, LeaseState)>, Unavailable> {
        let records: Vec<Record> = ids.iter().filter_map(|id| own_record(id)).collect();
        let states = self.states(&records).await?;
        let living = records.into_iter().zip(states).filter_map(|(record, state)| {
            let state: LeaseState = super::transact::read(&record, state.as_deref())?;
            (state.phase == LeasePhase::Alive).then_some((record, state))
        });
        Ok(living.collect())
    }
}

/// The lease of the agent on its own channel.
fn own_record(id: &str) -> Option<Record> {
    Some(record(&Channel::agent(id).ok()?, id))
}
