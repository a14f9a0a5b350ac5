//! A lease that is held over a link, until it is released, lost or dropped.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{Holder, Lease, NewEntry, NoteCall, Unavailable};
use protocol::Channel;
use tokio_util::sync::CancellationToken;

use super::LinkError;
use super::relay_link::RelayLink;

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

    /// Notes beside the lease which runs and channels came and went.
    pub(crate) async fn note(&self, note: &NoteCall) -> Result<(), LinkError> {
        match self {
            Self::Journal(lease) => Ok(lease.note(note).await?),
            Self::Relay(lease) => lease.link.note(&lease.channel, note.clone()).await,
        }
    }

    /// Tells the end of a run, once, and takes it off the note in the same step. What is given back resolves when
    /// the end is copied to `global:events`.
    pub(crate) async fn end_run(
        &self,
        run_id: &str,
        entry: &NewEntry,
    ) -> Result<BoxFuture<'static, ()>, LinkError> {
        match self {
            Self::Journal(lease) => Ok(lease.end_run(run_id, entry).await?),
            Self::Relay(lease) => {
                lease.link.end_run(&lease.channel, run_id, entry).await?;
                Ok(std::future::ready(()).boxed())
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
