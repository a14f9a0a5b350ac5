//! The agent's proof of life: one lease per channel that it serves, all of one incarnation.
//!
//! [`Agent`](crate::Agent), [`inbox`](crate::commands), [`Run`](crate::Run) → **leases** →
//! [`link`](crate::link)
//!
//! However many handles a channel has, it has one lease; it is released when the last handle goes.
//! Taking and releasing wait for each other, per channel: a release never hits the lease that was
//! taken after it. A lease that is lost is the end of the whole agent: it is fenced. One that is revoked ends alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, join_all};
use journal::{Holder, ListChange, NewEntry, NoteCall};
use protocol::{Channel, Kind};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::link::{LeaseHandle, LinkError, RecordLink, persist};

/// How many channels one note names at most.
const NOTE_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Leases {
    link: RecordLink,
    holder: Holder,
    own: Channel,
    slots: Mutex<HashMap<Channel, Slot>>,
    /// Channels whose lease is held, the own one not among them.
    serving: Mutex<BTreeSet<Channel>>,
    /// Notified when `serving` has changed.
    changed: Notify,
    /// Is cancelled when the agent is fenced.
    fenced: CancellationToken,
    revoked: Arc<Revoked>,
    /// Everything is released.
    ended: CancellationToken,
}

/// Channels whose lease has ended because the agent may not hold it any more.
#[derive(Debug, Default)]
struct Revoked {
    channels: Mutex<BTreeSet<Channel>>,
    more: Notify,
}

/// A channel's lease, if it is held. The code that takes or releases it holds the lock.
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
            holder: own.holder.clone(),
            own: own.channel.clone(),
            slots: Mutex::default(),
            serving: Mutex::default(),
            changed: Notify::new(),
            fenced,
            revoked: Arc::default(),
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

    /// The agent's id and incarnation.
    pub(crate) fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Is cancelled when the agent is fenced.
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
        // Only the map's reference and this one are left: no other caller is about to take it.
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

    /// Where the agent's events are looked at: its own channel and its sessions.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        let serving = self.serving();
        let sessions = serving.iter().filter(|channel| channel.kind() != Kind::Service);
        [&self.own].into_iter().chain(sessions).cloned().collect()
    }

    /// Renews nothing any more: the leases run out, and the agent is declared lost.
    pub(crate) async fn abandon(&self) {
        self.fenced.cancel();
        let slots: Vec<Slot> = self.slots().values().cloned().collect();
        for slot in slots {
            drop(slot.lock().await.take());
        }
        self.link.abandon();
    }

    /// Notes beside the lease of `channel` what came and went; tried until it is done. Nothing is noted where no
    /// lease is held.
    pub(crate) async fn note(&self, channel: &Channel, note: &NoteCall) -> Result<(), LinkError> {
        persist(async || {
            let Some(slot) = self.locked(channel).await else { return Ok(()) };
            let Some(held) = &*slot else { return Ok(()) };
            held.lease.note(note).await
        })
        .await
    }

    /// Tells the end of a run on `channel`; tried until it is done. `None` where no lease is held there. What is given
    /// back resolves when the end is copied to `global:events`, where what the agent's own channel tells goes.
    pub(crate) async fn end_run(
        &self,
        channel: &Channel,
        run_id: &str,
        entry: &NewEntry,
    ) -> Result<Option<BoxFuture<'static, ()>>, LinkError> {
        persist(async || {
            let Some(slot) = self.locked(channel).await else { return Ok(None) };
            let Some(held) = &*slot else { return Ok(None) };
            held.lease.end_run(run_id, entry).await.map(Some)
        })
        .await
    }

    /// The next channel whose lease has ended because the agent may not hold it any more.
    pub(crate) async fn next_revoked(&self) -> Channel {
        loop {
            let next = lock(&self.revoked.channels).pop_first();
            match next {
                Some(channel) => return channel,
                None => self.revoked.more.notified().await,
            }
        }
    }

    /// The lease of `channel` has ended.
    pub(crate) async fn forget(&self, channel: &Channel) {
        if let Some(mut slot) = self.locked(channel).await
            && slot.as_ref().is_some_and(|held| held.lease.revoked.is_cancelled())
        {
            *slot = None;
            self.serving().remove(channel);
            self.changed.notify_one();
        }
    }

    async fn locked(&self, channel: &Channel) -> Option<OwnedMutexGuard<Option<Held>>> {
        let slot = self.slots().get(channel).cloned()?;
        Some(slot.lock_owned().await)
    }

    /// Keeps the record of the served channels current, for `GET /api/v1/agents`.
    async fn keep_channels(self: Arc<Self>) {
        let ended = self.ended.clone();
        let keeping = async {
            let mut noted = BTreeSet::new();
            loop {
                self.changed.notified().await;
                if let Err(error) = self.note_channels(&mut noted).await {
                    tracing::debug!(%error, "the served channels are not noted");
                }
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = self.fenced.cancelled() => {}
            () = Box::pin(keeping) => {}
        }
    }

    /// Notes what has changed since, some at a time: no frame grows with the number of sessions.
    async fn note_channels(&self, noted: &mut BTreeSet<Channel>) -> Result<(), LinkError> {
        loop {
            let mut served = self.serving().clone();
            served.insert(self.own.clone());
            let added: Vec<Channel> = served.difference(noted).take(NOTE_MAX).cloned().collect();
            let room = NOTE_MAX - added.len();
            let removed: Vec<Channel> = noted.difference(&served).take(room).cloned().collect();
            if added.is_empty() && removed.is_empty() {
                return Ok(());
            }
            let channels = ListChange { added, removed };
            let note = NoteCall { channels, ..NoteCall::default() };
            self.note(&self.own, &note).await?;
            noted.extend(note.channels.added);
            for removed in &note.channels.removed {
                noted.remove(removed);
            }
        }
    }

    fn watch(&self, lease: LeaseHandle) -> Held {
        let (lost, fenced) = (lease.lost.clone(), self.fenced.clone());
        let (is_revoked, revoked) = (lease.revoked.clone(), Arc::clone(&self.revoked));
        let channel = lease.channel.clone();
        let watching = CancellationToken::new();
        let watch = watching.clone().drop_guard();
        tokio::spawn(watching.run_until_cancelled_owned(async move {
            tokio::select! {
                () = lost.cancelled() => fenced.cancel(),
                () = is_revoked.cancelled() => {
                    lock(&revoked.channels).insert(channel);
                    revoked.more.notify_one();
                }
            }
        }));
        Held { lease, _watch: watch }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Channel, Slot>> {
        lock(&self.slots)
    }

    fn serving(&self) -> MutexGuard<'_, BTreeSet<Channel>> {
        lock(&self.serving)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}
