//! An agent's socket, for the one who reads and the one who writes.
//!
//! [`route`](super::route) → **socket**
//!
//! Both run in the connection's own task, one after the other, so the lock is never waited for. What the library
//! holds is bounded: of pings whose pong does not fit only the last is answered.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};

use futures_util::{Sink, Stream};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::routes::traffic::Traffic;
use crate::routes::upgrade::Socket;

/// A frame beyond this ends the connection. A smaller one that is still too large earns an error.
const FRAME_BYTES_HARD: usize = 1024 * 1024;
/// A message of the largest size in pieces of a byte, each with a head of six bytes.
const PIECES_BYTES_MAX: u64 = 7 * FRAME_BYTES_HARD as u64;
/// The library's default is 128 KiB per connection.
const READ_BUFFER: usize = 16 * 1024;
/// What is collected before the socket is written to.
const WRITE_BUFFER: usize = 16 * 1024;
/// The library holds the pongs as well. The largest message, a command of 64 KiB, fits into what is left.
const WRITE_BUFFER_MAX: usize = 256 * 1024;

/// What the library may hold for an agent.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(Some(FRAME_BYTES_HARD))
        .max_frame_size(Some(FRAME_BYTES_HARD))
}

#[derive(Debug)]
pub(super) struct AgentSocket<'a> {
    socket: Mutex<&'a mut Socket>,
    traffic: &'a Traffic,
    /// How much had been read when the last message was complete.
    begun: AtomicU64,
}

impl<'a> AgentSocket<'a> {
    pub(super) fn new(socket: &'a mut Socket, traffic: &'a Traffic) -> Self {
        let begun = AtomicU64::new(traffic.read());
        Self { socket: Mutex::new(socket), traffic, begun }
    }

    /// The next message. One whose pieces have no end, empty ones, is not read for ever.
    pub(super) async fn next(&self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| {
            let next = self.with(|socket| socket.poll_next(cx));
            let read = self.traffic.read();
            if next.is_ready() {
                self.begun.store(read, Ordering::Relaxed);
            } else if read - self.begun.load(Ordering::Relaxed) > PIECES_BYTES_MAX {
                return Poll::Ready(Some(Err(Error::AttackAttempt)));
            }
            next
        })
        .await
    }

    /// Hands a message to the library, which writes it when enough has come together.
    pub(super) async fn feed(&self, message: Message) -> Result<(), Error> {
        let (mut message, mut is_full) = (Some(message), false);
        poll_fn(|cx| {
            self.with(|mut socket| {
                loop {
                    if is_full {
                        ready!(socket.as_mut().poll_flush(cx))?;
                    } else {
                        ready!(socket.as_mut().poll_ready(cx))?;
                    }
                    let Some(taken) = message.take() else { return Poll::Ready(Ok(())) };
                    match socket.as_mut().start_send(taken) {
                        // Pongs have filled the buffer; they go first.
                        Err(Error::WriteBufferFull(back)) if !is_full => {
                            (message, is_full) = (Some(*back), true);
                        }
                        sent => return Poll::Ready(sent),
                    }
                }
            })
        })
        .await
    }

    pub(super) async fn flush(&self) -> Result<(), Error> {
        poll_fn(|cx| self.with(|socket| socket.poll_flush(cx))).await
    }

    fn with<T>(&self, what: impl FnOnce(Pin<&mut Socket>) -> T) -> T {
        let mut socket = self.socket.lock().expect("no code panics with this lock held");
        what(Pin::new(&mut **socket))
    }
}
