//! ◆ What falls due while nobody acts: commands expire, approvals time out, leases are lost. Whichever
//! replica comes first does it, in one step; the others find it done.

use std::time::Duration;

use tokio::time::Instant;

use super::{Deadline, Record};
use crate::{Journal, Unavailable};

/// A poll that comes later than this says that Redis or this process was away; so may the renewals have
/// been.
const ABSENCE: Duration = Duration::from_secs(2);

/// Does what falls due. One per replica.
#[derive(Debug)]
pub struct Reaper {
    journal: Journal,
    last: Option<Instant>,
    /// Until then no lease is declared lost.
    grace_until: Instant,
}

impl Reaper {
    /// A reaper for `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal, last: None, grace_until: Instant::now() }
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
            self.grace_until = now + self.journal.lease;
        }
        self.last = Some(now);
        let in_grace_period = now < self.grace_until;
        let due =
            due.into_iter().filter(|(deadline, _)| *deadline != Deadline::Lose || !in_grace_period);
        let mut done = futures_util::stream::FuturesUnordered::new();
        let mut result = Ok(());
        for (deadline, record) in due {
            // As many at a time as there are connections; a dead worker may leave hundreds.
            if done.len() >= 8
                && let Some(Err(error)) = futures_util::StreamExt::next(&mut done).await
            {
                result = Err(error);
            }
            done.push(self.journal.perform(deadline, record));
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
    async fn perform(&self, deadline: Deadline, record: Record) -> Result<(), Unavailable> {
        match deadline {
            Deadline::Expire => self.expire(&record).await,
            Deadline::TimeOut => self.time_out(&record).await,
            Deadline::Lose => self.lose(&record).await,
            Deadline::Settle => self.settle(&record).await,
        }
    }
}
