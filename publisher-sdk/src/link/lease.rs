//! A lease that is held over a link, until it is released, lost or dropped.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use journal::{Holder, Lease, Unavailable};
use protocol::Channel;
use protocol::agent::body::{ListChange, NoteCall};
use tokio_util::sync::CancellationToken;

use super::LinkError;
use super::relay_link::RelayLink;

/// How many runs or channels one frame names: well within a frame, with names of hundreds of bytes.
const NOTED_AT_ONCE: usize = 128;

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
    /// What was noted.
    pub(super) runs: Mutex<BTreeSet<Box<str>>>,
    pub(super) channels: Mutex<BTreeSet<Channel>>,
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
            Self::Relay(lease) => {
                let note = |runs| NoteCall { runs, channels: ListChange::default() };
                lease.note(&lease.runs, runs, note).await
            }
        }
    }

    /// Keeps in the record on which channels the agent holds leases.
    pub(crate) async fn note_channels(&self, channels: Vec<Channel>) -> Result<(), LinkError> {
        match self {
            Self::Journal(lease) => Ok(lease.note_channels(channels).await?),
            Self::Relay(lease) => {
                let note = |channels| NoteCall { channels, runs: ListChange::default() };
                lease.note(&lease.channels, channels, note).await
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
    /// Says what has changed in a list since it was noted last, in pieces: no frame grows with the list.
    async fn note<T: Ord + Clone>(
        &self,
        noted: &Mutex<BTreeSet<T>>,
        now: Vec<T>,
        note: impl Fn(ListChange<T>) -> NoteCall,
    ) -> Result<(), LinkError> {
        let now: BTreeSet<T> = now.into_iter().collect();
        let (added, removed): (Vec<T>, Vec<T>) = {
            let noted = noted.lock().expect("no code panics with this lock held");
            (now.difference(&noted).cloned().collect(), noted.difference(&now).cloned().collect())
        };
        let added = added.chunks(NOTED_AT_ONCE);
        let added = added.map(|added| ListChange { added: added.to_vec(), removed: Vec::new() });
        let removed = removed.chunks(NOTED_AT_ONCE);
        let removed = removed.map(|gone| ListChange { added: Vec::new(), removed: gone.to_vec() });
        for change in removed.chain(added) {
            self.link.note(&self.channel, note(change.clone())).await?;
            let mut noted = noted.lock().expect("no code panics with this lock held");
            noted.retain(|item| !change.removed.contains(item));
            noted.extend(change.added);
        }
        Ok(())
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
