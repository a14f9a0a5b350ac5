//! How many connections and subscribers there are, across replicas.
//!
//! Each replica keeps its own figures, and one lease that says that they still hold. So a count costs one
//! field per replica and channel, not one per connection, and is right again within seconds after a
//! replica is killed: its fields no longer count.

use std::time::Duration;

use protocol::Channel;
use serde::Serialize;

use crate::{Backend, Journal, Unavailable, ask};

/// How long a replica's figures hold without being renewed.
pub const COUNTS_LIFETIME: Duration = Duration::from_secs(5);

/// A replica that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaCounts {
    /// The name that it gives itself.
    pub replica: Box<str>,
    /// How many connections it holds.
    pub connections: u64,
}

impl Journal {
    /// Reports that `replica` is there with so many connections, and on which channels the number of its
    /// subscribers has changed. Must be called at least every second, also without changes.
    ///
    /// # Errors
    /// [`Unavailable`]; then everything must be reported anew.
    pub async fn report_counts(
        &self,
        replica: &str,
        connections: u64,
        changed: &[(Channel, u64)],
    ) -> Result<(), Unavailable> {
        ask!(self.report_counts(replica, connections, changed))
    }

    /// The replicas that are there.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn replicas(&self) -> Result<Vec<ReplicaCounts>, Unavailable> {
        ask!(self.replicas())
    }

    /// How many subscribe to `channel`, on all replicas.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn subscribers(&self, channel: &Channel) -> Result<u64, Unavailable> {
        let counts = self.subscribers_of(std::slice::from_ref(channel)).await?;
        Ok(counts.into_iter().sum())
    }

    /// The same of several channels, in their order.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn subscribers_of(&self, channels: &[Channel]) -> Result<Vec<u64>, Unavailable> {
        ask!(self.subscribers_of(channels))
    }
}
