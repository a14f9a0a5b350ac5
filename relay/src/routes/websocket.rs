//! The browsers' WebSocket: reads, writes and closes.
//!
//! Reading and writing go on side by side in one task: a viewer that does not read is still heard. Everything that
//! waits is written with one call. Where nothing waits, whoever has new events for the viewer
//! [writes them itself](WriteNow), so the task sleeps.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use axum::extract::{Path, Request, State};
use axum::http::header::ORIGIN;
use axum::response::Response;
use protocol::frame::{self, Addressing, Subscribe, Target};
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{Channel, CloseCode, Format};

use super::refuse::Refused;
use super::upgrade::{Handshake, end_of, turn_away};
use super::{AppState, Caller, NotIn};
use crate::auth::Principal;
use crate::connections::Connection;
use crate::conversation::{Activity, Heartbeat, Opening};
use crate::events::WriteNow;
use crate::websocket::{End, Socket, TextFrame};

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
    let (principal, served) = (caller.principal.on_a_connection(), Arc::clone(app));
    let (response, socket) = handshake.accept(FRAME_UP_BYTES_MAX);
    app.supervisor.serve(&app.connections, async move {
        let _place = place;
        if let Some(socket) = socket.await {
            serve(served, socket, principal, opening).await;
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

async fn serve(app: Arc<AppState>, socket: Socket, principal: Arc<Principal>, opening: Opening) {
    let (peer, user) = (opening.peer, principal.user.clone());
    let (viewer, id) = SharedViewer::open(&app, socket, principal, opening);
    let user = user.as_deref();
    tracing::debug!(connection = id, user, %peer, "a connection was opened");
    let end = end_of(poll_fn(|cx| viewer.poll(cx))).await;
    let (code, reason) = (end.code(), end.reason());
    tracing::debug!(connection = id, user, %peer, code, reason, "a connection was closed");
    // The connection ends before the farewell, which may take its time.
    let socket = viewer.lock().take().map(|open| open.socket);
    drop(viewer);
    if let Some(socket) = socket {
        // Boxed, as elsewhere: the task of a viewer at rest would hold room for it.
        Box::pin(socket.farewell(&end)).await;
    }
}

/// One viewer, for its own task and for those who have events for it.
#[derive(Debug)]
struct SharedViewer {
    /// `None` once it has ended.
    open: Mutex<Option<OpenViewer>>,
}

#[derive(Debug)]
struct OpenViewer {
    socket: Socket,
    connection: Connection,
    /// How often something was written.
    batches: u64,
}

impl SharedViewer {
    /// A viewer, and its connection's id.
    fn open(
        app: &AppState,
        socket: Socket,
        principal: Arc<Principal>,
        opening: Opening,
    ) -> (Arc<Self>, String) {
        let connection = Connection::open(Arc::clone(&app.viewers), principal, opening);
        let id = connection.id().to_owned();
        let viewer = Arc::new_cyclic(|viewer: &Weak<Self>| {
            connection.set_writer(viewer.clone());
            Self { open: Mutex::new(Some(OpenViewer { socket, connection, batches: 0 })) }
        });
        (viewer, id)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<End> {
        if self.open.is_poisoned() {
            // Whoever wrote here has panicked.
            return Poll::Ready(End::Close(CloseCode::InternalError));
        }
        match &mut *self.lock() {
            Some(open) => open.poll(cx),
            None => Poll::Ready(End::Gone),
        }
    }

    /// A panic with the lock held ends the connection; what is left of it is only dropped.
    fn lock(&self) -> MutexGuard<'_, Option<OpenViewer>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteNow for SharedViewer {
    fn write_now(&self, slot: u32, space: &mut Vec<TextFrame>) -> bool {
        let open = self.open.try_lock();
        open.is_ok_and(|mut open| open.as_mut().is_some_and(|open| open.write_now(slot, space)))
    }
}

impl OpenViewer {
    /// Reads, writes and lets the connection go on, until it ends.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let is_blocked = match self.poll_write(cx) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(_)) => return Poll::Ready(End::Gone),
                Poll::Pending => true,
            };
            let (socket, batches) = (&self.socket, self.batches);
            let activity =
                || Activity { read: socket.read(), written: socket.written(), batches, is_blocked };
            let is_changed = self.connection.poll(cx, activity, is_blocked).is_ready();
            if self.socket.must_go() {
                return Poll::Ready(End::Close(CloseCode::Stalled));
            }
            if let Some(code) = self.connection.end() {
                return Poll::Ready(End::Close(code));
            }
            if self.connection.wants_input() {
                match self.socket.poll_next(cx) {
                    Poll::Ready(Ok(text)) => {
                        self.connection.on_text(&text, is_blocked);
                        continue;
                    }
                    Poll::Ready(Err(end)) => return Poll::Ready(end),
                    Poll::Pending => {}
                }
            }
            if !is_changed {
                return Poll::Pending;
            }
        }
    }

    /// Writes all that the connection has to say.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // What is under way goes first; then there is room for more.
            ready!(self.socket.poll_flush(cx))?;
            let mut frames = Vec::new();
            self.connection.take(&mut frames);
            frames.into_iter().for_each(|frame| self.socket.queue(frame));
            if self.connection.take_ping() {
                self.socket.queue_ping();
            }
            if !self.socket.is_blocked() {
                return Poll::Ready(Ok(()));
            }
            self.batches += 1;
        }
    }

    fn write_now(&mut self, slot: u32, space: &mut Vec<TextFrame>) -> bool {
        if self.socket.is_blocked() || !self.connection.take_live(slot, space) {
            return false;
        }
        self.batches += 1;
        self.socket.try_write(space)
    }
}
