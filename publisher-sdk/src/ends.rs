//! How runs end: each end is told on the agent's own channel in the step in which the run leaves the note of
//! its lease, so it is told once, by the agent or by the reaper that declares it lost.
//!
//! [`Run`](crate::Run), [`closing`](crate::closing) → **ends** → [`leases`](crate::leases)
//!
//! One task, one end after the other: they stand in the order in which the runs ended, each behind what the
//! agent had said before.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use journal::{AppendError, NewEntry, NoteCall};
use protocol::Channel;
use tokio::sync::{mpsc, oneshot, watch};

use crate::PublishError;
use crate::events::buffer::Buffer;
use crate::leases::Leases;
use crate::link::LinkError;
use crate::runs::{Current, Runs};

/// The ends that are owed. Their number is bounded by that of the runs.
#[derive(Debug)]
pub(crate) struct Ends {
    queue: mpsc::UnboundedSender<End>,
    owed: watch::Sender<u64>,
    told: watch::Receiver<u64>,
}

#[derive(Debug)]
struct End {
    run: Current,
    /// `None` where only the note is to be taken back.
    entry: Option<NewEntry>,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

/// What the task needs.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) runs: Arc<Runs>,
}

impl Ends {
    /// Must be called within a runtime.
    pub(crate) fn new(teller: Teller) -> Self {
        #[expect(clippy::disallowed_methods, reason = "there are no more ends than announced runs")]
        let (queue, owed_ends) = mpsc::unbounded_channel();
        let (tell, told) = watch::channel(0);
        tokio::spawn(teller.tell(owed_ends, tell));
        Self { queue, owed: watch::Sender::new(0), told }
    }

    /// The run's end is owed from now on. What is given back says when it is told everywhere.
    pub(crate) fn owe(
        &self,
        run: &Current,
        entry: Option<NewEntry>,
    ) -> oneshot::Receiver<Result<(), PublishError>> {
        let (answer, answered) = oneshot::channel();
        self.owed.send_modify(|owed| *owed += 1);
        // Where the runtime has ended, the lease runs out, and the end is told then.
        drop(self.queue.send(End { run: run.clone(), entry, answer }));
        answered
    }

    /// Waits until all ends that are owed now are told.
    pub(crate) async fn told(&self) {
        let owed = *self.owed.borrow();
        let mut told = self.told.clone();
        // An error: the task has ended with the runtime.
        drop(told.wait_for(|told| *told >= owed).await);
    }
}

impl Teller {
    async fn tell(self, mut owed: mpsc::UnboundedReceiver<End>, told: watch::Sender<u64>) {
        let mut copying = FuturesOrdered::new();
        loop {
            tokio::select! {
                end = owed.recv() => match end {
                    Some(End { run, entry, answer }) => {
                        let copied = self.tell_one(&run, entry).await;
                        let teller = self.clone();
                        copying.push_back(async move {
                            let told = match copied {
                                Ok(copied) => {
                                    copied.await;
                                    Ok(())
                                }
                                Err(error) => Err(error),
                            };
                            teller.forget(&run).await;
                            // The caller need not wait any more.
                            drop(answer.send(told));
                        });
                    }
                    None => break,
                },
                Some(()) = copying.next(), if !copying.is_empty() => {
                    told.send_modify(|told| *told += 1);
                }
            }
        }
        while copying.next().await.is_some() {
            told.send_modify(|told| *told += 1);
        }
    }

    /// In the step in which the run leaves the note of the agent's own lease.
    async fn tell_one(
        &self,
        run: &Current,
        entry: Option<NewEntry>,
    ) -> Result<impl Future<Output = ()> + use<>, PublishError> {
        let own = self.leases.own();
        let copied = match entry {
            Some(entry) => {
                self.buffer.written().await;
                Some(self.leases.end_run(&run.id, &entry).await.map_err(refused)?)
            }
            None => {
                let noted = self.leases.note(own, &NoteCall::ended([(&*run.id).into()])).await;
                noted.map_err(refused)?;
                None
            }
        };
        Ok(async move {
            if let Some(copied) = copied {
                copied.await;
            }
        })
    }

    /// The session on which the run was begun hears of it no more.
    async fn forget(&self, run: &Current) {
        let noted_on: &Channel = &run.channel;
        if self.runs.is_noted(run.key) && noted_on != self.leases.own() {
            let ended = NoteCall::ended([(&*run.id).into()]);
            if let Err(error) = self.leases.note(noted_on, &ended).await {
                tracing::debug!(run = &*run.id, %error, "a run's end is not noted");
            }
        }
        self.runs.unnote(run.key);
    }
}

pub(crate) fn refused(error: LinkError) -> PublishError {
    match error {
        LinkError::Fenced => PublishError::Fenced,
        LinkError::Refused(why) => PublishError::Journal(AppendError::Refused(why)),
        _ => PublishError::Closed,
    }
}
