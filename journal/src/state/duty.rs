//! ◆ What falls due while nobody acts: commands expire, prompts time out, leases are lost. Whichever
//! replica comes first does it, in one step; the others find it done.

use std::time::Duration;

use tokio::time::Instant;

use super::lease::LEASE;
use super::{Change, Duty, Effect, Index, Thing};
use crate::{Journal, Unavailable};

/// A poll that comes later than this says that Redis or this process was away; so may the renewals have
/// been.
const ABSENCE: Duration = Duration::from_secs(2);

/// Does what falls due. One per replica.
#[derive(Debug)]
pub struct Keeper {
    journal: Journal,
    last: Option<Instant>,
    /// Until then no lease is declared lost.
    mercy_until: Instant,
}

impl Keeper {
    /// A keeper for `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal, last: None, mercy_until: Instant::now() }
    }

    /// Does what has fallen due; to be called twice a second. Nobody is declared lost because Redis or this
    /// process was away: after an absence every agent gets a whole lease to renew its own.
    ///
    /// # Errors
    /// [`Unavailable`]; what is left is still due at the next call.
    pub async fn poll(&mut self) -> Result<(), Unavailable> {
        let due = self.journal.due().await?;
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last > ABSENCE) {
            self.mercy_until = now + LEASE;
        }
        self.last = Some(now);
        let is_merciful = now < self.mercy_until;
        let due = due.into_iter().filter(|(duty, _)| *duty != Duty::Lose || !is_merciful);
        let mut done = futures_util::stream::FuturesUnordered::new();
        let mut result = Ok(());
        for (duty, thing) in due {
            // As many at a time as there are connections; a dead worker may leave hundreds.
            if done.len() >= 8
                && let Some(Err(error)) = futures_util::StreamExt::next(&mut done).await
            {
                result = Err(error);
            }
            done.push(self.journal.perform(duty, thing));
        }
        while let Some(one) = futures_util::StreamExt::next(&mut done).await {
            result = result.and(one);
        }
        // What was done took its time, and was not an absence.
        self.last = self.last.max(result.is_ok().then(Instant::now));
        result
    }
}

impl Journal {
    /// Its record has expired while no keeper was there: what is listed of it goes as well.
    pub(super) async fn forget_record(
        &self,
        thing: &Thing,
        found: Option<String>,
        duty: Duty,
        index: Index,
    ) -> Result<(), Unavailable> {
        let mut change = Change::new(thing, found, &"gone");
        change.lifetime = Some(Duration::from_secs(1));
        change.effects = vec![Effect::Remove(index, thing.id.clone()), Effect::Due(duty, None)];
        // Made anew meanwhile: then it is no longer gone.
        self.commit(&change).await.map(drop)
    }

    async fn perform(&self, duty: Duty, thing: Thing) -> Result<(), Unavailable> {
        match duty {
            Duty::Expire => self.expire(&thing).await,
            Duty::TimeOut => self.time_out(&thing).await,
            Duty::Lose => self.lose(&thing).await,
            Duty::Settle => self.settle(&thing).await,
        }
    }
}
