//! Why nothing is appended: what an error means, and one line in the log for each change.
//!
//! [`appender`](super::appender) → **outage**

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::time::Instant;

use super::wire;

/// What a failed append means.
#[derive(Debug)]
pub(super) enum Failure {
    NoScript,
    /// Redis is busy, loading or full: time will change it.
    Passing,
    /// This server is not the master any more: connect anew, to the master.
    Demoted,
    Connection,
    Lasting,
}

pub(super) fn failure(error: &RedisError) -> Failure {
    if wire::is_no_script(error) {
        return Failure::NoScript;
    }
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown,
        ) => return Failure::Passing,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => return Failure::Demoted,
        _ => {}
    }
    match error.code() {
        // MISCONF: the disk is full; OOM: the memory is. Both refuse before anything is written.
        Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS") => Failure::Passing,
        Some(_) => Failure::Lasting,
        None => Failure::Connection,
    }
}

/// Whether waiting does not help: what is configured is wrong, here or in Redis.
pub(super) fn is_lasting(error: &RedisError) -> bool {
    // TLS: a certificate that is not trusted, or a server that speaks no TLS.
    io_error(error).is_some_and(|io| io.kind() == io::ErrorKind::InvalidData)
        || matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
        || matches!(failure(error), Failure::Lasting)
}

fn io_error(error: &RedisError) -> Option<&io::Error> {
    // The library shares it.
    let source: &Arc<dyn Error + Send + Sync> = error.source()?.downcast_ref()?;
    source.downcast_ref()
}

/// Why nothing is appended now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OutageKind {
    Unreachable,
    /// Redis answers with this code.
    Refused(String),
}

impl OutageKind {
    pub(super) fn refused(error: &RedisError) -> Self {
        Self::Refused(error.code().unwrap_or_default().to_owned())
    }
}

/// Is logged when it begins, when it changes, and when it ends.
#[derive(Debug)]
pub(super) struct Outage {
    address: String,
    now: Option<(OutageKind, Instant, u64)>,
}

impl Outage {
    pub(super) fn of(address: String) -> Self {
        Self { address, now: None }
    }

    pub(super) fn failed(&mut self, trouble: OutageKind, error: &RedisError) {
        let address = &self.address;
        match &mut self.now {
            Some((now, _, failures)) if *now == trouble => {
                *failures += 1;
                return;
            }
            _ if trouble == OutageKind::Unreachable => {
                tracing::warn!(%address, reason = %error, "redis append connection lost");
            }
            _ => tracing::warn!(%address, reason = %error, "redis refuses appends"),
        }
        self.now = Some((trouble, Instant::now(), 1));
    }

    pub(super) fn is_over(&mut self) {
        if let Some((_, since, failures)) = self.now.take() {
            let (address, seconds) = (&self.address, since.elapsed().as_secs());
            tracing::warn!(%address, failures, seconds, "redis takes appends again");
        }
    }
}
