//! How fast one connection may ask for something: so many a second, and some of them at once (F37).

use std::time::Duration;

use protocol::limits::{COMMANDS_BURST, COMMANDS_PER_SECOND};
use tokio::time::Instant;

/// One instant holds the state: until when the time is used up, if each takes its share of a second.
#[derive(Debug, Default)]
pub(super) struct Pace {
    used_until: Option<Instant>,
}

impl Pace {
    /// Whether one more may come now; if not, how much later.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let share = Duration::from_secs(1) / COMMANDS_PER_SECOND as u32;
        let used_until = self.used_until.map_or(now, |until| until.max(now)) + share;
        let ahead = used_until - now;
        match ahead.checked_sub(share * COMMANDS_BURST as u32) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.used_until = Some(used_until);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_as_many_as_time_allows() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..COMMANDS_BURST {
            assert_eq!(pace.admit(start), Ok(()));
        }

        let wait = pace.admit(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(10));
        assert_eq!(pace.admit(start + wait / 2), Err(wait / 2));
        assert_eq!(pace.admit(start + wait), Ok(()));
        assert!(pace.admit(start + wait).is_err());

        let later = start + Duration::from_secs(3_600);
        let passed = (0..1_000).take_while(|_| pace.admit(later).is_ok()).count();
        assert_eq!(passed, COMMANDS_BURST, "what was not used is not saved up");
    }
}
