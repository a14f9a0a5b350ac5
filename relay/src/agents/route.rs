//! The route of agents that have no Redis: `GET /ws/agents/{agent_id}`.
//!
//! The connection is the agent's proof of life: its leases are held here, and run out when it breaks, unless
//! the agent has come back by then, to whichever replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use protocol::{AgentMessage, Channel, CloseCode};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::calls::Calls;
use super::outbox::{Outbox, Queued, outbox};
use super::session::AgentSession;
use super::socket::{AgentSocket, FRAME_BYTES_HARD};
use crate::auth::Principal;
use crate::conversation::{Activity, Due, GrantEnd, Silence};
use crate::routes::refuse::Refused;
use crate::routes::upgrade::{Handshake, end_of};
use crate::routes::{AppState, Caller, Peer};
use crate::websocket::{End, FAREWELL, Socket, TextFrame};

/// How many pings go in a lease: an agent that has died must not seem alive for long.
const PINGS_IN_A_LEASE: u32 = 3;
/// An agent that answers no ping for this part of a lease is gone; the rest is left to it to come back in.
const SILENCE_MAX: f64 = 0.8;

/// `GET /ws/agents/{agent_id}`
pub(crate) async fn agent(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    caller: Caller,
    mut request: Request,
) -> Result<Response, Refused> {
    let own = Channel::agent(&id)?;
    if !caller.principal.grant.may_serve(&own) {
        return Err(caller.refuse(Refused::not_found(format_args!("`{own}`"))));
    }
    let handshake = Handshake::of(&mut request, &app.memory).map_err(|why| caller.refuse(why))?;
    let place = app.users.enter(&caller.principal).map_err(|why| caller.refuse(why))?;
    let Caller { principal, peer, .. } = caller;
    let served = Arc::clone(&app);
    let (response, socket) = handshake.accept(FRAME_BYTES_HARD);
    app.supervisor.serve(&app.connections, async move {
        let _place = place;
        if let Some(socket) = socket.await {
            serve(served, socket, principal, peer, own).await;
        }
    });
    Ok(response)
}

async fn serve(
    app: Arc<AppState>,
    socket: Socket,
    principal: Arc<Principal>,
    peer: Peer,
    own: Channel,
) {
    let (id, user) = (own.id().to_owned(), principal.user.clone());
    tracing::info!(agent = id, user = user.as_deref(), %peer, "an agent has connected");
    let socket = AgentSocket::new(socket);
    let conversation = Box::pin(converse(&app, &socket, principal, own));
    let end = end_of(conversation).await;
    let (code, reason) = (end.code(), end.reason());
    tracing::info!(agent = id, user = user.as_deref(), %peer, code, reason, "an agent's connection has ended");
    if let Some(socket) = socket.into_inner() {
        Box::pin(socket.farewell(&end)).await;
    }
}

async fn converse(
    app: &AppState,
    socket: &AgentSocket,
    principal: Arc<Principal>,
    own: Channel,
) -> End {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let (outbox, queued) = outbox(&app.memory);
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let offer = app.offers.open(number, outbox.clone());
    let catch_up = offer.catch_up();
    let session = AgentSession::new(app.journal.clone(), own, &principal.sender);
    let lease_ms = app.journal.lease_length().as_millis() as u64;
    // Nothing is queued yet.
    outbox.try_say(&AgentMessage::Connected { lease_ms: Some(lease_ms) });
    let who = (app.key.clone(), principal);
    let mut calls = Calls::new(who, offer, session.clone(), outbox.clone());
    let principal = calls.principal();
    let is_full = calls.fullness();
    let pulse = Pulse::new(app.journal.lease_length().mul_f64(SILENCE_MAX));
    tokio::select! {
        end = read(&mut calls, socket, &pulse) => end,
        () = write(app, socket, queued, catch_up) => End::Gone,
        code = keep(app, principal, socket, &outbox, &session, (is_full, &pulse)) => End::Close(code),
    }
}

/// Whether this replica runs: one that stood still, or was paused, for as long as an agent waits for it finds calls that
/// the agent has repeated elsewhere meanwhile, where it has gone on.
struct Pulse {
    began: Instant,
    /// When it was seen to run last, in milliseconds after that.
    last_ms: AtomicU64,
    silence_max: Duration,
}

impl Pulse {
    fn new(silence_max: Duration) -> Self {
        Self { began: Instant::now(), last_ms: AtomicU64::new(0), silence_max }
    }

    fn stood_still(&self) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last) > self.silence_max
    }

    fn beat(&self) {
        self.last_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

async fn read(calls: &mut Calls, socket: &AgentSocket, pulse: &Pulse) -> End {
    loop {
        let text = match socket.next().await {
            Ok(_) if pulse.stood_still() => return End::Close(CloseCode::Stalled),
            Ok(_) if calls.is_over() => return End::Close(CloseCode::TokenExpired),
            Ok(text) => text,
            Err(end) => return end,
        };
        if !calls.on_text(&text).await {
            return End::Gone;
        }
        if calls.is_unreadable() {
            return End::Close(CloseCode::Unreadable);
        }
    }
}

/// Says what there is to say, and pings; returns when the agent is gone.
async fn write(
    app: &AppState,
    socket: &AgentSocket,
    mut queued: mpsc::Receiver<Queued>,
    catch_up: impl Fn(),
) {
    let mut pings = tokio::time::interval(app.journal.lease_length() / PINGS_IN_A_LEASE);
    loop {
        tokio::select! {
            next = queued.recv() => {
                let Some(Queued { text, .. }) = next else { return };
                if socket.feed(TextFrame::new(text, &app.memory)).await.is_err() {
                    return;
                }
            }
            _ = pings.tick() => socket.feed_ping(),
        }
        if queued.is_empty() {
            if socket.flush().await.is_err() {
                return;
            }
            catch_up();
        }
    }
}

/// Watches over signs of life, the end of the grant, and the replica's leaving.
async fn keep(
    app: &AppState,
    mut principal: watch::Receiver<Arc<Principal>>,
    socket: &AgentSocket,
    outbox: &Outbox,
    session: &AgentSession,
    (is_full, pulse): (impl Fn() -> bool, &Pulse),
) -> CloseCode {
    let lease = app.journal.lease_length();
    let mut tick = tokio::time::interval(Duration::from_secs(1).min(lease / 10));
    let mut grant = GrantEnd::new(Instant::now(), principal.borrow().remaining());
    let mut silence = Silence::new(Instant::now(), lease.mul_f64(SILENCE_MAX));
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if pulse.stood_still() {
                    return CloseCode::Stalled;
                }
                pulse.beat();
                let now = Instant::now();
                let is_blocked = outbox.is_waiting() || socket.look(Socket::is_blocked);
                let activity = Activity {
                    read: socket.look(Socket::read),
                    written: socket.look(Socket::written),
                    is_blocked,
                    ..Activity::default()
                };
                // What the relay does not read says nothing about the agent, unless the agent does not read either.
                if silence.is_over(now, &activity, is_full() && !is_blocked) {
                    // As if it had renewed them itself when it was heard last.
                    session.let_lapse(lease.saturating_sub(silence.lasts(now))).await;
                    return CloseCode::Stalled;
                }
                if socket.look(Socket::must_go) {
                    return CloseCode::Stalled;
                }
            }
            () = at(grant.deadline()) => match grant.on_time(Instant::now()) {
                Some(Due::Close(code)) => return code,
                Some(Due::Expiring { left }) => {
                    let in_ms = left.as_millis() as u64;
                    outbox.try_say(&AgentMessage::TokenExpiring { in_ms });
                }
                Some(Due::Ping { .. }) | None => {}
            },
            Ok(()) = principal.changed() => {
                let renewed = Arc::clone(&principal.borrow_and_update());
                if !renewed.grant.may_serve(session.own()) {
                    // While Redis is away this takes as long as a lease: the connection does not wait for it.
                    let session = session.clone();
                    app.supervisor.run_once(async move { session.revoke_all().await });
                    return CloseCode::TokenRefused;
                }
                grant = GrantEnd::new(Instant::now(), renewed.remaining());
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

/// Waits until then; for ever where it does not come.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
