//! The WebSocket: upgrade, read, write, keep alive, close. The only file that knows the library, so that it
//! can give way to raw writes.
//!
//! Reading and writing go on side by side in one task: a browser that does not read is still heard.
//! Everything that waits is fed to the socket's buffer and flushed once.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, RequestExt};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use journal::Page;
use protocol::frame::{self, Addressing, RelayFrame, Subscribe, Target};
use protocol::limits::{FRAME_UP_BYTES_MAX, PING_INTERVAL, STALL_TIMEOUT, TOKEN_EXPIRING_NOTICE};
use protocol::{Channel, CloseCode, ErrorCode, Format};
use rand::Rng;
use tokio::time::Instant;

use super::connection::{Connection, Reading};
use super::pending_reads::PendingReads;
use super::refuse::Refused;
use super::traffic::Traffic;
use super::{AppState, Query, SUBPROTOCOL, authenticate};
use crate::auth::Principal;
use crate::events::Pending;

/// The library's default is 128 KiB per connection; frames from browsers are small.
const READ_BUFFER: usize = 4 * 1024;
/// What is fed before the socket is written to.
const WRITE_BUFFER: usize = 16 * 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a leaving replica gives a browser to go by itself, after the moment it was told.
const GRACE: Duration = Duration::from_secs(1);
/// A failed page read is tried again this much later.
const READ_AGAIN: Duration = Duration::from_millis(250);
/// A session's page that heard nothing for this many ping intervals, 60 s, hears a `ping`.
const SILENT_INTERVALS: u32 = 4;

/// `GET /ws`: subscribed to nothing.
pub(super) async fn any(State(app): State<Arc<AppState>>, request: Request) -> Response {
    upgrade(app, request, None, false).await
}

/// `GET /ws/events`: subscribed to the firehose of every agent's lifecycle.
pub(super) async fn firehose(State(app): State<Arc<AppState>>, request: Request) -> Response {
    let target = Target { channel: Channel::global_events(), addressing: Addressing::Channel };
    upgrade(app, request, Some(target), false).await
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
            upgrade(app, request, Some(target), true).await
        }
        Err(error) => Refused::new(ErrorCode::BadRequest, error.to_string()).into_response(),
    }
}

/// What a connection was asked to be in its URL.
struct ConnectOptions {
    format: Format,
    /// Subscribed to from the start.
    subscribe: Option<Subscribe>,
    /// The page wants signs of life that it can see.
    heartbeat: bool,
    is_named: bool,
}

async fn upgrade(
    app: Arc<AppState>,
    mut request: Request,
    target: Option<Target>,
    is_named: bool,
) -> Response {
    let admitted = Query::of(request.uri()).and_then(|query| {
        let principal = authenticate(&app, request.headers(), &query)?;
        Ok((principal, options(&query, target, is_named)?))
    });
    let (principal, options) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return refused.into_response(),
    };
    let Ok(Extension(traffic)) = request.extract_parts::<Extension<Arc<Traffic>>>().await else {
        return Refused::new(ErrorCode::Unavailable, "the socket is not counted").into_response();
    };
    let upgrade = match request.extract_parts::<WebSocketUpgrade>().await {
        Ok(upgrade) => upgrade,
        Err(error) => {
            let message = format!("this is a WebSocket: {error}");
            return Refused::new(ErrorCode::BadRequest, message).into_response();
        }
    };
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(FRAME_UP_BYTES_MAX)
        .max_frame_size(FRAME_UP_BYTES_MAX)
        .on_upgrade(move |socket| serve(app, socket, principal, options, traffic))
}

fn options(
    query: &Query,
    target: Option<Target>,
    is_named: bool,
) -> Result<ConnectOptions, Refused> {
    let format = query.get("format").map(frame::parse_format).transpose()?;
    let since = query.get("since").map(frame::parse_since).transpose()?;
    let default = if target.is_some() { Format::Flat } else { Format::Envelope };
    Ok(ConnectOptions {
        format: format.unwrap_or(default),
        subscribe: target.map(|target| Subscribe { target, since, format }),
        heartbeat: query.get("heartbeat").is_some_and(|value| value != "0"),
        is_named,
    })
}

/// Why a conversation ends.
enum End {
    /// The browser closed, or the socket broke.
    Gone,
    /// We close.
    Close(CloseCode),
}

/// What the parts of a conversation share besides the connection.
#[derive(Default)]
struct Pulse {
    /// A write waits for the browser to read.
    is_writing: AtomicBool,
    /// What the browser asked is being done; until then nothing more is read from it.
    is_answering: AtomicBool,
    ping_wanted: AtomicBool,
    /// Counts batches written.
    batches: AtomicU64,
}

async fn serve(
    app: Arc<AppState>,
    socket: WebSocket,
    principal: Arc<Principal>,
    options: ConnectOptions,
    traffic: Arc<Traffic>,
) {
    let _counted = app.connections.token();
    let connection = Connection::open(Arc::clone(&app), Arc::clone(&principal), options.format);
    if let Some(subscribe) = options.subscribe.clone() {
        let channel = subscribe.target.channel.clone();
        if let Err(refusal) = connection.subscribe(subscribe, None) {
            let (channel, error) = (Some(channel.as_str()), refusal.body());
            connection.say(&RelayFrame::Error { id: None, channel, error });
        }
    }
    let (mut sink, mut stream) = socket.split();
    let pulse = Pulse::default();
    let end = tokio::select! {
        end = read(&connection, &mut stream, &pulse) => end,
        end = write(&connection, &app, &mut sink, &pulse) => end,
        end = keep(&connection, &app, &principal, &options, &traffic, &pulse) => end,
        never = connection.see_to_requests() => match never {},
    };
    drop(connection);
    // The browser may be gone or not reading: a farewell must not last.
    drop(tokio::time::timeout(FAREWELL, farewell(end, &mut sink, &mut stream)).await);
}

async fn farewell(
    end: End,
    sink: &mut SplitSink<WebSocket, Message>,
    stream: &mut SplitStream<WebSocket>,
) {
    let End::Close(code) = end else {
        // Answers the browser's own close, or fails at once.
        drop(sink.close().await);
        return;
    };
    tracing::debug!(code = code.number(), reason = code.reason(), "closing a connection");
    let reason = Utf8Bytes::from_static(code.reason());
    let frame = CloseFrame { code: code.number(), reason };
    if sink.send(Message::Close(Some(frame))).await.is_ok() {
        while let Some(Ok(_)) = stream.next().await {}
    }
}

async fn read(connection: &Connection, stream: &mut SplitStream<WebSocket>, pulse: &Pulse) -> End {
    loop {
        connection.room().await;
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                pulse.is_answering.store(true, Ordering::Relaxed);
                connection.on_text(&text).await;
                pulse.is_answering.store(false, Ordering::Relaxed);
            }
            Some(Ok(Message::Binary(_))) => return End::Close(CloseCode::Unsupported),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return End::Gone,
            Some(Err(error)) => return broken(error),
        }
    }
}

/// What a socket error means to the browser.
fn broken(error: axum::Error) -> End {
    use tungstenite::Error;
    match error.into_inner().downcast_ref::<Error>() {
        Some(Error::Capacity(_)) => End::Close(CloseCode::TooLarge),
        Some(Error::Utf8(_)) => End::Close(CloseCode::InvalidText),
        _ => End::Gone,
    }
}

type PendingPage = Pin<Box<dyn Future<Output = (Reading, Page, Option<Arc<Pending>>)> + Send>>;

async fn write(
    connection: &Connection,
    app: &Arc<AppState>,
    sink: &mut SplitSink<WebSocket, Message>,
    pulse: &Pulse,
) -> End {
    let mut out: Vec<Bytes> = Vec::new();
    let mut readings: VecDeque<Reading> = VecDeque::new();
    // One page at a time, so that a connection's memory does not grow with its subscriptions.
    let mut reading: Option<PendingPage> = None;
    let mut wanted = Vec::new();
    let mut pending_reads = PendingReads::default();
    let mut unflushed = false;
    loop {
        connection.take(&mut out, &mut readings, &mut wanted);
        wanted.drain(..).for_each(|pending_read| pending_reads.push(app, pending_read));
        if reading.is_none()
            && let Some(next) = readings.pop_front()
        {
            reading = Some(Box::pin(read_page(Arc::clone(app), next)));
        }
        let ping = pulse.ping_wanted.swap(false, Ordering::Relaxed);
        if !out.is_empty() || ping {
            pulse.is_writing.store(true, Ordering::Relaxed);
            if feed(sink, std::mem::take(&mut out), ping).await.is_err() {
                return End::Gone;
            }
            unflushed = true;
            continue;
        }
        if std::mem::take(&mut unflushed) {
            if sink.flush().await.is_err() {
                return End::Gone;
            }
            pulse.batches.fetch_add(1, Ordering::Relaxed);
            pulse.is_writing.store(false, Ordering::Relaxed);
            continue;
        }
        tokio::select! {
            () = connection.woken() => {}
            (done, page, pending) = async { reading.as_mut().expect("guarded").await },
                if reading.is_some() =>
            {
                reading = None;
                connection.on_page(&done, &page, pending.as_deref(), &mut out);
            }
            (done, pending) = pending_reads.next() => {
                connection.on_pending(&done, &pending, &mut out);
            }
        }
    }
}

async fn feed(
    sink: &mut SplitSink<WebSocket, Message>,
    frames: Vec<Bytes>,
    ping: bool,
) -> Result<(), axum::Error> {
    for frame in frames {
        // Every frame was made from text: this only checks it once more.
        if let Ok(text) = Utf8Bytes::try_from(frame) {
            sink.feed(Message::Text(text)).await?;
        }
    }
    if ping {
        sink.feed(Message::Ping(Bytes::new())).await?;
    }
    Ok(())
}

/// While Redis is away the browser stays, and this tries again.
async fn read_page(app: Arc<AppState>, reading: Reading) -> (Reading, Page, Option<Arc<Pending>>) {
    loop {
        match app.events.read(&reading.request).await {
            Ok((page, pending)) => return (reading, page, pending),
            Err(error) => tracing::debug!(%error, "a page cannot be read now"),
        }
        tokio::time::sleep(READ_AGAIN).await;
    }
}

/// Signs of life, the end of the grant, the state of Redis, and the replica's leaving.
async fn keep(
    connection: &Connection,
    app: &AppState,
    principal: &Principal,
    options: &ConnectOptions,
    traffic: &Traffic,
    pulse: &Pulse,
) -> End {
    let mut tick = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    let mut status = app.events.status();
    status.mark_unchanged();
    // A token for ever and a day has no end that a clock could show.
    let end = principal.remaining().and_then(|remaining| Instant::now().checked_add(remaining));
    let mut notice =
        end.map(|end| end.checked_sub(TOKEN_EXPIRING_NOTICE).unwrap_or_else(Instant::now));
    let mut leave_at: Option<Instant> = None;
    let mut life = Life::new(traffic);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if life.is_stalled(traffic, pulse) {
                    return End::Close(CloseCode::Stalled);
                }
                let is_silent = life.is_silent(pulse) && options.is_named;
                if options.heartbeat || is_silent {
                    connection.say(&RelayFrame::Ping);
                }
                // Behind writes that wait a ping would only wait as well.
                if !pulse.is_writing.load(Ordering::Relaxed) {
                    pulse.ping_wanted.store(true, Ordering::Relaxed);
                    connection.wake();
                }
            }
            Ok(()) = status.changed() => {
                let now = *status.borrow_and_update();
                connection.say_status(now);
            }
            () = sleep_until(notice), if notice.is_some() => {
                notice = None;
                let left = principal.remaining().unwrap_or_default();
                connection.say(&RelayFrame::TokenExpiring { in_ms: left.as_millis() as u64 });
            }
            () = sleep_until(end), if end.is_some() => return End::Close(CloseCode::TokenExpired),
            () = app.leaving.cancelled(), if leave_at.is_none() => {
                // Spread, so that the other replicas are not asked by everybody at once.
                let after = app.drain_over.mul_f64(rand::rng().random());
                leave_at = Some(Instant::now() + after + GRACE);
                connection.say(&RelayFrame::Reconnect { after_ms: after.as_millis() as u64 });
            }
            () = sleep_until(leave_at), if leave_at.is_some() => return End::Close(CloseCode::Restart),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)).await;
}

/// When something last moved.
struct Life {
    read: u64,
    written: u64,
    batches: u64,
    moved_at: Instant,
    silent_intervals: u32,
}

impl Life {
    fn new(traffic: &Traffic) -> Self {
        Self {
            read: traffic.read(),
            written: traffic.written(),
            batches: 0,
            moved_at: Instant::now(),
            silent_intervals: 0,
        }
    }

    /// Neither sends nor accepts a byte. While nothing waits to be written, only what comes in counts:
    /// our pings into a dead socket's buffer prove nothing.
    fn is_stalled(&mut self, traffic: &Traffic, pulse: &Pulse) -> bool {
        let (read, written) = (traffic.read(), traffic.written());
        let accepts = pulse.is_writing.load(Ordering::Relaxed) && written != self.written;
        if read != self.read || accepts || pulse.is_answering.load(Ordering::Relaxed) {
            self.moved_at = Instant::now();
        }
        (self.read, self.written) = (read, written);
        self.moved_at.elapsed() >= STALL_TIMEOUT
    }

    fn is_silent(&mut self, pulse: &Pulse) -> bool {
        let batches = pulse.batches.load(Ordering::Relaxed);
        // Each ping of ours is a batch too: one per interval is silence.
        self.silent_intervals =
            if batches > self.batches + 1 { 0 } else { self.silent_intervals + 1 };
        self.batches = batches;
        let is_silent = self.silent_intervals >= SILENT_INTERVALS;
        if is_silent {
            self.silent_intervals = 0;
        }
        is_silent
    }
}
