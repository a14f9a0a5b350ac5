//! Counts in memory: for all replicas that share this memory.

use std::collections::HashMap;
use std::time::Instant;

use protocol::Channel;

use super::Memory;
use crate::counts::{COUNTS_LIFETIME, ReplicaCounts};

#[derive(Debug, Default)]
pub(super) struct Counts {
    replicas: HashMap<Box<str>, (u64, Instant)>,
    counts: HashMap<Channel, HashMap<Box<str>, u64>>,
}

impl Counts {
    fn is_there(&self, replica: &str) -> bool {
        self.replicas.get(replica).is_some_and(|(_, said)| said.elapsed() < COUNTS_LIFETIME)
    }
}

impl Memory {
    pub(crate) fn report_counts(
        &self,
        replica: &str,
        connections: u64,
        changed: &[(Channel, u64)],
    ) {
        let counts = &mut self.state().counts;
        counts.replicas.insert(replica.into(), (connections, Instant::now()));
        for (channel, count) in changed {
            let counts = counts.counts.entry(channel.clone()).or_default();
            counts.insert(replica.into(), *count);
            counts.retain(|_, count| *count > 0);
        }
        counts.counts.retain(|_, counts| !counts.is_empty());
    }

    pub(crate) fn replicas(&self) -> Vec<ReplicaCounts> {
        let all = &self.state().counts;
        let there = all.replicas.iter().filter(|(replica, _)| all.is_there(replica));
        there
            .map(|(replica, (connections, _))| ReplicaCounts {
                replica: replica.clone(),
                connections: *connections,
            })
            .collect()
    }

    pub(crate) fn subscribers_of(&self, channels: &[Channel]) -> Vec<u64> {
        let all = &self.state().counts;
        let sum = |channel: &Channel| {
            let counts = all.counts.get(channel).into_iter().flatten();
            counts.filter(|(replica, _)| all.is_there(replica)).map(|(_, count)| count).sum()
        };
        channels.iter().map(sum).collect()
    }
}
