//! ▼ Down: what an agent says, on its way into the journal.
//!
//! [`Publisher`](crate::Publisher) → **[`buffer`] ⊃ [`coalescer`] → [`writer`]** → [`journal`]
//!
//! The promise about order: what is published on one channel is written in the order of the calls,
//! whether they are awaited or not. Only text may change its form: deltas of one turn are
//! joined while they wait, up to the next event of the channel and never across it.

pub(crate) mod buffer;
pub(crate) mod coalescer;
pub mod vocabulary;
pub(crate) mod writer;
