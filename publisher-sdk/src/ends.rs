//! How runs end: each end is told on the agent's own channel and on the session where the run was begun, on each in
//! the step in which the run leaves the note of the lease there. So each channel is told once, by the agent or by
//! the reaper that declares it lost.
//!
//! [`Run`](crate::Run), [`closing`](crate::closing) → **ends** → [`leases`](crate::leases)
//!
//! One task, one end after the other: they stand in the order in which the runs ended, each behind what the
//! agent had said before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, ready};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use journal::{NewEntry, NoteCall};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::PublishError;
use crate::events::buffer::Buffer;
use crate::leases::Leases;
use crate::lifecycle::RunEnd;
use crate::link::{LinkError, RecordLink};
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
    end: Option<RunEnd>,
    answer: oneshot::Sender<Result<(), PublishError>>,
    room: Option<OwnedSemaphorePermit>,
}

/// What the task needs.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    pub(crate) buffer: Arc<Buffer>,
    /// Where the agent's events go.
    pub(crate) events: RecordLink,
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

    /// Waits for room for `end`.
    pub(crate) async fn room(&self, end: &RunEnd) -> Option<OwnedSemaphorePermit> {
        self.owed.room(cost(Some(end))).await
    }

    /// Waits until another run may be announced.
    pub(crate) async fn has_room(&self) {
        drop(self.owed.room(cost(None)).await);
    }

    /// The run's end is owed from now on. What is given back says when it is told everywhere.
    pub(crate) fn owe(
        &self,
        run: &Current,
        end: Option<RunEnd>,
        room: Option<OwnedSemaphorePermit>,
    ) -> oneshot::Receiver<Result<(), PublishError>> {
        let (answer, answered) = oneshot::channel();
        self.owed.push(End { run: run.clone(), end, answer, room });
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
            let bytes = cost(end.end.as_ref());
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
fn cost(end: Option<&RunEnd>) -> usize {
    BESIDE
        + end.map_or(0, |RunEnd { own, begun_on }| {
            own.data.len() + begun_on.as_ref().map_or(0, |entry| entry.data.len())
        })
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
                    Some(End { run, end, answer, room }) => {
                        let copied = self.tell_one(&run, end).await;
                        let runs = Arc::clone(&self.runs);
                        copying.push_back(async move {
                            let told = match copied {
                                Ok(copied) => {
                                    copied.await;
                                    Ok(())
                                }
                                Err(error) => Err(error),
                            };
                            runs.unnote(run.key);
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

    /// On both channels at once: neither has to wait for the other. What is given back resolves when the end is
    /// copied to `global:events`.
    async fn tell_one(
        &self,
        run: &Current,
        end: Option<RunEnd>,
    ) -> Result<BoxFuture<'static, ()>, PublishError> {
        let Some(RunEnd { own, begun_on }) = end else {
            self.take_back(run).await.map_err(refused)?;
            return Ok(ready(()).boxed());
        };
        self.buffer.written().await;
        // Its channels are taken over one after the other: on those that still take something the successor tells it.
        if self.leases.fenced().is_cancelled() {
            return Err(PublishError::Fenced);
        }
        let (copied, told) = tokio::join!(
            self.leases.end_run(self.leases.own(), &run.id, &own),
            self.tell_where_begun(run, begun_on),
        );
        told?;
        // The own lease is released last, when nothing is owed any more.
        copied.map_err(refused)?.ok_or(PublishError::Fenced)
    }

    async fn tell_where_begun(
        &self,
        run: &Current,
        entry: Option<NewEntry>,
    ) -> Result<(), PublishError> {
        let Some(entry) = entry else { return Ok(()) };
        let told = self.leases.end_run(&run.channel, &run.id, &entry).await.map_err(refused)?;
        if told.is_none() {
            // No lease is held there, and no note that could tell another end.
            self.events.enqueue(&run.channel, vec![entry]).await?.await?;
        }
        Ok(())
    }

    /// The run was not begun after all.
    async fn take_back(&self, run: &Current) -> Result<(), LinkError> {
        let ended = NoteCall::ended([(&*run.id).into()]);
        self.leases.note(self.leases.own(), &ended).await?;
        if run.channel != *self.leases.own() {
            self.leases.note(&run.channel, &ended).await?;
        }
        Ok(())
    }
}

pub(crate) fn refused(error: LinkError) -> PublishError {
    match error {
        LinkError::Fenced => PublishError::Fenced,
        LinkError::Refused(why) | LinkError::Conflict(why) | LinkError::Unauthorized(why) => {
            PublishError::Refused(why)
        }
        _ => PublishError::Closed,
    }
}

#[cfg(test)]
mod tests {
    use protocol::Channel;

    use super::*;

    fn end(room: Option<OwnedSemaphorePermit>) -> End {
        let run = Runs::default().begin(&Channel::agent("a").unwrap(), "r".to_owned(), None);
        End { run, end: None, answer: oneshot::channel().0, room }
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
