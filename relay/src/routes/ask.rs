//! HTTP for clients without a socket that ask something of an agent: the bodies are the frames.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::frame::{self, ClientFrame, CorrelationId, Incoming};
use protocol::limits::FRAME_UP_BYTES_MAX;

use super::refuse::{Refused, refused};
use super::{AppState, Caller, body};
use crate::memory::Memory;

/// How long a body may take to arrive: 64 KiB at 64 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// `POST /api/v1/commands`
pub(super) async fn commands(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refused> {
    let (id, frame) = read(&caller, body, "command", &app.memory).await?;
    let accepted = match frame {
        ClientFrame::Command(command) => app.commands.send(&caller.principal, command).await?,
        ClientFrame::Answer(answer) => app.commands.answer(&caller.principal, &answer).await?,
        _ => return Err(wrong_frame("a command or an answer to an approval")),
    };
    Ok(Json(accepted.frame(id.as_deref())).into_response())
}

/// `POST /api/v1/requests`: waits for the reply. Hanging up ends the waiting, and nothing else.
pub(super) async fn requests(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refused> {
    let (id, frame) = read(&caller, body, "request", &app.memory).await?;
    let ClientFrame::Request(request) = frame else { return Err(wrong_frame("a request")) };
    let reply = app.commands.request(&caller.principal, &request, |_| {}).await;
    Ok(match &reply.outcome {
        Ok(_) => Json(reply.frame(id.as_deref())).into_response(),
        Err(failure) => {
            let status = StatusCode::from_u16(failure.http_status());
            refused(status.unwrap_or(StatusCode::BAD_REQUEST), failure.body())
        }
    })
}

async fn read(
    caller: &Caller,
    body: Body,
    default: &'static str,
    memory: &Arc<Memory>,
) -> Result<(Option<CorrelationId>, ClientFrame), Refused> {
    let body = body::read(caller, body, FRAME_UP_BYTES_MAX, BODY_TIMEOUT, memory).await?;
    let Incoming { id, frame, .. } = frame::parse_body(&body, default);
    Ok((id, frame?))
}

fn wrong_frame(wanted: &str) -> Refused {
    Refused::bad(format_args!("this call takes {wanted}: see `type`"))
}
