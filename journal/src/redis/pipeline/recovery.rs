//! What a [`Pipeline`] does when something went wrong and every answer is in. Pure.

use super::*;

impl Pipeline {
    /// The batch fails for good; those behind it close ranks.
    pub(super) fn refuse(&mut self, sequence: u64, error: AppendError) {
        if let Some(at) = self.batches.iter().position(|batch| batch.sequence == sequence)
            && let Some(batch) = self.batches.remove(at)
        {
            for caller in batch.callers.iter().chain(&batch.repeats) {
                settle(caller, |call| call.settle(Err(error.clone())));
            }
        }
        self.trouble = self.trouble.max(Some(Trouble::Resend));
    }

    /// Every answer is in: make ready to send again.
    pub(super) fn recover(&mut self, now: Instant) {
        self.give_up_if_too_old(now);
        let Some(trouble) = self.trouble.take() else { return };
        match trouble {
            Trouble::Resend => {}
            Trouble::Ahead { stored } => {
                if stored > self.acknowledged {
                    // What another process appended in between is not among them.
                    self.kept.clear();
                    (self.acknowledged_at, self.progress_at) = (now, now);
                }
                self.acknowledged = stored;
                self.drop_repeated(stored);
                // What came after it has its answer.
                self.acknowledge(now);
            }
            Trouble::Overtaken { by } => {
                self.kept.clear();
                self.newest = None;
                self.incarnation = self.incarnation.max(by) + 1;
                self.acknowledged = 0;
                // Only an idempotency key makes sure that what may have arrived is not doubled now.
                for mut batch in std::mem::take(&mut self.batches) {
                    if batch.idempotency_key.is_some() || batch.first_sent.is_none() {
                        batch.done = None;
                        self.batches.push_back(batch);
                        continue;
                    }
                    for caller in batch.callers {
                        settle(&caller, |call| call.settle(Err(AppendError::Unavailable)));
                    }
                }
            }
            Trouble::Lost { stored }
                if self.kept.front().is_some_and(|(batch, _)| batch.before <= stored) =>
            {
                // What is kept closes the hole.
                self.kept.retain(|(batch, _)| batch.sequence > stored);
                self.return_kept();
                self.newest = None;
                self.acknowledged = stored;
                self.drop_repeated(stored);
            }
            Trouble::Lost { stored } | Trouble::Regrown { stored } => {
                // The loss must be visible to everybody: a new epoch, beginning with what is kept.
                tracing::warn!("redis lost acknowledged entries; the journal begins a new epoch");
                self.return_kept();
                self.newest = None;
                self.buries = true;
                // Numbers stay what they are, and compare with what is stored.
                (self.incarnation, self.acknowledged) = if self.is_numbered {
                    (self.incarnation, stored)
                } else {
                    (self.incarnation + 1, 0)
                };
            }
        }
        let first = self.acknowledged + 1;
        for (sequence, batch) in (first..).zip(self.batches.iter_mut()) {
            // A done batch in the middle keeps its sequence: those before it are known to Redis.
            batch.sequence = batch.ids.last().copied().unwrap_or(sequence);
            batch.sent = batch.done.is_some();
        }
    }

    /// What the author has numbered up to `stored` is in the journal, wherever.
    fn drop_repeated(&mut self, stored: u64) {
        while let Some(batch) = self.batches.front_mut()
            && batch.ids.first().is_some_and(|id| *id <= stored)
        {
            let count = batch.ids.partition_point(|id| *id <= stored);
            for caller in batch.callers.drain(..count.min(batch.callers.len())) {
                settle(&caller, |call| call.appended(REPEATED));
            }
            if count < batch.ids.len() {
                batch.ids.drain(..count);
                batch.rows = batch.rows[count..].into();
                break;
            }
            for caller in batch.repeats.drain(..) {
                settle(&caller, |call| call.appended(REPEATED));
            }
            self.batches.pop_front();
        }
        while self.is_numbered && self.waiting.front().is_some_and(|waiting| waiting.id <= stored) {
            if let Some(waiting) = self.waiting.pop_front() {
                settle(&waiting.caller, |call| call.appended(REPEATED));
            }
        }
    }

    fn return_kept(&mut self) {
        while let Some((mut batch, _)) = self.kept.pop_back() {
            batch.done = None;
            batch.first_sent = None;
            self.batches.push_front(batch);
        }
        for batch in &mut self.batches {
            batch.done = None;
        }
    }

    /// Nothing is retried for ever: whoever waits hears that the outcome is unknown, and what may still
    /// be on its way to Redis is fenced off by the next incarnation.
    pub(in super::super) fn give_up_if_too_old(&mut self, now: Instant) {
        let is_stuck = self.outstanding == 0 && !self.is_done();
        if !is_stuck || now.duration_since(self.progress_at) <= RETRY_FOR {
            return;
        }
        let sent =
            self.batches.drain(..).flat_map(|batch| batch.callers.into_iter().chain(batch.repeats));
        for caller in sent.chain(self.waiting.drain(..).map(|waiting| waiting.caller)) {
            settle(&caller, |call| call.settle(Err(AppendError::Unavailable)));
        }
        self.trouble = None;
        self.newest = None;
        if !self.is_numbered {
            self.incarnation += 1;
            self.acknowledged = 0;
        }
    }
}
