//! What the binary does, one file for each subcommand.

pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod demo_agent;
pub(crate) mod serve;
