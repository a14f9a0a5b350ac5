//! What a [`Pipeline`] does after a failure, once every answer is in. Pure.

use super::*;

impl Batch {
    /// Another process may have appended the same, and its idempotency key may have run out.
    fn is_late(&self, now: Instant) -> bool {
        self.idempotency_key.is_some() && now.duration_since(self.since) > RETRY_FOR
    }
}

impl Pipeline {
    /// All callers are told `error`, or that the outcome is unknown.
    pub(in super::super) fn fail_all(&mut self, error: &AppendError) {
        for batch in self.batches.drain(..) {
            let error = if batch.is_unknown { &AppendError::Unavailable } else { error };
            for caller in batch.callers.iter().chain(&batch.repeats) {
                settle(caller, |call| call.settle(Err(error.clone())));
            }
        }
        for waiting in self.waiting.drain(..) {
            settle(&waiting.caller, |call| call.settle(Err(error.clone())));
        }
    }

    /// The batch fails for good; those behind it close ranks.
    pub(super) fn refuse(&mut self, sequence: u64, error: AppendError) {
        self.drop_batch(sequence, error);
        self.trouble = self.trouble.max(Some(Trouble::Resend));
    }

    fn drop_batch(&mut self, sequence: u64, error: AppendError) {
        if let Some(at) = self.batches.iter().position(|batch| batch.sequence == sequence)
            && let Some(batch) = self.batches.remove(at)
        {
            for caller in batch.callers.iter().chain(&batch.repeats) {
                settle(caller, |call| call.settle(Err(error.clone())));
            }
        }
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
                    self.forget_all_kept();
                    (self.acknowledged_at, self.progress_at) = (now, now);
                }
                self.acknowledged = stored;
                self.drop_repeated(stored);
                // What came after it has its answer.
                self.acknowledge(now);
            }
            Trouble::Overtaken { by } => {
                self.forget_all_kept();
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
                tracing::warn!(journal = %self.name, "redis lost acknowledged entries; the journal begins a new epoch");
                self.return_kept();
                self.newest = None;
                self.buries = true;
                // The numbers do not change, and are compared with what is stored.
                (self.incarnation, self.acknowledged) = if self.is_numbered {
                    (self.incarnation, stored)
                } else {
                    (self.incarnation + 1, 0)
                };
            }
        }
        // A done batch in the middle keeps its sequence: those before it are known to Redis.
        self.renumber();
        for batch in &mut self.batches {
            batch.sent = batch.done.is_some();
        }
    }

    /// What the author has numbered up to `stored` is in the journal, at whatever positions.
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

    fn forget_all_kept(&mut self) {
        self.kept.clear();
        self.kept_bytes = 0;
    }

    fn return_kept(&mut self) {
        self.kept_bytes = 0;
        while let Some((mut batch, _)) = self.kept.pop_back() {
            batch.done = None;
            batch.first_sent = None;
            batch.is_unknown = false;
            batch.since = Instant::now();
            self.batches.push_front(batch);
        }
        for batch in &mut self.batches {
            batch.done = None;
        }
    }

    /// That run of the script appended nothing: its callers may take their entries back.
    pub(super) fn was_refused(&mut self, sequence: u64) {
        let batch = self.batches.iter().find(|batch| batch.sequence == sequence);
        for caller in batch.filter(|batch| !batch.is_unknown).iter().flat_map(|b| &b.callers) {
            settle(caller, |call| {
                if call.appended.is_empty() {
                    call.claim.was_refused();
                }
            });
        }
    }

    /// Whether anything is left of the batch that is sent next. What its callers have taken back leaves it; all
    /// of it is dropped where its idempotency key, stored by another process, may have run out.
    pub(super) fn may_go(&mut self, at: usize, now: Instant) -> bool {
        let batch = &mut self.batches[at];
        if batch.is_unknown || batch.callers.is_empty() {
            return true;
        }
        let is_late = batch.is_late(now);
        let goes: Vec<bool> =
            batch.callers.iter().map(|caller| !is_late && !is_withdrawn(caller)).collect();
        if goes.iter().all(|goes| *goes) {
            return true;
        }
        let mut left = goes.iter();
        batch.callers.retain(|caller| {
            let goes = left.next().is_some_and(|goes| *goes);
            if !goes {
                settle(caller, |call| call.settle(Err(AppendError::NotAppended)));
            }
            goes
        });
        let mut left = goes.iter();
        batch.ids.retain(|_| left.next().is_some_and(|goes| *goes));
        batch.rows = (batch.rows.iter().zip(&goes))
            .filter(|(_, goes)| **goes)
            .map(|(row, _)| row.clone())
            .collect();
        let is_left = !batch.rows.is_empty();
        if !is_left {
            self.batches.remove(at);
        }
        self.renumber();
        is_left
    }

    /// Sequences are consecutive again, but for those that an author has given.
    fn renumber(&mut self) {
        for (sequence, batch) in (self.acknowledged + 1..).zip(self.batches.iter_mut()) {
            batch.sequence = batch.ids.last().copied().unwrap_or(sequence);
        }
    }

    /// Nothing is retried for ever: all callers are told whether the outcome is unknown, and the next incarnation
    /// fences off what may still be on its way to Redis.
    pub(in super::super) fn give_up_if_too_old(&mut self, now: Instant) {
        let is_stuck = self.outstanding == 0 && !self.is_done();
        let is_old = now.duration_since(self.progress_at) > RETRY_FOR
            || self.batches.iter().any(|batch| batch.is_unknown && batch.is_late(now));
        if !is_stuck || !is_old {
            return;
        }
        self.fail_all(&AppendError::NotAppended);
        self.trouble = None;
        self.newest = None;
        if !self.is_numbered {
            self.incarnation += 1;
            self.acknowledged = 0;
        }
    }
}
