//! The connections of this replica by their numbers, for a message that is meant for one of them.
//!
//! A connection's id is `<the replica's address>-<number>`, so whichever replica is asked knows whom to ring.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::connection::Connection;

/// Who is connected here.
#[derive(Debug, Default)]
pub(crate) struct ConnectionRegistry {
    last: AtomicU64,
    entered: Mutex<HashMap<u64, Weak<Connection>>>,
}

impl ConnectionRegistry {
    /// A number that no connection here has had.
    pub(super) fn next_number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn enter(&self, number: u64, connection: &Arc<Connection>) {
        self.entered().insert(number, Arc::downgrade(connection));
    }

    pub(super) fn leave(&self, number: u64) {
        self.entered().remove(&number);
    }

    /// Hands the frame to the connection, if it is here and reads.
    pub(crate) fn hand_over(&self, number: u64, frame: String) {
        let connection = self.entered().get(&number).and_then(Weak::upgrade);
        if let Some(connection) = connection {
            connection.say_if_there_is_room(frame);
        }
    }

    fn entered(&self) -> MutexGuard<'_, HashMap<u64, Weak<Connection>>> {
        self.entered.lock().expect("no code panics with this lock held")
    }
}
