//! `serve`: one replica, from its start to its end.

use std::time::Duration;

use anyhow::Context as _;
use journal::{Journal, Retention};
use relay::{Config, Running};

use crate::open_files;
use crate::signals::Signals;

/// The pace at which a Redis that does not answer is asked again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Serves until it is asked to end.
pub(crate) async fn run(config: Config, retention: Retention) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let journal = config.journal.clone();
    if journal.is_in_memory() {
        tracing::warn!(
            "no --redis: the journals live in the memory of this one process; other replicas do not \
             see them, and they are gone when it exits"
        );
    }
    let running = start(config).await?;
    let writing = tokio::spawn(write_retention(journal, retention));
    let failure = tokio::select! {
        () = signals.next() => None,
        failure = running.failed() => Some(failure),
    };
    match &failure {
        None => tracing::info!("draining: asked to end"),
        Some(failure) => tracing::error!(task = failure.name, "draining: a task has failed"),
    }
    signals.unless_again(running.drain()).await?;
    writing.abort();
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    tracing::info!("ended");
    Ok(())
}

/// Starts the relay and says where it listens.
pub(crate) async fn start(mut config: Config) -> anyhow::Result<Running> {
    let open_files = open_files::raise_limit();
    config.open_files = open_files;
    let running = relay::start(config).await?;
    let (addr, admin_addr) = (running.addr(), running.admin_addr());
    tracing::info!(
        %addr,
        admin_addr = admin_addr.map(tracing::field::display),
        open_files,
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    Ok(running)
}

/// Tells every writer how much is kept, as soon as Redis can be told. The first attempt is also where
/// an operator learns that the address or the password is wrong.
async fn write_retention(journal: Journal, retention: Retention) {
    let mut pause = PAUSE_MIN;
    let mut failed = false;
    while let Err(error) = journal.keep(&retention).await {
        if failed {
            tracing::debug!(%error, "redis does not answer yet");
        } else {
            tracing::warn!(%error, "not ready: waiting for redis");
        }
        failed = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    if failed {
        tracing::info!("redis answers");
    }
}
