//! How fast a sender may leave commands that nobody is there to take: they stay in Redis until they expire.
//!
//! [`command`](crate::state::command) → **unserved**. Each process counts in its own memory, in bytes. What a served
//! channel holds is bounded by its places; the number of channels that nobody serves is bounded by nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use protocol::limits::{UNSERVED_BYTES_BURST, UNSERVED_BYTES_PER_SECOND};
use tokio::time::Instant;

/// So many senders are kept before those are forgotten that may send all at once again.
const SENDERS: usize = 4_096;
/// What stands in Redis beside a command's data, about: its entry twice, its state, its place and its deadline.
const AROUND_BYTES: usize = 1_024;

/// The pace of each sender. A Cancel has a pace of its own: no flood of others stops it.
#[derive(Debug, Default)]
pub(crate) struct UnservedPace {
    /// Until when the bytes are used up, if each second brings some.
    used_until: Mutex<HashMap<(Box<str>, bool), Instant>>,
}

impl UnservedPace {
    /// Whether a command with so many bytes of data may come now; if not, how much later.
    pub(crate) fn admit(
        &self,
        sender: &str,
        is_cancel: bool,
        bytes: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        let lasts =
            |bytes: usize| Duration::from_secs(bytes as u64) / UNSERVED_BYTES_PER_SECOND as u32;
        let mut used_until = self.used_until.lock().expect("no code panics with this lock held");
        if used_until.len() >= SENDERS {
            used_until.retain(|_, until| *until > now);
        }
        let until = used_until.entry((sender.into(), is_cancel)).or_insert(now);
        let next = (*until).max(now) + lasts(bytes + AROUND_BYTES);
        match (next - now).checked_sub(lasts(UNSERVED_BYTES_BURST)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *until = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_as_many_bytes_as_time_allows_and_cancels_for_themselves() {
        let (pace, start) = (UnservedPace::default(), Instant::now());
        let data = 64 * 1_024 - AROUND_BYTES;
        let burst =
            (0..1_000).take_while(|_| pace.admit("ada", false, data, start).is_ok()).count();
        assert_eq!(burst, 64, "4 MiB");
        assert_eq!(pace.admit("ada", false, data, start), Err(Duration::from_secs(1)));
        assert_eq!(pace.admit("ada", true, data, start), Ok(()), "a Cancel");
        assert_eq!(pace.admit("ben", false, data, start), Ok(()));

        let later = start + Duration::from_secs(1);
        assert_eq!(pace.admit("ada", false, data, later), Ok(()));
        assert!(pace.admit("ada", false, data, later).is_err());
    }

    #[test]
    fn senders_that_may_send_all_at_once_again_are_forgotten() {
        let (pace, start) = (UnservedPace::default(), Instant::now());
        for n in 0..SENDERS {
            pace.admit(&n.to_string(), false, 0, start).expect("the first of each");
        }
        let later = start + Duration::from_secs(60);
        pace.admit("late", false, 0, later).expect("the first of its own");
        assert_eq!(pace.used_until.lock().expect("it is free").len(), 1);
    }
}
