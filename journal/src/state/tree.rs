//! ◆ The agents of a channel as a tree: those that receive its commands, and those that were spawned for it, under
//! each other. A Cancel that is sent there reaches them.
//!
//! [`alive`](super::alive) says what all agents do; this says no more than a viewer of the one channel may know.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use protocol::{Channel, Parent};
use serde::Serialize;

use super::alive::Sample;
use super::{Holder, Index};
use crate::{Journal, Unavailable};

/// How many agents' children are read at a time.
const AT_ONCE: usize = 8;

/// An agent of a channel that is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeAgent {
    /// Its id.
    pub agent_id: Box<str>,
    /// Since when, Unix milliseconds.
    pub since: u64,
    /// Runs that it has begun on the channel and not ended, at most 100 of them.
    pub runs: Vec<Box<str>>,
    /// How many there are.
    pub runs_total: u64,
    /// Who spawned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<TreeParent>,
}

/// Who spawned an agent. Not on which session: that may be one which the viewer must not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeParent {
    /// Which agent.
    pub agent_id: Box<str>,
    /// For which run of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Box<str>>,
}

/// The agents of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentTree {
    /// In the order of their ids; the `parent` of each says where it hangs.
    pub agents: Vec<TreeAgent>,
    /// Whether there are more than are shown.
    pub more: bool,
}

impl Journal {
    /// The agents of `channel`, an agent's or a session's, at most `most` of them.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn tree(&self, channel: &Channel, most: usize) -> Result<AgentTree, Unavailable> {
        let mut tree = AgentTree::default();
        let mut agents = self.agents_on(channel).await?;
        tree.more = self.listeners(channel).await? > agents.len() as u64;
        let mut seen: HashSet<Box<str>> = agents.iter().cloned().collect();
        // Only from the children on: an agent on a session may have others for other sessions.
        let mut generation = self.children(channel, None).await?;
        loop {
            generation.retain(|child| seen.insert(child.clone()));
            let room = most.saturating_sub(agents.len());
            tree.more |= generation.len() > room;
            generation.truncate(room);
            if generation.is_empty() {
                break;
            }
            agents.extend(generation.iter().cloned());
            let below = stream::iter(generation).map(|agent| self.children_of(agent));
            let below: Vec<Vec<Box<str>>> = below.buffer_unordered(AT_ONCE).try_collect().await?;
            generation = below.into_iter().flatten().collect();
        }
        agents.sort_unstable();
        let states = self.living(&agents).await?;
        let runs = states.iter().map(|(record, state)| {
            let holder = Holder { agent: record.id.clone(), incarnation: state.incarnation };
            (channel.clone(), Index::Runs(holder.producer().into()))
        });
        let runs = self.samples(&runs.collect::<Vec<_>>()).await?;
        let agents = states.into_iter().zip(runs).map(|((record, state), runs)| {
            let Sample { members: runs, total: runs_total } = runs;
            let parent = state.parent.map(|parent| {
                let Parent { agent_id, run_id, .. } = parent;
                TreeParent { agent_id, run_id }
            });
            TreeAgent { agent_id: record.id, since: state.since, runs, runs_total, parent }
        });
        tree.agents = agents.collect();
        Ok(tree)
    }

    async fn children_of(&self, agent: Box<str>) -> Result<Vec<Box<str>>, Unavailable> {
        match Channel::agent(&agent) {
            Ok(own) => self.children(&own, None).await,
            Err(_) => Ok(Vec::new()),
        }
    }
}
