//! The HTTP routes. A route translates between its transport and the two ways, and does nothing else;
//! who may do what was asked of the token once ([`auth`](crate::auth)), and is asked of the grant on every
//! subscribe, read, publish and command.

mod ask;
mod body;
mod caller;
mod cors;
pub(crate) mod heads;
mod health;
mod http;
mod inspect;
mod message;
mod page;
pub(crate) mod refuse;
pub(crate) mod traffic;
pub(crate) mod turns;
pub(crate) mod upgrade;
mod websocket;

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use journal::Journal;
use protocol::ErrorCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::{self, Offers};
use crate::commands::Commands;
use crate::connections::ConnectionState;
use crate::events::Events;
use crate::memory::Memory;
use crate::supervisor::Supervisor;
use crate::users::Users;
use crate::{Key, Origins};
pub(crate) use caller::{Caller, NotIn};
use refuse::Refused;
use turns::Turns;

/// The subprotocol under which a browser's script may bring its token.
pub(crate) const SUBPROTOCOL: &str = "agent-relay.v1";

/// What every route shares.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) journal: Journal,
    pub(crate) events: Arc<Events>,
    pub(crate) commands: Commands,
    pub(crate) offers: Arc<Offers>,
    /// Whether Redis did all that is needed when the reaper looked last.
    pub(crate) redis_works: Arc<AtomicBool>,
    pub(crate) key: Option<Key>,
    /// Without a key, everyone who reaches the listener, by any name, is permitted everything.
    pub(crate) allow_anonymous: bool,
    /// Whose pages may come, where that was said.
    pub(crate) origins: Origins,
    /// Set when the replica leaves: connections are sent elsewhere over `drain_over`.
    pub(crate) leaving: CancellationToken,
    pub(crate) drain_over: Duration,
    pub(crate) connections: TaskTracker,
    /// What the viewers' connections share.
    pub(crate) viewers: Arc<ConnectionState>,
    pub(crate) supervisor: Supervisor,
    pub(crate) memory: Arc<Memory>,
    /// Of those who publish over HTTP.
    pub(crate) turns: Arc<Turns>,
    /// How many connections each user holds.
    pub(crate) users: Arc<Users>,
}

/// The routes of the main listener.
pub(crate) fn main(app: &Arc<AppState>, with_health: bool, html: Option<&'static str>) -> Router {
    let mut routes = Router::new()
        .route("/ws", get(websocket::any))
        .route("/ws/agents/{agent_id}", get(agents::agent))
        .route("/ws/events", get(websocket::firehose))
        .route("/ws/{session_id}", get(websocket::session))
        .route("/api/v1/publish", post(http::publish))
        .route("/api/v1/commands", post(ask::commands))
        .route("/api/v1/requests", post(ask::requests))
        .route("/api/v1/connections/{connection_id}/messages", post(message::send))
        .route("/api/v1/agents", get(inspect::agents))
        .route("/api/v1/stats", get(inspect::stats))
        .route("/api/v1/channels/{channel}", get(inspect::channel))
        .route("/api/v1/channels/{channel}/agents", get(inspect::tree))
        .route("/api/v1/channels/{channel}/events", get(http::read));
    if let Some(html) = html {
        routes = routes.route("/", page::page(html));
    }
    if with_health {
        routes = routes.merge(health_routes());
    }
    routes
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), cors::allow))
        .with_state(Arc::clone(app))
}

/// The routes of the admin listener.
pub(crate) fn admin(app: &Arc<AppState>) -> Router {
    health_routes()
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(app))
}

/// The routes where no file is left for more: health, so that nobody restarts a replica that serves.
pub(crate) fn full(app: &Arc<AppState>, with_health: bool) -> Router {
    let routes = if with_health { health_routes() } else { Router::new() };
    routes.fallback(no_room).with_state(Arc::clone(app))
}

async fn no_room() -> impl IntoResponse {
    let message = "this replica has as many connections as it may open files: try another one";
    ([(CONNECTION, "close")], Refused::new(ErrorCode::Unavailable, message))
}

fn health_routes() -> Router<Arc<AppState>> {
    Router::new().route("/healthz", get(health::live)).route("/readyz", get(health::ready))
}

async fn nothing_here(request: Request) -> Refused {
    Refused::new(ErrorCode::NotFound, format!("`{}` not found", request.uri().path()))
}

async fn wrong_method(request: Request) -> Refused {
    let (method, path) = (request.method(), request.uri().path());
    Refused::bad(format_args!(
        "`{path}` does not take {method}: `Allow` says which methods it takes"
    ))
    .with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// The other end of a socket: a client, or the proxy in front of the relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
