//! How long to wait before the next attempt: one rule for every retry loop.

use std::time::Duration;

use rand::Rng;

/// About how long the first pause is.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);

/// Doubling pauses, with jitter: after an outage not everybody comes back at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = LONGEST.min(FIRST * 2_u32.pow(self.failures.min(8)));
        self.failures += 1;
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// Ends the backoff: an attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
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
        (0..1_000).for_each(|_| assert!(backoff.next() <= LONGEST));
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
