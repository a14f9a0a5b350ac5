//! What we promise, one file per theme. The names of the tests are the promises.
//!
//! `given`, `when` and `then` are separated by blank lines. Rows `F01` to `F64` are those of the fault
//! matrix.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking: the panic is its verdict"
)]

mod agents;
mod agents_links;
mod approvals;
mod asking;
mod commands;
mod counting;
mod demo_page;
mod demo_questions;
mod documented;
mod encrypted;
mod fan_out;
mod first_users;
mod hostile_writers;
mod http;
mod ids;
mod joining;
mod large_questions;
mod leases;
mod leaving;
mod liveness;
mod logs;
mod lost_history;
mod lost_leases;
mod malformed;
mod operating;
mod origins;
mod redis_away;
mod renewing;
mod requests;
mod resuming;
mod rights;
mod routes;
mod slow_browsers;
mod subscriptions;
mod tokens;
mod topology;
mod ways;
mod without_redis;
