//! The WebSocket: upgrade, read, write, close. The only file that knows the library.
//!
//! Reading and writing go on side by side in one task: a viewer that does not read is still heard. Everything that
//! waits is handed to the library's buffer and flushed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::frame::{self, Addressing, Subscribe, Target};
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{Channel, CloseCode, ErrorCode, Format};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame, Utf8Bytes};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::refuse::Refused;
use super::traffic::Traffic;
use super::{AppState, Query, SUBPROTOCOL, authenticate};
use crate::auth::Principal;
use crate::connections::Connection;
use crate::conversation::{Activity, Heartbeat, Opening};
use crate::supervisor::caught;

/// The library's default is 128 KiB per connection; frames from browsers are small.
const READ_BUFFER: usize = 4 * 1024;
/// What is collected before the socket is written to.
const WRITE_BUFFER: usize = 16 * 1024;
/// Larger frames go in fragments, so that the library's buffer stays small. It holds the pongs as well: those that
/// do not fit are replaced by later ones.
const FRAGMENT: usize = 128 * 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// `GET /ws`: subscribed to nothing.
pub(super) async fn any(State(app): State<Arc<AppState>>, request: Request) -> Response {
    upgrade(app, request, None, Heartbeat::Never)
}

/// `GET /ws/events`: subscribed to the firehose of every agent's lifecycle.
pub(super) async fn firehose(State(app): State<Arc<AppState>>, request: Request) -> Response {
    let target = Target { channel: Channel::global_events(), addressing: Addressing::Channel };
    upgrade(app, request, Some(target), Heartbeat::Never)
}

/// `GET /ws/{session_id}`: subscribed to that session.
pub(super) async fn session(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    match Channel::session(&id) {
        Ok(channel) => {
            let target = Target { channel, addressing: Addressing::SessionId };
            upgrade(app, request, Some(target), Heartbeat::WhenSilent)
        }
        Err(error) => Refused::new(ErrorCode::BadRequest, error.to_string()).into_response(),
    }
}

/// `heartbeat` holds where the URL asks for none.
fn upgrade(
    app: Arc<AppState>,
    mut request: Request,
    target: Option<Target>,
    heartbeat: Heartbeat,
) -> Response {
    let admitted = Query::of(request.uri()).and_then(|query| {
        let principal = authenticate(&app, request.headers(), &query)?;
        let opening = opening(&query, target, heartbeat)?;
        let accept = accept_key(request.method(), request.headers())?;
        let parts = request.extensions_mut();
        let parts = parts.remove::<OnUpgrade>().zip(parts.remove::<Arc<Traffic>>());
        let (upgraded, traffic) = parts.ok_or_else(|| not_a_websocket("an HTTP/1.1 upgrade"))?;
        Ok((principal, opening, accept, upgraded, traffic))
    });
    let (principal, opening, accept, upgraded, traffic) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return refused.into_response(),
    };
    let served = Arc::clone(&app);
    app.supervisor.serve(&app.connections, async move {
        match upgraded.await {
            Ok(upgraded) => serve(served, upgraded, principal, opening, traffic).await,
            Err(error) => tracing::debug!(%error, "a websocket upgrade has failed"),
        }
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if names(request.headers(), SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    }
    let response = response.body(Body::empty());
    response.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// The answer to the client's key, where its request is a WebSocket's handshake.
fn accept_key(method: &Method, headers: &HeaderMap) -> Result<String, Refused> {
    let is_it = method == Method::GET
        && names(headers, CONNECTION, "upgrade")
        && names(headers, UPGRADE, "websocket");
    if !is_it {
        return Err(not_a_websocket("`Connection: Upgrade` and `Upgrade: websocket`"));
    }
    if !names(headers, SEC_WEBSOCKET_VERSION, "13") {
        return Err(not_a_websocket("`Sec-WebSocket-Version: 13`"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| not_a_websocket("`Sec-WebSocket-Key`"));
    Ok(derive_accept_key(key?.as_bytes()))
}

fn not_a_websocket(missing: &str) -> Refused {
    let message = format!("this endpoint takes WebSocket connections: the request lacks {missing}");
    Refused::new(ErrorCode::BadRequest, message)
}

/// Whether a header that is a list names `wanted`, whatever the case.
fn names(headers: &HeaderMap, header: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|one| one.trim().eq_ignore_ascii_case(wanted))
}

fn opening(
    query: &Query,
    target: Option<Target>,
    heartbeat: Heartbeat,
) -> Result<Opening, Refused> {
    let format = query.get("format").map(frame::parse_format).transpose()?;
    let since = query.get("since").map(frame::parse_since).transpose()?;
    let default = if target.is_some() { Format::Flat } else { Format::Envelope };
    let wants_heartbeat = query.get("heartbeat").is_some_and(|value| value != "0");
    Ok(Opening {
        format: format.unwrap_or(default),
        subscribe: target.map(|target| Subscribe { target, since, format }),
        heartbeat: if wants_heartbeat { Heartbeat::Always } else { heartbeat },
    })
}

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The browser closed, or the socket broke.
    Gone,
    /// We close.
    Close(CloseCode),
}

async fn serve(
    app: Arc<AppState>,
    upgraded: Upgraded,
    principal: Arc<Principal>,
    opening: Opening,
    traffic: Arc<Traffic>,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * WRITE_BUFFER + FRAGMENT)
        .max_message_size(Some(FRAME_UP_BYTES_MAX))
        .max_frame_size(Some(FRAME_UP_BYTES_MAX));
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let mut connection = Connection::open(app.viewers(), principal, opening);
    let end = end_of(converse(&mut socket, &mut connection, &traffic)).await;
    drop(connection);
    // The browser may be gone or not reading: a farewell must not last.
    drop(tokio::time::timeout(FAREWELL, farewell(end, &mut socket)).await);
}

/// A panic ends this connection and nothing else.
async fn end_of(conversation: impl Future<Output = End>) -> End {
    let end = caught(conversation).await;
    end.unwrap_or_else(|panic| {
        tracing::error!(panic, "the task of a connection panicked");
        End::Close(CloseCode::InternalError)
    })
}

async fn farewell(end: End, socket: &mut Socket) {
    let End::Close(code) = end else {
        // Answers the browser's own close, or fails at once.
        drop(SinkExt::close(socket).await);
        return;
    };
    tracing::debug!(code = code.number(), reason = code.reason(), "closing a connection");
    let reason = Utf8Bytes::from_static(code.reason());
    let frame = CloseFrame { code: code.number().into(), reason };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}

/// Reads, writes and lets the connection go on, until it ends.
async fn converse(socket: &mut Socket, connection: &mut Connection, traffic: &Traffic) -> End {
    let mut writer = Writer::default();
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
                Activity { read, written, batches, is_blocked }
            };
            let is_changed = connection.poll(cx, activity, is_blocked).is_ready();
            if let Some(code) = connection.end() {
                return Poll::Ready(End::Close(code));
            }
            if connection.wants_input() {
                match next_message(socket, cx) {
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
                    Poll::Ready(Err(error)) => return Poll::Ready(broken(&error)),
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

/// The next message that is not only a sign of life. The library answers pings.
fn next_message(socket: &mut Socket, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
    loop {
        let message = ready!(Pin::new(&mut *socket).poll_next(cx)).transpose()?;
        if !matches!(message, Some(Message::Ping(_) | Message::Pong(_))) {
            return Poll::Ready(Ok(message));
        }
    }
}

/// What a socket error means to the browser.
fn broken(error: &Error) -> End {
    match error {
        Error::Capacity(_) => End::Close(CloseCode::TooLarge),
        Error::Utf8(_) => End::Close(CloseCode::InvalidText),
        _ => End::Gone,
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

    #[tokio::test]
    async fn a_panic_in_a_connections_task_ends_it_with_1011() {
        assert_eq!(end_of(async { End::Gone }).await, End::Gone);

        let end = end_of(async { panic!("out of luck") }).await;

        assert_eq!(end, End::Close(CloseCode::InternalError));
        assert_eq!(CloseCode::InternalError.number(), 1011);
    }

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
