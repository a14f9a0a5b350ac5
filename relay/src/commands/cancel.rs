//! A Cancel reaches the agents that were spawned under the one it names, and theirs; sent to a session, those
//! that were spawned for the runs begun there.
//!
//! Each gets a command of its own, whose id follows from the first one's. So a Cancel that is sent again, also
//! after a replica died in the middle, reaches each of them once.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use journal::{NewCommand, SendError, Unavailable, WaitingClass};
use protocol::frame::Cancels;
use protocol::limits::{CANCEL_WAIT, CANCELLED_MAX};
use protocol::{Channel, Kind};
use serde_json::json;
use uuid::Uuid;

use super::Commands;

/// How many are reached at a time.
const AT_ONCE: usize = 8;

impl Commands {
    /// Cancels the children of the agent or session that `cancel` is for, those of the run only where it names one; how
    /// many agents were there to receive it.
    pub(super) async fn cancel_children(
        &self,
        cancel: &NewCommand,
        cancels: &Cancels,
    ) -> Result<u64, Unavailable> {
        let mut seen: HashSet<Box<str>> = HashSet::new();
        if cancel.channel.kind() == Kind::Agent {
            // An agent that is its own grandparent is cancelled once.
            seen.insert(cancel.channel.id().into());
        }
        let mut generation =
            self.journal.children(&cancel.channel, cancels.run_id.as_deref()).await?;
        let most = seen.len() + CANCELLED_MAX;
        let mut reached = 0;
        loop {
            generation.retain(|child| !seen.contains(child));
            if generation.len() > most - seen.len() {
                tracing::warn!(channel = %cancel.channel, "the cancel reaches only some of the spawned agents: too many");
            }
            generation.retain(|child| seen.len() < most && seen.insert(child.clone()));
            if generation.is_empty() {
                return Ok(reached);
            }
            let cancelled = stream::iter(std::mem::take(&mut generation))
                .map(|child| self.cancel_child(cancel, cancels, child))
                .buffer_unordered(AT_ONCE);
            for one in cancelled.collect::<Vec<_>>().await {
                let (listeners, children) = one?;
                reached += listeners;
                generation.extend(children);
            }
        }
    }

    /// Cancels all that a child runs: how many received it, and the child's own children.
    async fn cancel_child(
        &self,
        cancel: &NewCommand,
        cancels: &Cancels,
        child: Box<str>,
    ) -> Result<(u64, Vec<Box<str>>), Unavailable> {
        let Ok(channel) = Channel::agent(&child) else { return Ok((0, Vec::new())) };
        let mut data = json!({"agent_id": child});
        if let Some(reason) = &cancels.reason {
            data["reason"] = json!(reason);
        }
        let new = NewCommand {
            channel,
            data: data.to_string().into(),
            command_id: Uuid::new_v5(&cancel.command_id, child.as_bytes()),
            class: WaitingClass::Cancel,
            expires_in: CANCEL_WAIT,
            may_wait: false,
            ..cancel.clone()
        };
        let listeners = match self.journal.send(&new).await {
            Ok(sent) => sent.listeners,
            Err(SendError::Unavailable(error)) => return Err(error),
            Err(_) => 0,
        };
        Ok((listeners, self.journal.children(&new.channel, None).await?))
    }
}
