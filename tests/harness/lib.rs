//! The cluster on which the scenarios play: a real Redis, real replicas, real WebSocket clients.
//!
//! Everything here is a process or a socket of its own; nothing imports the relay, and only the [`actor`]
//! imports the record. A scenario starts a
//! [`Cluster`], connects [`Browser`]s, does something to the world and waits for what must follow. Every
//! wait has a deadline and, when it passes, prints what did arrive and what the replica logged.
//!
//! Every frame that a [`Browser`] receives goes through its [`History`], which fails the test when a
//! channel's offsets are not consecutive: so each scenario also tests "no gap, no duplicate, no
//! silence".

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness fails by panicking: the panic is the test's verdict"
)]

pub mod actor;
pub mod balancer;
pub mod browser;
pub mod chaos;
pub mod cluster;
pub mod endpoint;
pub mod history;
pub mod http;
pub mod page;
pub mod process;
pub mod redis;
pub mod replica;
pub mod token;
pub mod wait;

pub use actor::Actor;
pub use browser::Browser;
pub use cluster::Cluster;
pub use history::{Event, History};
pub use page::Page;
pub use redis::{Persistence, Redis};
pub use replica::Replica;
pub use token::Token;
pub use wait::{PATIENCE, until};
