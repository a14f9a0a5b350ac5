//! The one task that writes: takes appends out of the buffer, in order, and settles them.
//!
//! [`buffer`](super::buffer) → **writer** → [`link`](crate::link)
//!
//! Channels do not wait for each other. On one channel, an append follows as soon as the one before
//! has its place in the journal's order; its answer may come later. The tick is one for all
//! channels, so the deltas of a thousand sessions leave in one pipeline.

use std::future::pending;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use journal::{AppendError, Appended, NewEntry};
use protocol::Channel;
use tokio::time::{Instant, sleep_until};

use super::buffer::Buffer;
use super::coalescer::Ticket;
use crate::link::{AppendReceipt, RecordLink};

/// Where an append has come to.
enum Step {
    Placed(Channel, Vec<Ticket>, Result<AppendReceipt, AppendError>),
    Settled(Channel, Vec<Ticket>, Result<Vec<Appended>, AppendError>),
}

/// Writes until the buffer is closed and empty; refuses all that waits once the agent is fenced.
pub(crate) async fn write(buffer: Arc<Buffer>, link: RecordLink) {
    let stopping = Stopping(buffer);
    let buffer = &stopping.0;
    let mut steps: FuturesUnordered<BoxFuture<'static, Step>> = FuturesUnordered::new();
    let fenced = buffer.fenced().clone();
    let mut is_refusing = false;
    while !buffer.is_finished() {
        let tick = buffer.tick();
        while let Some((channel, entries)) = buffer.next_append() {
            steps.push(Box::pin(place(link.clone(), channel, entries)));
        }
        tokio::select! {
            Some(step) = steps.next(), if !steps.is_empty() => match step {
                Step::Placed(channel, tickets, Ok(receipt)) => {
                    buffer.placed(&channel);
                    steps.push(Box::pin(async { Step::Settled(channel, tickets, receipt.await) }));
                }
                Step::Placed(channel, tickets, Err(error)) => {
                    buffer.placed(&channel);
                    buffer.settled(&channel, tickets, Err(error));
                }
                Step::Settled(channel, tickets, outcome) => {
                    buffer.settled(&channel, tickets, outcome);
                }
            },
            () = fenced.cancelled(), if !is_refusing => {
                is_refusing = true;
                buffer.fence();
            }
            () = buffer.wakeup.notified() => {}
            () = until(tick) => {}
        }
    }
}

async fn place(link: RecordLink, channel: Channel, entries: Vec<(NewEntry, Ticket)>) -> Step {
    let (entries, tickets) = entries.into_iter().unzip();
    let placed = link.enqueue(&channel, entries).await;
    Step::Placed(channel, tickets, placed)
}

async fn until(tick: Option<Instant>) {
    match tick {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// However the writing ends, all waiting callers are told.
struct Stopping(Arc<Buffer>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.stop();
    }
}
