//! A link to the journals of this process: a bounded queue that appending fills.
//!
//! [`memory`](super) → **link** → [`follow`](crate::follow)

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use protocol::Entry;

use super::Memory;
use crate::Name;
use crate::link::{FollowId, Signal};

/// How many batches may wait for a follower. At two batches a millisecond, two seconds of them.
const QUEUE_BATCHES: usize = 4096;
/// The same, in bytes. What finds no room is read when the follower has caught up.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// What an entry takes besides its texts.
const ENTRY_OVERHEAD: usize = 100;

/// One follower, as appending knows it.
#[derive(Debug, Default)]
pub(super) struct FollowerEnd {
    pub(super) queue: Arc<Queue>,
    pub(super) followed: HashMap<Name, FollowId>,
}

/// What waits for one follower.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<Queued>);

#[derive(Debug, Default)]
struct Queued {
    signals: VecDeque<Signal>,
    /// Of the entries that wait.
    bytes: usize,
    /// Those that found no room: their journals must be read.
    missed: HashSet<FollowId>,
    waker: Option<Waker>,
}

impl Queue {
    pub(super) fn entries(&self, id: FollowId, entries: Vec<Arc<Entry>>) {
        let mut queued = self.queued();
        let bytes = size(&entries);
        if queued.signals.len() < QUEUE_BATCHES && queued.bytes + bytes <= QUEUE_BYTES {
            queued.bytes += bytes;
            queued.signals.push_back(Signal::Entries(id, entries));
        } else {
            queued.missed.insert(id);
        }
        queued.wake();
    }

    /// A notification that finds no room is lost: a follower that waits for one looks again by itself.
    pub(super) fn notified(&self, text: &str) {
        let mut queued = self.queued();
        if queued.signals.len() < QUEUE_BATCHES && queued.bytes + text.len() <= QUEUE_BYTES {
            queued.bytes += text.len();
            queued.signals.push_back(Signal::Notified(text.into()));
            queued.wake();
        }
    }

    /// The follower's own signals, each an answer to what it has asked: they always have room.
    fn answer(&self, signal: Signal) {
        self.queued().signals.push_back(signal);
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Signal> {
        let mut queued = self.queued();
        if let Some(signal) = queued.signals.pop_front() {
            queued.bytes -= match &signal {
                Signal::Entries(_, entries) => size(entries),
                Signal::Notified(text) => text.len(),
                _ => 0,
            };
            return Poll::Ready(signal);
        }
        let missed = queued.missed.iter().next().copied();
        if let Some(id) = missed {
            queued.missed.remove(&id);
            return Poll::Ready(Signal::Missed(id));
        }
        queued.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn queued(&self) -> MutexGuard<'_, Queued> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

impl Queued {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

fn size(entries: &[Arc<Entry>]) -> usize {
    entries.iter().map(|entry| entry.bytes() + ENTRY_OVERHEAD).sum()
}

/// The follower's end. Dropping it ends the link.
#[derive(Debug)]
pub(crate) struct MemoryLink {
    memory: Arc<Memory>,
    id: u64,
    address: Box<str>,
    queue: Arc<Queue>,
}

impl Memory {
    pub(crate) fn link(self: &Arc<Self>) -> MemoryLink {
        let mut state = self.state();
        state.next_follower += 1;
        let id = state.next_follower;
        let end = FollowerEnd::default();
        let queue = Arc::clone(&end.queue);
        queue.answer(Signal::Up);
        state.followers.insert(id, end);
        MemoryLink { memory: Arc::clone(self), id, address: id.to_string().into(), queue }
    }
}

impl MemoryLink {
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn follow(&mut self, names: Vec<(FollowId, Name)>) {
        let ids = names.iter().map(|(id, _)| *id).collect();
        let mut state = self.memory.state();
        if let Some(end) = state.followers.get_mut(&self.id) {
            end.followed.extend(names.into_iter().map(|(id, name)| (name, id)));
        }
        self.queue.answer(Signal::Confirmed(ids));
    }

    pub(crate) fn unfollow(&mut self, name: &Name) {
        if let Some(end) = self.memory.state().followers.get_mut(&self.id) {
            end.followed.remove(name);
        }
    }

    pub(crate) fn poll_signal(&mut self, cx: &Context<'_>) -> Poll<Signal> {
        self.queue.poll(cx)
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.memory.state().followers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use protocol::Offset;

    use super::*;

    /// What does not fit is named, so that it is read.
    #[test]
    fn what_waits_for_a_follower_is_bounded_in_bytes() {
        let queue = Queue::default();
        let data: Box<str> = "x".repeat(256 * 1024).into();
        let id = |n: usize| FollowId { slot: n as u32, life: 1 };
        let batch = |n: usize| {
            let offset = Offset::of_entry(1, n as u64 + 1, 1);
            let (name, data) = ("e".into(), data.clone());
            vec![Arc::new(Entry { offset, time_us: 1, name, data })]
        };
        for n in 0..QUEUE_BATCHES {
            queue.entries(id(n), batch(n));
        }

        let fit = QUEUE_BYTES / (256 * 1024 + ENTRY_OVERHEAD + 1);
        assert_eq!(queue.queued().missed.len(), QUEUE_BATCHES - fit);
        queue.notified(&"x".repeat(512 * 1024));
        let cx = Context::from_waker(noop_waker_ref());
        for n in 0..fit {
            let Poll::Ready(Signal::Entries(found, _)) = queue.poll(&cx) else { panic!("{n}") };
            assert_eq!(found, id(n));
        }
        // What was taken makes room, and what was missed comes last.
        queue.entries(id(0), batch(0));
        assert!(matches!(queue.poll(&cx), Poll::Ready(Signal::Entries(..))));
        let mut missed = HashSet::new();
        while let Poll::Ready(Signal::Missed(id)) = queue.poll(&cx) {
            missed.insert(id);
        }
        assert_eq!(missed, (fit..QUEUE_BATCHES).map(id).collect());
        assert_eq!(queue.queued().bytes, 0);
    }
}
