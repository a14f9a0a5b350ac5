//! A lease that is held over a link, until it is released, lost or dropped.

use std::sync::Arc;

use journal::{Holder, Lease, Unavailable};
use protocol::Channel;
use protocol::agent::body::NoteCall;
use tokio_util::sync::CancellationToken;

use super::LinkError;
use super::relay::RelayLink;

/// A lease that is held.
#[derive(Debug)]
pub(crate) enum LeaseHandle {
    Journal(Lease),
    Relay(RelayLease),
}

/// A lease that a relay holds for the agent.
#[derive(Debug)]
pub(crate) struct RelayLease {
    pub(super) link: Arc<RelayLink>,
    pub(super) channel: Channel,
    pub(super) holder: Holder,
    pub(super) lost: CancellationToken,
}

impl LeaseHandle {
    /// On which channel.
    pub(crate) fn channel(&self) -> &Channel {
        match self {
            Self::Journal(lease) => lease.channel(),
            Self::Relay(lease) => &lease.channel,
        }
    }

    /// Who holds it.
    pub(crate) fn holder(&self) -> &Holder {
        match self {
            Self::Journal(lease) => lease.holder(),
            Self::Relay(lease) => &lease.holder,
        }
    }

    /// Is cancelled when the lease is lost, or a newer incarnation has taken over.
    pub(crate) fn lost(&self) -> CancellationToken {
        match self {
            Self::Journal(lease) => lease.lost(),
            Self::Relay(lease) => lease.lost.clone(),
        }
    }

    /// Keeps in the record which runs are open, so that their end is told if the agent dies.
    pub(crate) async fn note_runs(&self, runs: Vec<Box<str>>) -> Result<(), LinkError> {
        match self {
            Self::Journal(lease) => Ok(lease.note_runs(runs).await?),
            Self::Relay(lease) => lease.note(NoteCall { runs: Some(runs), channels: None }).await,
        }
    }

    /// Keeps in the record on which channels the agent holds leases.
    pub(crate) async fn note_channels(&self, channels: Vec<Channel>) -> Result<(), LinkError> {
        match self {
            Self::Journal(lease) => Ok(lease.note_channels(channels).await?),
            Self::Relay(lease) => {
                lease.note(NoteCall { runs: None, channels: Some(channels) }).await
            }
        }
    }

    /// Gives the lease up: the agent leaves of its own will.
    pub(crate) async fn release(self) -> Result<(), Unavailable> {
        match self {
            Self::Journal(lease) => lease.release().await,
            Self::Relay(lease) => lease.release().await,
        }
    }
}

impl RelayLease {
    async fn note(&self, note: NoteCall) -> Result<(), LinkError> {
        self.link.note(&self.channel, &note).await
    }

    async fn release(&self) -> Result<(), Unavailable> {
        let ends = tokio::time::Instant::now() + journal::LEASE_DEFAULT;
        loop {
            match self.link.release(&self.channel).await {
                Err(_) if tokio::time::Instant::now() < ends => {
                    tokio::time::sleep(crate::leases::RETRY_PAUSE).await;
                }
                released => return released,
            }
        }
    }
}

impl Drop for RelayLease {
    fn drop(&mut self) {
        self.link.forget(&self.channel);
    }
}
