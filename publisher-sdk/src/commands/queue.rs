//! Where commands are handed out: as many are taken as callers wait for, and no more.
//!
//! [`consumer`](super::consumer) → **queue** → [`Commands`](crate::Commands)
//!
//! A command that no caller asks for stays in its journal: other agents may take it, it may expire, and
//! its sender is told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::Command;

/// How many commands that have taken effect wait to be seen; beyond, they are not shown.
const SHOWN_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    /// Notifies those who wait for a command.
    wakeup: Notify,
    /// Notifies those who wait for a caller that wants one.
    demand: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    ready: VecDeque<Command>,
    /// How many wait in [`Queue::next`].
    wanted: usize,
    /// How many commands are being taken.
    taking: usize,
    is_closed: bool,
}

/// A caller wants a command: the place where it is to be put.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
}

impl Place {
    /// Gives the command back where the queue has ended.
    pub(super) fn put(self, command: Command) -> Result<(), Box<Command>> {
        let mut state = self.queue.state();
        if state.is_closed {
            return Err(Box::new(command));
        }
        state.ready.push_back(command);
        self.queue.wakeup.notify_one();
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.state().taking -= 1;
        self.queue.demand.notify_waiters();
    }
}

/// One waiting caller.
struct Want<'a>(&'a Queue);

impl<'a> Want<'a> {
    fn begin(queue: &'a Queue) -> Self {
        queue.state().wanted += 1;
        queue.demand.notify_waiters();
        Self(queue)
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        self.0.state().wanted -= 1;
    }
}

impl Queue {
    /// Waits until somebody wants a command that is not under way already; `None` where the queue
    /// has ended. Cancel-safe.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Place> {
        loop {
            // Before the look, so that a demand between the two is noticed.
            let demanded = self.demand.notified();
            {
                let mut state = self.state();
                if state.is_closed {
                    return None;
                }
                if state.wanted > state.ready.len() + state.taking {
                    state.taking += 1;
                    return Some(Place { queue: Arc::clone(self) });
                }
            }
            demanded.await;
        }
    }

    /// A command that has taken effect already, for callers that want to see it.
    pub(super) fn show(&self, command: Command) {
        let mut state = self.state();
        if !state.is_closed && state.ready.len() < SHOWN_MAX {
            state.ready.push_back(command);
            self.wakeup.notify_one();
        }
    }

    pub(super) async fn next(&self) -> Option<Command> {
        let _want = Want::begin(self);
        loop {
            let rung = self.wakeup.notified();
            {
                let mut state = self.state();
                if let Some(command) = state.ready.pop_front() {
                    if !state.ready.is_empty() {
                        // One notification may stand for several commands: the next taker must not sleep.
                        self.wakeup.notify_one();
                    }
                    return Some(command);
                }
                if state.is_closed {
                    return None;
                }
            }
            rung.await;
        }
    }

    /// Ends the queue; gives back what nobody took.
    pub(super) fn close(&self) -> Vec<Command> {
        let left = {
            let mut state = self.state();
            state.is_closed = true;
            state.ready.drain(..).collect()
        };
        self.wakeup.notify_waiters();
        self.demand.notify_waiters();
        left
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}
