//! A live link to a backend of journals: who follows what, and what comes in.
//!
//! The link promises only this: after `Confirmed`, what is appended arrives, in order, *or* the name is
//! marked as missed, *or* `Down` is signalled. [`follow`](crate::follow) makes that gap-free.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use protocol::Entry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Name;

/// How many batches may wait between the link and its follower. At two batches a millisecond, two
/// seconds of them.
const QUEUE_BATCHES: usize = 4096;
/// The same, in bytes. What finds no room is read when the follower has caught up.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// What an entry takes besides its texts.
const ENTRY_OVERHEAD: usize = 100;
/// How many changes of what is wanted may wait for the link.
const REQUESTS: usize = 1024;

/// What the follower asks of its link.
#[derive(Debug)]
pub(crate) enum Request {
    /// Follow these from now on; each answers `Confirmed`.
    Follow(Vec<Name>),
    /// Stop following this.
    Unfollow(Name),
}

/// What the link tells its follower.
#[derive(Debug)]
pub(crate) enum Signal {
    /// The link stands and follows nothing yet.
    Up,
    /// The link broke; everything must be followed anew once it is up.
    Down,
    /// All that is appended to these from now on will arrive.
    Confirmed(Vec<Name>),
    /// Entries that were appended together, and the room that they take.
    Entries(Name, Vec<Arc<Entry>>, OwnedSemaphorePermit),
    /// This link's address was notified.
    Notified(Box<str>),
}

/// The follower's end of a link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Where this link can be notified.
    pub(crate) address: Box<str>,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) signals: mpsc::Receiver<Signal>,
    pub(crate) missed: Missed,
}

/// The far end of a link.
#[derive(Debug)]
pub(crate) struct FarEnd {
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) deliver: Deliver,
}

/// Names for which the queue had no room: their journals must be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Missed(Arc<Mutex<HashSet<Name>>>);

impl Missed {
    pub(crate) fn take(&self) -> HashSet<Name> {
        std::mem::take(&mut *self.0.lock().expect("no code panics with this lock held"))
    }
}

/// Hands signals to the follower.
#[derive(Clone, Debug)]
pub(crate) struct Deliver {
    signals: mpsc::Sender<Signal>,
    room: Arc<Semaphore>,
    missed: Missed,
}

impl Deliver {
    /// Never waits: the reader of a link must keep reading, or Redis would cut it. False where the
    /// follower is gone.
    pub(crate) fn entries(&self, name: Name, entries: Vec<Arc<Entry>>) -> bool {
        let bytes: usize = entries.iter().map(|entry| entry.bytes() + ENTRY_OVERHEAD).sum();
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes.min(QUEUE_BYTES) as u32);
        let Ok(room) = room else { return self.is_missed(name) };
        match self.signals.try_send(Signal::Entries(name, entries, room)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(Signal::Entries(name, ..))) => self.is_missed(name),
            Err(_) => false,
        }
    }

    /// There was no room. False where the follower is gone.
    fn is_missed(&self, name: Name) -> bool {
        self.missed.0.lock().expect("no code panics with this lock held").insert(name);
        !self.is_closed()
    }

    /// Never waits. A notification that finds no room is lost: a follower that waits for one looks again by itself.
    pub(crate) fn notified(&self, text: &str) {
        drop(self.signals.try_send(Signal::Notified(text.into())));
    }

    /// Waits for room. False where the follower is gone.
    pub(crate) async fn signal(&self, signal: Signal) -> bool {
        self.signals.send(signal).await.is_ok()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.signals.is_closed()
    }
}

/// A new link, which can be notified at `address`: the follower's end and the far end.
pub(crate) fn new(address: &str) -> (Link, FarEnd) {
    let (requests, asked) = mpsc::channel(REQUESTS);
    let (said, signals) = mpsc::channel(QUEUE_BATCHES);
    let missed = Missed::default();
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));
    let deliver = Deliver { signals: said, room, missed: missed.clone() };
    (
        Link { address: address.into(), requests, signals, missed },
        FarEnd { requests: asked, deliver },
    )
}

#[cfg(test)]
mod tests {
    use protocol::{Channel, Offset};

    use super::*;

    /// What does not fit is named, so that it is read.
    #[tokio::test]
    async fn what_waits_for_a_follower_is_bounded_in_bytes() {
        let (mut link, far_end) = new("here");
        let name = |n: usize| Name::events(Channel::session(&n.to_string()).unwrap());
        let data: Box<str> = "x".repeat(256 * 1024).into();
        let batch = |n: usize| {
            let offset = Offset::of_entry(1, n as u64 + 1, 1);
            vec![Arc::new(Entry { offset, time_us: 1, name: "e".into(), data: data.clone() })]
        };
        for n in 0..QUEUE_BATCHES {
            assert!(far_end.deliver.entries(name(n), batch(n)));
        }

        let missed = link.missed.take();
        let fit = QUEUE_BYTES / (256 * 1024 + ENTRY_OVERHEAD + 1);
        assert_eq!(missed.len(), QUEUE_BATCHES - fit);
        assert!(!missed.contains(&name(fit - 1)) && missed.contains(&name(fit)));
        // What was taken makes room.
        assert!(matches!(link.signals.recv().await, Some(Signal::Entries(..))));
        assert!(far_end.deliver.entries(name(0), batch(0)) && link.missed.take().is_empty());

        drop(link);
        assert!(!far_end.deliver.entries(name(0), batch(0)), "the follower is gone");
    }
}
