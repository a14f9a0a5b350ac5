//! ◆ Renews the leases that are held: one task and one pipeline for all agents of a process that share a
//! [`Journal`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use protocol::Channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::{LEASE, RENEW_EVERY, Stage, State, thing};
use super::{Change, Duty, Effect, Holder, Index, Thing};
use crate::{Journal, Unavailable};

/// The leases that one [`Journal`] holds: one task renews them all, in one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    leases: HashMap<u64, (Thing, u64, CancellationToken)>,
    is_renewing: bool,
}

impl Leases {
    pub(super) fn hold(
        self: &Arc<Self>,
        journal: &Journal,
        channel: &Channel,
        holder: &Holder,
        lost: &CancellationToken,
    ) -> u64 {
        let mut held = self.held();
        held.next += 1;
        let key = held.next;
        let thing = thing(channel, &holder.agent);
        held.leases.insert(key, (thing, holder.incarnation, lost.clone()));
        if !std::mem::replace(&mut held.is_renewing, true) {
            tokio::spawn(renew(journal.clone()));
        }
        key
    }

    pub(super) fn forget(&self, key: u64) {
        self.held().leases.remove(&key);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no code panics with this lock held")
    }
}

/// Renews until nothing is held.
async fn renew(journal: Journal) {
    let leases = Arc::clone(journal.leases());
    let mut last = Instant::now();
    loop {
        tokio::time::sleep_until(last + RENEW_EVERY).await;
        last = Instant::now();
        let (keys, held): (Vec<u64>, Vec<(Thing, Holder)>) = {
            let mut held = leases.held();
            if held.leases.is_empty() {
                held.is_renewing = false;
                return;
            }
            let lease = |(key, (thing, incarnation, _)): (&u64, &(Thing, u64, _))| {
                let holder = Holder { agent: thing.id.clone(), incarnation: *incarnation };
                (*key, (thing.clone(), holder))
            };
            held.leases.iter().map(lease).unzip()
        };
        let missing = match journal.renew(&held, LEASE).await {
            Ok(missing) => missing,
            Err(error) => {
                // Nobody loses a lease because Redis is away: it is renewed as soon as that is back.
                tracing::debug!(%error, "leases could not be renewed");
                last = Instant::now() - RENEW_EVERY + Duration::from_millis(500);
                continue;
            }
        };
        for index in missing {
            let (key, (thing, holder)) = (keys[index], &held[index]);
            let entry = leases.held().leases.get(&key).cloned();
            let Some((.., lost)) = entry else { continue };
            match journal.take_back(thing, holder).await {
                Ok(true) => {}
                Ok(false) => {
                    leases.forget(key);
                    lost.cancel();
                }
                Err(error) => tracing::debug!(%error, "a lease could not be looked at"),
            }
        }
    }
}

impl Journal {
    /// These leases, which nobody renews any more, last for this long from now on.
    pub(crate) async fn let_lapse(
        &self,
        leases: &[(Channel, Holder)],
        lasts: Duration,
    ) -> Result<(), Unavailable> {
        let leases: Vec<(Thing, Holder)> = (leases.iter())
            .map(|(channel, holder)| (thing(channel, &holder.agent), holder.clone()))
            .collect();
        self.renew(&leases, lasts).await.map(drop)
    }

    /// A lease that Redis does not know: lost or taken over (false), or forgotten together with all else,
    /// then it is taken back.
    async fn take_back(&self, thing: &Thing, holder: &Holder) -> Result<bool, Unavailable> {
        let look = self.look(thing).await?;
        let state = super::read::<State>(thing, look.state.as_deref());
        let state = match state {
            Some(state) if !state.is_held_by(holder) => return Ok(false),
            Some(state) => state,
            None => State {
                stage: Stage::Alive,
                incarnation: holder.incarnation,
                since: look.now_ms,
                runs: Vec::new(),
                parent: None,
                channels: Vec::new(),
            },
        };
        let mut change = Change::new(thing, look.state, &state);
        change.effects = vec![
            Effect::Put(Index::Agents, thing.id.clone(), "".into()),
            Effect::Due(Duty::Lose, Some(LEASE)),
        ];
        // Changed by somebody else meanwhile: the next renewal will tell.
        self.commit(&change).await.map(|_| true)
    }
}
