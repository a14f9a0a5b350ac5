//! Where commands come in: a consumer per channel, and the commands that do not wait in one.
//!
//! [`listener`](super::listener) → **inbox** → [`consumer`](super::consumer), [`cancel`](super::cancel),
//! [`approvals`](crate::approvals)
//!
//! A channel is followed from its waiting list: first comes what waits to be taken, then what is sent. Whether
//! another agent has taken a command is read from its state, never guessed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use journal::{Since, Take, Unavailable};
use protocol::{Channel, Entry, Offset};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::Uuid;

use super::consumer::{Consumer, Head, Outlet};
use super::queue::Queue;
use super::report::Report;
use super::{CANCEL, Command};
use crate::approvals::{Approvals, Told};
use crate::leases::Leases;
use crate::link::{LinkError, LinkFollower, RecordLink, persist, persist_until};
use crate::runs::Runs;

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) link: RecordLink,
    follower: LinkFollower,
    /// Each with how many hold it.
    consumers: Mutex<HashMap<Channel, (usize, Arc<Consumer>)>>,
    pub(crate) queue: Arc<Queue>,
    pub(super) runs: Arc<Runs>,
    pub(crate) approvals: Approvals,
    pub(crate) leases: Arc<Leases>,
    /// Nothing is taken any more.
    pub(crate) stopped: CancellationToken,
    /// Reports and releases under way.
    tasks: TaskTracker,
    /// Where the link lives.
    runtime: Handle,
}

/// Commands of a channel come in, and its lease is held, as long as one of these is.
#[derive(Debug)]
pub(crate) struct Membership {
    inbox: Arc<Inbox>,
    consumer: Arc<Consumer>,
}

impl Membership {
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.consumer.channel
    }

    pub(super) fn forget(&self, key: Uuid) {
        self.consumer.forget(key);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.inbox.leave(&self.consumer);
    }
}

/// Why a channel was not joined.
#[derive(Debug)]
pub(crate) enum JoinError {
    /// Redis did not answer in time; what was tried, if that is known.
    Late(Option<Unavailable>),
    /// The relay on the way does not let the agent be there.
    Refused(String),
    /// The relay on the way refuses the agent's token.
    Unauthorized(String),
    /// The agent is fenced.
    Fenced,
    /// It serves the channel already.
    Taken,
    /// It has been closed.
    Closed,
}

impl Inbox {
    /// Must be called within a runtime.
    pub(crate) fn new(
        link: RecordLink,
        follower: LinkFollower,
        leases: Arc<Leases>,
        runs: Arc<Runs>,
    ) -> Self {
        Self {
            link,
            follower,
            consumers: Mutex::default(),
            queue: Arc::default(),
            runs,
            approvals: Approvals::default(),
            leases,
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    /// When this returns, the channel's lease is held and its commands come in. It is done where the link lives: a
    /// program that blocks meanwhile keeps nothing of it waiting.
    pub(crate) async fn join(
        self: &Arc<Self>,
        channel: &Channel,
        outlet: Outlet,
        deadline: Instant,
    ) -> Result<Membership, JoinError> {
        let (inbox, channel) = (Arc::clone(self), channel.clone());
        let joining = async move { inbox.join_in_time(&channel, outlet, deadline).await };
        let joining = AbortOnDropHandle::new(self.runtime.spawn(joining));
        joining.await.unwrap_or_else(|_| Err(self.ended()))
    }

    async fn join_in_time(
        self: &Arc<Self>,
        channel: &Channel,
        outlet: Outlet,
        deadline: Instant,
    ) -> Result<Membership, JoinError> {
        if self.stopped.is_cancelled() {
            return Err(self.ended());
        }
        let consumer = {
            let mut consumers = self.consumers();
            let (members, consumer) = consumers.entry(channel.clone()).or_insert_with(|| {
                let left = self.stopped.child_token();
                let consumer = Arc::new(Consumer::new(channel.clone(), outlet, left));
                self.follower.follow(channel, Since::Start);
                self.runtime.spawn(Arc::clone(&consumer).work(Arc::clone(self)));
                (0, consumer)
            });
            if *members > 0 && consumer.is_service() {
                return Err(JoinError::Taken);
            }
            *members += 1;
            Arc::clone(consumer)
        };
        let mut head = consumer.head.subscribe();
        let membership = Membership { inbox: Arc::clone(self), consumer };
        match persist_until(deadline, || self.leases.take(channel)).await {
            Ok(()) => {}
            Err(LinkError::Unavailable(last)) => return Err(JoinError::Late(Some(last))),
            Err(LinkError::Refused(why)) => return Err(JoinError::Refused(why)),
            Err(LinkError::Unauthorized(why)) => return Err(JoinError::Unauthorized(why)),
            Err(_) => return Err(self.ended()),
        }
        let live = head.wait_for(|head| matches!(head, Head::Known(_)));
        match timeout_at(deadline, live).await {
            Ok(Ok(_)) => Ok(membership),
            _ => Err(JoinError::Late(None)),
        }
    }

    fn ended(&self) -> JoinError {
        if self.leases.fenced().is_cancelled() { JoinError::Fenced } else { JoinError::Closed }
    }

    /// One more holder of the consumer; `None` if all holders are gone.
    pub(super) fn hold(self: &Arc<Self>, consumer: &Arc<Consumer>) -> Option<Membership> {
        let mut consumers = self.consumers();
        let (members, held) = consumers.get_mut(&consumer.channel)?;
        if !Arc::ptr_eq(held, consumer) {
            return None;
        }
        *members += 1;
        Some(Membership { inbox: Arc::clone(self), consumer: Arc::clone(consumer) })
    }

    fn leave(self: &Arc<Self>, consumer: &Arc<Consumer>) {
        let channel = &consumer.channel;
        let mut consumers = self.consumers();
        let Some((members, _)) = consumers.get_mut(channel) else { return };
        *members -= 1;
        if *members > 0 {
            return;
        }
        consumers.remove(channel);
        consumer.left.cancel();
        self.follower.unfollow(channel);
        // The own lease is released last, when all has been said.
        if channel != self.leases.own() {
            let (inbox, channel) = (Arc::clone(self), channel.clone());
            self.in_background(async move {
                let is_wanted = || inbox.consumers().contains_key(&channel);
                inbox.leases.leave(&channel, is_wanted).await;
            });
        }
    }

    /// What waits there comes again.
    pub(super) fn follow_again(&self, channel: &Channel) {
        let consumers = self.consumers();
        if consumers.contains_key(channel) {
            self.follower.follow(channel, Since::Start);
        }
    }

    /// Takes a command, however long Redis is away; `None` where the consumer is left meanwhile. A command that
    /// may not be taken is left alone.
    pub(super) async fn take(
        &self,
        consumer: &Consumer,
        command: &journal::Command,
        key: Uuid,
        is_idempotent: bool,
    ) -> Option<Take> {
        let holder = self.leases.holder();
        // An attempt under way is not cancelled when the consumer is left: a command that it takes must be reported.
        let taking = persist(async || match consumer.left.is_cancelled() {
            true => Ok(None),
            false => self.link.take(command, key, holder, is_idempotent).await.map(Some),
        });
        match taking.await {
            Ok(Some(Take::Fenced)) => {
                self.leases.fenced().cancel();
                Some(Take::Fenced)
            }
            Ok(taken) => taken,
            Err(error) => {
                let channel = &consumer.channel;
                tracing::warn!(%channel, %key, %error, "a command is refused and not begun");
                Some(Take::Gone)
            }
        }
    }

    /// The channel is followed; `head` is its newest command. What waits up to there comes next.
    pub(super) fn went_live(&self, channel: &Channel, head: Option<Offset>) {
        if let Some((_, consumer)) = self.consumers().get(channel) {
            consumer.reads_on();
            consumer.head.send_if_modified(|known| {
                let first = matches!(known, Head::Unknown);
                if first {
                    *known = Head::Known(head);
                }
                first
            });
        }
    }

    /// An entry of the channel's commands journal.
    pub(super) fn take_in(self: &Arc<Self>, channel: &Channel, entry: &Entry) {
        let Some(consumer) =
            self.consumers().get(channel).map(|(_, consumer)| Arc::clone(consumer))
        else {
            return;
        };
        let Some(command) = journal::Command::read(channel, entry) else {
            let offset = entry.offset;
            tracing::warn!(%channel, %offset, "a command cannot be read and is not done");
            return;
        };
        let is_cancel = &*command.name == CANCEL && !command.is_request && !consumer.is_service();
        if command.key.is_none() {
            // It tells of a state, or comes from a relay that keeps none.
            let is_new = !consumer.is_old(command.offset) && consumer.is_first(&command.command_id);
            if let Some(told) = Told::read(&command) {
                self.approvals.tell(self.leases.holder(), channel, told);
            } else if is_cancel && is_new {
                self.cancel(&consumer, command);
            } else if is_new && !consumer.is_service() {
                self.queue.show(Command::new(command, Report::none()));
            }
        } else if is_cancel {
            self.cancel(&consumer, command);
        } else {
            consumer.admit(command);
        }
    }

    /// Nothing is taken any more. What is under way goes on.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
        for command in self.queue.close() {
            command.rejected("the agent ended before it took the command");
        }
    }

    /// Waits until all that is under way has been done.
    pub(crate) async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Goes on after the caller has ended; closing the agent waits for it.
    pub(crate) fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Makes a call where the link lives. A caller that stops waiting takes it back.
    pub(crate) async fn at_home<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, LinkError>> + Send + 'static,
    ) -> Result<T, LinkError> {
        let called = AbortOnDropHandle::new(self.runtime.spawn(call)).await;
        called.unwrap_or_else(|_| Err(LinkError::unavailable("the runtime ends")))
    }

    /// As [`in_background`](Self::in_background), for the program's own code.
    pub(crate) fn in_program(
        &self,
        program: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn_on(task, program);
    }

    fn consumers(&self) -> MutexGuard<'_, HashMap<Channel, (usize, Arc<Consumer>)>> {
        self.consumers.lock().expect("no code panics with this lock held")
    }
}
