//! The connections of this replica by their ids, for a message that is meant for one of them.
//!
//! An id is `<the replica's address>-<number>`, so whichever replica is asked knows whom to ring.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::mpsc;

/// Messages that may wait for one connection; beyond, they are dropped.
const WAITING: usize = 16;

/// Who is connected here.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    entered: HashMap<u64, mpsc::Sender<String>>,
}

/// A place on the roll. Dropping it leaves.
#[derive(Debug)]
pub(crate) struct Entered {
    roll: Arc<Roll>,
    number: u64,
}

impl Roll {
    /// Enters a connection; what is meant for it comes out of the channel.
    pub(crate) fn enter(self: &Arc<Self>) -> (Entered, mpsc::Receiver<String>) {
        let (says, said) = mpsc::channel(WAITING);
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.entered.insert(number, says);
        (Entered { roll: Arc::clone(self), number }, said)
    }

    /// Hands the frame to the connection, if it is here and reads.
    pub(crate) fn hand_over(&self, number: u64, frame: String) {
        if let Some(says) = self.state().entered.get(&number) {
            // Live only, as everything that has no offset.
            drop(says.try_send(frame));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl Entered {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.roll.state().entered.remove(&self.number);
    }
}
