//! The middle: a replica of the relay, as a library.
//!
//! ```text
//!  ▼ down   journal ─► events::feed ─► events::hub ─► events::subscription ─► doors ─► browser
//!  ▲ up     browser ─► doors ─► commands ─► journal
//!  ◆ due    journal ─► keepers ─► journal
//! ```
//!
//! A replica holds nothing that another replica would need. [`start`] takes a [`Config`] and gives a
//! [`Running`]; the command line and the tests use the same door.

mod auth;
mod commands;
mod config;
mod doors;
mod events;
mod keepers;
mod server;

pub use auth::{Key, KeyError};
pub use config::{Config, ConfigError};
pub use server::{Running, StartError, start};
