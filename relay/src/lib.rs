//! The middle: a replica of the relay, as a library.
//!
//! ```text
//!  ▼ down   journal ─► events::feed ─► events::hub ─► events::subscription ─► conversation ─► websocket ─► browser
//!  ▲ up     browser ─► conversation ─► commands ─► journal
//!  agents  without Redis ─► agents ─► journal
//!  ◆ due    journal ─► reaper ─► journal
//! ```
//!
//! A replica holds nothing that another replica would need. [`start`] takes a [`Config`] and returns a
//! [`Running`]; the command line and the tests both use it.

mod agents;
mod auth;
mod commands;
mod config;
mod connections;
mod conversation;
mod counts;
mod events;
mod memory;
mod origins;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod properties;
mod reaper;
mod routes;
mod server;
mod supervisor;
mod users;
mod websocket;

pub use auth::{Key, KeyError};
pub use config::{Config, ConfigError};
pub use origins::Origins;
pub use server::{Running, StartError, start};
pub use supervisor::TaskFailure;
