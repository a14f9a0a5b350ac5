//! ◆ Renews the leases that are held: one task and one pipeline for all agents of a process that share a
//! [`Journal`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use protocol::Channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lease::{State, record};
use super::{Change, Deadline, Decision, Effect, Holder, Index, Record};
use crate::{Journal, Unavailable};

/// The leases that one [`Journal`] holds: one task renews them all, in one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    leases: HashMap<u64, Kept>,
    is_renewing: bool,
}

#[derive(Clone, Debug)]
struct Kept {
    record: Record,
    /// As it was written last: Redis may come back without it.
    state: State,
    lost: CancellationToken,
}

impl Kept {
    fn holder(&self) -> Holder {
        Holder { agent: self.record.id.clone(), incarnation: self.state.incarnation }
    }
}

impl Leases {
    pub(super) fn hold(
        self: &Arc<Self>,
        journal: &Journal,
        record: &Record,
        state: State,
        lost: &CancellationToken,
    ) -> u64 {
        let mut held = self.held();
        held.next += 1;
        let key = held.next;
        held.leases.insert(key, Kept { record: record.clone(), state, lost: lost.clone() });
        if !std::mem::replace(&mut held.is_renewing, true) {
            tokio::spawn(renew(journal.clone()));
        }
        key
    }

    /// The lease's state was written anew.
    pub(super) fn keep(&self, key: u64, state: State) {
        if let Some(kept) = self.held().leases.get_mut(&key) {
            kept.state = state;
        }
    }

    pub(super) fn forget(&self, key: u64) {
        self.held().leases.remove(&key);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no code panics with this lock held")
    }
}

/// The pace at which an unanswered Redis is asked again.
const RENEW_AGAIN: Duration = Duration::from_millis(500);

/// Renews until nothing is held: every third of a lease, so two renewals may fail.
async fn renew(journal: Journal) {
    let leases = Arc::clone(journal.leases());
    let pace = journal.lease / 3;
    let mut next = Instant::now() + pace;
    loop {
        tokio::time::sleep_until(next).await;
        next = Instant::now() + pace;
        let (keys, held): (Vec<u64>, Vec<(Record, Holder)>) = {
            let mut held = leases.held();
            if held.leases.is_empty() {
                held.is_renewing = false;
                return;
            }
            let lease = |(key, kept): (&u64, &Kept)| (*key, (kept.record.clone(), kept.holder()));
            held.leases.iter().map(lease).unzip()
        };
        let renewed = tokio::time::timeout(pace, journal.renew(&held, journal.lease)).await;
        let renewed =
            renewed.unwrap_or_else(|_| Err(Unavailable("redis does not answer".to_owned())));
        let missing = match renewed {
            Ok(missing) => missing,
            Err(error) => {
                // Nobody loses a lease because Redis is away: it is renewed as soon as that is back.
                tracing::debug!(%error, "leases could not be renewed");
                next = Instant::now() + RENEW_AGAIN;
                continue;
            }
        };
        for index in missing {
            let key = keys[index];
            let kept = leases.held().leases.get(&key).cloned();
            let Some(kept) = kept else { continue };
            match journal.take_back(&kept).await {
                Ok(true) => {}
                Ok(false) => {
                    leases.forget(key);
                    kept.lost.cancel();
                }
                Err(error) => tracing::debug!(%error, "a lease could not be looked at"),
            }
        }
    }
}

impl Journal {
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
            self.transact(&record, |found: Option<State>, _| {
                // Taken anew meanwhile, on another connection: it is that one's.
                let is_it = |s: &State| s.is_held_by(holder) && s.taking == *taking;
                let Some(state) = found.filter(is_it) else { return Decision::Keep(()) };
                let mut change = Change::new(&state);
                change.effects = vec![Effect::Due(Deadline::Lose, Some(lasts))];
                Decision::Set(change, ())
            })
            .await?;
        }
        Ok(())
    }

    /// A lease that Redis does not know: lost or taken over (false), or forgotten together with all else,
    /// then it is taken back.
    async fn take_back(&self, kept: &Kept) -> Result<bool, Unavailable> {
        let (record, holder) = (&kept.record, kept.holder());
        let taken =
            self.transact(record, |found, _| taken_back(found, kept, self.lease)).await?.done();
        if taken == Some(true)
            && let Some(parent) = &kept.state.parent
        {
            self.adopt(parent, &holder).await?;
        }
        Ok(taken != Some(false))
    }
}

/// The lease is the holder's again; false where it is another's, or was lost.
fn taken_back(found: Option<State>, kept: &Kept, lasts: Duration) -> Decision<bool> {
    let state = match found {
        Some(state) if !state.is_held_by(&kept.holder()) => return Decision::Keep(false),
        found => found.unwrap_or_else(|| kept.state.clone()),
    };
    let mut change = Change::new(&state);
    change.effects = vec![
        Effect::Put(Index::Agents, kept.record.id.clone(), "".into()),
        Effect::Due(Deadline::Lose, Some(lasts)),
    ];
    Decision::Set(change, true)
}
