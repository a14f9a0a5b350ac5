//! The one task that listens: hands what the journals say to the inbox, and never waits for it.
//!
//! [`link`](crate::link) → **listener** → [`inbox`](super::inbox)

use std::sync::Arc;

use journal::Update;

use super::inbox::Inbox;
use crate::link::LinkUpdates;

/// Listens until the inbox takes nothing any more.
pub(crate) async fn listen(mut updates: LinkUpdates, inbox: Arc<Inbox>) {
    let stopped = inbox.stopped.clone();
    while let Some(Some(update)) = stopped.run_until_cancelled(updates.next()).await {
        match update {
            Update::Link { up: true } => tracing::debug!("listening for commands"),
            Update::Link { up: false } => {
                tracing::warn!("commands do not arrive until the link is back")
            }
            Update::Live { name, head } => inbox.went_live(&name.channel, head),
            Update::Entries { name, entries } => {
                for entry in entries {
                    inbox.take_in(&name.channel, &entry);
                }
            }
            // Agents wait for no answers.
            Update::Notified { .. } => {}
            // What waits follows, but for answers.
            Update::Reset { name, reason, .. } => {
                tracing::warn!(
                    channel = %name.channel,
                    reason = reason.as_str(),
                    "commands were lost or trimmed: reading what waits"
                );
                inbox.approvals.ask_again();
            }
        }
    }
    inbox.stop();
}
