//! `POST /api/v1/connections/{connection_id}/messages`: an event for one connection, live only.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{ErrorCode, check_data, check_event_name};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::refuse::Refused;
use super::{AppState, Query, authenticate, body};

/// How long a body may take to arrive: 64 KiB at 64 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Message<'a> {
    event: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    connection_id: &'a str,
    event: &'a str,
    ts: u64,
    data: &'a RawValue,
}

#[derive(Serialize)]
struct HandedOver {
    status: &'static str,
}

pub(super) async fn send(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let sent = async {
        let query = Query::of(request.uri())?;
        let principal = authenticate(&app, request.headers(), &query)?;
        let unknown = || Refused::new(ErrorCode::NotFound, "connection not found or not permitted");
        if !principal.grant.may_administer() {
            return Err(unknown());
        }
        let text = body::read(request.into_body(), FRAME_UP_BYTES_MAX, BODY_TIMEOUT).await?;
        let bad = |message: String| Refused::new(ErrorCode::BadRequest, message);
        let message: Message<'_> =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        check_event_name(&message.event).map_err(|error| bad(error.to_string()))?;
        check_data(message.data.get()).map_err(|error| bad(error.to_string()))?;
        let (address, number) = id.rsplit_once('-').ok_or_else(unknown)?;
        let number: u64 = number.parse().map_err(|_| unknown())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (event, data, ts) = (&*message.event, message.data, now.as_millis() as u64);
        let frame = Frame { kind: "event", connection_id: &id, event, ts, data };
        let frame = serde_json::to_string(&frame).map_err(|error| bad(error.to_string()))?;
        let notified = app.commands.notify(address, number, &frame).await;
        let is_heard =
            notified.map_err(|error| Refused::new(ErrorCode::Unavailable, error.to_string()))?;
        if !is_heard {
            return Err(unknown());
        }
        Ok(Json(HandedOver { status: "handed_over" }).into_response())
    };
    sent.await.unwrap_or_else(Refused::into_response)
}
