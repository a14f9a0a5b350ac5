//! ◆ Reports how many connections and subscribers this replica has, so that any replica knows the sum.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use journal::Journal;
use protocol::Channel;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::events::Events;

/// The pace. What is said holds for five seconds, so three may fail.
const PACE: Duration = Duration::from_secs(1);
/// Everything is said anew this often: Redis may have lost it.
const ANEW: Duration = Duration::from_secs(30);

/// Reports the counts, for ever.
pub(crate) async fn report(journal: Journal, events: Arc<Events>, connections: TaskTracker) {
    let replica = Uuid::new_v4().simple().to_string();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: HashMap<Channel, u64> = HashMap::new();
    let mut anew_at = Instant::now() + ANEW;
    loop {
        pace.tick().await;
        let counts = events.subscribers();
        if Instant::now() >= anew_at {
            anew_at = Instant::now() + ANEW;
            said.clear();
        }
        let changed = changes(&said, &counts);
        match journal.report_counts(&replica, connections.len() as u64, &changed).await {
            Ok(()) => said = counts,
            Err(error) => {
                tracing::debug!(%error, "reporting the counts to redis has failed");
                // What of it arrived is unknown.
                anew_at = Instant::now();
            }
        }
    }
}

/// What has changed in `counts` since `said` was reported.
fn changes(said: &HashMap<Channel, u64>, counts: &HashMap<Channel, u64>) -> Vec<(Channel, u64)> {
    let changed = counts.iter().filter(|(channel, count)| said.get(channel) != Some(count));
    let gone = said.keys().filter(|channel| !counts.contains_key(channel));
    let changed = changed.map(|(channel, count)| (channel.clone(), *count));
    changed.chain(gone.map(|channel| (channel.clone(), 0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_said_and_what_is_gone_counts_none() {
        let channel = |id: &str| Channel::session(id).unwrap();
        let counts = |of: &[(&str, u64)]| of.iter().map(|(id, n)| (channel(id), *n)).collect();
        let said = counts(&[("a", 1), ("b", 2), ("c", 3)]);
        let mut changed = changes(&said, &counts(&[("a", 1), ("b", 5), ("d", 1)]));
        changed.sort();
        assert_eq!(changed, [(channel("b"), 5), (channel("c"), 0), (channel("d"), 1)]);
    }
}
