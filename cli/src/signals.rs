//! Being asked to end: SIGTERM and SIGINT. The first signal drains, the second one ends at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask this process to end, caught from the moment this exists.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for `work`, unless another signal comes first.
    pub(crate) async fn unless_again(
        &mut self,
        work: impl Future<Output = ()>,
    ) -> Result<(), Again> {
        tokio::select! {
            () = work => Ok(()),
            () = self.next() => Err(Again),
        }
    }
}

/// The second signal: nobody wants to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Again;

impl std::fmt::Display for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("asked to end a second time: ending at once")
    }
}

impl std::error::Error for Again {}
