//! The order of one producer's appends to one journal, kept through every failure. Pure.
//!
//! Entries wait, are put together into batches with consecutive sequences, and up to [`IN_FLIGHT`]
//! batches are under way at a time. Whatever goes wrong, nothing new is sent until every answer is in;
//! then what was not acknowledged is sent again, in order. Redis knows sequences it has seen and refuses
//! holes, so a retry is harmless and nothing can overtake.
//!
//! Acknowledged batches are kept for a while: if Redis comes back without them, they are sent again;
//! where that cannot close the hole, the journal is begun anew, so that every reader is told of the loss.
//!
//! An agent behind a relay numbers its entries itself, and two replicas may hold the same ones for a moment.
//! Then a batch's sequence is the number of its last entry, and the sequence before it is what the record
//! held when its sender last learned of it. So the replica that comes second gets a `gap`: up to the stored
//! sequence all is in the journal, and the rest is sent again from there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::wire::Place;
use crate::append::{AppendOutcome, Claim};
use crate::{AppendError, Appended, Name, NewEntry};

mod recovery;

/// Batches under way at a time: as many as the script's record remembers.
const IN_FLIGHT: usize = 8;
/// The bounds of one batch. Its notification is one message to every link, so it must stay small.
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: usize = 256 * 1024;
/// How long, and how much, acknowledged batches are kept in case Redis loses them.
const KEPT_FOR: Duration = Duration::from_secs(10);
const KEPT_BYTES: usize = 1024 * 1024;
/// Nothing is retried longer than this, so Redis knows every sequence that is.
const RETRY_FOR: Duration = Duration::from_secs(600);
/// Within this time of the last acknowledgement the record must be there, or Redis lost it: it lives
/// [`PRODUCER_RECORD_LIFETIME`] from the last keeping, which may be [`KEEP_AFTER`] before the last append.
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
    claim: Arc<Claim>,
}

impl Call {
    pub(super) fn new(
        answer: oneshot::Sender<AppendOutcome>,
        entries: usize,
        room: OwnedSemaphorePermit,
        claim: Arc<Claim>,
    ) -> Arc<Mutex<Self>> {
        let appended = Vec::with_capacity(entries);
        Arc::new(Mutex::new(Self {
            answer: Some(answer),
            appended,
            left: entries,
            room: Some(room),
            claim,
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
            // The caller may have stopped waiting.
            drop(answer.send(outcome));
        }
    }
}

type Caller = Arc<Mutex<Call>>;

/// The answer for an entry that was in the journal already, at an unknown position.
const REPEATED: Appended = Appended { offset: None, listeners: 0 };

fn is_withdrawn(caller: &Caller) -> bool {
    !caller.lock().expect("no code panics with this lock held").claim.send()
}

fn settle(caller: &Caller, with: impl FnOnce(&mut Call)) {
    with(&mut caller.lock().expect("no code panics with this lock held"));
}

/// An entry that no batch holds yet.
#[derive(Debug)]
struct WaitingEntry {
    id: u64,
    entry: NewEntry,
    caller: Caller,
    since: Instant,
}

/// Entries that are appended by one run of the script.
#[derive(Debug)]
struct Batch {
    sequence: u64,
    /// The author's numbers of its entries, where there are any.
    ids: Vec<u64>,
    /// The sequence that must be stored for it to be appended.
    before: u64,
    /// `name idempotency key data`, as the script takes them.
    rows: Arc<[String]>,
    idempotency_key: Option<Box<str>>,
    bytes: usize,
    /// Since when its first entry waits.
    since: Instant,
    /// It was sent, and no answer says that it was not appended.
    is_unknown: bool,
    /// Who waits, entry by entry; nobody for batches sent again from what was kept.
    callers: Vec<Caller>,
    /// Who waits for an entry that its author has given once more.
    repeats: Vec<Caller>,
    first_sent: Option<Instant>,
    sent: bool,
    /// Where it stands, if that is known, and how many received it.
    done: Option<(Option<Place>, u64)>,
}

/// One run of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) incarnation: u64,
    /// The sequence that must be stored; `None`: the record must be missing.
    pub(super) before: Option<u64>,
    pub(super) sequence: u64,
    /// Redis need have no record of us: we begin, or the record may have expired.
    pub(super) open: bool,
    /// The newest epoch that was ever acknowledged; 0 before the first.
    pub(super) epoch: u64,
    /// That epoch lost data: bury it.
    pub(super) buries: bool,
    /// Keep the journal within its retention now, always with `open`; and how many bytes were appended since then.
    pub(super) keeps: Option<usize>,
    pub(super) idempotency_key: Option<Box<str>>,
    pub(super) rows: Arc<[String]>,
}

/// What came of one run of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// In the journal, now or since an earlier attempt.
    Appended { place: Place, listeners: u64, known: bool },
    /// Refused: the stored sequence leaves a hole, or is missing.
    Gap(Option<u64>),
    /// Refused: the producer is declared lost, or replaced.
    Fenced,
    /// Refused: the same producer has appended through another process, with this newer incarnation.
    Overtaken(u64),
    /// No answer: it may have been appended.
    Failed,
    /// Refused: the idempotency key stands for an entry in which this part is another.
    Conflict(&'static str),
    /// Refused now; time will change it.
    NotNow,
    /// Refused for good.
    Refused(String),
}

/// Why nothing new is sent, in ascending weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Send again what was not acknowledged.
    Resend,
    /// The author's entries up to this number are in the journal, appended by another process.
    Ahead { stored: u64 },
    /// Redis' record ends at this sequence, though more was acknowledged.
    Lost { stored: u64 },
    /// The producer was elsewhere in between, and is back: begin above that incarnation.
    Overtaken { by: u64 },
    /// Redis has a lower n than it once acknowledged; its record ends at this sequence.
    Regrown { stored: u64 },
}

#[derive(Debug)]
pub(super) struct Pipeline {
    /// The journal, for the log.
    name: Name,
    pub(super) incarnation: u64,
    /// The author numbers the entries, and other processes may append the same.
    is_numbered: bool,
    waiting: VecDeque<WaitingEntry>,
    batches: VecDeque<Batch>,
    kept: VecDeque<(Batch, Instant)>,
    kept_bytes: usize,
    /// The newest sequence whose batch was acknowledged; 0 if unknown.
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
    /// Its author numbers the entries, under this incarnation in every process, or does not.
    pub(super) fn begin(name: Name, incarnation: u64, is_numbered: bool) -> Self {
        Self {
            name,
            incarnation,
            is_numbered,
            waiting: VecDeque::new(),
            batches: VecDeque::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
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

    /// `id` is the author's number of the first entry, where it numbers them.
    pub(super) fn push(&mut self, entries: Vec<NewEntry>, id: u64, caller: &Caller) {
        if self.is_done() {
            self.progress_at = Instant::now();
        }
        let since = Instant::now();
        let waiting = (id..).zip(entries);
        let waiting = waiting.map(|(id, entry)| WaitingEntry {
            id,
            entry,
            caller: Arc::clone(caller),
            since,
        });
        self.waiting.extend(waiting);
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
        // An `open` without need would hide that Redis came back without our record.
        let open = self.outstanding == 0
            && (self.acknowledged == 0 || now.duration_since(self.acknowledged_at) > RECORD_FOR);
        if open && self.is_numbered {
            self.acknowledged = 0;
        }
        let at = self.batches.iter().position(|batch| !batch.sent)?;
        if !self.may_go(at, now) {
            return self.next(now);
        }
        let before =
            at.checked_sub(1).map_or(self.acknowledged, |before| self.batches[before].sequence);
        let batch = &mut self.batches[at];
        batch.sent = true;
        batch.before = before;
        batch.first_sent.get_or_insert(now);
        self.outstanding += 1;
        self.alone = open || self.buries;
        self.unkept_entries += batch.rows.len();
        self.unkept_bytes += batch.bytes;
        let keeps = open
            || self.unkept_entries >= KEEP_ENTRIES
            || self.unkept_bytes >= KEEP_BYTES
            || self.kept_at.is_none_or(|at| now.duration_since(at) >= KEEP_AFTER);
        // One that begins goes on for others, which may have ended before they said it.
        let unkept_bytes = if open { KEEP_BYTES } else { self.unkept_bytes };
        if keeps {
            (self.unkept_entries, self.unkept_bytes, self.kept_at) = (0, 0, Some(now));
        }
        Some(Send {
            incarnation: self.incarnation,
            before: (!self.is_numbered || before > 0).then_some(before),
            sequence: batch.sequence,
            open: open && !self.is_numbered,
            epoch: self.epoch,
            buries: self.buries,
            keeps: keeps.then_some(unkept_bytes),
            idempotency_key: batch.idempotency_key.clone(),
            rows: Arc::clone(&batch.rows),
        })
    }

    fn form_batch(&mut self) -> Option<Batch> {
        let (mut rows, mut ids, mut callers, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut idempotency_key = None;
        let before = self.batches.back().map_or(self.acknowledged, |batch| batch.sequence);
        let mut repeats = Vec::new();
        let mut since = None;
        while let Some(WaitingEntry { id, entry, .. }) = self.waiting.front() {
            if self.is_numbered && *id <= ids.last().copied().unwrap_or(before) {
                let Some(repeated) = self.waiting.pop_front() else { break };
                match self.batches.back_mut() {
                    _ if !ids.is_empty() => repeats.push(repeated.caller),
                    Some(batch) => batch.repeats.push(repeated.caller),
                    None => settle(&repeated.caller, |call| call.appended(REPEATED)),
                }
                continue;
            }
            let full = rows.len() >= BATCH_ENTRIES || bytes + entry.cost() > BATCH_BYTES;
            // An idempotency key stands alone: whether its entry is new is known only to the script.
            if !rows.is_empty()
                && (full || entry.idempotency_key.is_some() || idempotency_key.is_some())
            {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            if is_withdrawn(&next.caller) {
                settle(&next.caller, |call| call.settle(Err(AppendError::NotAppended)));
                continue;
            }
            since.get_or_insert(next.since);
            let WaitingEntry { id, entry, caller, .. } = next;
            bytes += entry.cost();
            rows.push(format!(
                "{} {} {}",
                entry.name,
                entry.idempotency_key.as_deref().unwrap_or("-"),
                entry.data
            ));
            callers.push(caller);
            if self.is_numbered {
                ids.push(id);
            }
            idempotency_key = entry.idempotency_key;
        }
        if rows.is_empty() {
            return None;
        }
        Some(Batch {
            sequence: ids.last().copied().unwrap_or(before + 1),
            ids,
            before,
            rows: rows.into(),
            idempotency_key,
            bytes,
            since: since?,
            is_unknown: false,
            callers,
            repeats,
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
                    // Another process may have put the author's entries into other batches.
                    let is_ours = !(known && self.is_numbered);
                    batch.done = Some((is_ours.then_some(place), listeners));
                    let is_below =
                        self.newest.is_some_and(|(epoch, n)| epoch == place.epoch && place.n <= n);
                    if is_below && !known && batch.idempotency_key.is_none() {
                        let trouble = Trouble::Regrown { stored: sequence };
                        self.trouble = self.trouble.max(Some(trouble));
                    }
                }
                self.acknowledge(now);
            }
            Answer::Gap(stored) => {
                let stored = stored.unwrap_or(0);
                let trouble = if stored < self.acknowledged {
                    Trouble::Lost { stored }
                } else if self.is_numbered {
                    Trouble::Ahead { stored }
                } else {
                    self.was_refused(sequence);
                    Trouble::Resend
                };
                self.trouble = self.trouble.max(Some(trouble));
            }
            Answer::Overtaken(_) if self.is_numbered => self.refuse(sequence, AppendError::Fenced),
            Answer::Overtaken(by) => {
                self.trouble = self.trouble.max(Some(Trouble::Overtaken { by }));
            }
            Answer::Failed => {
                let batch = self.batches.iter_mut().find(|batch| batch.sequence == sequence);
                if let Some(batch) = batch {
                    batch.is_unknown = true;
                }
                self.trouble = self.trouble.max(Some(Trouble::Resend));
            }
            Answer::NotNow => {
                self.was_refused(sequence);
                self.trouble = self.trouble.max(Some(Trouble::Resend));
            }
            Answer::Fenced => self.refuse(sequence, AppendError::Fenced),
            Answer::Refused(why) => self.refuse(sequence, AppendError::Refused(why)),
            Answer::Conflict(part) => self.refuse(sequence, AppendError::Conflict(part)),
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
                let offset = place.map(|place| place.offset(index as u64));
                settle(&caller, |call| call.appended(Appended { offset, listeners }));
            }
            for caller in batch.repeats.drain(..) {
                settle(&caller, |call| call.appended(REPEATED));
            }
            self.acknowledged = batch.sequence;
            self.acknowledged_at = now;
            self.progress_at = now;
            if let Some(place) = place
                && batch.idempotency_key.is_none()
            {
                self.newest = Some((place.epoch, place.offset(batch.rows.len() as u64 - 1).n));
            }
            self.kept_bytes += batch.bytes;
            self.kept.push_back((batch, now));
        }
        self.forget_kept(now);
    }

    fn forget_kept(&mut self, now: Instant) {
        while let Some((batch, since)) = self.kept.front()
            && (self.kept_bytes > KEPT_BYTES || now.duration_since(*since) > KEPT_FOR)
        {
            self.kept_bytes -= batch.bytes;
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
