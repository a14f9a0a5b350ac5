//! Who listens to what on this replica, and what they have not seen yet.
//!
//! Down: [`feed`](super::feed) → **hub** → [`subscription`](super::subscription)
//!
//! A [`FanOut`] gives what is new on one channel to its listeners: to one at rest it is written at once
//! ([`WriteNow`]); every other one is woken, and takes it itself.
//!
//! Invariants: nothing here waits, does I/O or reads a clock. An entry's bytes are shared, never
//! copied. Waking a listener costs one atomic swap while it has not looked since the last wake.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use journal::Name;
use protocol::{Channel, Entry, Format, Offset};

use super::tail::{Encoded, Tail};
use crate::memory::Memory;
use crate::websocket::TextFrame;

/// Listeners that are given something before other channels have their turn.
const FEW_LISTENERS: usize = 64;
/// All tails of this process together, and at most a quarter of its budget. Beyond, a growing tail keeps nothing, and
/// its browsers are served from the journal.
const TAILS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The channels that somebody on this replica listens to.
#[derive(Debug)]
pub(crate) struct Hub {
    channels: Mutex<HashMap<Channel, Arc<Watched>>>,
    tails_bytes: Arc<AtomicUsize>,
    memory: Arc<Memory>,
}

/// One channel that somebody listens to, or did a moment ago.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) name: Name,
    state: Mutex<WatchedState>,
    tails_bytes: Arc<AtomicUsize>,
    memory: Arc<Memory>,
}

#[derive(Debug, Default)]
struct WatchedState {
    /// `None` until the journal is followed.
    tail: Option<Tail>,
    listeners: Vec<Arc<Listener>>,
    fan_out: FanOutState,
    /// Nobody listened at the last sweep.
    idle: bool,
    /// The tail has not changed since the last sweep.
    quiet: bool,
}

/// Whether what is new on a channel is being given to its listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FanOutState {
    /// They have it.
    #[default]
    Done,
    /// They will be given it.
    Queued,
    /// Some have it.
    Running,
    /// Some have it, and there is more since.
    RunAgain,
}

/// One subscription as a listener.
#[derive(Debug)]
struct Listener {
    wake: Arc<Wake>,
    slot: u32,
    /// Where it stands among the channel's listeners.
    index: AtomicUsize,
    /// In the connection's queue already.
    queued: AtomicBool,
}

/// Writes what is new to a viewer at rest.
pub(crate) trait WriteNow: Debug + Send + Sync {
    /// Writes what is new for the subscription in `slot`, without waiting for anything. False where the viewer must be
    /// woken, because it is not at rest or because not everything could be written. `space` is empty, and is left so.
    fn write_now(&self, slot: u32, space: &mut Vec<TextFrame>) -> bool;
}

/// How a connection is woken, and by which of its subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    ready: Mutex<VecDeque<u32>>,
    is_woken: AtomicBool,
    task: AtomicWaker,
    writer: OnceLock<Weak<dyn WriteNow>>,
}

impl Wake {
    /// The slots of the subscriptions that have something new, each once.
    pub(crate) fn take_ready(&self) -> VecDeque<u32> {
        std::mem::take(&mut *lock(&self.ready))
    }

    /// Who writes to the viewer while it is at rest; of two the first holds.
    pub(crate) fn set_writer(&self, writer: Weak<dyn WriteNow>) {
        self.writer.get_or_init(|| writer);
    }

    /// Wakes the connection, for any reason.
    pub(crate) fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }

    /// Ready where it was woken since the last time; else the task is woken with it.
    pub(crate) fn poll_woken(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.task.register(cx.waker());
        // It may have been woken in between.
        if self.is_woken.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Listener {
    /// What is new is written at once, or the connection is woken for it.
    fn give(&self, space: &mut Vec<TextFrame>) {
        if self.queued.load(Ordering::SeqCst) {
            // It is about to look itself.
            return;
        }
        let writer = self.wake.writer.get().and_then(Weak::upgrade);
        let write = || writer.is_some_and(|writer| writer.write_now(self.slot, space));
        // A panic in there ends that connection: its lock is poisoned.
        if !catch_unwind(AssertUnwindSafe(write)).unwrap_or(false) {
            space.clear();
            self.wake();
        }
    }

    fn wake(&self) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            let mut ready = lock(&self.wake.ready);
            // A slot may have had another listener, which is in the queue still.
            if !ready.contains(&self.slot) {
                ready.push_back(self.slot);
            }
            drop(ready);
            self.wake.wake();
        }
    }
}

/// A place among the listeners of a channel; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Membership {
    watched: Arc<Watched>,
    listener: Arc<Listener>,
}

impl Membership {
    pub(crate) fn watched(&self) -> &Arc<Watched> {
        &self.watched
    }

    /// What counts the frames that are made for it.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.watched.memory
    }

    /// From now on new entries wake the listener again. Must be called before looking.
    pub(crate) fn listen_again(&self) {
        self.listener.queued.store(false, Ordering::SeqCst);
    }

    /// Comes back to this subscription when the connection's others had their turn.
    pub(crate) fn queue(&self) {
        self.listener.wake();
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.watched.state();
        let index = self.listener.index.load(Ordering::Relaxed);
        state.listeners.swap_remove(index);
        // The last one has taken its place: in a fan-out, which goes from the last to the first, it may be given twice.
        if let Some(moved) = state.listeners.get(index) {
            moved.index.store(index, Ordering::Relaxed);
        }
    }
}

impl Watched {
    /// The newest position, once the journal is followed.
    pub(crate) fn head(&self) -> Option<Option<Offset>> {
        self.state().tail.as_ref().map(Tail::head)
    }

    /// What follows `cursor`, and the head it was taken at; see [`Tail::after`].
    pub(crate) fn after(
        &self,
        cursor: Option<Offset>,
        count: usize,
    ) -> Option<(Vec<Arc<Encoded>>, Option<Offset>)> {
        let state = self.state();
        let tail = state.tail.as_ref()?;
        Some((tail.after(cursor, count)?, tail.head()))
    }

    /// All frames after `cursor`, and the position after them; `None` where the tail does not reach.
    pub(crate) fn frames_after(
        &self,
        cursor: Option<Offset>,
        format: Format,
        out: &mut Vec<TextFrame>,
    ) -> Option<Option<Offset>> {
        let state = self.state();
        let mut end = cursor;
        for encoded in state.tail.as_ref()?.all_after(cursor)? {
            out.push(encoded.frame(&self.name.channel, format, &self.memory));
            end = Some(encoded.entry.offset);
        }
        Some(end)
    }

    /// Changes the tail, and has every listener look.
    fn change(&self, change: impl FnOnce(&mut Option<Tail>)) {
        let mut state = self.state();
        self.change_tail(&mut state, change);
        state.listeners.iter().for_each(|listener| listener.wake());
    }

    /// True where a fan-out must be begun for it.
    fn extend(&self, entries: Vec<Arc<Entry>>) -> bool {
        let mut state = self.state();
        self.change_tail(&mut state, |tail| tail.get_or_insert_default().extend(entries));
        let (before, listeners) = (state.fan_out, state.listeners.len());
        tracing::trace!(journal = %self.name, listeners, "a tail has grown");
        state.fan_out = match before {
            FanOutState::Done | FanOutState::Queued => FanOutState::Queued,
            FanOutState::Running | FanOutState::RunAgain => FanOutState::RunAgain,
        };
        before == FanOutState::Done
    }

    fn change_tail(&self, state: &mut WatchedState, change: impl FnOnce(&mut Option<Tail>)) {
        let before = state.tail.as_ref().map_or(0, Tail::bytes);
        change(&mut state.tail);
        state.quiet = false;
        let after = state.tail.as_ref().map_or(0, Tail::bytes);
        let all = self.tails_bytes.fetch_add(after, Ordering::Relaxed) + after - before;
        self.tails_bytes.fetch_sub(before, Ordering::Relaxed);
        if all > TAILS_BYTES_MAX.min(self.memory.budget() / 4) {
            self.forget_entries(state);
        }
    }

    fn forget_entries(&self, state: &mut WatchedState) {
        if let Some(tail) = &mut state.tail {
            self.tails_bytes.fetch_sub(tail.bytes(), Ordering::Relaxed);
            tail.shrink(0, 0);
        }
    }

    fn state(&self) -> MutexGuard<'_, WatchedState> {
        lock(&self.state)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let bytes = self.state().tail.as_ref().map_or(0, Tail::bytes);
        self.tails_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Hub {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        let (channels, tails_bytes) = (Mutex::default(), Arc::default());
        Self { channels, tails_bytes, memory: Arc::clone(memory) }
    }

    /// Listens to `channel` for the subscription in `slot` of a connection. True where nobody listened
    /// before, so that its journal must be followed.
    pub(crate) fn join(
        &self,
        channel: &Channel,
        wake: &Arc<Wake>,
        slot: u32,
    ) -> (Membership, bool) {
        let mut channels = lock(&self.channels);
        let is_new = !channels.contains_key(channel);
        let watched = channels.entry(channel.clone()).or_insert_with(|| {
            Arc::new(Watched {
                name: Name::events(channel.clone()),
                state: Mutex::default(),
                tails_bytes: Arc::clone(&self.tails_bytes),
                memory: Arc::clone(&self.memory),
            })
        });
        let watched = Arc::clone(watched);
        let listener = {
            let mut state = watched.state();
            let index = AtomicUsize::new(state.listeners.len());
            let queued = AtomicBool::new(false);
            let listener = Arc::new(Listener { wake: Arc::clone(wake), slot, index, queued });
            state.listeners.push(Arc::clone(&listener));
            state.idle = false;
            listener
        };
        (Membership { watched, listener }, is_new)
    }

    /// Whether the channel's journal is followed.
    pub(crate) fn is_live(&self, channel: &Channel) -> bool {
        self.watched(channel).is_some_and(|watched| watched.head().is_some())
    }

    /// The journal is followed from `head` on.
    pub(crate) fn live(&self, channel: &Channel, head: Option<Offset>) {
        if let Some(watched) = self.watched(channel) {
            watched.change(|tail| *tail = Some(Tail::at(head)));
        }
    }

    /// The journal grew. What is to be done for its listeners, unless that is under way already.
    pub(crate) fn extend(&self, channel: &Channel, entries: Vec<Arc<Entry>>) -> Option<FanOut> {
        let watched = self.watched(channel)?;
        watched.extend(entries).then(|| FanOut { watched, left: None })
    }

    /// What the tail held is not continued. Everything retained is about to follow; from its first entry
    /// on every older cursor is out of the tail's reach, and is judged by the journal.
    pub(crate) fn reset(&self, channel: &Channel) {
        if let Some(watched) = self.watched(channel) {
            watched.change(|tail| *tail = Some(Tail::at(None)));
        }
    }

    /// Forgets the channels to which nobody has listened for two sweeps, and names them. A page that
    /// reloads comes back in between.
    pub(crate) fn sweep(&self) -> Vec<Name> {
        let mut forgotten = Vec::new();
        lock(&self.channels).retain(|_, watched| {
            let mut state = watched.state();
            let idle = state.listeners.is_empty();
            let forget = idle && state.idle;
            state.idle = idle;
            if state.quiet {
                // Quiet channels must not keep the memory that busy ones need.
                watched.forget_entries(&mut state);
            }
            state.quiet = true;
            if forget {
                forgotten.push(watched.name.clone());
            }
            !forget
        });
        forgotten
    }

    /// How many subscribe to each channel here.
    pub(crate) fn subscribers(&self) -> HashMap<Channel, u64> {
        let channels = lock(&self.channels);
        let counts = channels.iter().map(|(channel, watched)| {
            let listeners = watched.state().listeners.len() as u64;
            (channel.clone(), listeners)
        });
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn watched(&self, channel: &Channel) -> Option<Arc<Watched>> {
        lock(&self.channels).get(channel).cloned()
    }
}

/// Gives what is new on one channel to its listeners, some at a time.
#[derive(Debug)]
pub(crate) struct FanOut {
    watched: Arc<Watched>,
    /// How many listeners have not been given it, the first ones; `None`: not begun.
    left: Option<usize>,
}

impl FanOut {
    /// Gives it to a few more listeners. Whether it is over; if not, it goes on when the others had their turn. What one
    /// listener is given is all that is new for it: the later, the more goes with one write.
    pub(crate) fn go_on(&mut self, space: &mut Vec<TextFrame>) -> bool {
        let (few, left) = {
            let mut state = self.watched.state();
            let left = match self.left {
                None => {
                    state.fan_out = FanOutState::Running;
                    state.listeners.len()
                }
                Some(left) => left.min(state.listeners.len()),
            };
            let rest = left.saturating_sub(FEW_LISTENERS);
            // From the last to the first: who leaves moves the last one to its place, which is then not passed over.
            let few: Vec<Arc<Listener>> = state.listeners[rest..left].to_vec();
            (few, rest)
        };
        few.iter().for_each(|listener| listener.give(space));
        self.left = Some(left);
        if left > 0 {
            return false;
        }
        let mut state = self.watched.state();
        let is_over = state.fan_out == FanOutState::Running;
        (state.fan_out, self.left) =
            (if is_over { FanOutState::Done } else { FanOutState::Queued }, None);
        is_over
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}

#[cfg(test)]
mod tests;
