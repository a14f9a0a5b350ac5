//! The order of one producer's appends to one journal, kept through every failure. Pure.
//!
//! Entries wait, are put together into batches with consecutive sequences, and up to [`IN_FLIGHT`]
//! batches are under way at a time. Whatever goes wrong, nothing new is sent until every answer is in;
//! then what has no good answer is sent again, in order. Redis knows sequences it has seen and refuses
//! holes, so a retry is harmless and nothing can overtake.
//!
//! Acknowledged batches are kept for a while: if Redis comes back without them, they are sent again;
//! where that cannot close the hole, the journal is begun anew, so that every reader hears of the loss.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::wire::Place;
use crate::append::AppendOutcome;
use crate::{AppendError, Appended, NewEntry};

/// Batches under way at a time: as many as the script's record remembers.
const IN_FLIGHT: usize = 8;
/// The bounds of one batch. Its notification is one message to every link, so it must stay small.
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: usize = 256 * 1024;
/// How long, and how much, acknowledged batches are kept in case Redis loses them.
const KEPT_FOR: Duration = Duration::from_secs(10);
const KEPT_BYTES: usize = 1024 * 1024;
/// How long Redis remembers a producer's sequences after the last keeping.
pub(super) const RECORD_LIFETIME: Duration = Duration::from_secs(900);
/// Nothing is retried longer than this, so Redis knows every sequence that is.
const RETRY_FOR: Duration = Duration::from_secs(600);
/// Within this time of the last acknowledgement the record must be there, or Redis lost it: it lives
/// [`RECORD_LIFETIME`] from the last keeping, which may be [`KEEP_AFTER`] before the last append.
const RECORD_FOR: Duration = Duration::from_secs(700);

/// How often the script is told to keep the journal within its retention: every 64 entries, so that at most
/// so many of each producer's stand too long; every 128 KiB; and every 100 s, so that an expiry is pushed on.
const KEEP_ENTRIES: usize = 64;
const KEEP_BYTES: usize = 128 * 1024;
const KEEP_AFTER: Duration = Duration::from_secs(100);

/// Somebody waits for all entries of one append.
#[derive(Debug)]
pub(super) struct Call {
    answer: Option<oneshot::Sender<AppendOutcome>>,
    appended: Vec<Appended>,
    left: usize,
    /// The room that the entries take in the buffer, given back with the answer.
    room: Option<OwnedSemaphorePermit>,
}

impl Call {
    pub(super) fn new(
        answer: oneshot::Sender<AppendOutcome>,
        entries: usize,
        room: OwnedSemaphorePermit,
    ) -> Arc<Mutex<Self>> {
        let appended = Vec::with_capacity(entries);
        Arc::new(Mutex::new(Self {
            answer: Some(answer),
            appended,
            left: entries,
            room: Some(room),
        }))
    }

    fn appended(&mut self, appended: Appended) {
        self.appended.push(appended);
        self.left -= 1;
        if self.left == 0 {
            let appended = std::mem::take(&mut self.appended);
            self.settle(Ok(appended));
        }
    }

    fn settle(&mut self, outcome: AppendOutcome) {
        self.room = None;
        if let Some(answer) = self.answer.take() {
            // Nobody need be waiting any more.
            drop(answer.send(outcome));
        }
    }
}

type Caller = Arc<Mutex<Call>>;

fn settle(caller: &Caller, with: impl FnOnce(&mut Call)) {
    with(&mut caller.lock().expect("no code panics with this lock held"));
}

/// Entries that are appended by one run of the script.
#[derive(Debug)]
struct Batch {
    sequence: u64,
    /// `name idempotency key data`, as the script takes them.
    rows: Arc<[String]>,
    idempotency_key: Option<Box<str>>,
    bytes: usize,
    /// Who waits, entry by entry; nobody for batches sent again from what was kept.
    callers: Vec<Caller>,
    first_sent: Option<Instant>,
    sent: bool,
    done: Option<(Place, u64)>,
}

/// One run of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) incarnation: u64,
    pub(super) sequence: u64,
    /// Redis need have no record of us: we begin, or the record may have expired.
    pub(super) open: bool,
    /// The newest epoch that was ever acknowledged; 0 before the first.
    pub(super) epoch: u64,
    /// That epoch lost data: bury it.
    pub(super) buries: bool,
    /// Keep the journal within its retention now; always with `open`.
    pub(super) keeps: bool,
    pub(super) idempotency_key: Option<Box<str>>,
    pub(super) rows: Arc<[String]>,
}

/// What came of one run of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// In the journal, now or since an earlier attempt.
    Appended { place: Place, listeners: u64, known: bool },
    /// Refused: the stored sequence leaves a hole, or there is none.
    Gap(Option<u64>),
    /// Refused: the producer is declared lost, or replaced.
    Fenced,
    /// Refused: the same producer has appended through another process, with this newer incarnation.
    Overtaken(u64),
    /// No answer, or one that time will change.
    Failed,
    /// Refused for good.
    Refused(String),
}

/// Why nothing new is sent, in ascending weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Send again what has no good answer.
    Resend,
    /// Redis' record ends at this sequence, though more was acknowledged.
    Lost { stored: u64 },
    /// The producer was elsewhere in between, and is back: begin above that incarnation.
    Overtaken { by: u64 },
    /// Redis has a lower n than it once acknowledged.
    Regrown,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) incarnation: u64,
    waiting: VecDeque<(NewEntry, Caller)>,
    batches: VecDeque<Batch>,
    kept: VecDeque<(Batch, Instant)>,
    /// The newest sequence whose batch was acknowledged.
    acknowledged: u64,
    acknowledged_at: Instant,
    /// Epoch and n of the newest acknowledged entry.
    newest: Option<(u64, u64)>,
    outstanding: usize,
    /// When something was last acknowledged, or began to wait.
    progress_at: Instant,
    /// The one batch under way was sent as `open`: nothing follows until it is answered.
    alone: bool,
    trouble: Option<Trouble>,
    epoch: u64,
    buries: bool,
    /// What was sent since the journal was last kept within its retention, and when that was.
    unkept_entries: usize,
    unkept_bytes: usize,
    kept_at: Option<Instant>,
}

impl Pipeline {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            waiting: VecDeque::new(),
            batches: VecDeque::new(),
            kept: VecDeque::new(),
            acknowledged: 0,
            acknowledged_at: Instant::now(),
            newest: None,
            outstanding: 0,
            progress_at: Instant::now(),
            alone: false,
            trouble: None,
            epoch: 0,
            buries: false,
            unkept_entries: 0,
            unkept_bytes: 0,
            kept_at: None,
        }
    }

    pub(super) fn push(&mut self, entries: Vec<NewEntry>, caller: &Caller) {
        if self.is_done() {
            self.progress_at = Instant::now();
        }
        self.waiting.extend(entries.into_iter().map(|entry| (entry, Arc::clone(caller))));
    }

    /// Whether nothing waits for an answer.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.batches.is_empty()
    }

    /// Whether the pipeline can be forgotten.
    pub(super) fn is_idle(&mut self, now: Instant) -> bool {
        self.forget_kept(now);
        self.is_done() && self.kept.is_empty()
    }

    /// The next run of the script, if one may be sent now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Send> {
        self.give_up_if_too_old(now);
        if self.trouble.is_some() || self.alone || self.outstanding >= IN_FLIGHT {
            return None;
        }
        if self.batches.iter().all(|batch| batch.sent) {
            if self.batches.len() >= IN_FLIGHT {
                return None;
            }
            let batch = self.form_batch()?;
            self.batches.push_back(batch);
        }
        // Said without need, it would hide that Redis came back without our record.
        let open = self.outstanding == 0
            && (self.acknowledged == 0 || now.duration_since(self.acknowledged_at) > RECORD_FOR);
        let batch = self.batches.iter_mut().find(|batch| !batch.sent)?;
        batch.sent = true;
        batch.first_sent.get_or_insert(now);
        self.outstanding += 1;
        self.alone = open;
        self.unkept_entries += batch.rows.len();
        self.unkept_bytes += batch.bytes;
        let keeps = open
            || self.unkept_entries >= KEEP_ENTRIES
            || self.unkept_bytes >= KEEP_BYTES
            || self.kept_at.is_none_or(|at| now.duration_since(at) >= KEEP_AFTER);
        if keeps {
            (self.unkept_entries, self.unkept_bytes, self.kept_at) = (0, 0, Some(now));
        }
        Some(Send {
            incarnation: self.incarnation,
            sequence: batch.sequence,
            open,
            epoch: self.epoch,
            buries: self.buries,
            keeps,
            idempotency_key: batch.idempotency_key.clone(),
            rows: Arc::clone(&batch.rows),
        })
    }

    fn form_batch(&mut self) -> Option<Batch> {
        let (mut rows, mut callers, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut idempotency_key = None;
        while let Some((entry, _)) = self.waiting.front() {
            let full = rows.len() >= BATCH_ENTRIES || bytes + entry.cost() > BATCH_BYTES;
            // An idempotency key stands alone: whether its entry is new is known only to the script.
            if !rows.is_empty()
                && (full || entry.idempotency_key.is_some() || idempotency_key.is_some())
            {
                break;
            }
            let Some((entry, caller)) = self.waiting.pop_front() else { break };
            bytes += entry.cost();
            rows.push(format!(
                "{} {} {}",
                entry.name,
                entry.idempotency_key.as_deref().unwrap_or("-"),
                entry.data
            ));
            callers.push(caller);
            idempotency_key = entry.idempotency_key;
        }
        if rows.is_empty() {
            return None;
        }
        let sequence = self.batches.back().map_or(self.acknowledged, |batch| batch.sequence) + 1;
        let rows = rows.into();
        Some(Batch {
            sequence,
            rows,
            idempotency_key,
            bytes,
            callers,
            first_sent: None,
            sent: false,
            done: None,
        })
    }

    /// Takes the answer to the run with `sequence`.
    pub(super) fn answered(&mut self, sequence: u64, answer: Answer, now: Instant) {
        self.outstanding -= 1;
        self.alone = false;
        match answer {
            Answer::Appended { place, listeners, known } => {
                self.buries = false;
                self.epoch = self.epoch.max(place.epoch);
                if let Some(batch) =
                    self.batches.iter_mut().find(|batch| batch.sequence == sequence)
                {
                    batch.done = Some((place, listeners));
                    let is_below =
                        self.newest.is_some_and(|(epoch, n)| epoch == place.epoch && place.n <= n);
                    if is_below && !known && batch.idempotency_key.is_none() {
                        self.trouble = self.trouble.max(Some(Trouble::Regrown));
                    }
                }
                self.acknowledge(now);
            }
            Answer::Gap(stored) => {
                let stored = stored.unwrap_or(0);
                let trouble = if stored < self.acknowledged {
                    Trouble::Lost { stored }
                } else {
                    Trouble::Resend
                };
                self.trouble = self.trouble.max(Some(trouble));
            }
            Answer::Overtaken(by) => {
                self.trouble = self.trouble.max(Some(Trouble::Overtaken { by }));
            }
            Answer::Failed => self.trouble = self.trouble.max(Some(Trouble::Resend)),
            Answer::Fenced => self.refuse(sequence, AppendError::Fenced),
            Answer::Refused(why) => self.refuse(sequence, AppendError::Refused(why)),
        }
        if self.outstanding == 0 {
            self.recover(now);
        }
    }

    /// Settles the batches at the front that are done.
    fn acknowledge(&mut self, now: Instant) {
        while let Some((place, listeners)) = self.batches.front().and_then(|batch| batch.done)
            && let Some(mut batch) = self.batches.pop_front()
        {
            for (index, caller) in batch.callers.drain(..).enumerate() {
                let offset = place.offset(index as u64);
                settle(&caller, |call| call.appended(Appended { offset, listeners }));
            }
            self.acknowledged = batch.sequence;
            self.acknowledged_at = now;
            self.progress_at = now;
            if batch.idempotency_key.is_none() {
                self.newest = Some((place.epoch, place.n + batch.rows.len() as u64 - 1));
            }
            self.kept.push_back((batch, now));
        }
        self.forget_kept(now);
    }

    fn forget_kept(&mut self, now: Instant) {
        let mut bytes: usize = self.kept.iter().map(|(batch, _)| batch.bytes).sum();
        while let Some((batch, since)) = self.kept.front()
            && (bytes > KEPT_BYTES || now.duration_since(*since) > KEPT_FOR)
        {
            bytes -= batch.bytes;
            self.kept.pop_front();
        }
    }

    /// The batch fails for good; those behind it close ranks.
    fn refuse(&mut self, sequence: u64, error: AppendError) {
        if let Some(at) = self.batches.iter().position(|batch| batch.sequence == sequence)
            && let Some(batch) = self.batches.remove(at)
        {
            for caller in batch.callers {
                settle(&caller, |call| call.settle(Err(error.clone())));
            }
        }
        self.trouble = self.trouble.max(Some(Trouble::Resend));
    }

    /// Every answer is in: make ready to send again.
    fn recover(&mut self, now: Instant) {
        self.give_up_if_too_old(now);
        let Some(trouble) = self.trouble.take() else { return };
        match trouble {
            Trouble::Resend => {}
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
                if self.kept.front().is_some_and(|(batch, _)| batch.sequence <= stored + 1) =>
            {
                // What is kept closes the hole.
                self.kept.retain(|(batch, _)| batch.sequence > stored);
                self.return_kept();
                self.acknowledged = stored;
                self.newest = None;
            }
            Trouble::Lost { .. } | Trouble::Regrown => {
                // The loss must be visible to everybody: a new epoch, beginning with what is kept.
                tracing::warn!("redis lost acknowledged entries; the journal begins a new epoch");
                self.return_kept();
                self.newest = None;
                self.buries = true;
                self.incarnation += 1;
                self.acknowledged = 0;
            }
        }
        let first = self.acknowledged + 1;
        for (sequence, batch) in (first..).zip(self.batches.iter_mut()) {
            // A done batch in the middle keeps its sequence: those before it are known to Redis.
            batch.sequence = sequence;
            batch.sent = batch.done.is_some();
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
    pub(super) fn give_up_if_too_old(&mut self, now: Instant) {
        let is_stuck = self.outstanding == 0 && !self.is_done();
        if !is_stuck || now.duration_since(self.progress_at) <= RETRY_FOR {
            return;
        }
        let sent = self.batches.drain(..).flat_map(|batch| batch.callers);
        for caller in sent.chain(self.waiting.drain(..).map(|(_, caller)| caller)) {
            settle(&caller, |call| call.settle(Err(AppendError::Unavailable)));
        }
        self.trouble = None;
        self.incarnation += 1;
        self.acknowledged = 0;
        self.newest = None;
    }
}

#[cfg(test)]
mod tests;
