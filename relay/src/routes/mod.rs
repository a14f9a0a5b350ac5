//! The HTTP routes. A route translates between its transport and the two ways, and does nothing else;
//! who may do what was asked of the token once ([`auth`](crate::auth)), and is asked of the grant on every
//! subscribe, read, publish and command.

mod ask;
mod body;
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

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use journal::Journal;
use protocol::{Channel, ErrorCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Key;
use crate::agents::{self, Offers};
use crate::auth::{self, Principal};
use crate::commands::Commands;
use crate::connections::{ConnectionRegistry, ConnectionState};
use crate::events::Events;
use crate::memory::Memory;
use crate::supervisor::Supervisor;
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
    /// Set when the replica leaves: connections are sent elsewhere over `drain_over`.
    pub(crate) leaving: CancellationToken,
    pub(crate) drain_over: Duration,
    pub(crate) connections: TaskTracker,
    /// The connections of this replica.
    pub(crate) registry: Arc<ConnectionRegistry>,
    pub(crate) supervisor: Supervisor,
    pub(crate) memory: Arc<Memory>,
    /// Of those who publish over HTTP.
    pub(crate) turns: Arc<Turns>,
}

impl AppState {
    /// What a viewer's connection needs of it.
    fn viewers(&self) -> ConnectionState {
        ConnectionState {
            events: Arc::clone(&self.events),
            commands: self.commands.clone(),
            registry: Arc::clone(&self.registry),
            leaving: self.leaving.clone(),
            drain_over: self.drain_over,
        }
    }
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
        .with_state(Arc::clone(app))
}

/// The routes of the admin listener.
pub(crate) fn admin(app: &Arc<AppState>) -> Router {
    health_routes().fallback(nothing_here).with_state(Arc::clone(app))
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
    Refused::new(ErrorCode::BadRequest, format!("`{path}` does not take {method}"))
}

/// The other end of a socket: a client, or the proxy in front of the relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who makes a call, and the fields of its query string.
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    pub(crate) query: Query,
    pub(crate) peer: Peer,
    path: String,
}

impl Caller {
    /// A connection does not come about.
    pub(crate) fn refuse(&self, refused: Refused) -> Refused {
        let (user, why) = (self.principal.user.as_deref(), refused.body().message);
        tracing::info!(user, peer = %self.peer, path = self.path, why, "a connection was refused");
        refused
    }

    fn must_administer(&self) -> Result<(), Refused> {
        match self.principal.grant.may_administer() {
            true => Ok(()),
            false => Err(Refused::not_found(format_args!("`{}`", self.path))),
        }
    }

    /// The channel of this name, if the caller may subscribe to it.
    fn readable(&self, channel: &str) -> Result<Channel, Refused> {
        let channel: Channel = channel.parse()?;
        match self.principal.grant.may_subscribe(&channel) {
            true => Ok(channel),
            false => Err(Refused::not_found(format_args!("`{channel}`"))),
        }
    }

    /// A number from 1 to `most` in the query string.
    fn limit(&self, default: usize, most: usize) -> Result<usize, Refused> {
        let Some(text) = self.query.get("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        let why = || Refused::bad(format_args!("`limit` must be a whole number from 1 to {most}"));
        limit.ok_or_else(why)
    }
}

impl FromRequestParts<Arc<AppState>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(
        parts: &mut Parts,
        app: &Arc<AppState>,
    ) -> Result<Self, Self::Rejection> {
        let query = Query::of(&parts.uri)?;
        let path = parts.uri.path();
        let peer = *parts.extensions.get::<Peer>().expect("the accept loop says who the peer is");
        let principal = authenticate(app, &parts.headers, &query, peer, path)?;
        Ok(Self { principal, query, peer, path: path.to_owned() })
    }
}

/// From `Authorization`, the WebSocket subprotocol, or `?token=`.
fn authenticate(
    app: &AppState,
    headers: &HeaderMap,
    query: &Query,
    peer: Peer,
    path: &str,
) -> Result<Arc<Principal>, Refused> {
    let text = |value: &axum::http::HeaderValue| value.to_str().ok().map(str::to_owned);
    if app.key.is_none() {
        check_origin(headers, app.allow_anonymous).inspect_err(|refused| {
            let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
            let (host, origin, why) = (header("host"), header("origin"), refused.body().message);
            tracing::info!(%peer, path, host, origin, why, "a request was refused");
        })?;
    }
    let bearer = headers.get(AUTHORIZATION).and_then(text);
    let bearer = bearer.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    let offered = headers.get("sec-websocket-protocol").and_then(text).unwrap_or_default();
    let subprotocol = offered.split(',').find_map(|one| one.trim().strip_prefix("bearer."));
    let token = bearer.or(subprotocol).or(query.get("token"));
    match auth::authenticate(app.key.as_ref(), token) {
        Ok(mut principal) => {
            if principal.user.is_none() && headers.contains_key("sec-websocket-version") {
                principal.sender = uuid::Uuid::new_v4().to_string().into();
            }
            Ok(Arc::new(principal))
        }
        Err(check) => {
            tracing::info!(%check, %peer, path, "a token was refused");
            Err(Refused::new(ErrorCode::Unauthorized, "a valid token is needed"))
        }
    }
}

/// Without a key anybody on this machine may do everything, so a page from elsewhere, open in a browser
/// on this machine, must not: browsers let any page open a WebSocket to loopback, and say where the page
/// is from. A client that sends no origin is not a page.
fn check_origin(headers: &HeaderMap, allow_anonymous: bool) -> Result<(), Refused> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text("host").unwrap_or_default();
    // A foreign page can have its own name resolve to loopback, and so be of our origin: then the name in
    // `Host` shows it.
    if !allow_anonymous && !is_loopback(host) {
        let message = "a relay without a key answers to localhost, 127.0.0.1 and [::1] only: \
                       configure a key, or say --allow-anonymous";
        return Err(Refused::new(ErrorCode::Forbidden, message));
    }
    let Some(origin) = text("origin") else { return Ok(()) };
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    if is_loopback(authority) || (!authority.is_empty() && authority.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    Err(Refused::new(
        ErrorCode::Forbidden,
        "a relay without a key serves no page of another origin",
    ))
}

fn is_loopback(authority: &str) -> bool {
    let uri = authority.parse::<Uri>().ok();
    let name = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// The query string's fields.
#[derive(Debug)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Self, Refused> {
        let query = axum::extract::Query::<HashMap<String, String>>::try_from_uri(uri);
        query.map(|query| Self(query.0)).map_err(|error| {
            Refused::new(ErrorCode::BadRequest, format!("the query string cannot be read: {error}"))
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}
