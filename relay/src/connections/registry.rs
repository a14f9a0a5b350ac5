//! The connections of this replica by their numbers, for a message to one of them, and for messages to all.
//!
//! A connection's id is `<the replica's address>-<number>`, so any replica knows which one to notify.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::events::Wake;

/// Messages that may wait for one connection to look, in bytes; further ones are dropped: they are live only.
const MAILBOX_BYTES_MAX: usize = 64 * 1024;

/// The connections of this replica.
#[derive(Debug, Default)]
pub(crate) struct ConnectionRegistry {
    last: AtomicU64,
    entered: Mutex<HashMap<u64, Arc<Mailbox>>>,
}

/// What others have for one connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Wakes the connection, for its subscriptions too.
    pub(super) wake: Arc<Wake>,
    messages: Mutex<Vec<String>>,
    bytes: AtomicUsize,
    /// The state of the replica or of Redis has changed.
    has_news: AtomicBool,
}

impl ConnectionRegistry {
    /// A number that no connection here has had, and the mailbox that is reached by it.
    pub(super) fn enter(&self) -> (u64, Arc<Mailbox>) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mailbox = Arc::<Mailbox>::default();
        self.entered().insert(number, Arc::clone(&mailbox));
        (number, mailbox)
    }

    pub(super) fn leave(&self, number: u64) {
        self.entered().remove(&number);
    }

    /// Hands the frame to the connection, if it is here.
    pub(crate) fn hand_over(&self, number: u64, frame: String) {
        let mailbox = self.entered().get(&number).cloned();
        if let Some(mailbox) = mailbox {
            mailbox.post(frame);
        }
    }

    /// Has every connection look at the state of the replica and of Redis.
    pub(crate) fn news(&self) {
        for mailbox in self.entered().values() {
            mailbox.has_news.store(true, Ordering::Release);
            mailbox.wake.wake();
        }
    }

    fn entered(&self) -> MutexGuard<'_, HashMap<u64, Arc<Mailbox>>> {
        self.entered.lock().expect("no code panics with this lock held")
    }
}

impl Mailbox {
    pub(super) fn post(&self, frame: String) {
        if self.bytes.load(Ordering::Relaxed) <= MAILBOX_BYTES_MAX {
            self.bytes.fetch_add(frame.len(), Ordering::Relaxed);
            self.messages().push(frame);
            self.wake.wake();
        }
    }

    pub(super) fn take(&self) -> Vec<String> {
        if self.bytes.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut messages = self.messages();
        self.bytes.store(0, Ordering::Relaxed);
        std::mem::take(&mut *messages)
    }

    pub(super) fn take_news(&self) -> bool {
        // Looked at with each event: most of the time only this.
        self.has_news.load(Ordering::Acquire) && self.has_news.swap(false, Ordering::AcqRel)
    }

    fn messages(&self) -> MutexGuard<'_, Vec<String>> {
        self.messages.lock().expect("no code panics with this lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_its_connection_and_does_not_pile_up() {
        let registry = ConnectionRegistry::default();
        let (number, mailbox) = registry.enter();
        let (other, others) = registry.enter();
        assert_ne!(number, other);

        (0..1_000).for_each(|_| registry.hand_over(number, "x".repeat(1_000)));
        registry.hand_over(other + 1, "for nobody".to_owned());

        assert_eq!(mailbox.take().len(), MAILBOX_BYTES_MAX / 1_000 + 1);
        assert!(mailbox.take().is_empty() && others.take().is_empty());
        registry.leave(number);
        registry.hand_over(number, "too late".to_owned());
        assert!(mailbox.take().is_empty());
    }

    #[test]
    fn news_are_looked_at_once() {
        let registry = ConnectionRegistry::default();
        let (_, mailbox) = registry.enter();
        assert!(!mailbox.take_news());
        registry.news();
        assert!(mailbox.take_news() && !mailbox.take_news());
    }
}
