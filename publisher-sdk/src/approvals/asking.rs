//! A question withdraws itself when its asker waits no more.
//!
//! [`approvals`](super) → **asking** → [`link`](crate::link). An asker that has its answer, or an agent that is closed, says
//! nothing here: the question has ended, or ends with the lease.

use std::sync::{Arc, Weak};
use std::time::Duration;

use journal::NewApproval;
use protocol::Channel;
use tokio::time::timeout;

use crate::agent::Inner;
use crate::link::persist;

/// A question whose asker waits. Dropped while it does, the question is withdrawn, unless it is durable.
pub(super) struct Asking {
    agent: Weak<Inner>,
    channel: Channel,
    request_id: Box<str>,
    expires_in: Duration,
    pub(super) waits: bool,
}

impl Asking {
    pub(super) fn new(agent: &Arc<Inner>, approval: &NewApproval) -> Self {
        let NewApproval { channel, request_id, expires_in, durable, .. } = approval;
        let (channel, request_id) = (channel.clone(), request_id.clone());
        let (agent, expires_in) = (Arc::downgrade(agent), *expires_in);
        Self { agent, channel, request_id, expires_in, waits: !durable }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(agent) = self.agent.upgrade().filter(|_| self.waits) else { return };
        let (channel, request_id) = (self.channel.clone(), self.request_id.clone());
        let (inbox, expires_in) = (Arc::clone(&agent.inbox), self.expires_in);
        agent.inbox.in_background(async move {
            let holder = inbox.leases.holder();
            let unasking = persist(|| inbox.link.unask(&channel, &request_id, holder));
            let unasking = timeout(expires_in, unasking);
            drop(inbox.leases.fenced().run_until_cancelled(unasking).await);
        });
    }
}
