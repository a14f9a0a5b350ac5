//! Asking again, as long as the record cannot be reached: the one loop for it, with growing pauses.

use std::time::Duration;

use journal::Backoff;
use tokio::time::{Instant, sleep, timeout_at};

use super::LinkError;

/// The first pause, and the longest. What is asked has been tried for a while already: a journal and a relay
/// have pauses of their own.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Asks until there is an answer, or an error that stays. Never [`LinkError::Unavailable`].
pub(crate) async fn persist<T, F>(mut ask: impl FnMut() -> F) -> Result<T, LinkError>
where
    F: Future<Output = Result<T, LinkError>>,
{
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        match ask().await {
            Err(LinkError::Unavailable(_)) => sleep(backoff.next()).await,
            answered => return answered,
        }
    }
}

/// The same until `deadline`: then [`LinkError::Unavailable`] with what the last attempt came to.
pub(crate) async fn persist_until<T, F>(
    deadline: Instant,
    mut ask: impl FnMut() -> F,
) -> Result<T, LinkError>
where
    F: Future<Output = Result<T, LinkError>>,
{
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut last = LinkError::unavailable("no answer");
    loop {
        let Ok(answered) = timeout_at(deadline, ask()).await else { return Err(last) };
        match answered {
            Err(error @ LinkError::Unavailable(_)) => last = error,
            answered => return answered,
        }
        if timeout_at(deadline, sleep(backoff.next())).await.is_err() {
            return Err(last);
        }
    }
}
