//! The route of agents that have no Redis: `GET /ws/agents/{agent_id}`.
//!
//! The connection is the agent's proof of life: its leases are held here, and run out when it breaks, unless
//! the agent has come back by then, to whichever replica.

use std::collections::HashMap;
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
use journal::Parent;
use protocol::limits::EVENT_DATA_BYTES_MAX;
use protocol::{AgentCall, AgentFrame, AgentHears, AgentNews, Channel, CloseCode, ErrorCode, Kind};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::offers::Offer;
use super::session::{AgentSession, follow_since};
use crate::auth::Principal;
use crate::routes::refuse::Refused;
use crate::routes::traffic::Traffic;
use crate::routes::{AppState, Query, SUBPROTOCOL, authenticate};

/// The pace of pings: an agent that has died must not seem alive for long.
const PING_EVERY: Duration = Duration::from_secs(5);
/// An agent that answers no ping for so long is gone: less than a lease, the rest of which is left to it
/// to come back in.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// An event and what stands around it.
const FRAME_BYTES_MAX: usize = EVENT_DATA_BYTES_MAX + 4 * 1024;
/// What may wait for the agent to read it.
const QUEUE: usize = 1024;
/// Calls of one agent that are under way; then nothing more is read from it.
const CALLS_MAX: usize = 1024;
/// Channels that one agent serves at a time.
const CHANNELS_MAX: usize = 10_000;
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
            return Err(Refused::new(ErrorCode::NotFound, format!("there is no `{own}` for you")));
        }
        Ok(principal)
    });
    let principal = match admitted {
        Ok(principal) => principal,
        Err(refused) => return refused.into_response(),
    };
    let Ok(Extension(traffic)) = request.extract_parts::<Extension<Arc<Traffic>>>().await else {
        return Refused::new(ErrorCode::Unavailable, "the socket is not counted").into_response();
    };
    match request.extract_parts::<WebSocketUpgrade>().await {
        Ok(upgrade) => upgrade
            .protocols([SUBPROTOCOL])
            .max_message_size(FRAME_BYTES_MAX)
            .max_frame_size(FRAME_BYTES_MAX)
            .on_upgrade(move |socket| serve(app, socket, principal, id, traffic)),
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
    let (says, said) = mpsc::channel(QUEUE);
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let offer = app.offers.open(number, says.clone());
    let catch_up = offer.catch_up();
    let session = AgentSession::new(app.journal.clone(), &id);
    drop(says.try_send(AgentHears::new(AgentNews::Connected)));
    tracing::info!(agent = id, "an agent has connected");
    let (mut sink, mut stream) = socket.split();
    let mut calls = Calls {
        principal: &principal,
        session: session.clone(),
        offer,
        says: says.clone(),
        under_way: JoinSet::new(),
        watches: JoinSet::new(),
        channels: HashMap::new(),
    };
    let code = tokio::select! {
        code = read(&mut calls, &mut stream) => code,
        () = write(&mut sink, said, catch_up) => None,
        code = keep(&app, &principal, &traffic, &says, &session) => Some(code),
    };
    tracing::info!(agent = id, "an agent's connection has ended");
    drop(calls);
    if let Some(code) = code {
        let reason = Utf8Bytes::from_static(code.reason());
        let close = Message::Close(Some(CloseFrame { code: code.number(), reason }));
        drop(tokio::time::timeout(FAREWELL, sink.send(close)).await);
    }
}

/// What the agent asks, on its way to its session.
struct Calls<'a> {
    principal: &'a Principal,
    session: AgentSession,
    offer: Offer,
    says: mpsc::Sender<AgentHears>,
    under_way: JoinSet<()>,
    /// One per lease, for its loss.
    watches: JoinSet<()>,
    /// Where the agent has taken a lease or followed, with the watch over the lease.
    channels: HashMap<Channel, Option<AbortHandle>>,
}

async fn read(calls: &mut Calls<'_>, stream: &mut SplitStream<WebSocket>) -> Option<CloseCode> {
    loop {
        while calls.under_way.try_join_next().is_some() {}
        if calls.under_way.len() >= CALLS_MAX {
            calls.under_way.join_next().await;
        }
        match stream.next().await {
            Some(Ok(Message::Text(text))) => calls.on_text(&text).await,
            Some(Ok(Message::Binary(_))) => return Some(CloseCode::Unsupported),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return None,
            Some(Err(error)) => {
                tracing::debug!(%error, "an agent's connection broke");
                return None;
            }
        }
    }
}

impl Calls<'_> {
    async fn on_text(&mut self, text: &str) {
        let frame: AgentFrame = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                let message = format!("the frame cannot be read: {error}");
                return self.say(refused(None, ErrorCode::BadRequest, message)).await;
            }
        };
        let (id, channel, call) = (frame.id, frame.channel.clone(), frame.call);
        if !self.may(call, &channel) || (call == AgentCall::Adopt && !self.may_be_child(&frame)) {
            let message = format!("there is no `{channel}` for you");
            return self.say(refused(Some(id), ErrorCode::NotFound, message)).await;
        }
        if matches!(call, AgentCall::Lease | AgentCall::Follow) && !self.has_room_for(&channel) {
            let message = format!("an agent serves at most {CHANNELS_MAX} channels");
            return self.say(refused(Some(id), ErrorCode::LimitExceeded, message)).await;
        }
        match call {
            AgentCall::Follow => match follow_since(&frame) {
                Ok(since) => self.offer.follow(&channel, since),
                Err(refused) => self.say(*refused).await,
            },
            AgentCall::Unfollow => {
                self.offer.unfollow(&channel);
                self.leave(&channel);
            }
            // What follows may need it, and what is refused for want of it is heard after it.
            AgentCall::Lease | AgentCall::Release => {
                let done = self.session.begin(frame).await.await;
                self.say(done).await;
                if call == AgentCall::Release {
                    self.leave(&channel);
                }
            }
            _ => {
                let done = self.session.begin(frame).await;
                let says = self.says.clone();
                // An agent that is gone needs no answer.
                self.under_way.spawn(async move { drop(says.send(done.await).await) });
            }
        }
        if call == AgentCall::Lease
            && let Some(lost) = self.session.lost(&channel)
        {
            let (says, about) = (self.says.clone(), channel.clone());
            let watch = self.watches.spawn(async move {
                lost.cancelled().await;
                drop(says.send(AgentHears::new(AgentNews::Fenced).about(&about)).await);
            });
            while self.watches.try_join_next().is_some() {}
            if let Some(Some(before)) = self.channels.insert(channel, Some(watch)) {
                before.abort();
            }
        }
    }

    /// Whoever is a child hears of its parent's Cancels.
    fn may_be_child(&self, frame: &AgentFrame) -> bool {
        let data = frame.data.as_deref().map_or("null", RawValue::get);
        let parent = serde_json::from_str::<Parent>(data).ok();
        let parent = parent.and_then(|parent| Channel::agent(&parent.agent_id).ok());
        let grant = &self.principal.grant;
        // What cannot be read is refused where it is read.
        parent.is_none_or(|parent| grant.may_serve(&parent) || grant.may_command(&parent))
    }

    fn leave(&mut self, channel: &Channel) {
        if let Some(Some(watch)) = self.channels.remove(channel) {
            watch.abort();
        }
    }

    fn has_room_for(&mut self, channel: &Channel) -> bool {
        if !self.channels.contains_key(channel) {
            if self.channels.len() >= CHANNELS_MAX {
                return false;
            }
            self.channels.insert(channel.clone(), None);
        }
        true
    }

    /// The one question: may this agent's token do that there?
    fn may(&self, call: AgentCall, channel: &Channel) -> bool {
        let grant = &self.principal.grant;
        match call {
            AgentCall::Publish => channel.kind() != Kind::Service && grant.may_publish(channel),
            AgentCall::Ask => grant.may_publish(channel) && grant.may_serve(channel),
            AgentCall::Resolve => grant.may_serve(channel) || grant.may_command(channel),
            AgentCall::Lease
            | AgentCall::Note
            | AgentCall::Release
            | AgentCall::Follow
            | AgentCall::Unfollow
            | AgentCall::Take
            | AgentCall::Progress
            | AgentCall::Finish
            | AgentCall::Adopt
            | AgentCall::Disown => grant.may_serve(channel),
        }
    }

    async fn say(&self, hears: AgentHears) {
        drop(self.says.send(hears).await);
    }
}

fn refused(id: Option<u64>, code: ErrorCode, message: String) -> AgentHears {
    AgentHears {
        id,
        code: Some(code.as_str().into()),
        message: Some(message),
        retryable: Some(code.is_retryable()),
        ..AgentHears::new(AgentNews::Error)
    }
}

/// Says what there is to say, and pings; returns when the agent is gone.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut said: mpsc::Receiver<AgentHears>,
    catch_up: impl Fn(),
) {
    let mut pings = tokio::time::interval(PING_EVERY);
    loop {
        let message = tokio::select! {
            hears = said.recv() => match hears {
                Some(hears) => Message::Text(hears.to_text().into()),
                None => return,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if sink.feed(message).await.is_err() {
            return;
        }
        if said.is_empty() {
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
    says: &mpsc::Sender<AgentHears>,
    session: &AgentSession,
) -> CloseCode {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let end = principal.remaining().and_then(|remaining| Instant::now().checked_add(remaining));
    let (mut read, mut heard_at) = (traffic.read(), Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if traffic.read() != read {
                    (read, heard_at) = (traffic.read(), Instant::now());
                }
                if heard_at.elapsed() > SILENCE_MAX {
                    // As if it had renewed them itself when it was heard last.
                    session
                        .let_lapse(app.journal.lease_length().saturating_sub(heard_at.elapsed()))
                        .await;
                    return CloseCode::Stalled;
                }
                if end.is_some_and(|end| Instant::now() >= end) {
                    return CloseCode::TokenExpired;
                }
            }
            () = app.leaving.cancelled() => {
                // It goes on elsewhere within its lease; what is under way is answered there.
                drop(says.try_send(AgentHears::new(AgentNews::Reconnect)));
                tokio::time::sleep(FAREWELL).await;
                return CloseCode::Restart;
            }
        }
    }
}
