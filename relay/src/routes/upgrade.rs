//! A WebSocket's beginning and end, the same for browsers and agents: the handshake, and the close frame.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::{CloseCode, ErrorCode};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Utf8Bytes};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::refuse::Refused;
use super::traffic::Traffic;
use super::{AppState, SUBPROTOCOL};
use crate::auth::Unauthorized;
use crate::memory::Memory;
use crate::supervisor::caught;

/// How long a farewell may take: the peer may be gone or not reading.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
/// A close frame has room for so much (RFC 6455 §5.5, less the code).
const REASON_BYTES_MAX: usize = 123;

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that is answered with a WebSocket.
pub(crate) struct Handshake {
    upgraded: OnUpgrade,
    /// Counts the connection's bytes.
    pub(crate) traffic: Arc<Traffic>,
    response: Response,
}

impl Handshake {
    /// Refused as well where no bytes may wait for one more.
    pub(crate) fn of(request: &mut Request<Body>, memory: &Memory) -> Result<Self, Refused> {
        if memory.is_short() {
            return Err(full());
        }
        let accept = accept_key(request.method(), request.headers())?;
        let parts = request.extensions_mut();
        let parts = parts.remove::<OnUpgrade>().zip(parts.remove::<Arc<Traffic>>());
        let (upgraded, traffic) = parts.ok_or_else(|| not_a_websocket("an HTTP/1.1 upgrade"))?;
        let mut response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_ACCEPT, accept);
        if names(request.headers(), SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
            response = response.header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        }
        let response = response.body(Body::empty());
        let response =
            response.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response());
        Ok(Self { upgraded, traffic, response })
    }

    /// The answer to the request, and the socket behind it; `None` where the peer went away first.
    pub(crate) fn accept(
        self,
        config: WebSocketConfig,
    ) -> (Response, impl Future<Output = Option<Socket>> + Send) {
        self.traffic.watch();
        let socket = async move {
            match self.upgraded.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    Some(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
                }
                Err(error) => {
                    tracing::debug!(%error, "a websocket upgrade has failed");
                    None
                }
            }
        };
        (self.response, socket)
    }
}

/// Where too many bytes wait already.
pub(super) fn full() -> Refused {
    let message = "this replica holds as many bytes for its peers as it may: try again in a moment";
    Refused::new(ErrorCode::Unavailable, message)
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
        let refused = not_a_websocket("`Sec-WebSocket-Version: 13`");
        return Err(refused.with_status(StatusCode::UPGRADE_REQUIRED));
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

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed, or the socket broke.
    Gone,
    /// We close.
    Close(CloseCode),
}

impl End {
    /// The close code; none where the peer went.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Gone => None,
            Self::Close(code) => Some(code.number()),
        }
    }

    /// Why, for the log.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "the peer closed it, or it broke",
            Self::Close(code) => code.reason(),
        }
    }
}

impl From<&Error> for End {
    /// What a socket error means to the peer.
    fn from(error: &Error) -> Self {
        match error {
            Error::Capacity(_) => Self::Close(CloseCode::TooLarge),
            Error::Utf8(_) => Self::Close(CloseCode::InvalidText),
            Error::AttackAttempt => Self::Close(CloseCode::Unreadable),
            _ => Self::Gone,
        }
    }
}

/// A panic ends this connection and nothing else.
pub(crate) async fn end_of(conversation: impl Future<Output = End>) -> End {
    let end = caught(conversation).await;
    end.unwrap_or_else(|panic| {
        tracing::error!(panic, "the task of a connection panicked");
        End::Close(CloseCode::InternalError)
    })
}

/// Says why the connection ends.
pub(crate) async fn farewell(end: End, socket: &mut Socket) {
    let farewell = async {
        match end {
            // Answers the peer's own close, or fails at once.
            End::Gone => drop(SinkExt::close(socket).await),
            End::Close(code) => close(code, Utf8Bytes::from_static(code.reason()), socket).await,
        }
    };
    drop(tokio::time::timeout(FAREWELL, farewell).await);
}

/// A page cannot see the status of a refused WebSocket: it is let in, is told why, and is let go. No state, one
/// frame, a second at most.
pub(crate) fn turn_away(
    app: &AppState,
    mut request: Request<Body>,
    why: &Unauthorized,
) -> Result<Response, Refused> {
    let (code, mut reason) = (why.close_code(), why.to_string());
    while reason.len() > REASON_BYTES_MAX {
        reason.pop();
    }
    let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
    let (response, socket) = Handshake::of(&mut request, &app.memory)?.accept(config);
    app.supervisor.run_once(async move {
        let farewell = async {
            if let Some(mut socket) = socket.await {
                close(code, reason.into(), &mut socket).await;
            }
        };
        drop(tokio::time::timeout(FAREWELL, farewell).await);
    });
    Ok(response)
}

/// Closes, and waits for the peer to do the same: what it had sent must not make the system take back the frame.
async fn close(code: CloseCode, reason: Utf8Bytes, socket: &mut Socket) {
    let frame = CloseFrame { code: code.number().into(), reason };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
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
}
