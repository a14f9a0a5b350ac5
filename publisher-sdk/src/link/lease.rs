//! A lease that is held over a link, until it is released, lost or dropped.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{Holder, Lease, NewEntry, NoteCall, Unavailable};
use protocol::agent::body::EndRunCall;
use protocol::{CallBody, Channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::relay_link::RelayLink;
use super::{LinkError, persist_until, raw};

/// A lease that is held.
#[derive(Debug)]
pub(crate) struct LeaseHandle {
    pub(crate) channel: Channel,
    pub(crate) holder: Holder,
    /// Is cancelled when the lease is lost, or a newer incarnation has taken over.
    pub(crate) lost: CancellationToken,
    /// Is cancelled when the agent may not hold it any more: it has ended, and the agent lives on.
    pub(crate) revoked: CancellationToken,
    pub(super) kind: LeaseKind,
}

/// How a lease ends that the agent did not release.
#[derive(Clone, Debug, Default)]
pub(super) struct LeaseEnd {
    pub(super) lost: CancellationToken,
    pub(super) revoked: CancellationToken,
}

/// Who renews it.
#[derive(Debug)]
pub(super) enum LeaseKind {
    Journal(Lease),
    Relay(RelayLease),
}

/// A lease that a relay holds for the agent.
#[derive(Debug)]
pub(super) struct RelayLease(pub(super) Arc<RelayLink>, pub(super) Channel);

impl Drop for RelayLease {
    fn drop(&mut self) {
        self.0.forget(&self.1);
    }
}

impl From<Lease> for LeaseHandle {
    fn from(lease: Lease) -> Self {
        Self {
            channel: lease.channel().clone(),
            holder: lease.holder().clone(),
            lost: lease.lost(),
            revoked: CancellationToken::new(),
            kind: LeaseKind::Journal(lease),
        }
    }
}

impl LeaseHandle {
    /// Notes beside the lease which runs and channels came and went.
    pub(crate) async fn note(&self, note: &NoteCall) -> Result<(), LinkError> {
        match &self.kind {
            LeaseKind::Journal(lease) => Ok(lease.note(note).await?),
            LeaseKind::Relay(RelayLease(relay, _)) => {
                relay.call(&self.channel, CallBody::Note(note.clone())).await
            }
        }
    }

    /// Tells the end of a run, once, and takes it off the note in the same step. What is given back resolves when
    /// the end is copied to `global:events`.
    pub(crate) async fn end_run(
        &self,
        run_id: &str,
        entry: &NewEntry,
    ) -> Result<BoxFuture<'static, ()>, LinkError> {
        match &self.kind {
            LeaseKind::Journal(lease) => Ok(lease.end_run(run_id, entry).await?),
            LeaseKind::Relay(RelayLease(relay, _)) => {
                let end = EndRunCall {
                    run_id: run_id.into(),
                    key: entry.idempotency_key.clone().unwrap_or_default(),
                    event: entry.name.clone(),
                    data: raw(&entry.data)?,
                };
                relay.call::<()>(&self.channel, CallBody::EndRun(end)).await?;
                Ok(std::future::ready(()).boxed())
            }
        }
    }

    /// Gives the lease up: the agent leaves of its own will. Tried for as long as the lease lasts.
    pub(crate) async fn release(self) -> Result<(), Unavailable> {
        match self.kind {
            LeaseKind::Journal(lease) => lease.release().await,
            // Forgotten after it only: over a new connection it is taken back, and released there.
            LeaseKind::Relay(RelayLease(ref relay, ref channel)) => {
                let ends = Instant::now() + relay.lease_length();
                let release = || relay.call::<()>(channel, CallBody::Release);
                match persist_until(ends, release).await {
                    Err(LinkError::Unavailable(error)) => Err(error),
                    // Refused, it is not held any more.
                    _ => Ok(()),
                }
            }
        }
    }
}
