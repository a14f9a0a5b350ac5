//! HTTP for clients without a socket that ask something of an agent: the bodies are the frames.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::ErrorCode;
use protocol::frame::{self, ClientFrame, CorrelationId, Incoming};
use protocol::limits::FRAME_UP_BYTES_MAX;

use super::refuse::{Refused, refused};
use super::{AppState, Query, authenticate, body};
use crate::auth::Principal;

/// How long a body may take to arrive: 64 KiB at 64 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// `POST /api/v1/commands`
pub(super) async fn commands(State(app): State<Arc<AppState>>, request: Request) -> Response {
    let accepted = async {
        let (principal, id, frame) = read(&app, request, "command").await?;
        let accepted = match frame {
            ClientFrame::Command(command) => app.commands.send(&principal, command).await,
            ClientFrame::Answer(answer) => app.commands.answer(&principal, &answer).await,
            _ => return Err(wrong_frame("a command or an answer to an approval")),
        };
        Ok(Json(accepted?.frame(id.as_deref())).into_response())
    };
    accepted.await.unwrap_or_else(Refused::into_response)
}

/// `POST /api/v1/requests`: waits for the reply. Hanging up ends the waiting, and nothing else.
pub(super) async fn requests(State(app): State<Arc<AppState>>, request: Request) -> Response {
    let answered = async {
        let (principal, id, frame) = read(&app, request, "request").await?;
        let ClientFrame::Request(request) = frame else {
            return Err(wrong_frame("a request"));
        };
        let reply = app.commands.request(&principal, &request, |_| {}).await;
        Ok(match &reply.outcome {
            Ok(_) => Json(reply.frame(id.as_deref())).into_response(),
            Err(failure) => {
                let status = StatusCode::from_u16(failure.http_status());
                refused(status.unwrap_or(StatusCode::BAD_REQUEST), failure.body())
            }
        })
    };
    answered.await.unwrap_or_else(Refused::into_response)
}

async fn read(
    app: &AppState,
    request: Request,
    default: &'static str,
) -> Result<(Arc<Principal>, Option<CorrelationId>, ClientFrame), Refused> {
    let query = Query::of(request.uri())?;
    let principal = authenticate(app, request.headers(), &query)?;
    let body = body::read(request.into_body(), FRAME_UP_BYTES_MAX, BODY_TIMEOUT).await?;
    let Incoming { id, frame } = frame::parse_body(&body, default);
    Ok((principal, id, frame?))
}

fn wrong_frame(wanted: &str) -> Refused {
    Refused::new(ErrorCode::BadRequest, format!("this call takes {wanted}: see `type`"))
}
