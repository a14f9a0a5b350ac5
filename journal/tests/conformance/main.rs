//! One suite for both backends of a journal: what holds in memory holds on Redis.
//!
//! `on_both!` runs a test on an in-memory journal and on one in a private, real Redis.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints the seed that repeats it"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    reason = "nobody imports a test"
)]

mod approvals;
mod commands;
mod failover;
mod family;
mod forgotten;
mod gate;
mod leases;
mod model;
mod numbered;
mod promises;
mod reaper;
mod redis_only;
mod refusals;
mod returning;
mod server;
mod standing_still;
mod states;

use std::time::Duration;

use journal::{Journal, Keep, Name, NewEntry, Retention, Update, Updates};
use protocol::Offset;

pub use server::{Proxy, Server};

/// How long leases last here: a test that waits for one shall not wait long.
pub const LEASE: Duration = Duration::from_secs(2);

/// The journals of a server, with short leases.
pub fn open(server: &Server) -> Journal {
    Journal::open(&server.url()).unwrap().with_lease(LEASE)
}

/// A journal and what keeps it alive.
pub struct Backend {
    pub journal: Journal,
    pub server: Option<Server>,
}

impl Backend {
    pub async fn memory(retention: Retention) -> Self {
        Self { journal: Journal::in_memory_keeping(retention).with_lease(LEASE), server: None }
    }

    pub async fn redis(retention: Retention) -> Self {
        let server = Server::start().await;
        let journal = open(&server);
        journal.keep(&retention).await.unwrap();
        Self { journal, server: Some(server) }
    }
}

/// Runs `$body` once per backend, as two tests.
#[macro_export]
macro_rules! on_both {
    ($(#[$doc:meta])* async fn $name:ident($backend:ident) keeping($retention:expr) $body:block) => {
        mod $name {
            use super::*;

            async fn run($backend: $crate::Backend) $body

            $(#[$doc])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_memory() {
                run($crate::Backend::memory($retention).await).await;
            }

            $(#[$doc])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_redis() {
                run($crate::Backend::redis($retention).await).await;
            }
        }
    };
    ($(#[$doc:meta])* async fn $name:ident($backend:ident) $body:block) => {
        $crate::on_both!($(#[$doc])* async fn $name($backend) keeping(journal::Retention::default()) $body);
    };
}

pub fn events(id: &str) -> Name {
    Name::events(format!("session:{id}").parse().unwrap())
}

pub fn entry(text: &str) -> NewEntry {
    NewEntry::new("text_delta", format!(r#"{{"delta":"{text}"}}"#))
}

pub fn keeping(entries: u64) -> Retention {
    let session = Keep { entries, ..Retention::default().session };
    Retention { session, ..Retention::default() }
}

/// Appends one entry and returns where it stands.
pub async fn append(journal: &Journal, name: &Name, text: &str) -> Offset {
    journal.append(name, vec![entry(text)]).await.unwrap()[0].offset.unwrap()
}

/// The next update, or a failure that says what was waited for.
pub async fn next(updates: &mut Updates, what: &str) -> Update {
    tokio::time::timeout(Duration::from_secs(20), updates.next())
        .await
        .unwrap_or_else(|_| panic!("waited 20 s for {what}"))
        .expect("updates go on")
}

/// Skips link changes.
pub async fn next_about(updates: &mut Updates, what: &str) -> Update {
    loop {
        match next(updates, what).await {
            Update::Link { .. } => {}
            update => return update,
        }
    }
}
