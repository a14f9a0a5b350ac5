//! ◆ Does what falls due while nobody acts: commands expire, approvals get their default, dead agents are declared
//! lost.
//!
//! Every replica has a reaper; the first one to come does the work for all. Its results are events and replies like
//! any others, so the two other ways carry them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal::{Journal, Reaper};
use tokio::time::MissedTickBehavior;

/// A lost agent is known within a lease and a second.
const PACE: Duration = Duration::from_millis(500);

/// Handles what falls due, for ever. Each deadline is one step that is done or not: it may be left and begun anew
/// at any time. `works` says whether Redis did all that is needed at the last look.
pub(crate) async fn run(journal: Journal, works: Arc<AtomicBool>) {
    let mut reaper = Reaper::new(journal);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    loop {
        pace.tick().await;
        let polled = reaper.poll().await;
        works.store(polled.is_ok(), Ordering::Relaxed);
        match polled {
            Err(error) if !is_away => {
                is_away = true;
                tracing::warn!(%error, "reaper paused");
            }
            Ok(()) if is_away => {
                is_away = false;
                tracing::info!("reaper resumed");
            }
            _ => {}
        }
    }
}
