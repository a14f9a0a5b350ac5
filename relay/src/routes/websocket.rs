//! The browsers' WebSocket: reads, writes and closes.
//!
//! Reading and writing go on side by side in one task: a viewer that does not read is still heard. Everything that
//! waits is handed to the library's buffer and flushed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{Path, Request, State};
use axum::http::header::ORIGIN;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Sink, Stream};
use protocol::frame::{self, Addressing, Subscribe, Target};
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{Channel, CloseCode, Format};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::refuse::Refused;
use super::traffic::Traffic;
use super::upgrade::{End, Handshake, Socket, end_of, farewell, turn_away};
use super::{AppState, Caller, NotIn};
use crate::auth::Principal;
use crate::connections::Connection;
use crate::conversation::{Activity, Heartbeat, Opening};

/// The library's default is 128 KiB per connection; frames from browsers are small.
const READ_BUFFER: usize = 4 * 1024;
/// A message of the largest size in pieces of a byte, each with a head of six bytes.
const PIECES_BYTES_MAX: u64 = 7 * FRAME_UP_BYTES_MAX as u64;
/// What is collected before the socket is written to.
const WRITE_BUFFER: usize = 16 * 1024;
/// Larger frames go in fragments, so that the library's buffer stays small. It holds the pongs as well: those that
/// do not fit are replaced by later ones.
const FRAGMENT: usize = 32 * 1024;

/// `GET /ws`: subscribed to nothing.
pub(super) async fn any(
    State(app): State<Arc<AppState>>,
    caller: Result<Caller, NotIn>,
    request: Request,
) -> Result<Response, Refused> {
    upgrade(&app, caller, request, None, Heartbeat::Never)
}

/// `GET /ws/events`: subscribed to the firehose of every agent's lifecycle.
pub(super) async fn firehose(
    State(app): State<Arc<AppState>>,
    caller: Result<Caller, NotIn>,
    request: Request,
) -> Result<Response, Refused> {
    let target = Target { channel: Channel::global_events(), addressing: Addressing::Channel };
    upgrade(&app, caller, request, Some(target), Heartbeat::Never)
}

/// `GET /ws/{session_id}`, and `/ws/session:{session_id}`, for a session that is called as another route is:
/// subscribed to that session.
pub(super) async fn session(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    caller: Result<Caller, NotIn>,
    request: Request,
) -> Result<Response, Refused> {
    let id = id.strip_prefix("session:").unwrap_or(&id);
    let target = Target { channel: Channel::session(id)?, addressing: Addressing::SessionId };
    upgrade(&app, caller, request, Some(target), Heartbeat::WhenSilent)
}

/// `heartbeat` holds where the URL asks for none.
fn upgrade(
    app: &Arc<AppState>,
    caller: Result<Caller, NotIn>,
    mut request: Request,
    target: Option<Target>,
    heartbeat: Heartbeat,
) -> Result<Response, Refused> {
    let caller = match caller {
        Ok(caller) => caller,
        Err(NotIn::Token(why)) if request.headers().contains_key(ORIGIN) => {
            return turn_away(app, request, &why);
        }
        Err(why) => return Err(why.into()),
    };
    let opening = opening(&caller, target, heartbeat).map_err(|why| caller.refuse(why))?;
    let handshake = Handshake::of(&mut request, &app.memory).map_err(|why| caller.refuse(why))?;
    let place = app.users.enter(&caller.principal).map_err(|why| caller.refuse(why))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * WRITE_BUFFER + FRAGMENT)
        .max_message_size(Some(FRAME_UP_BYTES_MAX))
        .max_frame_size(Some(FRAME_UP_BYTES_MAX));
    let (traffic, served) = (Arc::clone(&handshake.traffic), Arc::clone(app));
    let principal = caller.principal.on_a_connection();
    let (response, socket) = handshake.accept(config);
    app.supervisor.serve(&app.connections, async move {
        let _place = place;
        if let Some(socket) = socket.await {
            serve(served, socket, principal, opening, traffic).await;
        }
    });
    Ok(response)
}

fn opening(
    caller: &Caller,
    target: Option<Target>,
    heartbeat: Heartbeat,
) -> Result<Opening, Refused> {
    let query = &caller.query;
    let format = query.get("format").map(frame::parse_format).transpose()?;
    let since = query.get("since").map(frame::parse_since).transpose()?;
    let default = if target.is_some() { Format::Flat } else { Format::Envelope };
    let wants_heartbeat = query.get("heartbeat").is_some_and(|value| value != "0");
    Ok(Opening {
        peer: caller.peer.0,
        format: format.unwrap_or(default),
        subscribe: target.map(|target| Subscribe { target, since, format }),
        heartbeat: if wants_heartbeat { Heartbeat::Always } else { heartbeat },
    })
}

async fn serve(
    app: Arc<AppState>,
    mut socket: Socket,
    principal: Arc<Principal>,
    opening: Opening,
    traffic: Arc<Traffic>,
) {
    let peer = opening.peer;
    let mut connection = Connection::open(app.viewers(), Arc::clone(&principal), opening);
    let (id, user) = (connection.id().to_owned(), principal.user.as_deref());
    tracing::debug!(connection = id, user, %peer, "a connection was opened");
    let end = end_of(converse(&mut socket, &mut connection, &traffic)).await;
    drop(connection);
    let (code, reason) = (end.code(), end.reason());
    tracing::debug!(connection = id, user, %peer, code, reason, "a connection was closed");
    farewell(end, &mut socket).await;
}

/// Reads, writes and lets the connection go on, until it ends.
async fn converse(socket: &mut Socket, connection: &mut Connection, traffic: &Traffic) -> End {
    let (mut writer, mut begun) = (Writer::default(), traffic.read());
    poll_fn(|cx| {
        loop {
            let is_blocked = match writer.poll(socket, connection, cx) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(_)) => return Poll::Ready(End::Gone),
                Poll::Pending => true,
            };
            let batches = writer.batches;
            let activity = || {
                let (read, written) = (traffic.read(), traffic.written());
                let is_blocked = is_blocked || traffic.is_owed();
                Activity { read, written, batches, is_blocked }
            };
            let is_changed = connection.poll(cx, activity, is_blocked).is_ready();
            if traffic.must_go() {
                return Poll::Ready(End::Close(CloseCode::Stalled));
            }
            if let Some(code) = connection.end() {
                return Poll::Ready(End::Close(code));
            }
            if connection.wants_input() {
                match next_message(socket, traffic, &mut begun, cx) {
                    Poll::Ready(Ok(Some(Message::Text(text)))) => {
                        connection.on_text(&text, is_blocked);
                        continue;
                    }
                    Poll::Ready(Ok(Some(Message::Close(_)) | None)) => {
                        return Poll::Ready(End::Gone);
                    }
                    Poll::Ready(Ok(Some(_))) => {
                        return Poll::Ready(End::Close(CloseCode::Unsupported));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(End::from(&error)),
                    Poll::Pending => {}
                }
            }
            if !is_changed {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// The next message that is not only a sign of life. The library answers pings. `begun` is how much had been read when
/// the last message was complete: the pieces of one are counted, so that empty ones without end are not read for ever.
fn next_message(
    socket: &mut Socket,
    traffic: &Traffic,
    begun: &mut u64,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Message>, Error>> {
    loop {
        let Poll::Ready(message) = Pin::new(&mut *socket).poll_next(cx) else {
            return match traffic.read() - *begun > PIECES_BYTES_MAX {
                true => Poll::Ready(Err(Error::AttackAttempt)),
                false => Poll::Pending,
            };
        };
        *begun = traffic.read();
        let message = message.transpose()?;
        if !matches!(message, Some(Message::Ping(_) | Message::Pong(_))) {
            return Poll::Ready(Ok(message));
        }
    }
}

/// Writes what the connection has to say.
#[derive(Default)]
struct Writer {
    /// Taken and not handed to the library yet; the last one first.
    frames: Vec<Bytes>,
    /// The rest of a frame that goes in fragments.
    rest: Bytes,
    ping: bool,
    is_unflushed: bool,
    /// How often something was written.
    batches: u64,
}

impl Writer {
    /// Ready when everything was written, and pending while the socket takes no more.
    fn poll(
        &mut self,
        socket: &mut Socket,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut socket = Pin::new(socket);
        self.refill(connection);
        if self.is_empty() && !self.is_unflushed {
            return Poll::Ready(Ok(()));
        }
        // What the library holds goes first: pongs may have filled its buffer.
        ready!(socket.as_mut().poll_flush(cx))?;
        while !self.is_empty() {
            ready!(socket.as_mut().poll_ready(cx))?;
            let message = self.next();
            socket.as_mut().start_send(message)?;
            self.is_unflushed = true;
            self.refill(connection);
        }
        ready!(socket.as_mut().poll_flush(cx))?;
        self.is_unflushed = false;
        self.batches += 1;
        Poll::Ready(Ok(()))
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.frames.is_empty() && !self.ping
    }

    fn refill(&mut self, connection: &mut Connection) {
        if self.rest.is_empty() && self.frames.is_empty() {
            connection.take(&mut self.frames);
            self.frames.reverse();
            self.ping |= connection.take_ping();
        }
    }

    fn next(&mut self) -> Message {
        if !self.rest.is_empty() {
            return self.fragment(Data::Continue);
        }
        match self.frames.pop() {
            Some(frame) => {
                self.rest = frame;
                self.fragment(Data::Text)
            }
            None => {
                self.ping = false;
                Message::Ping(Bytes::new())
            }
        }
    }

    fn fragment(&mut self, opcode: Data) -> Message {
        let rest = self.rest.split_off(FRAGMENT.min(self.rest.len()));
        let fragment = std::mem::replace(&mut self.rest, rest);
        let is_last = self.rest.is_empty();
        Message::Frame(Frame::message(fragment, OpCode::Data(opcode), is_last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_frame_goes_in_fragments() {
        let text = "x".repeat(2 * FRAGMENT + 1);
        let mut writer = Writer { rest: text.clone().into(), ..Writer::default() };

        let parts = [Data::Text, Data::Continue, Data::Continue].map(|opcode| {
            let Message::Frame(frame) = writer.fragment(opcode) else { unreachable!() };
            frame
        });

        assert_eq!(parts.each_ref().map(|part| part.header().is_final), [false, false, true]);
        assert_eq!(parts.map(|part| part.payload().len()), [FRAGMENT, FRAGMENT, 1]);
        assert!(writer.rest.is_empty());
    }
}
