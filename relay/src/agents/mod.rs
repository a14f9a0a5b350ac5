//! Agents that have no Redis: they come in through [`route`], [`calls`] keeps the order of what each asks, and
//! [`session`] does it.
//!
//! ```text
//!  ▼ down   agent ─► route ─► calls ─► session ─► journal
//!  ▲ up     journal ─► offers ─► outbox ─► route ─► agent
//! ```

mod calls;
mod offers;
mod outbox;
mod permission;
mod route;
mod session;
mod socket;

pub(crate) use offers::Offers;
pub(crate) use route::agent;
