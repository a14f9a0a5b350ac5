//! Commands that wait for whoever takes them: bounded, and what finds no room comes back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::Command;

/// As many as a commands journal retains: a queue that is full has stood still for long.
pub(super) const WAITING_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    is_closed: bool,
}

#[derive(Debug)]
struct Waiting {
    command: Command,
    /// It has taken effect already; it waits only to be seen.
    is_done: bool,
}

impl Queue {
    /// Gives the command back where there is no room.
    pub(super) fn put(&self, command: Command, is_done: bool) -> Result<(), Command> {
        let mut state = self.state();
        if state.is_closed || state.waiting.len() >= WAITING_MAX {
            return Err(command);
        }
        state.waiting.push_back(Waiting { command, is_done });
        self.bell.notify_one();
        Ok(())
    }

    pub(super) async fn next(&self) -> Option<Command> {
        loop {
            // Before the look: a close between the two is heard.
            let rung = self.bell.notified();
            {
                let mut state = self.state();
                if let Some(waiting) = state.waiting.pop_front() {
                    if !state.waiting.is_empty() {
                        // One ring may stand for several commands: the next taker must not sleep.
                        self.bell.notify_one();
                    }
                    return Some(waiting.command);
                }
                if state.is_closed {
                    return None;
                }
            }
            rung.await;
        }
    }

    /// Ends the queue; gives back what nobody took and nobody has done.
    pub(super) fn close(&self) -> Vec<Command> {
        let mut state = self.state();
        state.is_closed = true;
        self.bell.notify_waiters();
        let left = state.waiting.drain(..).filter(|waiting| !waiting.is_done);
        left.map(|waiting| waiting.command).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}
