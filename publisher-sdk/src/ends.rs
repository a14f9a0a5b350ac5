//! How runs end: each end is told on the agent's own channel in the step in which the run leaves the note of
//! its lease, so it is told once, by the agent or by the reaper that declares it lost.
//!
//! [`Run`](crate::Run), [`closing`](crate::closing) → **ends** → [`leases`](crate::leases)
//!
//! One task, one end after the other: they stand in the order in which the runs ended, each behind what the
//! agent had said before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use journal::{NewEntry, NoteCall};
use protocol::Channel;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::PublishError;
use crate::events::buffer::Buffer;
use crate::leases::Leases;
use crate::link::LinkError;
use crate::runs::{Current, Runs};

/// What the ends that are owed take of memory: 8 MiB, as much as an agent's events may by default.
const ROOM: usize = 8 * 1024 * 1024;
/// What an end takes beside its event.
const BESIDE: usize = 512;

/// The ends that are owed.
#[derive(Debug)]
pub(crate) struct Ends {
    owed: Arc<OwedEnds>,
    told: watch::Receiver<u64>,
}

/// The queue of those that are not being told yet, bounded in bytes.
///
/// The calls that complete, fail or stop a run wait for room. A handle that is dropped and an agent that closes
/// cannot wait: their ends take room if there is some, and none otherwise. Such an end has a few kilobytes and
/// belongs to a run that was announced, and while there is no room no run is [announced](Ends::has_room). So
/// the ends beyond the bound are at most as many as runs were open when it was reached, each of which the agent
/// held in memory itself.
#[derive(Debug)]
struct OwedEnds {
    state: Mutex<OwedState>,
    room: Arc<Semaphore>,
    /// Notified when there is something to tell.
    changed: Notify,
}

#[derive(Debug, Default)]
struct OwedState {
    queue: VecDeque<End>,
    /// How many were put in so far.
    count: u64,
    /// The agent or the task has ended.
    is_closed: bool,
}

#[derive(Debug)]
struct End {
    run: Current,
    /// `None` where only the note is to be taken back.
    entry: Option<NewEntry>,
    answer: oneshot::Sender<Result<(), PublishError>>,
    room: Option<OwnedSemaphorePermit>,
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
        let owed = Arc::new(OwedEnds::new(ROOM));
        let (tell, told) = watch::channel(0);
        tokio::spawn(teller.tell(Telling(Arc::clone(&owed)), tell));
        Self { owed, told }
    }

    /// Waits for room for the end that `entry` tells.
    pub(crate) async fn room(&self, entry: &NewEntry) -> Option<OwnedSemaphorePermit> {
        self.owed.room(cost(Some(entry))).await
    }

    /// Waits until another run may be announced.
    pub(crate) async fn has_room(&self) {
        drop(self.owed.room(cost(None)).await);
    }

    /// The run's end is owed from now on. What is given back says when it is told everywhere.
    pub(crate) fn owe(
        &self,
        run: &Current,
        entry: Option<NewEntry>,
        room: Option<OwnedSemaphorePermit>,
    ) -> oneshot::Receiver<Result<(), PublishError>> {
        let (answer, answered) = oneshot::channel();
        self.owed.push(End { run: run.clone(), entry, answer, room });
        answered
    }

    /// Waits until all ends that are owed now are told.
    pub(crate) async fn told(&self) {
        let owed = self.owed.state().count;
        let mut told = self.told.clone();
        // An error: the task has ended with the runtime.
        drop(told.wait_for(|told| *told >= owed).await);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.owed.close();
    }
}

impl OwedEnds {
    fn new(room: usize) -> Self {
        let (state, changed) = (Mutex::default(), Notify::new());
        Self { state, room: Arc::new(Semaphore::new(room)), changed }
    }

    /// `None` if the task that tells ends has ended.
    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_many_owned(bytes as u32).await.ok()
    }

    fn push(&self, mut end: End) {
        if end.room.is_none() {
            let bytes = cost(end.entry.as_ref());
            end.room = Arc::clone(&self.room).try_acquire_many_owned(bytes as u32).ok();
        }
        let mut state = self.state();
        // Where the runtime has ended, the lease runs out, and the end is told then.
        if !state.is_closed {
            state.count += 1;
            state.queue.push_back(end);
            self.changed.notify_one();
        }
    }

    /// The next end; `None` when no more can come. Cancel-safe.
    async fn next(&self) -> Option<End> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(end) = state.queue.pop_front() {
                    return Some(end);
                }
                if state.is_closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    fn close(&self) {
        self.state().is_closed = true;
        self.room.close();
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, OwedState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

/// What an end takes of the room.
fn cost(entry: Option<&NewEntry>) -> usize {
    BESIDE + entry.map_or(0, |entry| entry.data.len())
}

/// The task's end of the queue. It is dropped with the task, and then no caller waits any more.
struct Telling(Arc<OwedEnds>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.close();
        self.0.state().queue.clear();
    }
}

impl Teller {
    async fn tell(self, owed: Telling, told: watch::Sender<u64>) {
        let mut copying = FuturesOrdered::new();
        loop {
            tokio::select! {
                end = owed.0.next() => match end {
                    Some(End { run, entry, answer, room }) => {
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
                            drop(room);
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

    /// The run leaves the note of the session on which it was begun.
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
        LinkError::Refused(why) => PublishError::Refused(why),
        _ => PublishError::Closed,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn end(room: Option<OwnedSemaphorePermit>) -> End {
        let run = Runs::default().begin(&Channel::agent("a").unwrap(), "r".to_owned());
        End { run, entry: None, answer: oneshot::channel().0, room }
    }

    #[tokio::test]
    async fn an_end_waits_for_room_but_for_those_that_cannot_wait() {
        let owed = OwedEnds::new(2 * BESIDE);
        let room = owed.room(BESIDE).await;
        owed.push(end(room));
        owed.push(end(None));
        assert!(owed.room(BESIDE).now_or_never().is_none(), "what did not wait takes room, too");
        owed.push(end(None));

        let told: Vec<End> = [owed.next().await, owed.next().await].into_iter().flatten().collect();
        assert!(owed.room(BESIDE).now_or_never().is_none(), "they are being told");
        drop(told);
        assert!(owed.room(2 * BESIDE).now_or_never().is_some());

        owed.close();
        assert!(owed.room(BESIDE).await.is_none(), "no caller waits for ever");
        assert!(owed.next().await.is_some(), "what came before is told");
        assert!(owed.next().await.is_none());
    }
}
