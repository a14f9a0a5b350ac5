//! Waits for a condition, never for a fixed time.

use std::time::{Duration, Instant};

/// How long anything may take. Generous: debug builds, two cores, many scenarios at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(15);

/// Probes until the probe yields something.
///
/// # Panics
/// When [`PATIENCE`] is over; `what` says what was waited for.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(PACE).await;
    }
}

/// The steady beat of a nemesis or of a load: the only place where time itself is wanted.
pub async fn pause(for_how_long: Duration) {
    tokio::time::sleep(for_how_long).await;
}
