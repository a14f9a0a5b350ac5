//! `POST /api/v1/connections/{connection_id}/messages`: an event for one connection, live only.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{Object, check_data, check_event_name, json_error};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::refuse::Refused;
use super::{AppState, Caller, body};

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
pub(super) struct HandedOver {
    status: &'static str,
}

pub(super) async fn send(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    caller: Caller,
    body: Body,
) -> Result<Json<HandedOver>, Refused> {
    let unknown = || Refused::not_found("connection");
    if !caller.principal.grant.may_administer() {
        return Err(unknown());
    }
    let text = body::read(&caller, body, FRAME_UP_BYTES_MAX, BODY_TIMEOUT, &app.memory).await?;
    let Object(message): Object<Message<'_>> =
        serde_json::from_str(&text).map_err(|error| Refused::bad(json_error(&error)))?;
    check_event_name(&message.event)?;
    check_data(message.data.get())?;
    let (address, number) = id.rsplit_once('-').ok_or_else(unknown)?;
    let number: u64 = number.parse().map_err(|_| unknown())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (event, data, ts) = (&*message.event, message.data, now.as_millis() as u64);
    let frame = Frame { kind: "event", connection_id: &id, event, ts, data };
    let frame = serde_json::to_string(&frame).map_err(Refused::bad)?;
    match app.commands.notify(address, number, &frame).await? {
        true => Ok(Json(HandedOver { status: "handed_over" })),
        false => Err(unknown()),
    }
}
