//! The agent's proof of life: one lease per channel that it serves, all of one incarnation.
//!
//! [`Agent`](crate::Agent), [`inbox`](crate::commands), [`Run`](crate::Run) → **leases** →
//! [`link`](crate::link)
//!
//! However many handles a channel has, it has one lease; it is released when the last handle goes.
//! Taking and releasing wait for each other, per channel: a release never hits the lease that was
//! taken after it. A lease that is lost is the end of the whole agent: it is fenced.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use journal::Holder;
use protocol::Channel;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::link::{LeaseHandle, LinkError, RecordLink};

/// The pace at which an unanswered Redis is asked again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Leases {
    link: RecordLink,
    holder: Holder,
    own: Channel,
    slots: Mutex<HashMap<Channel, Slot>>,
    /// Channels whose lease is held, the own one not among them.
    serving: Mutex<BTreeSet<Channel>>,
    /// Rings when `serving` has changed.
    changed: Notify,
    /// The agent is no longer who it was.
    fenced: CancellationToken,
    /// Everything is released.
    ended: CancellationToken,
}

/// A channel's lease, if it is held. Whoever takes or releases it holds the lock.
type Slot = Arc<tokio::sync::Mutex<Option<Held>>>;

#[derive(Debug)]
struct Held {
    lease: LeaseHandle,
    /// Ends the watch over the lease.
    _watch: DropGuard,
}

impl Leases {
    /// Begins with the lease on the agent's own channel.
    pub(crate) fn new(link: RecordLink, own: LeaseHandle, fenced: CancellationToken) -> Arc<Self> {
        let leases = Arc::new(Self {
            link,
            holder: own.holder().clone(),
            own: own.channel().clone(),
            slots: Mutex::default(),
            serving: Mutex::default(),
            changed: Notify::new(),
            fenced,
            ended: CancellationToken::new(),
        });
        let channel = leases.own.clone();
        let held = Some(leases.watch(own));
        leases.slots().insert(channel, Arc::new(tokio::sync::Mutex::new(held)));
        leases.changed.notify_one();
        tokio::spawn(Arc::clone(&leases).keep_channels());
        leases
    }

    /// The agent's own channel.
    pub(crate) fn own(&self) -> &Channel {
        &self.own
    }

    /// Who the agent is, in this life of it.
    pub(crate) fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Is cancelled when the agent is no longer who it was.
    pub(crate) fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// Takes the lease of `channel`, unless it is held.
    pub(crate) async fn take(&self, channel: &Channel) -> Result<(), LinkError> {
        let slot = Arc::clone(self.slots().entry(channel.clone()).or_default());
        let mut held = slot.lock().await;
        if self.ended.is_cancelled() {
            return Err(LinkError::Fenced);
        }
        if held.is_none() {
            let Holder { agent, incarnation } = &self.holder;
            let lease = self.link.lease(channel, agent, Some(*incarnation), None).await;
            let lease = lease.inspect_err(|error| {
                if matches!(error, LinkError::Fenced) {
                    self.fenced.cancel();
                }
            })?;
            *held = Some(self.watch(lease));
            self.serving().insert(channel.clone());
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Releases the lease of `channel`, unless it is wanted again by the time it is its turn.
    pub(crate) async fn leave(&self, channel: &Channel, is_wanted: impl Fn() -> bool) {
        let slot = self.slots().get(channel).cloned();
        let Some(slot) = slot else { return };
        let mut held = slot.lock().await;
        if is_wanted() {
            return;
        }
        if let Some(Held { lease, .. }) = held.take() {
            self.serving().remove(channel);
            self.changed.notify_one();
            if let Err(error) = lease.release().await {
                tracing::warn!(%channel, %error, "a lease could not be released, it runs out");
            }
        }
        drop(held);
        let mut slots = self.slots();
        // The map's and this one: nobody is about to take it.
        if Arc::strong_count(&slot) == 2 {
            slots.remove(channel);
        }
    }

    /// Releases everything, the agent's own channel last.
    pub(crate) async fn release(&self) {
        self.ended.cancel();
        let others: Vec<Channel> =
            self.slots().keys().filter(|channel| **channel != self.own).cloned().collect();
        join_all(others.iter().map(|channel| self.leave(channel, || false))).await;
        self.leave(&self.own, || false).await;
    }

    /// Notes on `channel` which runs are open; tried until it is done.
    pub(crate) async fn note_runs(
        &self,
        channel: &Channel,
        runs: impl Fn() -> Vec<Box<str>>,
    ) -> Result<(), LinkError> {
        loop {
            let slot = self.slots().get(channel).cloned();
            let Some(slot) = slot else { return Ok(()) };
            let noted = match &*slot.lock().await {
                // The runs as they are now: whoever notes last notes what is true.
                Some(held) => held.lease.note_runs(runs()).await,
                None => return Ok(()),
            };
            match noted {
                Err(LinkError::Unavailable(_)) => tokio::time::sleep(RETRY_PAUSE).await,
                noted => return noted,
            }
        }
    }

    /// Keeps the record of the served channels true, for whoever asks who is alive.
    async fn keep_channels(self: Arc<Self>) {
        let ended = self.ended.clone();
        let keeping = async {
            loop {
                self.changed.notified().await;
                while let Err(LinkError::Unavailable(_)) = self.note_channels().await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = self.fenced.cancelled() => {}
            () = Box::pin(keeping) => {}
        }
    }

    async fn note_channels(&self) -> Result<(), LinkError> {
        let slot = self.slots().get(&self.own).cloned();
        let Some(slot) = slot else { return Ok(()) };
        let held = slot.lock().await;
        let Some(held) = &*held else { return Ok(()) };
        let others = self.serving().iter().cloned().collect::<Vec<_>>();
        let channels = [self.own.clone()].into_iter().chain(others).collect();
        held.lease.note_channels(channels).await
    }

    fn watch(&self, lease: LeaseHandle) -> Held {
        let (lost, fenced) = (lease.lost(), self.fenced.clone());
        let watching = CancellationToken::new();
        let watch = watching.clone().drop_guard();
        tokio::spawn(watching.run_until_cancelled_owned(async move {
            lost.cancelled().await;
            fenced.cancel();
        }));
        Held { lease, _watch: watch }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Channel, Slot>> {
        self.slots.lock().expect("no code panics with this lock held")
    }

    fn serving(&self) -> MutexGuard<'_, BTreeSet<Channel>> {
        self.serving.lock().expect("no code panics with this lock held")
    }
}
