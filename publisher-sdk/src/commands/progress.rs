//! How far a request has come: sends the latest progress, as quickly as the journal takes it.
//!
//! [`Request`](crate::Request), [`Command`](super::Command) → **progress** → [`journal`]

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::Channel;
use serde::Serialize;
use uuid::Uuid;

use super::inbox::Inbox;
use crate::PublishError;

/// Tells the callers that wait for the reply.
#[derive(Clone)]
pub(crate) struct Progress(Option<Arc<Saying>>);

struct Saying {
    inbox: Arc<Inbox>,
    channel: Channel,
    key: Uuid,
    next: Mutex<Next>,
}

#[derive(Default)]
struct Next {
    latest: Option<String>,
    is_being_said: bool,
}

impl Progress {
    pub(super) fn of(inbox: &Arc<Inbox>, channel: &Channel, key: Uuid) -> Self {
        let (inbox, channel, next) = (Arc::clone(inbox), channel.clone(), Mutex::default());
        Self(Some(Arc::new(Saying { inbox, channel, key, next })))
    }

    pub(super) fn nobody_waits() -> Self {
        Self(None)
    }

    /// Does not wait; what is said before the journal has taken the last is replaced by what comes after it.
    pub(crate) fn say(&self, data: &impl Serialize) -> Result<(), PublishError> {
        let data = serde_json::to_string(data).map_err(PublishError::Unserializable)?;
        protocol::check_data(&data)?;
        let Some(saying) = &self.0 else { return Ok(()) };
        let mut next = saying.next();
        next.latest = Some(data);
        if !std::mem::replace(&mut next.is_being_said, true) {
            let task = Arc::clone(saying);
            saying.inbox.in_background(async move { task.run().await });
        }
        Ok(())
    }
}

impl Saying {
    async fn run(&self) {
        let holder = self.inbox.leases.holder();
        while let Some(data) = self.take() {
            let said = self.inbox.link.progress(&self.channel, self.key, holder, &data).await;
            if let Err(error) = said {
                tracing::debug!(%error, channel = %self.channel, "progress could not be sent");
            }
        }
    }

    fn take(&self) -> Option<String> {
        let mut next = self.next();
        let latest = next.latest.take();
        next.is_being_said = latest.is_some();
        latest
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().expect("no code panics with this lock held")
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
