//! What the subscriptions of one connection wait to be told: all at a time, since an answer is small and
//! shared and nobody shall wait for another's; at most one for each, whatever the browser does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture, pending};
use futures_util::stream::FuturesUnordered;

use super::AppState;
use super::connection::PendingRead;
use crate::events::Pending;

/// While Redis is away it is asked again this much later.
const ASK_AGAIN: Duration = Duration::from_millis(250);

type Answered = (PendingRead, Arc<Pending>);

#[derive(Debug, Default)]
pub(super) struct PendingReads {
    under_way: FuturesUnordered<Abortable<BoxFuture<'static, Answered>>>,
    /// What is wanted anew for a slot takes the place of what was wanted before.
    by_slot: HashMap<u32, AbortHandle>,
}

impl PendingReads {
    pub(super) fn push(&mut self, app: &Arc<AppState>, pending_read: PendingRead) {
        let (handle, registration) = AbortHandle::new_pair();
        if let Some(before) = self.by_slot.insert(pending_read.slot, handle) {
            before.abort();
        }
        let answered = ask(Arc::clone(app), pending_read);
        self.under_way.push(Abortable::new(Box::pin(answered), registration));
    }

    /// The next answer; never, where nothing was asked. Cancel-safe.
    pub(super) async fn next(&mut self) -> Answered {
        loop {
            match self.under_way.next().await {
                Some(Ok(answered)) => return answered,
                Some(Err(_replaced)) => {}
                None => pending().await,
            }
        }
    }
}

async fn ask(app: Arc<AppState>, pending_read: PendingRead) -> Answered {
    loop {
        match app.events.ask(&pending_read.question).await {
            Ok(pending) => return (pending_read, pending),
            Err(error) => tracing::debug!(%error, "what is pending cannot be read now"),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
