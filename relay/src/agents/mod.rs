//! Agents that have no Redis: they come in through [`route`], and [`session`] does what each asks.
//!
//! ```text
//!  ▼ down   agent ─► route ─► session ─► journal
//!  ▲ up     journal ─► offers ─► route ─► agent
//! ```

mod offers;
mod route;
mod session;

pub(crate) use offers::Offers;
pub(crate) use route::agent;
