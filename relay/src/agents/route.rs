//! The route of agents that have no Redis: `GET /ws/agents/{agent_id}`.
//!
//! The connection is the agent's proof of life: its leases are held here, and run out when it breaks, unless
//! the agent has come back by then, to whichever replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, RequestExt};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::{AgentMessage, Channel, CloseCode, ErrorCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::calls::Calls;
use super::outbox::{Outbox, Queued, outbox};
use super::session::AgentSession;
use crate::auth::Principal;
use crate::routes::refuse::Refused;
use crate::routes::traffic::Traffic;
use crate::routes::{AppState, Query, SUBPROTOCOL, authenticate};

/// How many pings go in a lease: an agent that has died must not seem alive for long.
const PINGS_IN_A_LEASE: u32 = 3;
/// An agent that answers no ping for this part of a lease is gone; the rest is left to it to come back in.
const SILENCE_MAX: f64 = 0.8;
/// A frame beyond this ends the connection. A smaller one that is still too large earns an error.
const FRAME_BYTES_HARD: usize = 1024 * 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// `GET /ws/agents/{agent_id}`
pub(crate) async fn agent(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    mut request: Request,
) -> Response {
    let admitted = Query::of(request.uri()).and_then(|query| {
        let principal = authenticate(&app, request.headers(), &query)?;
        let own = Channel::agent(&id);
        let own = own.map_err(|error| Refused::new(ErrorCode::BadRequest, error.to_string()))?;
        if !principal.grant.may_serve(&own) {
            return Err(Refused::new(
                ErrorCode::NotFound,
                format!("`{own}` not found or not permitted"),
            ));
        }
        Ok(principal)
    });
    let principal = match admitted {
        Ok(principal) => principal,
        Err(refused) => return refused.into_response(),
    };
    let Ok(Extension(traffic)) = request.extract_parts::<Extension<Arc<Traffic>>>().await else {
        return Refused::new(ErrorCode::Unavailable, "this listener takes no agents")
            .into_response();
    };
    match request.extract_parts::<WebSocketUpgrade>().await {
        Ok(upgrade) => upgrade
            .protocols([SUBPROTOCOL])
            .max_message_size(FRAME_BYTES_HARD)
            .max_frame_size(FRAME_BYTES_HARD)
            .on_upgrade(async move |socket| {
                let supervisor = app.supervisor.clone();
                let serving = serve(app, socket, principal, id, traffic);
                Box::pin(supervisor.unless_stopped(serving)).await;
            }),
        Err(error) => {
            let message = format!("this is a WebSocket: {error}");
            Refused::new(ErrorCode::BadRequest, message).into_response()
        }
    }
}

async fn serve(
    app: Arc<AppState>,
    socket: WebSocket,
    principal: Arc<Principal>,
    id: String,
    traffic: Arc<Traffic>,
) {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let _counted = app.connections.token();
    let (outbox, queued) = outbox();
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let offer = app.offers.open(number, outbox.clone());
    let catch_up = offer.catch_up();
    let session = AgentSession::new(app.journal.clone(), &id);
    outbox.say(&AgentMessage::Connected).await;
    tracing::info!(agent = id, "an agent has connected");
    let (mut sink, mut stream) = socket.split();
    let mut calls = Calls::new(principal.grant.clone(), offer, session.clone(), outbox.clone());
    let is_full = calls.fullness();
    let code = tokio::select! {
        code = read(&mut calls, &mut stream) => code,
        () = write(&mut sink, queued, app.journal.lease_length() / PINGS_IN_A_LEASE, catch_up) => None,
        code = keep(&app, &principal, &traffic, &outbox, &session, is_full) => Some(code),
    };
    tracing::info!(
        agent = id,
        code = code.map(CloseCode::number),
        "an agent's connection has ended"
    );
    drop(calls);
    if let Some(code) = code {
        let reason = Utf8Bytes::from_static(code.reason());
        let close = Message::Close(Some(CloseFrame { code: code.number(), reason }));
        drop(tokio::time::timeout(FAREWELL, sink.send(close)).await);
    }
}

async fn read(calls: &mut Calls, stream: &mut SplitStream<WebSocket>) -> Option<CloseCode> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                if !calls.on_text(&text).await {
                    return None;
                }
            }
            Some(Ok(Message::Binary(_))) => return Some(CloseCode::Unsupported),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return None,
            Some(Err(error)) => {
                tracing::debug!(%error, "an agent's connection broke");
                let error = error.into_inner();
                let is_too_large = matches!(
                    error.downcast_ref(),
                    Some(tokio_tungstenite::tungstenite::Error::Capacity(_))
                );
                return is_too_large.then_some(CloseCode::TooLarge);
            }
        }
    }
}

/// Says what there is to say, and pings; returns when the agent is gone.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queued: mpsc::Receiver<Queued>,
    ping_every: Duration,
    catch_up: impl Fn(),
) {
    let mut pings = tokio::time::interval(ping_every);
    loop {
        let message = tokio::select! {
            next = queued.recv() => match next {
                Some(Queued { text, .. }) => Message::Text(text.into()),
                None => return,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if sink.feed(message).await.is_err() {
            return;
        }
        if queued.is_empty() {
            if sink.flush().await.is_err() {
                return;
            }
            catch_up();
        }
    }
}

/// Watches over signs of life, the end of the grant, and the replica's leaving.
async fn keep(
    app: &AppState,
    principal: &Principal,
    traffic: &Traffic,
    outbox: &Outbox,
    session: &AgentSession,
    is_full: impl Fn() -> bool,
) -> CloseCode {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let end = principal.remaining().and_then(|remaining| Instant::now().checked_add(remaining));
    let (mut read, mut heard_at) = (traffic.read(), Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {
                // What the relay does not read says nothing about the agent.
                if traffic.read() != read || is_full() {
                    (read, heard_at) = (traffic.read(), Instant::now());
                }
                let lease = app.journal.lease_length();
                if heard_at.elapsed() > lease.mul_f64(SILENCE_MAX) {
                    // As if it had renewed them itself when it was heard last.
                    session
                        .let_lapse(lease.saturating_sub(heard_at.elapsed()))
                        .await;
                    return CloseCode::Stalled;
                }
                if end.is_some_and(|end| Instant::now() >= end) {
                    return CloseCode::TokenExpired;
                }
            }
            () = app.leaving.cancelled() => {
                // It goes on elsewhere within its lease; what is under way is answered there.
                outbox.try_say(&AgentMessage::Reconnect);
                tokio::time::sleep(FAREWELL).await;
                return CloseCode::Restart;
            }
        }
    }
}
