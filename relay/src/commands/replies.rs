//! Where replies ring: one address per replica, and whoever waits here for what.
//!
//! A ring only says "look now". It may be lost, so whoever waits looks now and then anyway.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Follower, Journal, Update, Updates};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Who waits for replies on this replica.
#[derive(Debug)]
pub(super) struct Replies {
    follower: Follower,
    /// Where messages for connections go.
    messages: mpsc::Sender<(u64, String)>,
    /// By the command's key. The same request may be waited for by several connections.
    waiting: Mutex<HashMap<Box<str>, Vec<Arc<Notify>>>>,
}

/// One that waits. Dropping it changes nothing but that.
#[derive(Debug)]
pub(super) struct Waiter {
    replies: Arc<Replies>,
    key: Box<str>,
    bell: Arc<Notify>,
}

impl Replies {
    pub(super) fn start(
        journal: &Journal,
        messages: mpsc::Sender<(u64, String)>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let (follower, updates) = journal.follow();
        let replies = Arc::new(Self { follower, messages, waiting: Mutex::default() });
        tokio::spawn(Arc::clone(&replies).run(updates, shutdown));
        replies
    }

    /// Where this replica is rung.
    pub(super) fn address(&self) -> &str {
        self.follower.address()
    }

    /// Begins to wait for the command's reply. To be called before it is sent.
    pub(super) fn wait_for(self: &Arc<Self>, key: Uuid) -> Waiter {
        let (key, bell): (Box<str>, _) = (key.to_string().into(), Arc::<Notify>::default());
        self.waiting().entry(key.clone()).or_default().push(Arc::clone(&bell));
        Waiter { replies: Arc::clone(self), key, bell }
    }

    async fn run(self: Arc<Self>, mut updates: Updates, shutdown: CancellationToken) {
        loop {
            let update = tokio::select! {
                update = updates.next() => update,
                () = shutdown.cancelled() => return,
            };
            match update {
                Some(Update::Rung { text }) => self.ring(&text),
                // What rang while the link was down was not heard: look.
                Some(Update::Link { up: true }) => self.ring_all(),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// A command's key, or a message for one of the connections here: its number, and the frame.
    fn ring(&self, text: &str) {
        match text.split_once(' ') {
            Some((number, frame)) => {
                if let Ok(number) = number.parse() {
                    // Live only: where too many wait, this one is dropped.
                    drop(self.messages.try_send((number, frame.to_owned())));
                }
            }
            None => self.ring_for(text),
        }
    }

    fn ring_for(&self, key: &str) {
        self.waiting().get(key).into_iter().flatten().for_each(|bell| bell.notify_one());
    }

    fn ring_all(&self) {
        self.waiting().values().flatten().for_each(|bell| bell.notify_one());
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Arc<Notify>>>> {
        self.waiting.lock().expect("no code panics with this lock held")
    }
}

impl Waiter {
    /// Returns when it rang since the last time.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.replies.waiting();
        if let Some(bells) = waiting.get_mut(&self.key) {
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            if bells.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}
