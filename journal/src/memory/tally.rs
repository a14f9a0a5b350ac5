//! Counts in memory: whoever shares this memory.

use std::collections::HashMap;
use std::time::Instant;

use protocol::Channel;

use super::Memory;
use crate::tally::{ReplicaTally, TALLY_LASTS};

#[derive(Debug, Default)]
pub(super) struct Tallies {
    replicas: HashMap<Box<str>, (u64, Instant)>,
    counts: HashMap<Channel, HashMap<Box<str>, u64>>,
}

impl Tallies {
    fn is_there(&self, replica: &str) -> bool {
        self.replicas.get(replica).is_some_and(|(_, said)| said.elapsed() < TALLY_LASTS)
    }
}

impl Memory {
    pub(crate) fn tally(&self, replica: &str, connections: u64, changed: &[(Channel, u64)]) {
        let tallies = &mut self.state().tallies;
        tallies.replicas.insert(replica.into(), (connections, Instant::now()));
        for (channel, count) in changed {
            let counts = tallies.counts.entry(channel.clone()).or_default();
            counts.insert(replica.into(), *count);
            counts.retain(|_, count| *count > 0);
        }
        tallies.counts.retain(|_, counts| !counts.is_empty());
    }

    pub(crate) fn replicas(&self) -> Vec<ReplicaTally> {
        let tallies = &self.state().tallies;
        let there = tallies.replicas.iter().filter(|(replica, _)| tallies.is_there(replica));
        there
            .map(|(replica, (connections, _))| ReplicaTally {
                replica: replica.clone(),
                connections: *connections,
            })
            .collect()
    }

    pub(crate) fn subscribers(&self, channel: &Channel) -> u64 {
        let tallies = &self.state().tallies;
        let counts = tallies.counts.get(channel).into_iter().flatten();
        counts.filter(|(replica, _)| tallies.is_there(replica)).map(|(_, count)| count).sum()
    }
}
