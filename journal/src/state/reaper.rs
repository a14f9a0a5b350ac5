//! ◆ What falls due while nobody acts: commands expire, approvals time out, leases are lost. The first
//! replica to come does it, in one step; the others find it done.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::continuity::{Continuity, Probe};
use super::{Deadline, Record};
use crate::backoff::Backoff;
use crate::redis::probe::Prober;
use crate::{Backend, Journal, Unavailable};

/// A poll begins nothing more after this time: the next one is a sign of life of Redis again.
const WORK_MAX: Duration = Duration::from_secs(1);
/// How many deadlines of one partition are taken up at a time, beside those that failed.
const DUE_MAX: usize = 200;
/// The pauses before a deadline that could not be handled is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Does what falls due. One per replica.
#[derive(Debug)]
pub struct Reaper {
    journal: Journal,
    /// Asks whether Redis writes; memory always does.
    prober: Option<Prober>,
    continuity: Continuity,
    /// Deadlines that could not be handled, each with the time of the next attempt.
    failed: HashMap<(Deadline, Record), (Instant, Backoff)>,
}

impl Reaper {
    /// A reaper for `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal, prober: None, continuity: Continuity::default(), failed: HashMap::new() }
    }

    /// Does what has fallen due; to be called twice a second. A lease is judged only when Redis has answered, and
    /// written, for one whole lease without a break: an agent that could not renew its lease was not dead.
    ///
    /// # Errors
    /// [`Unavailable`]; what is left is still due at the next call.
    pub async fn poll(&mut self) -> Result<(), Unavailable> {
        let polled = self.poll_once().await;
        if polled.is_err() {
            self.continuity.broken();
        }
        polled
    }

    async fn poll_once(&mut self) -> Result<(), Unavailable> {
        let sent = Instant::now();
        let probe = self.probe().await?;
        let began = Instant::now();
        self.continuity.answered(probe, sent, began);
        let may_judge = self.continuity.has_lasted(began, self.journal.lease);
        // Those that failed must not hide the others.
        let due = self.journal.due(DUE_MAX + self.failed.len()).await?;
        if !self.failed.is_empty() {
            let still: HashSet<_> = due.iter().collect();
            self.failed.retain(|failed, _| still.contains(failed));
        }
        let waits =
            |due: &(Deadline, Record)| self.failed.get(due).is_some_and(|(next, _)| *next > began);
        let due: Vec<_> = due
            .into_iter()
            .filter(|due| (due.0 != Deadline::Lose || may_judge) && !waits(due))
            .collect();
        let mut due = due.into_iter();
        let mut handled = FuturesUnordered::new();
        loop {
            // As many at a time as there are connections; a dead worker may leave hundreds.
            while handled.len() < 8
                && began.elapsed() < WORK_MAX
                && let Some(next) = due.next()
            {
                let journal = &self.journal;
                handled.push(async move { (journal.handle(&next).await, next) });
            }
            match handled.next().await {
                Some((Ok(()), handled)) => drop(self.failed.remove(&handled)),
                // Others are handled all the same: one record must not keep all dead agents alive.
                Some((Err(error), due)) => {
                    tracing::warn!(deadline = due.0.as_str(), record = %due.1, %error, "deadline not handled");
                    let (next, backoff) = self
                        .failed
                        .entry(due)
                        .or_insert_with(|| (began, Backoff::new(RETRY_FIRST, RETRY_LONGEST)));
                    *next = Instant::now() + backoff.next();
                }
                None => return Ok(()),
            }
        }
    }

    async fn probe(&mut self) -> Result<Probe, Unavailable> {
        let Backend::Redis(redis) = &self.journal.backend else {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(Probe { connection: 0, run_id: None, time });
        };
        if self.prober.is_none() {
            self.prober = Some(redis.prober()?);
        }
        Ok(self.prober.as_mut().expect("it was made just now").probe().await?)
    }
}

impl Journal {
    async fn handle(&self, (deadline, record): &(Deadline, Record)) -> Result<(), Unavailable> {
        match deadline {
            Deadline::Expire => self.expire(record).await,
            Deadline::TimeOut => self.time_out(record).await,
            Deadline::Lose => self.lose(record).await,
            Deadline::Settle => self.settle(record).await,
            Deadline::Copy => self.copy(record).await,
            Deadline::CopyApproval => self.copy_approval(record).await,
            Deadline::Walk => self.walk_on(record).await,
        }
    }
}
