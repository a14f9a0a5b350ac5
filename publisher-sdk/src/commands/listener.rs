//! The one task that listens: hands what the journals say to the inbox, and never waits for anyone.
//!
//! [`journal`] → **listener** → [`inbox`](super::inbox)

use std::sync::Arc;

use journal::{Update, Updates};
use tokio_util::sync::CancellationToken;

use super::inbox::Inbox;

/// Listens until `ended`.
pub(crate) async fn listen(mut updates: Updates, inbox: Arc<Inbox>, ended: CancellationToken) {
    while let Some(Some(update)) = ended.run_until_cancelled(updates.next()).await {
        match update {
            Update::Link { up: true } => tracing::debug!("listening for commands"),
            Update::Link { up: false } => tracing::warn!("commands do not arrive: redis is away"),
            Update::Live { name, head } => inbox.went_live(&name.channel, head),
            Update::Entries { name, entries } => {
                for entry in entries {
                    inbox.take_in(&name.channel, &entry);
                }
            }
            // Agents wait for no answers.
            Update::Rung { .. } => {}
            // Everything retained follows; what was taken before is known by its id.
            Update::Reset { name, reason, .. } => tracing::warn!(
                channel = %name.channel,
                reason = reason.as_str(),
                "commands may have been lost"
            ),
        }
    }
    inbox.end();
}
