//! ◆ What nobody asks for: commands expire, approvals get their default, dead agents are declared lost.
//!
//! Every replica does it; whichever comes first does it for all. What it does are events and replies like
//! any others, so the two other ways carry them.

use std::time::Duration;

use journal::{Journal, Reaper};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// A lost agent is known within a lease and a second.
const PACE: Duration = Duration::from_millis(500);

/// Handles what falls due, until `shutdown`.
pub(crate) async fn run(journal: Journal, shutdown: CancellationToken) {
    let mut reaper = Reaper::new(journal);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = shutdown.cancelled() => return,
        }
        // Each deadline is one step that is done or not: leaving in the middle does no harm.
        let polled = tokio::select! {
            polled = reaper.poll() => polled,
            () = shutdown.cancelled() => return,
        };
        match polled {
            Err(error) if !is_away => {
                is_away = true;
                tracing::warn!(%error, "what falls due waits until redis is back");
            }
            Ok(()) if is_away => {
                is_away = false;
                tracing::info!("what has fallen due is done again");
            }
            _ => {}
        }
    }
}
