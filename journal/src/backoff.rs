//! How long to wait before the next attempt: one rule for every retry loop.

use std::time::Duration;

use rand::Rng;

/// Doubling pauses, with jitter: after an outage not everybody comes back at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of about `first`, then twice as long each time, up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause after one more failure: between half of it and all of it, by chance.
    #[expect(
        clippy::should_implement_trait,
        reason = "pauses have no end, so this is not an iterator"
    )]
    pub fn next(&mut self) -> Duration {
        let pause = self.longest.min(self.first.saturating_mul(1 << self.failures.min(16)));
        self.failures += 1;
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// Ends the backoff: an attempt has succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    /// From 50 ms to 2 s: for Redis, which is close by.
    fn default() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        for expected in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let pause = backoff.next().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause} of {expected}");
        }
        (0..1_000).for_each(|_| assert!(backoff.next() <= Duration::from_secs(2)));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(50));

        let mut long = Backoff::new(Duration::from_millis(1), Duration::from_secs(60));
        let last = (0..100).map(|_| long.next()).last().unwrap();
        assert!((30..=60).contains(&last.as_secs()), "the longest pause is reached: {last:?}");
    }
}
