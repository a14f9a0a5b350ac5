//! A WebSocket's beginning and end, the same for browsers and agents: the handshake, and the close frame.

use axum::body::Body;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{CloseCode, ErrorCode};
use sha1::{Digest, Sha1};

use super::heads::Heads;
use super::refuse::Refused;
use super::traffic::Counted;
use super::{AppState, SUBPROTOCOL};
use crate::auth::Unauthorized;
use crate::memory::Memory;
use crate::supervisor::caught;
use crate::websocket::{End, FAREWELL, Socket};

/// What a server appends to the client's key (RFC 6455 §1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request that is answered with a WebSocket.
pub(crate) struct Handshake {
    upgraded: OnUpgrade,
    response: Response,
}

impl Handshake {
    /// Refused as well where no bytes may wait for one more.
    pub(crate) fn of(request: &mut Request<Body>, memory: &Memory) -> Result<Self, Refused> {
        if memory.is_short() {
            return Err(full());
        }
        let accept = accept_key(request.method(), request.headers())?;
        let upgraded = request.extensions_mut().remove::<OnUpgrade>();
        let upgraded = upgraded.ok_or_else(|| not_a_websocket("an HTTP/1.1 upgrade"))?;
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
        Ok(Self { upgraded, response })
    }

    /// The answer to the request, and the socket behind it, for messages of at most so many bytes; `None` where the
    /// peer went away first.
    pub(crate) fn accept(
        self,
        message_bytes_max: usize,
    ) -> (Response, impl Future<Output = Option<Socket>> + Send) {
        let socket = async move {
            let upgraded = self.upgraded.await;
            let parts = upgraded.map(Upgraded::downcast::<TokioIo<Heads<Counted>>>);
            match parts {
                Ok(Ok(Parts { io, read_buf, .. })) => {
                    let (stream, open) = io.into_inner().into_inner().into_parts();
                    // A copy, mostly of nothing: the HTTP library's buffer of 8 KiB ends here.
                    let unread = Bytes::copy_from_slice(&read_buf);
                    Some(Socket::new(stream, open, unread, message_bytes_max))
                }
                Ok(Err(_)) => {
                    tracing::error!("a websocket upgrade is not on a socket of ours");
                    None
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
    let hash = Sha1::new().chain_update(key?.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    Ok(STANDARD.encode(hash))
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

/// A panic ends this connection and nothing else.
pub(crate) async fn end_of(conversation: impl Future<Output = End>) -> End {
    let end = caught(conversation).await;
    end.unwrap_or_else(|panic| {
        tracing::error!(panic, "the task of a connection panicked");
        End::Close(CloseCode::InternalError)
    })
}

/// A page cannot see the status of a refused WebSocket: it is let in, is told why, and is let go. No state, one
/// frame, a second at most.
pub(crate) fn turn_away(
    app: &AppState,
    mut request: Request<Body>,
    why: &Unauthorized,
) -> Result<Response, Refused> {
    let end = End::CloseFor(why.close_code(), why.to_string());
    let (response, socket) = Handshake::of(&mut request, &app.memory)?.accept(FRAME_UP_BYTES_MAX);
    app.supervisor.run_once(async move {
        if let Ok(Some(socket)) = tokio::time::timeout(FAREWELL, socket).await {
            socket.farewell(&end).await;
        }
    });
    Ok(response)
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
