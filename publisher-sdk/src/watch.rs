//! Watches the program's own executor. Its links and leases live on [a thread of their own](crate::thread), so a
//! program that hangs would be alive for ever.
//!
//! [`Agent`](crate::Agent) → **watch** → [`leases`](crate::leases), [`link`](crate::link)

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use journal::NewEntry;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::events::buffer::Buffer;
use crate::leases::Leases;
use crate::vocabulary::{Event, StatusChanged};

/// Shorter is not waited for an executor: it may be busy.
const UNRESPONSIVE_AFTER_MIN: Duration = Duration::from_millis(100);
/// So often an executor is asked while it may take its time.
const ASKED_TIMES: u32 = 6;

/// How long an executor may take to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Then its sessions are told.
    pub(crate) unresponsive_after: Duration,
    /// Then its leases are not renewed any more.
    pub(crate) lost_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { unresponsive_after: Duration::from_secs(30), lost_after: Duration::from_secs(600) }
    }
}

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) program: Handle,
    pub(crate) patience: Patience,
    pub(crate) leases: Arc<Leases>,
    pub(crate) buffer: Arc<Buffer>,
    /// The agent ends.
    pub(crate) stopped: CancellationToken,
}

impl Watch {
    pub(crate) async fn run(self) {
        let stopped = self.stopped.clone();
        if stopped.run_until_cancelled(self.hangs()).await.is_some() {
            tracing::warn!(
                agent_id = %self.leases.holder().agent,
                "the program does not run any more: its leases are not renewed, it will be declared lost"
            );
            self.leases.abandon().await;
        }
    }

    /// Returns when the program has not answered for too long, or its executor has ended.
    async fn hangs(&self) {
        let unresponsive_after = self.patience.unresponsive_after.max(UNRESPONSIVE_AFTER_MIN);
        let lost_after = self.patience.lost_after.max(unresponsive_after);
        loop {
            let (asked, since) = (Instant::now(), SystemTime::now());
            let mut answer = self.program.spawn(async {});
            let answered = match timeout(unresponsive_after, &mut answer).await {
                Ok(answered) => answered,
                Err(_) => {
                    tracing::warn!(
                        agent_id = %self.leases.holder().agent,
                        after = ?unresponsive_after,
                        "the program's executor does not answer: a task blocks it"
                    );
                    self.tell("unresponsive", since);
                    let Ok(answered) = timeout_at(asked + lost_after, &mut answer).await else {
                        return;
                    };
                    self.tell("responsive", SystemTime::now());
                    answered
                }
            };
            if answered.is_err() {
                return;
            }
            sleep(unresponsive_after / ASKED_TIMES).await;
        }
    }

    /// On the agent's own channel and on each session.
    fn tell(&self, status: &str, since: SystemTime) {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let data = json!(StatusChanged::new(status).since(since)).to_string();
        for channel in self.leases.channels() {
            let entry = NewEntry::new(StatusChanged::NAME, data.clone());
            if let Err(error) = self.buffer.send(&channel, entry) {
                tracing::warn!(%channel, status, %error, "the status of the program could not be told");
            }
        }
    }
}
