//! What this process holds for its peers: one sum, one budget, and who is closed when it is exceeded.
//!
//! Whatever waits for a peer counts here as long as anybody holds it, and what many wait for counts once. Beyond the
//! budget the socket that has owed bytes longest is told to go, then the next. Where that is not enough, nobody new is
//! let in, and no body of a call is read.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a socket with unwritten bytes takes besides what counts by itself: the buffers of the libraries.
const BUFFERS_BYTES: usize = 64 * 1024;
/// The pace of closing. Who was told to go takes a moment to do so.
const CLOSING_PACE: Duration = Duration::from_millis(20);

/// The sum and its budget.
#[derive(Debug)]
pub(crate) struct Memory {
    budget: usize,
    used: AtomicUsize,
    /// Over the budget, and nobody owes bytes: only not letting anybody in is left.
    is_short: AtomicBool,
    over: Notify,
    began: Instant,
    last: AtomicU64,
    debts: Mutex<HashMap<u64, Arc<Debt>>>,
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    memory: Arc<Memory>,
    bytes: usize,
}

/// Bytes with what they count.
#[derive(Debug)]
struct HeldBytes<T> {
    content: T,
    _reserved: Reserved,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for HeldBytes<T> {
    fn as_ref(&self) -> &[u8] {
        self.content.as_ref()
    }
}

/// What one socket owes its peer.
#[derive(Debug)]
pub(crate) struct Debt {
    memory: Arc<Memory>,
    number: u64,
    /// Since when something has waited to be written, in milliseconds after `began`, and 1; 0: nothing waits.
    since: AtomicU64,
    is_called: AtomicBool,
    task: AtomicWaker,
}

/// A socket and what it owes. It counts until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenSocket(Arc<Debt>);

impl OpenSocket {
    /// What it owes, for others to look at.
    pub(crate) fn debt(&self) -> Arc<Debt> {
        Arc::clone(&self.0)
    }
}

impl Deref for OpenSocket {
    type Target = Debt;

    fn deref(&self) -> &Debt {
        &self.0
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.memory.debts().remove(&self.number);
    }
}

impl Memory {
    pub(crate) fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            budget,
            used: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
            over: Notify::new(),
            began: Instant::now(),
            last: AtomicU64::new(0),
            debts: Mutex::default(),
        })
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Counts so many bytes.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize) -> Reserved {
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.budget {
            self.over.notify_one();
        }
        Reserved { memory: Arc::clone(self), bytes }
    }

    /// The bytes, which count as long as a clone of them is there.
    pub(crate) fn hold(self: &Arc<Self>, content: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        let reserved = self.reserve(content.as_ref().len());
        Bytes::from_owner(HeldBytes { content, _reserved: reserved })
    }

    /// Whether nobody new may come in.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// A new socket.
    pub(crate) fn enter(self: &Arc<Self>) -> OpenSocket {
        let debt = Arc::new(Debt {
            memory: Arc::clone(self),
            number: self.last.fetch_add(1, Ordering::Relaxed),
            since: AtomicU64::new(0),
            is_called: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        self.debts().insert(debt.number, Arc::clone(&debt));
        OpenSocket(debt)
    }

    /// How many sockets there are.
    pub(crate) fn sockets(&self) -> usize {
        self.debts().len()
    }

    /// Keeps to the budget, for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            self.over.notified().await;
            while self.over() > 0 {
                self.relieve();
                tokio::time::sleep(CLOSING_PACE).await;
            }
            self.is_short.store(false, Ordering::Relaxed);
        }
    }

    /// Tells those who have owed bytes longest to go: as many as hold, by the average, what is too much. Those who were
    /// told before, and are still going, hold some of it.
    fn relieve(&self) {
        let over = self.over();
        if over == 0 {
            return;
        }
        let (going, mut owing): (Vec<Arc<Debt>>, Vec<Arc<Debt>>) = self
            .debts()
            .values()
            .filter(|debt| debt.is_owed() || debt.is_called())
            .map(Arc::clone)
            .partition(|debt| debt.is_called());
        self.is_short.store(going.is_empty() && owing.is_empty(), Ordering::Relaxed);
        let average = self.used.load(Ordering::Relaxed) / (going.len() + owing.len()).max(1);
        let count = over.div_ceil(average.max(1)).saturating_sub(going.len()).min(owing.len());
        if count == 0 {
            return;
        }
        owing.sort_by_key(|debt| (debt.since.load(Ordering::Relaxed), debt.number));
        tracing::warn!(
            count,
            budget = self.budget,
            "too many bytes wait for peers that do not read: closing those that have owed them longest"
        );
        owing.iter().take(count).for_each(|debt| debt.call());
    }

    fn over(&self) -> usize {
        self.used.load(Ordering::Relaxed).saturating_sub(self.budget)
    }

    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        self.over() > 0
    }

    /// How many sockets there have been.
    #[cfg(test)]
    pub(crate) fn entered(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// How many sockets have bytes waiting.
    #[cfg(test)]
    pub(crate) fn owing(&self) -> usize {
        self.debts().values().filter(|debt| debt.is_owed()).count()
    }

    fn debts(&self) -> MutexGuard<'_, HashMap<u64, Arc<Debt>>> {
        self.debts.lock().expect("no code panics with this lock held")
    }
}

impl Reserved {
    /// Counts so many bytes more, if there is room for them.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        let memory = &self.memory;
        let grown = |used: usize| used.checked_add(bytes).filter(|used| *used <= memory.budget);
        let has_room =
            memory.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        if has_room {
            self.bytes += bytes;
        }
        has_room
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Debt {
    /// The socket takes no more; `cx` is woken when it is told to go. What it takes now, the first time.
    pub(crate) fn owes(&self, cx: &Context<'_>) -> Option<Reserved> {
        self.task.register(cx.waker());
        let now = self.memory.began.elapsed().as_millis() as u64 + 1;
        let since = self.since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        since.is_ok().then(|| self.memory.reserve(BUFFERS_BYTES))
    }

    /// Everything was written.
    pub(crate) fn is_paid(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Whether something waits to be written.
    pub(crate) fn is_owed(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// Whether its socket must be closed.
    pub(crate) fn is_called(&self) -> bool {
        self.is_called.load(Ordering::Acquire)
    }

    fn call(&self) {
        self.is_called.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    #[test]
    fn what_many_hold_counts_once_and_as_long_as_one_of_them_does() {
        let memory = Memory::new(1_000);
        let frame = memory.hold("x".repeat(600));
        let others = vec![frame.clone(); 1_000];
        assert_eq!((memory.over(), memory.used.load(Ordering::Relaxed)), (0, 600));

        drop(frame);
        let mut more = memory.reserve(0);
        assert!(!more.try_grow(401));
        drop(others);
        assert!(more.try_grow(1_000) && !more.try_grow(1));
        drop(more);
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn beyond_the_budget_those_who_have_owed_longest_go_and_no_others() {
        let memory = Memory::new(4 * BUFFERS_BYTES);
        let mut debts: Vec<OpenSocket> = (0..6).map(|_| memory.enter()).collect();
        let mut held: Vec<Option<Reserved>> =
            debts.iter().map(|one| one.owes(&context())).collect();
        debts.iter().zip([30, 10, 40, 20, 60, 50]).for_each(|(debt, since)| {
            debt.since.store(since, Ordering::Relaxed);
        });

        memory.relieve();
        let called: Vec<bool> = debts.iter().map(|debt| debt.is_called()).collect();
        assert_eq!(called, [false, true, false, true, false, false], "two of them are too much");
        memory.relieve();
        let called = debts.iter().filter(|debt| debt.is_called()).count();
        assert_eq!(called, 2, "they are still going");

        for at in [3, 1] {
            held[at] = None;
            drop(debts.remove(at));
        }
        memory.relieve();
        assert_eq!(debts.iter().filter(|debt| debt.is_called()).count(), 0, "nobody else goes");
        assert!(!memory.is_short());
    }

    #[test]
    fn where_nobody_owes_bytes_nobody_new_is_let_in() {
        let memory = Memory::new(1_000);
        let debt = memory.enter();
        let _held = memory.hold("x".repeat(1_001));
        memory.relieve();
        assert!(memory.is_short() && !debt.is_called());

        let owed = debt.owes(&context());
        memory.relieve();
        assert!(debt.is_called() && owed.is_some());
        assert!(debt.owes(&context()).is_none(), "counted once");
    }

    #[test]
    fn who_has_written_everything_owes_nothing() {
        let memory = Memory::new(0);
        let debt = memory.enter();
        let _owed = debt.owes(&context());
        debt.is_paid();

        memory.relieve();

        assert!(!debt.is_called());
    }

    /// The counted bytes of a socket that is gone are free at once.
    #[tokio::test(start_paused = true)]
    async fn the_budget_is_kept_without_being_asked() {
        let memory = Memory::new(BUFFERS_BYTES);
        let keeping = tokio::spawn(Arc::clone(&memory).keep());
        let debt = memory.enter();
        let owed = debt.owes(&context());
        let more = memory.reserve(1);
        while !debt.is_called() {
            tokio::time::sleep(CLOSING_PACE).await;
        }
        drop((owed, more, debt));
        while memory.is_short() {
            tokio::time::sleep(CLOSING_PACE).await;
        }
        keeping.abort();
    }
}
