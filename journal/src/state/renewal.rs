//! ◆ Renews the leases that are held: one task and one pipeline for all agents of a process that share a
//! [`Journal`].

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use protocol::Channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lease::{LeaseError, LeaseState, record};
use super::{Change, Deadline, Decision, Effect, Holder, Record, standing};
use crate::{Journal, Unavailable};

/// The pace at which an unanswered Redis is asked again.
const RENEW_AGAIN: Duration = Duration::from_millis(500);
/// So many leases are written again at a time: enough to fill the connection, while others use it too.
const RESTORES_AT_ONCE: usize = 32;

/// The leases that one [`Journal`] holds: one task renews them all, in one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    next: u64,
    leases: HashMap<u64, Held>,
    is_renewing: bool,
}

/// A lease that is held here.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) record: Record,
    pub(super) holder: Holder,
    pub(super) taking: Uuid,
    pub(super) lost: CancellationToken,
    /// The version that was written last.
    pub(super) version: Arc<AtomicU64>,
    /// Steps of one lease wait for each other.
    pub(super) written: Arc<tokio::sync::Mutex<Written>>,
}

/// A lease as it was written last: Redis may come back without it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) state: LeaseState,
    pub(super) runs: BTreeSet<Box<str>>,
    pub(super) channels: BTreeSet<Channel>,
}

impl Written {
    pub(super) fn new(state: LeaseState) -> Self {
        Self { state, runs: BTreeSet::new(), channels: BTreeSet::new() }
    }
}

impl Held {
    pub(super) fn new(record: Record, holder: Holder, taking: Uuid, written: Written) -> Self {
        let version = Arc::new(AtomicU64::new(written.state.version));
        let written = Arc::new(tokio::sync::Mutex::new(written));
        Self { record, holder, taking, lost: CancellationToken::new(), version, written }
    }
}

impl Leases {
    pub(super) fn hold(self: &Arc<Self>, journal: &Journal, lease: Held) -> u64 {
        let mut all = self.all();
        all.next += 1;
        let key = all.next;
        all.leases.insert(key, lease);
        if !std::mem::replace(&mut all.is_renewing, true) {
            journal.tasks.spawn("lease renewal", renew(journal.clone()));
        }
        key
    }

    pub(super) fn forget(&self, key: u64) {
        self.all().leases.remove(&key);
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().expect("no code panics with this lock held")
    }
}

/// Renews until nothing is held: every third of a lease, so two renewals may fail. What Redis has lost is written
/// again beside that: it may be thousands, and those that stand again must be renewed meanwhile.
async fn renew(journal: Journal) {
    let leases = Arc::clone(journal.leases());
    let pace = journal.lease / 3;
    let mut next = Instant::now() + pace;
    let mut restores = Restores::default();
    loop {
        restores.begin(&journal);
        tokio::select! {
            Some((key, is_done)) = restores.running.next() => {
                restores.known.remove(&key);
                if !is_done {
                    next = next.min(Instant::now() + RENEW_AGAIN);
                }
                continue;
            }
            () = tokio::time::sleep_until(next) => {}
        }
        next = Instant::now() + pace;
        let (keys, held): (Vec<u64>, Vec<(Record, Box<str>)>) = {
            let mut all = leases.all();
            if all.leases.is_empty() {
                all.is_renewing = false;
                return;
            }
            let lease = |(key, held): (&u64, &Held)| {
                let version = held.version.load(Ordering::SeqCst);
                let value = standing::index_value(held.holder.incarnation, version);
                (*key, (held.record.clone(), value))
            };
            all.leases.iter().map(lease).unzip()
        };
        let renewed = tokio::time::timeout(pace, journal.renew(&held, journal.lease)).await;
        let renewed =
            renewed.unwrap_or_else(|_| Err(Unavailable("redis does not answer".to_owned())));
        match renewed {
            Ok(missing) => missing.into_iter().for_each(|place| restores.owe(keys[place])),
            Err(error) => {
                // No agent loses a lease because Redis is away: it is renewed as soon as Redis is back.
                tracing::debug!(%error, "leases could not be renewed");
                next = Instant::now() + RENEW_AGAIN;
            }
        }
    }
}

/// Leases that are to be written again.
#[derive(Default)]
struct Restores {
    waiting: VecDeque<u64>,
    running: FuturesUnordered<BoxFuture<'static, (u64, bool)>>,
    /// Those that wait or run.
    known: HashSet<u64>,
}

impl Restores {
    fn owe(&mut self, key: u64) {
        if self.known.insert(key) {
            self.waiting.push_back(key);
        }
    }

    fn begin(&mut self, journal: &Journal) {
        while self.running.len() < RESTORES_AT_ONCE
            && let Some(key) = self.waiting.pop_front()
        {
            let journal = journal.clone();
            self.running.push(async move { (key, journal.restore_held(key).await) }.boxed());
        }
    }
}

impl Journal {
    /// False where Redis did not answer.
    async fn restore_held(&self, key: u64) -> bool {
        let held = self.leases().all().leases.get(&key).cloned();
        let Some(held) = held else { return true };
        match self.restore(&held).await {
            // Restoring tells no end of a run, and notes nothing new.
            Ok(()) | Err(LeaseError::Conflict | LeaseError::Full) => true,
            Err(LeaseError::Fenced) => {
                self.leases().forget(key);
                true
            }
            Err(LeaseError::Unavailable(error)) => {
                tracing::debug!(lease = %held.record, %error, "a lease could not be restored");
                false
            }
        }
    }

    /// These leases, which are not renewed any more, last for this long from now on.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn let_lapse(
        &self,
        leases: &[(Channel, Holder, Uuid)],
        lasts: Duration,
    ) -> Result<(), Unavailable> {
        for (channel, holder, taking) in leases {
            let record = record(channel, &holder.agent);
            self.transact(&record, |found: Option<LeaseState>, _| {
                // Taken anew meanwhile, on another connection: it is that one's.
                let is_it = |s: &LeaseState| s.is_held_by(holder) && s.taking == *taking;
                let Some(state) = found.filter(is_it) else { return Decision::Keep(()) };
                let mut change = Change::new(&state);
                change.effects = vec![Effect::Due(Deadline::Lose, Some(lasts))];
                Decision::Set(change, ())
            })
            .await?;
        }
        Ok(())
    }
}
