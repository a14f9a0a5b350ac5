//! An agent's socket, for the one who reads and the one who writes.
//!
//! [`route`](super::route) → **socket**
//!
//! Both run in the connection's own task, one after the other, so the lock is never waited for.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;

use crate::websocket::{End, Socket, TextFrame};

/// A frame beyond this ends the connection. A smaller one that is still too large earns an error.
pub(super) const FRAME_BYTES_HARD: usize = 1024 * 1024;
/// What is collected before the socket is written to.
const BATCH_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct AgentSocket(Mutex<Collecting>);

#[derive(Debug)]
struct Collecting {
    socket: Socket,
    /// Bytes that were collected and not written.
    bytes: usize,
}

impl AgentSocket {
    pub(super) fn new(socket: Socket) -> Self {
        Self(Mutex::new(Collecting { socket, bytes: 0 }))
    }

    /// The next message; pings are answered.
    pub(super) async fn next(&self) -> Result<String, End> {
        poll_fn(|cx| self.collecting().socket.poll_next(cx)).await
    }

    /// Puts a message behind what waits; writes when enough has come together.
    pub(super) async fn feed(&self, frame: TextFrame) -> io::Result<()> {
        let is_enough = {
            let mut collecting = self.collecting();
            collecting.bytes += frame.len();
            collecting.socket.queue(frame);
            collecting.bytes >= BATCH_BYTES
        };
        if is_enough { self.flush().await } else { Ok(()) }
    }

    /// Puts a ping behind what waits.
    pub(super) fn feed_ping(&self) {
        self.collecting().socket.queue_ping();
    }

    /// Writes all that waits.
    pub(super) async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let mut collecting = self.collecting();
            let flushed = collecting.socket.poll_flush(cx);
            if matches!(flushed, Poll::Ready(Ok(()))) {
                collecting.bytes = 0;
            }
            flushed
        })
        .await
    }

    /// Looks at the socket's figures.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Socket) -> T) -> T {
        look(&self.collecting().socket)
    }

    pub(super) fn into_inner(self) -> Option<Socket> {
        self.0.into_inner().ok().map(|collecting| collecting.socket)
    }

    fn collecting(&self) -> MutexGuard<'_, Collecting> {
        self.0.lock().expect("no code panics with this lock held")
    }
}
