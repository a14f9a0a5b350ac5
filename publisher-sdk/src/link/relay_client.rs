//! The agent's end of the connection to a relay: one WebSocket, remade for ever.
//!
//! [`relay_state`](super::relay_state) → **client** → a relay's `/ws/agents/{agent_id}`
//!
//! One task connects, reads and writes. What has no reply when the connection breaks is sent again on the next
//! one, in its order; the relay, or the next one, knows by the id what it has done. Leases are taken back
//! first, then what is followed. Reading does not wait for writing: frames of a relay that does not read still arrive.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use journal::{Backoff, Update, without_secrets};
use protocol::{AgentError, AgentMessage};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::LinkError;
use super::relay_link::RelayShared;
use crate::ConnectError;
use crate::tokens::TokenSource;

/// How long a connection may take to come about, and to say its last words.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause before another attempt to connect, and the longest: well within a lease.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The longest where the relay refuses the agent.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long after it was asked a token source is asked again.
const TOKEN_AGAIN: Duration = Duration::from_secs(5);
/// The largest frames of a relay are commands and replies: data of 64 KiB and what stands around it. This
/// leaves room for what later ones may say; the library's default is 64 MiB.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The library's defaults are 128 KiB to read, 128 KiB to write, and no limit.
const READ_BUFFER: usize = 16 * 1024;
const WRITE_BUFFER: usize = 64 * 1024;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Debug)]
pub(super) struct RelayClient {
    pub(super) request: Request<()>,
    pub(super) tokens: Option<TokenSource>,
    pub(super) shared: Arc<RelayShared>,
    pub(super) updates: mpsc::Sender<Update>,
}

/// How a connection ended.
enum Ended {
    /// The agent has ended.
    Unwanted,
    Lost(String),
}

/// The request for the WebSocket of the agent at the relay `url`, without a token.
pub(super) fn request(url: &str, agent: &str) -> Result<Request<()>, ConnectError> {
    let refuse = |why: String| ConnectError::RelayUrl { url: without_secrets(url), why };
    let rest = url
        .strip_prefix("http")
        .ok_or_else(|| refuse("the scheme must be http or https".to_owned()))?;
    let address = format!("ws{}/ws/agents/{agent}", rest.trim_end_matches('/'));
    let request = address.into_client_request();
    request.map_err(|error| refuse(error.to_string()))
}

impl RelayClient {
    /// Until the agent has ended.
    pub(super) async fn run(self) {
        // As for Redis: rustls panics at the first handshake without a provider.
        drop(rustls::crypto::ring::default_provider().install_default());
        let (mut lost, mut refused) =
            (Backoff::new(PAUSES.0, PAUSES.1), Backoff::new(PAUSES.0, REFUSED_PAUSE_MAX));
        let mut pause = Duration::ZERO;
        loop {
            let connecting = async {
                sleep(pause).await;
                connect(self.authorized().await?).await
            };
            let connected = tokio::select! {
                connected = connecting => connected,
                () = self.shared.unwanted.cancelled() => return,
            };
            pause = match connected {
                Ok(socket) => {
                    let began = Instant::now();
                    self.shared.change(|state| state.on_connection());
                    let Ended::Lost(why) = self.serve(socket).await else { return };
                    self.shared.change(|state| state.on_break(why));
                    drop(self.updates.send(Update::Link { up: false }).await);
                    refused.reset();
                    // A connection that ends at once counts as another failure.
                    if began.elapsed() > PAUSES.1 {
                        lost.reset();
                    }
                    lost.next()
                }
                Err(error) => {
                    self.shared.change(|state| state.on_no_connection(&error));
                    if error.is_refusal() { refused.next() } else { lost.next() }
                }
            };
        }
    }

    /// Serves one connection to its end.
    async fn serve(&self, socket: Socket) -> Ended {
        let (sink, stream) = socket.split();
        tokio::select! {
            why = self.read(stream) => Ended::Lost(why),
            ended = self.write(sink) => ended,
            ended = self.renew_tokens() => ended,
            // The relay takes no last words.
            () = self.unwanted_for(CONNECT_TIMEOUT) => Ended::Unwanted,
        }
    }

    /// The request, with a token.
    async fn authorized(&self) -> Result<Request<()>, LinkError> {
        let mut request = self.request.clone();
        if let Some(tokens) = &self.tokens {
            let token = tokens.token().await.map_err(|why| LinkError::unavailable(&why))?;
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let not_ascii = |_| LinkError::Unauthorized("it is not printable ASCII".to_owned());
            let mut value = value.map_err(not_ascii)?;
            value.set_sensitive(true);
            request.headers_mut().insert("Authorization", value);
        }
        Ok(request)
    }

    /// Brings another token before the one that was shown ends, as long as there is a source.
    async fn renew_tokens(&self) -> Ended {
        let Some(tokens @ TokenSource::Asked(_)) = &self.tokens else {
            return std::future::pending().await;
        };
        loop {
            self.shared.token_ends.notified().await;
            loop {
                match tokens.token().await {
                    Ok(token) => break self.shared.change(|state| state.say_token(&token)),
                    Err(why) => tracing::warn!(why, "the agent's token is not renewed"),
                }
                sleep(TOKEN_AGAIN).await;
            }
            // A token that ends within a minute is followed by the next notice at once.
            sleep(TOKEN_AGAIN).await;
        }
    }

    async fn unwanted_for(&self, time: Duration) {
        self.shared.unwanted.cancelled().await;
        sleep(time).await;
    }

    /// Returns why the connection is of no use any more.
    async fn read(&self, mut stream: SplitStream<Socket>) -> String {
        loop {
            let silence_max = self.shared.state().silence_max();
            let Ok(heard) = timeout(silence_max, next(&mut stream)).await else {
                return "nothing was received for too long".to_owned();
            };
            if matches!(heard, Ok(Some(AgentMessage::TokenExpiring { .. }))) {
                self.shared.token_ends.notify_one();
            }
            let heard = heard.and_then(|message| self.shared.change(|s| s.on_heard(message)));
            match heard {
                // While the agent has no room for the update nothing is read, and that time does not count as silence.
                Ok(Some(update)) => drop(self.updates.send(update).await),
                Ok(None) => {}
                Err(why) => return why,
            }
        }
    }

    async fn write(&self, mut sink: SplitSink<Socket, Message>) -> Ended {
        loop {
            let next = self.shared.state().next_frame();
            let is_all = next.is_none();
            let written = match next {
                Some(text) => sink.feed(Message::Text(text)).await,
                None => sink.flush().await,
            };
            if let Err(error) = written {
                return Ended::Lost(format!("it cannot be written to: {error}"));
            }
            if is_all {
                tokio::select! {
                    // What the agent said last is still sent.
                    biased;
                    () = self.shared.changed.notified() => {}
                    () = self.shared.unwanted.cancelled() => {
                        drop(timeout(CONNECT_TIMEOUT, sink.close()).await);
                        return Ended::Unwanted;
                    }
                }
            }
        }
    }
}

/// No caller waits for ever, however the task ends.
impl Drop for RelayClient {
    fn drop(&mut self) {
        self.shared.change(|state| state.on_end());
    }
}

async fn connect(request: Request<()>) -> Result<Socket, LinkError> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER + FRAME_BYTES_MAX)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    // Frames are written together already: a small one need not wait for the reply to the one before.
    let connecting = connect_async_with_config(request, Some(config), true);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(answer))) if answer.status().is_client_error() => {
            let body = answer.body().as_deref().unwrap_or_default();
            let body: Option<Value> = serde_json::from_slice(body).ok();
            let why = body.as_ref().and_then(|body| body["error"]["message"].as_str());
            let why = why.map_or(answer.status().to_string(), said);
            match answer.status() {
                StatusCode::UNAUTHORIZED => Err(LinkError::Unauthorized(why)),
                _ => Err(LinkError::Refused(why)),
            }
        }
        Ok(Err(error)) => Err(LinkError::unavailable(&error.to_string())),
        Err(_) => Err(LinkError::unavailable("no answer")),
    }
}

/// A text of the relay, or of whatever answers in its place, as it may stand in the program's errors and logs.
fn said(text: &str) -> String {
    // The relay's own messages are shorter.
    protocol::shown(text, 300)
}

/// The next frame; `None` for one that says nothing.
async fn next(stream: &mut SplitStream<Socket>) -> Result<Option<AgentMessage>, String> {
    match stream.next().await {
        None => Err("the relay closed it".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(Message::Text(text))) => match AgentMessage::parse(&text) {
            Ok(Some(AgentMessage::Error { id, error })) => {
                let (code, message) = (said(&error.code).into(), said(&error.message));
                let error = AgentError { code, message, ..error };
                Ok(Some(AgentMessage::Error { id, error }))
            }
            Ok(message) => Ok(message),
            Err(error) => {
                tracing::warn!(error = said(&error), "a frame of the relay cannot be read");
                Ok(None)
            }
        },
        Some(Ok(Message::Close(Some(frame)))) => {
            let (code, reason) = (u16::from(frame.code), said(&frame.reason));
            Err(format!("the relay closed it: {code} {reason}"))
        }
        Some(Ok(_)) => Ok(None),
    }
}
