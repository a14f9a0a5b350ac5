//! A token takes the place of the one before, on an agent's connection: what it does not permit any more ends.

use std::sync::Arc;

use protocol::frame::{AuthToken, Refusal};
use protocol::{AgentError, AgentMessage, Channel, ErrorCode};
use tokio::time::Instant;

use super::{Calls, CallsState, QueuedWork};
use crate::auth;

impl Calls {
    /// Whether the token has ended, though the connection has not yet.
    pub(in crate::agents) fn is_over(&self) -> bool {
        self.shared.principal.borrow().is_over()
    }

    pub(super) async fn on_auth(&mut self, id: u64, token: &AuthToken) -> Result<(), AgentMessage> {
        let refuse = |refusal: Refusal| AgentMessage::Error {
            id: Some(id),
            error: AgentError::new(refusal.code, refusal.message),
        };
        if self.auths.admit(Instant::now()).is_err() {
            let message = "a connection may send one token a second";
            return Err(refuse(Refusal::new(ErrorCode::RateLimited, message)));
        }
        let before = Arc::clone(&self.shared.principal.borrow());
        let renewed = auth::renew(self.key.as_ref(), &before, token.as_str()).map_err(refuse)?;
        let (expires_at, renewed) = (renewed.expires_at_ms(), Arc::new(renewed));
        // First: what waits is asked of this grant from now on.
        self.shared.principal.send_replace(Arc::clone(&renewed));
        self.shared.outbox.say(&AgentMessage::Authenticated { id, expires_at }).await;
        let permits = |channel: &Channel| renewed.grant.may_serve(channel);
        // Without its own channel all ends, and the connection with it: its keeper sees to that.
        if permits(self.shared.session.own()) {
            let ended = self.served.extract_if(|channel, _| !permits(channel));
            for (channel, _) in ended.collect::<Vec<_>>() {
                self.offer.unfollow(&channel);
                self.enqueue(channel, QueuedWork::Revoke);
            }
        }
        Ok(())
    }
}

impl CallsState {
    /// The token does not reach to the channel any more.
    pub(super) async fn release_revoked(&self, channel: &Channel) {
        self.session.revoke(channel).await;
        self.outbox.say(&AgentMessage::Released { channel: channel.clone() }).await;
    }
}
