//! The end of an agent: its runs are ended, what it said is written, and its leases are released, so that it is not
//! declared lost.
//!
//! [`Agent`](crate::Agent) → **closing** → [`inbox`](crate::commands), [`buffer`](crate::events),
//! [`leases`](crate::leases)

use std::sync::Arc;

use journal::Parent;

use crate::commands::inbox::Inbox;
use crate::ends::Ends;
use crate::lifecycle::{LifecyclePublisher, Outcome};
use crate::runs::Runs;
use crate::{FlushError, Reason};

/// Everything that must be ended, in the order in which it is.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) lifecycle: LifecyclePublisher,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) ends: Arc<Ends>,
    pub(crate) parent: Option<Parent>,
}

impl Closing {
    /// Takes nothing in from now on.
    pub(crate) fn begin(&self) {
        self.inbox.stop();
        let fenced = self.inbox.leases.fenced();
        self.runs.cancel_all(if fenced.is_cancelled() { Reason::Lost } else { Reason::Shutdown });
        for run in self.runs.owed() {
            let why = run.cancellation().cloned().unwrap_or_else(|| Reason::Shutdown.into());
            // The owner of the run finds that its end was told already.
            match self.lifecycle.end(&run, &Outcome::Cancelled(why)) {
                Ok(end) => {
                    let owe = || drop(self.ends.owe(&run, Some(end), None));
                    self.runs.end(run.key, owe);
                }
                Err(error) => tracing::warn!(run = &*run.id, %error, "a run's end is not written"),
            }
        }
        self.lifecycle.buffer.close();
    }

    /// Ends everything; waits for Redis as long as it takes.
    pub(crate) async fn close(self) -> Result<(), FlushError> {
        self.begin();
        let (flushed, (), ()) =
            tokio::join!(self.lifecycle.buffer.flush(), self.inbox.settled(), self.ends.told());
        if let Some(parent) = &self.parent
            && let Err(error) = self.inbox.link.disown(parent, self.inbox.leases.holder()).await
        {
            tracing::debug!(%error, "the parent is not told that its child is gone");
        }
        self.inbox.leases.release().await;
        flushed
    }
}
