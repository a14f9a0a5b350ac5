//! Everything that waits to be written, over all channels, within one bound in bytes.
//!
//! [`Publisher`](crate::Publisher) → **buffer** ⊃ [`coalescer`](super::coalescer) →
//! [`writer`](super::writer)
//!
//! - Callers put in, the one writer takes out; nobody waits with the lock held.
//! - What is sent without waiting is refused when the bytes are used up; what is awaited waits.
//! - A channel whose last append is unanswered keeps its deltas back, so they join: while Redis is
//!   away, text takes the room of its bytes. Events go on to the journal's own buffer at once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use journal::{AppendError, Appended, NewEntry};
use protocol::{Channel, Offset};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coalescer::{self, Coalescer, Ticket, delta_cost, event_cost};
use crate::{FlushError, PublishError};

/// The caller that waits for an event's offset.
pub(crate) type Answer = oneshot::Sender<Result<Option<Offset>, PublishError>>;

/// The length of a tick where deltas are not batched: turns still go cold.
const UNBATCHED_TICK: Duration = Duration::from_millis(50);
/// How often, in ticks, channels with nothing left to remember are forgotten.
const SWEEP_TICKS: u64 = 100;

#[derive(Debug)]
pub(crate) struct Buffer {
    state: Mutex<BufferState>,
    /// The bytes that are free.
    room: Semaphore,
    limit: usize,
    /// Notifies the writer when there is something to do.
    pub(super) wakeup: Notify,
    window: Duration,
    began: Instant,
    /// Is cancelled when the agent is fenced.
    fenced: CancellationToken,
}

#[derive(Debug, Default)]
struct BufferState {
    channels: HashMap<Channel, ChannelBuffer>,
    /// Channels that may be written, in the order in which they became so.
    ready: VecDeque<Channel>,
    /// When deltas that wait become due.
    tick_at: Option<Instant>,
    /// Rises with every flush, which waits for its own and all earlier ones.
    generation: u64,
    /// How many entries of each generation are not settled yet.
    unsettled: BTreeMap<u64, u64>,
    /// Who waits for which generation. Letting go of the sender is the answer.
    flushes: Vec<(u64, oneshot::Sender<Infallible>)>,
    failed: Failed,
    swept_at: u64,
    is_closed: bool,
    is_stopped: bool,
}

/// What was lost of that which nobody waited for.
#[derive(Debug, Default)]
struct Failed {
    total: u64,
    since_flush: u64,
    last: Option<AppendError>,
}

/// One channel.
#[derive(Debug, Default)]
struct ChannelBuffer {
    pending: Coalescer,
    /// An append of this channel waits for room in the journal's buffer: nothing may overtake it.
    is_placing: bool,
    /// How many appends have no answer yet.
    unanswered: usize,
    is_ready: bool,
}

impl ChannelBuffer {
    fn may_be_written(&self) -> bool {
        let wants = self.pending.has_event() || (self.pending.is_due() && self.unanswered == 0);
        wants && !self.is_placing
    }
}

impl Buffer {
    pub(crate) fn new(window: Duration, limit: usize, fenced: CancellationToken) -> Self {
        Self {
            state: Mutex::default(),
            room: Semaphore::new(limit),
            limit,
            wakeup: Notify::new(),
            window,
            began: Instant::now(),
            fenced,
        }
    }

    /// Puts in an event without waiting.
    pub(crate) fn send(&self, channel: &Channel, entry: NewEntry) -> Result<(), PublishError> {
        let cost = event_cost(&entry);
        self.take_room(cost)?;
        self.put_in(channel, cost, entry, None)
    }

    /// Puts in an event, waits for room and for its offset.
    pub(crate) async fn publish(
        &self,
        channel: &Channel,
        entry: NewEntry,
    ) -> Result<Option<Offset>, PublishError> {
        let cost = event_cost(&entry);
        let room = self.room.acquire_many(cost as u32).await;
        room.map_err(|_| self.refusal())?.forget();
        let (answer, answered) = oneshot::channel();
        self.put_in(channel, cost, entry, Some(answer))?;
        answered.await.unwrap_or_else(|_| Err(self.refusal()))
    }

    /// Puts in a turn's next text, without waiting.
    pub(crate) fn text(
        &self,
        channel: &Channel,
        turn: Option<&str>,
        text: &str,
    ) -> Result<(), PublishError> {
        let (tail, pieces) = (coalescer::tail(turn), coalescer::pieces(text));
        // At most, if no piece can join what waits.
        let taken = pieces.iter().map(|body| delta_cost(&tail, body)).sum();
        self.take_room(taken)?;

        let (tick, mut used) = (self.tick_number(), 0);
        let mut state = self.state();
        if state.is_closed {
            self.room.add_permits(taken);
            return Err(self.refusal());
        }
        let BufferState { channels, generation, unsettled, tick_at, .. } = &mut *state;
        let buffered = channels.entry(channel.clone()).or_default();
        for body in &pieces {
            let added = buffered.pending.delta(tick, *generation, &tail, body);
            used += added.cost;
            if added.is_new {
                *unsettled.entry(*generation).or_default() += 1;
            }
        }
        if self.window.is_zero() {
            buffered.pending.tick();
        }
        let must_tick =
            !buffered.pending.is_due() && tick_at.is_none() && !buffered.pending.is_empty();
        if must_tick {
            let nanos = self.tick_length().as_nanos() as u64 * (tick + 1);
            *tick_at = Some(self.began + Duration::from_nanos(nanos));
        }
        if state.make_ready(channel) || must_tick {
            self.wakeup.notify_one();
        }
        self.room.add_permits(taken - used);
        Ok(())
    }

    /// Writes out everything that was put in so far and waits for it.
    pub(crate) async fn flush(&self) -> Result<(), FlushError> {
        self.written().await;
        let mut state = self.state();
        if state.is_stopped && !state.unsettled.is_empty() {
            return Err(FlushError::Stopped);
        }
        let count = std::mem::take(&mut state.failed.since_flush);
        match state.failed.last.take() {
            Some(last) => Err(FlushError::Failed { count, last }),
            None => Ok(()),
        }
    }

    /// The same for those who do not ask what was lost.
    pub(crate) async fn written(&self) {
        let flushed = {
            let mut state = self.state();
            state.seal();
            let generation = state.generation;
            state.generation += 1;
            let (waiting, flushed) = oneshot::channel();
            if !state.is_stopped {
                state.flushes.push((generation, waiting));
            }
            state.answer_flushes();
            flushed
        };
        self.wakeup.notify_one();
        let Err(_) = flushed.await;
    }

    /// The agent is fenced: what waits is refused, and so is what comes.
    pub(super) fn fence(&self) {
        self.close();
        let mut refused = Vec::new();
        for (channel, buffered) in &mut self.state().channels {
            while !buffered.pending.is_empty() {
                buffered.unanswered += 1;
                let tickets =
                    buffered.pending.take().into_iter().map(|(_, ticket)| ticket).collect();
                refused.push((channel.clone(), tickets));
            }
        }
        for (channel, tickets) in refused {
            self.settled(&channel, tickets, Err(AppendError::Fenced));
        }
        self.wakeup.notify_one();
    }

    pub(super) fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// Why nothing is taken in.
    fn refusal(&self) -> PublishError {
        if self.fenced.is_cancelled() { PublishError::Fenced } else { PublishError::Closed }
    }

    /// Takes nothing in from now on; what is in is still written.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.seal();
        self.room.close();
        self.wakeup.notify_one();
    }

    /// How many entries have been put in and are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.state().unsettled.values().sum()
    }

    /// How many events that nobody waited for have been lost so far.
    pub(crate) fn failed(&self) -> u64 {
        self.state().failed.total
    }

    fn take_room(&self, bytes: usize) -> Result<(), PublishError> {
        let refused = |closed: bool| {
            if closed { self.refusal() } else { PublishError::Full { limit: self.limit } }
        };
        // More than u32 can say is more than any buffer holds.
        let bytes = u32::try_from(bytes).map_err(|_| refused(false))?;
        if self.fenced.is_cancelled() {
            return Err(self.refusal());
        }
        match self.room.try_acquire_many(bytes) {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(error) => Err(refused(error == tokio::sync::TryAcquireError::Closed)),
        }
    }

    fn put_in(
        &self,
        channel: &Channel,
        cost: usize,
        entry: NewEntry,
        answer: Option<Answer>,
    ) -> Result<(), PublishError> {
        let mut state = self.state();
        if state.is_closed || self.fenced.is_cancelled() {
            return Err(self.refusal());
        }
        let generation = state.generation;
        *state.unsettled.entry(generation).or_default() += 1;
        let buffered = state.channels.entry(channel.clone()).or_default();
        buffered.pending.event(cost, entry, generation, answer);
        if state.make_ready(channel) {
            self.wakeup.notify_one();
        }
        Ok(())
    }

    fn tick_length(&self) -> Duration {
        if self.window.is_zero() { UNBATCHED_TICK } else { self.window }
    }

    fn tick_number(&self) -> u64 {
        (self.began.elapsed().as_nanos() / self.tick_length().as_nanos()) as u64
    }

    fn state(&self) -> MutexGuard<'_, BufferState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

/// The writer's side.
impl Buffer {
    /// The next append to make. Until [`placed`](Self::placed), nothing more of its channel.
    pub(super) fn next_append(&self) -> Option<(Channel, Vec<(NewEntry, Ticket)>)> {
        let mut state = self.state();
        while let Some(channel) = state.ready.pop_front() {
            let Some(buffered) = state.channels.get_mut(&channel) else { continue };
            buffered.is_ready = false;
            if buffered.may_be_written() {
                buffered.is_placing = true;
                buffered.unanswered += 1;
                let entries = buffered.pending.take();
                return Some((channel, entries));
            }
        }
        None
    }

    /// The append has its place in the journal's order.
    pub(super) fn placed(&self, channel: &Channel) {
        let mut state = self.state();
        if let Some(buffered) = state.channels.get_mut(channel) {
            buffered.is_placing = false;
        }
        state.make_ready(channel);
    }

    /// The append is over.
    pub(super) fn settled(
        &self,
        channel: &Channel,
        tickets: Vec<Ticket>,
        outcome: Result<Vec<Appended>, AppendError>,
    ) {
        self.room.add_permits(tickets.iter().map(|ticket| ticket.cost).sum());
        let (count, tick) = (tickets.len(), self.tick_number());
        let mut unnoticed = 0;
        let mut state = self.state();
        for (n, ticket) in tickets.into_iter().enumerate() {
            if let Some(left) = state.unsettled.get_mut(&ticket.generation) {
                *left -= 1;
                if *left == 0 {
                    state.unsettled.remove(&ticket.generation);
                }
            }
            let answered = match &outcome {
                Ok(appended) => appended.get(n).map(|a| a.offset).ok_or(AppendError::Unavailable),
                Err(error) => Err(error.clone()),
            };
            let answered = answered.map_err(PublishError::from);
            let told = ticket.answer.is_some_and(|answer| answer.send(answered).is_ok());
            unnoticed += u64::from(!told);
        }
        if matches!(outcome, Err(AppendError::Fenced)) {
            self.fenced.cancel();
        }
        if let Err(error) = &outcome {
            tracing::warn!(%channel, events = count, %error, "events could not be published");
            state.failed.total += unnoticed;
            state.failed.since_flush += unnoticed;
            if unnoticed > 0 {
                state.failed.last = Some(error.clone());
            }
        }
        if let Some(buffered) = state.channels.get_mut(channel) {
            buffered.unanswered -= 1;
        }
        state.make_ready(channel);
        state.answer_flushes();
        if tick >= state.swept_at + SWEEP_TICKS {
            state.swept_at = tick;
            state
                .channels
                .retain(|_, buffered| !buffered.pending.cool(tick) || buffered.unanswered > 0);
        }
    }

    /// Makes deltas due if it is time. Otherwise, when it will be.
    pub(super) fn tick(&self) -> Option<Instant> {
        let mut state = self.state();
        let at = state.tick_at?;
        if at > Instant::now() {
            return Some(at);
        }
        state.tick_at = None;
        let BufferState { channels, ready, .. } = &mut *state;
        for (channel, buffered) in channels {
            buffered.pending.tick();
            make_ready(buffered, channel, ready);
        }
        None
    }

    /// Whether nothing is left, and nothing will come.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.state();
        state.is_closed && state.unsettled.is_empty()
    }

    /// The writer is gone: all waiting callers are told.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        let lost: u64 = state.unsettled.values().sum();
        if lost > 0 {
            tracing::warn!(
                events = lost,
                "the runtime shut down before these events were published"
            );
        }
        (state.is_closed, state.is_stopped) = (true, true);
        state.channels.clear();
        state.flushes.clear();
        self.room.close();
    }
}

impl BufferState {
    /// Nothing joins what is in, and all of it is due.
    fn seal(&mut self) {
        for (channel, buffered) in &mut self.channels {
            buffered.pending.seal();
            make_ready(buffered, channel, &mut self.ready);
        }
    }

    fn make_ready(&mut self, channel: &Channel) -> bool {
        let buffered = self.channels.get_mut(channel);
        buffered.is_some_and(|buffered| make_ready(buffered, channel, &mut self.ready))
    }

    fn answer_flushes(&mut self) {
        let oldest = self.unsettled.keys().next().copied().unwrap_or(u64::MAX);
        self.flushes.retain(|(generation, _)| *generation >= oldest);
    }
}

fn make_ready(
    buffered: &mut ChannelBuffer,
    channel: &Channel,
    ready: &mut VecDeque<Channel>,
) -> bool {
    let is_new = buffered.may_be_written() && !buffered.is_ready;
    if is_new {
        buffered.is_ready = true;
        ready.push_back(channel.clone());
    }
    is_new
}

#[cfg(test)]
mod tests;
