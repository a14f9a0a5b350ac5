//! Where replies are notified: one address per replica, and what is waited for here.
//!
//! A notification says that the reply can be read, or how far the request has come. It may be lost, so a waiter
//! also reads now and then without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Follower, Journal, Update, Updates};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::supervisor::Supervisor;

/// Who waits for replies on this replica.
#[derive(Debug)]
pub(super) struct Replies {
    follower: Follower,
    /// Where messages for connections go.
    messages: mpsc::Sender<(u64, String)>,
    /// By the command's key. The same request may be waited for by several connections.
    waiting: Mutex<HashMap<Box<str>, Vec<Arc<Notification>>>>,
}

/// Notifications for one waiter that it has not taken yet.
#[derive(Debug, Default)]
struct Notification {
    notified: Notify,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    look: bool,
    /// The latest: what was not taken in time is left out.
    progress: Option<Box<str>>,
}

/// What a waiter is told.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something has changed.
    Look,
    /// How far the request has come, JSON.
    Progress(Box<str>),
}

/// One waiter. Dropping it ends the waiting and changes nothing else.
#[derive(Debug)]
pub(super) struct ReplyWaiter {
    replies: Arc<Replies>,
    key: Box<str>,
    notification: Arc<Notification>,
}

impl Replies {
    pub(super) fn start(
        journal: &Journal,
        messages: mpsc::Sender<(u64, String)>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let (follower, updates) = journal.follow();
        let replies = Arc::new(Self { follower, messages, waiting: Mutex::default() });
        supervisor.run("replies", Arc::clone(&replies).run(updates));
        replies
    }

    /// Where this replica is notified.
    pub(super) fn address(&self) -> &str {
        self.follower.address()
    }

    /// Begins to wait for the command's reply. To be called before it is sent.
    pub(super) fn wait_for(self: &Arc<Self>, key: Uuid) -> ReplyWaiter {
        let (key, notification): (Box<str>, _) =
            (key.to_string().into(), Arc::<Notification>::default());
        self.waiting().entry(key.clone()).or_default().push(Arc::clone(&notification));
        ReplyWaiter { replies: Arc::clone(self), key, notification }
    }

    async fn run(self: Arc<Self>, mut updates: Updates) {
        while let Some(update) = updates.next().await {
            match update {
                Update::Notified { text } => self.notify(&text),
                // Notifications that came while the link was down were missed: read.
                Update::Link { up: true } => self.notify_all(),
                _ => {}
            }
        }
    }

    /// A command's key, alone or with how far it has come; or a message for one of the connections here: its
    /// number, and the frame.
    fn notify(&self, text: &str) {
        let Some((to, what)) = text.split_once(' ') else {
            return self.on_notification(text, Notification::look);
        };
        match to.parse() {
            // Live only: where too many wait, this one is dropped.
            Ok(number) => drop(self.messages.try_send((number, what.to_owned()))),
            Err(_) => self.on_notification(to, |notification| notification.progress(what)),
        }
    }

    fn on_notification(&self, key: &str, notify: impl Fn(&Notification)) {
        self.waiting().get(key).into_iter().flatten().for_each(|notification| notify(notification));
    }

    fn notify_all(&self) {
        self.waiting().values().flatten().for_each(|notification| notification.look());
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Arc<Notification>>>> {
        self.waiting.lock().expect("no code panics with this lock held")
    }
}

impl Notification {
    fn look(&self) {
        self.said().look = true;
        self.notified.notify_one();
    }

    fn progress(&self, data: &str) {
        self.said().progress = Some(data.into());
        self.notified.notify_one();
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("no code panics with this lock held")
    }
}

impl ReplyWaiter {
    /// What was notified since the last time. Cancel-safe.
    pub(super) async fn heard(&self) -> Heard {
        loop {
            let said = std::mem::take(&mut *self.notification.said());
            match said.progress {
                // What was said before the end is handed out before it.
                Some(data) => {
                    if said.look {
                        self.notification.look();
                    }
                    return Heard::Progress(data);
                }
                None if said.look => return Heard::Look,
                None => self.notification.notified.notified().await,
            }
        }
    }
}

impl Drop for ReplyWaiter {
    fn drop(&mut self) {
        let mut waiting = self.replies.waiting();
        if let Some(notifications) = waiting.get_mut(&self.key) {
            notifications.retain(|notification| !Arc::ptr_eq(notification, &self.notification));
            if notifications.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}
