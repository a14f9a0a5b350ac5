//! ◆ What falls due while nobody acts: commands expire, approvals time out, leases are lost. The first
//! replica to come does it, in one step; the others find it done.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::continuity::{Continuity, Probe};
use super::{Deadline, Record};
use crate::redis::probe::Prober;
use crate::{Backend, Journal, Unavailable};

/// A poll begins nothing more after this time: the next one is a sign of life of Redis again.
const WORK_MAX: Duration = Duration::from_secs(1);

/// Does what falls due. One per replica.
#[derive(Debug)]
pub struct Reaper {
    journal: Journal,
    /// Asks whether Redis writes; memory always does.
    prober: Option<Prober>,
    continuity: Continuity,
}

impl Reaper {
    /// A reaper for `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal, prober: None, continuity: Continuity::default() }
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
        let due = self.journal.due().await?.into_iter();
        let mut due = due.filter(|(deadline, _)| *deadline != Deadline::Lose || may_judge);
        let mut performed = FuturesUnordered::new();
        let mut result = Ok(());
        loop {
            // As many at a time as there are connections; a dead worker may leave hundreds.
            while performed.len() < 8
                && began.elapsed() < WORK_MAX
                && let Some((deadline, record)) = due.next()
            {
                performed.push(self.journal.perform(deadline, record));
            }
            let Some(one) = performed.next().await else { return result };
            result = result.and(one);
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
        self.prober.as_mut().expect("it was made just now").probe().await
    }
}

impl Journal {
    async fn perform(&self, deadline: Deadline, record: Record) -> Result<(), Unavailable> {
        match deadline {
            Deadline::Expire => self.expire(&record).await,
            Deadline::TimeOut => self.time_out(&record).await,
            Deadline::Lose => self.lose(&record).await,
            Deadline::Settle => self.settle(&record).await,
            Deadline::Copy => self.copy_end(&record).await,
        }
    }
}
