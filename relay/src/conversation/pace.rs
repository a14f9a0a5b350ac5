//! How fast one connection may ask for something: so many a second, and some of them at once (F37).

use std::time::Duration;

use tokio::time::Instant;

/// One instant holds the state: until when the time is used up, if each takes its share of a second.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u32,
    burst: u32,
    used_until: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(per_second: usize, burst: usize) -> Self {
        Self { per_second: per_second as u32, burst: burst as u32, used_until: None }
    }

    /// Whether one more may come now; if not, how much later.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let share = Duration::from_secs(1) / self.per_second;
        let used_until = self.used_until.map_or(now, |until| until.max(now)) + share;
        let ahead = used_until - now;
        match ahead.checked_sub(share * self.burst) {
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
    use protocol::limits::{COMMANDS_BURST, COMMANDS_PER_SECOND};

    use super::*;

    #[test]
    fn a_burst_passes_then_as_many_as_time_allows() {
        let start = Instant::now();
        let mut pace = Pace::new(COMMANDS_PER_SECOND, COMMANDS_BURST);
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
