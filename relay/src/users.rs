//! How many connections each user holds: none takes the places of all.
//!
//! [`routes`](crate::routes) and [`agents`](crate::agents) ask for a place before the upgrade, and keep it as long as
//! the connection lasts. Without a key there are no users, and nothing is counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::ErrorCode;

use crate::auth::Principal;
use crate::routes::refuse::Refused;

/// The part of the places that one user may hold: a quarter.
const PARTS: usize = 4;
/// Where a quarter is fewer: a user has a few devices.
const PART_MIN: usize = 4;

/// The connections of this replica, by their users.
#[derive(Debug)]
pub(crate) struct Users {
    part: usize,
    held: Mutex<HashMap<Box<str>, usize>>,
}

/// One connection's place. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct UserPlace {
    users: Arc<Users>,
    user: Option<Box<str>>,
}

impl Users {
    /// For a replica with so many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { part: (places / PARTS).max(PART_MIN), held: Mutex::default() })
    }

    /// A place for one more connection of this user.
    ///
    /// # Errors
    /// [`Refused`] where the user holds its part already.
    pub(crate) fn enter(self: &Arc<Self>, principal: &Principal) -> Result<UserPlace, Refused> {
        let user = principal.user.clone();
        if let Some(user) = &user {
            let mut held = self.held();
            let count = held.entry(user.clone()).or_default();
            if *count >= self.part {
                let part = self.part;
                let message = format!(
                    "this user holds {part} connections of this replica, as many as one user may: close some, or try \
                     another replica"
                );
                return Err(Refused::new(ErrorCode::Unavailable, message));
            }
            *count += 1;
        }
        Ok(UserPlace { users: Arc::clone(self), user })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.held.lock().expect("no code panics with this lock held")
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let Some(user) = &self.user else { return };
        let mut held = self.users.held();
        if let Some(count) = held.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                held.remove(user);
            }
        }
    }
}
