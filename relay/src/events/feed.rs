//! Follows what somebody here listens to, and hands it to the hub: the entrance to the way down.
//!
//! Down: journal → **feed** → [`hub`](super::hub)

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use journal::{Follower, Journal, Page, Reason, Update, Updates};
use protocol::Channel;
use tokio::sync::watch;

use super::approvals::{self, Approvals, Question};
use super::hub::{Hub, Membership, Wake};
use super::pages::{Pages, Request};
use super::pending::Pending;
use super::single_flight::ReadError;
use crate::memory::Memory;
use crate::supervisor::Supervisor;

/// A channel that nobody listens to is followed for one to two of these longer: pages reload.
const SWEEP: Duration = Duration::from_secs(10);

/// Whether the record is within reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Redis answers.
    Ok,
    /// Redis is away; what was missed will be read when it is back.
    Degraded,
}

impl Status {
    /// The status as it stands on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
        }
    }
}

/// Everything a route needs to show events.
#[derive(Debug)]
pub(crate) struct Events {
    hub: Hub,
    pages: Pages,
    approvals: Approvals,
    follower: Follower,
    journal: Journal,
    supervisor: Supervisor,
    /// Joining and sweeping decide together what is followed: one at a time.
    interest: Mutex<()>,
    status: watch::Receiver<Status>,
    memory: Arc<Memory>,
}

impl Events {
    /// Begins to follow.
    pub(crate) fn start(
        journal: &Journal,
        memory: &Arc<Memory>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let (follower, updates) = journal.follow();
        let (status, status_seen) = watch::channel(Status::Degraded);
        let events = Arc::new(Self {
            hub: Hub::new(memory),
            pages: Pages::new(journal.clone()),
            approvals: Approvals::new(journal.clone(), Arc::clone(memory)),
            follower,
            journal: journal.clone(),
            supervisor: supervisor.clone(),
            interest: Mutex::new(()),
            status: status_seen,
            memory: Arc::clone(memory),
        });
        supervisor.run("feed", Arc::clone(&events).run(updates, status));
        events
    }

    /// Listens to `channel` for the subscription in `slot` of a connection.
    pub(crate) fn join(&self, channel: &Channel, wake: &Arc<Wake>, slot: u32) -> Membership {
        let _one_at_a_time = self.interest.lock().expect("no code panics with this lock held");
        let (membership, is_new) = self.hub.join(channel, wake, slot);
        if is_new {
            self.follower.follow(&membership.watched().name, None);
        }
        membership
    }

    /// A page of a journal; where delivery starts with it, also what waits for an answer.
    pub(crate) async fn read(
        &self,
        request: &Request,
    ) -> Result<(Page, Option<Arc<Pending>>), ReadError> {
        let mut page = self.pages.read(request).await?;
        if page.truncated && !request.is_join {
            // The first event was waited for, and has gone already.
            page.reset.get_or_insert(Reason::Retention);
        }
        let (channel, head) = (request.name.channel.clone(), page.head);
        let is_start = request.is_join || page.reset.is_some();
        let pending = if is_start && approvals::may_stand_on(&channel) {
            Some(self.ask(&Question { channel, head }).await?)
        } else {
            None
        };
        Ok((page, pending))
    }

    /// What waits for an answer.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Arc<Pending>, ReadError> {
        self.approvals.read(question).await
    }

    /// How many subscribe to each channel here. The channel that everybody receives does not count.
    pub(crate) fn subscribers(&self) -> HashMap<Channel, u64> {
        let mut counts = self.hub.subscribers();
        counts.remove(&Channel::global_everyone());
        counts
    }

    /// What counts the bytes that wait.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Whether a connection would receive what is published now.
    pub(crate) fn is_following(&self) -> bool {
        self.hub.is_live(&Channel::global_everyone())
    }

    /// Whether the record is within reach, and when that changes.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    async fn run(self: Arc<Self>, mut updates: Updates, status: watch::Sender<Status>) {
        let everyone = Channel::global_everyone();
        // Followed from the start, so that a new connection receives everything from then on.
        let _membership = self.join(&everyone, &Arc::default(), 0);
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                update = updates.next() => match update {
                    Some(update) => self.on_update(update, &status),
                    None => return,
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn on_update(&self, update: Update, status: &watch::Sender<Status>) {
        match update {
            Update::Link { up } => {
                let now = if up { Status::Ok } else { Status::Degraded };
                // The link itself says which Redis went or came.
                tracing::debug!(status = now.as_str(), "browsers are told the state of redis");
                self.pages.forget();
                self.approvals.forget(None);
                status.send_replace(now);
                if up {
                    self.supervisor.run_once(warn_of_eviction(self.journal.clone()));
                }
            }
            Update::Live { name, head } => {
                self.approvals.forget(Some(&name.channel));
                self.hub.live(&name.channel, head);
            }
            Update::Entries { name, entries } => self.hub.deliver(&name.channel, entries),
            Update::Reset { name, .. } => {
                self.pages.forget();
                self.approvals.forget(Some(&name.channel));
                self.hub.reset(&name.channel);
            }
            // Nobody waits for an answer at this address.
            Update::Notified { .. } => {}
        }
    }

    fn sweep(&self) {
        let _one_at_a_time = self.interest.lock().expect("no code panics with this lock held");
        for name in self.hub.sweep() {
            self.follower.unfollow(&name);
        }
    }
}

/// Each time that Redis is reached it may be another one, or set otherwise.
async fn warn_of_eviction(journal: Journal) {
    match journal.eviction().await {
        Ok(Some(policy)) => tracing::warn!(
            policy,
            "redis will delete journals when it reaches its maxmemory: set maxmemory-policy noeviction"
        ),
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "redis does not say its maxmemory-policy"),
    }
}
