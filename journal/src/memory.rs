//! Journals in this process' memory: the same promises, for one process and as long as it lives.

mod counts;
mod link;
mod state;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::frame::Since;
use protocol::limits::IDEMPOTENCY_KEY_LIFETIME;
use protocol::{Entry, Offset};

use crate::append::{AppendOutcome, PRODUCER_RECORD_LIFETIME};
use crate::read::{self, Extent, PAGE_BYTES, Rows};
use crate::state::digest::digest;
use crate::{AppendError, Appended, Name, NewEntry, Page, Retention};
use link::FollowerEnd;
pub(crate) use link::MemoryLink;

/// How often, in appends, journals and idempotency keys that nobody touches are looked through.
const SWEEP_EVERY: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Memory {
    state: Mutex<MemoryState>,
}

#[derive(Debug)]
struct MemoryState {
    retention: Retention,
    journals: HashMap<Name, StoredStream>,
    idempotency_key: HashMap<(Name, Box<str>), Once>,
    /// The newest number of each author that numbers its entries, and until when it is remembered.
    numbers: HashMap<(Name, Arc<str>), (u64, u64)>,
    followers: HashMap<u64, FollowerEnd>,
    next_follower: u64,
    appends: u64,
    /// Entries of one epoch must have ascending times, whatever the system's clock does.
    last_time_us: u64,
    last_epoch: u64,
    records: state::Records,
    counts: counts::Counts,
}

/// What was appended under an idempotency key, and until when that is known.
#[derive(Debug)]
struct Once {
    offset: Offset,
    event: Box<str>,
    /// The digest of its data.
    data: Box<str>,
    until: u64,
}

/// One journal. Never empty.
#[derive(Debug)]
struct StoredStream {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(retention: Retention) -> Self {
        Self {
            state: Mutex::new(MemoryState {
                retention,
                journals: HashMap::new(),
                idempotency_key: HashMap::new(),
                numbers: HashMap::new(),
                followers: HashMap::new(),
                next_follower: 0,
                appends: 0,
                last_time_us: 0,
                last_epoch: 0,
                records: state::Records::default(),
                counts: counts::Counts::default(),
            }),
        }
    }

    pub(crate) fn keep(&self, retention: Retention) {
        self.state().retention = retention;
    }

    pub(crate) fn append(
        &self,
        name: &Name,
        entries: Vec<NewEntry>,
        producer: Option<&Arc<str>>,
    ) -> AppendOutcome {
        let mut state = self.state();
        if let Some(producer) = producer
            && state.records.is_fenced(&name.channel, producer.to_string())
        {
            return Err(AppendError::Fenced);
        }
        state.append(name, entries)
    }

    /// An id that is not above the producer's newest one is the repetition.
    pub(crate) fn append_numbered(
        &self,
        name: &Name,
        id: u64,
        entry: NewEntry,
        producer: &Arc<str>,
    ) -> AppendOutcome {
        let mut state = self.state();
        if state.records.is_fenced(&name.channel, producer.to_string()) {
            return Err(AppendError::Fenced);
        }
        let until = state.now_us() + micros(PRODUCER_RECORD_LIFETIME);
        let newest = state.numbers.entry((name.clone(), Arc::clone(producer))).or_default();
        if id <= newest.0 {
            return Ok(vec![Appended { offset: None, listeners: 0 }]);
        }
        *newest = (id, until);
        state.append(name, vec![entry])
    }

    pub(crate) fn read(&self, name: &Name, since: Since, entries_max: usize) -> Page {
        let mut state = self.state();
        let now = state.now_us();
        state.expire(name, now);
        let Some(stored) = state.journals.get(name) else { return read::absent(since) };
        let (extent, head) = (stored.extent(), stored.head());
        // From the position itself, so that its check is compared; from the oldest if it has another epoch.
        let from = match since {
            Since::Offset(position) if position.epoch == extent.epoch => {
                position.n.saturating_sub(extent.first)
            }
            _ => 0,
        };
        let rows = |from: u64| {
            let mut left = PAGE_BYTES;
            let entries =
                stored.entries.iter().skip(from as usize).take(entries_max.saturating_add(1));
            let entries = entries.take_while(|entry| {
                let fits = left > 0;
                left = left.saturating_sub(entry.bytes());
                fits
            });
            Rows { extent, head, entries: entries.cloned().collect() }
        };
        let mut page =
            rows(from).continue_since(since).unwrap_or_else(|reason| rows(0).begin_anew(reason));
        page.entries.truncate(entries_max);
        page
    }

    pub(crate) fn heads(&self, names: &[Name]) -> Vec<Option<Offset>> {
        let state = self.state();
        names.iter().map(|name| state.journals.get(name).map(StoredStream::head)).collect()
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl MemoryState {
    fn now_us(&mut self) -> u64 {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        self.last_time_us = now.max(self.last_time_us + 1);
        self.last_time_us
    }

    fn append(&mut self, name: &Name, entries: Vec<NewEntry>) -> AppendOutcome {
        let now = self.now_us();
        self.sweep_sometimes(now);
        self.expire(name, now);
        let offsets = entries.into_iter().map(|entry| match self.known(name, &entry, now)? {
            Some(offset) => Ok(offset),
            None => Ok(self.append_one(name, entry, now)),
        });
        let offsets: Result<Vec<Offset>, AppendError> = offsets.collect();
        self.trim(name, now);
        let listeners =
            self.followers.values().filter(|end| end.followed.contains_key(name)).count() as u64;
        let appended = |offset| Appended { offset: Some(offset), listeners };
        Ok(offsets?.into_iter().map(appended).collect())
    }

    /// Where the entry stands already, if its idempotency key says so.
    fn known(&self, name: &Name, new: &NewEntry, now: u64) -> Result<Option<Offset>, AppendError> {
        let Some(id) = &new.idempotency_key else { return Ok(None) };
        match self.idempotency_key.get(&(name.clone(), id.clone())) {
            None => Ok(None),
            Some(once) if once.until <= now => Ok(None),
            Some(once) if once.event != new.name => Err(AppendError::Conflict("event")),
            Some(once) if once.data != digest(&new.data) => Err(AppendError::Conflict("data")),
            Some(once) => Ok(Some(once.offset)),
        }
    }

    fn append_one(&mut self, name: &Name, new: NewEntry, now: u64) -> Offset {
        let (epoch, n) = match self.journals.get(name) {
            Some(stored) => (stored.head().epoch, stored.head().n + 1),
            None => {
                // A journal that begins anew under the same name must not look like the old one.
                self.last_epoch = (now / 1_000).max(self.last_epoch + 1);
                (self.last_epoch, 1)
            }
        };
        let offset = Offset::of_entry(epoch, n, now);
        if let Some(id) = new.idempotency_key {
            let until = now + micros(IDEMPOTENCY_KEY_LIFETIME);
            let (event, data) = (new.name.clone(), digest(&new.data));
            self.idempotency_key.insert((name.clone(), id), Once { offset, event, data, until });
        }
        let entry = Arc::new(Entry { offset, time_us: now, name: new.name, data: new.data });
        let stored = self
            .journals
            .entry(name.clone())
            .or_insert_with(|| StoredStream { entries: VecDeque::new(), bytes: 0 });
        stored.bytes += entry.bytes();
        stored.entries.push_back(Arc::clone(&entry));
        for end in self.followers.values() {
            if let Some(id) = end.followed.get(name) {
                end.queue.entries(*id, vec![Arc::clone(&entry)]);
            }
        }
        offset
    }

    fn trim(&mut self, name: &Name, now: u64) {
        let keep = self.retention.of(name);
        let Some(stored) = self.journals.get_mut(name) else { return };
        let cutoff = now.saturating_sub(micros(keep.age));
        while let Some(oldest) = stored.entries.front()
            && stored.entries.len() > 1
            && (stored.entries.len() as u64 > keep.entries
                || stored.bytes as u64 > keep.bytes
                || oldest.time_us < cutoff)
        {
            stored.bytes -= oldest.bytes();
            stored.entries.pop_front();
        }
    }

    /// An idle journal expires as a whole.
    fn expire(&mut self, name: &Name, now: u64) {
        let age = micros(self.retention.of(name).age);
        if self.journals.get(name).is_some_and(|stored| stored.newest_us() + age < now) {
            self.journals.remove(name);
        }
    }

    fn sweep_sometimes(&mut self, now: u64) {
        self.appends += 1;
        if self.appends.is_multiple_of(SWEEP_EVERY) {
            let retention = &self.retention;
            self.journals
                .retain(|name, stored| stored.newest_us() + micros(retention.of(name).age) >= now);
            self.idempotency_key.retain(|_, once| once.until > now);
            self.numbers.retain(|_, (_, until)| *until > now);
            self.records.sweep(now);
        }
    }
}

impl StoredStream {
    fn extent(&self) -> Extent {
        let head = self.head();
        Extent { epoch: head.epoch, first: head.n + 1 - self.entries.len() as u64, head: head.n }
    }

    fn head(&self) -> Offset {
        self.newest().offset
    }

    fn newest_us(&self) -> u64 {
        self.newest().time_us
    }

    fn newest(&self) -> &Entry {
        self.entries.back().expect("a journal that is there holds its newest entry")
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
